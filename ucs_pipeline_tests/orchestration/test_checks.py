"""The checks of a feed on a real table, a real stream and a real Dagster instance: each finds its own accident."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import sqlalchemy
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetEventTagsTable, SqlEventLogStorageTable

from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.number import name_of_ordinal
from ucs_pipeline.clickhouse.client import EmbeddedEngine
from ucs_pipeline.clickhouse.errors import Redact
from ucs_pipeline.clickhouse.source import Source, TableStats
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.entries.resp import bulk
from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.checks.facts import CheckInputs, collect, collect_without_table
from ucs_pipeline.orchestration.checks.finding import CHECKS
from ucs_pipeline.orchestration.checks.findings import findings, not_behind
from ucs_pipeline.orchestration.materializations import contents, recorded
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import Verdict, verify
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, open_source, opened
from ucs_pipeline_tests.support.home import run_bricks, write_table
from ucs_pipeline_tests.support.tables import Table, numbers, source_of

NAMES = [check.name for check in CHECKS]
KEY, STREAM = dg.AssetKey("numbers"), dg.AssetKey(["redis", "numbers"])
# Bricks 0, 1, 2 and 4 have rows; 3 and 5 have none.
IDS: list[int | None] = [*range(25_000), 40_000, 40_001, 40_001]


def _feed(name: str = "numbers", **more: Any) -> Feed:
    settings: dict[str, object] = {"table": "numbers", "key": "n", "bricks": {"class": "number", "last": 59_999}}
    return BrickFeed(name=name, **{**settings, **more})


def _write(home: Path, ids: list[int | None], changed: Mapping[int, str] | None = None) -> None:
    words = [(changed or {}).get(place, f"w{n}") for place, n in enumerate(ids)]
    write_table(home, "numbers", {"n": pa.array(ids, pa.int64()), "word": pa.array(words)})


@pytest.fixture
def home(home: Path) -> Path:
    _write(home, IDS)
    return home


@pytest.fixture
def published(instance: dg.DagsterInstance) -> dg.DagsterInstance:
    """An instance in which every brick of the feed was published."""
    assert run_bricks(build_defs(_feed()), "numbers", instance, 0, 5).success
    return instance


def _check(instance: dg.DagsterInstance, **more: Any) -> dict[str, dg.AssetCheckEvaluation]:
    """One run of the job of the checks, and each result."""
    job = build_defs(_feed(**more)).resolve_job_def("numbers_checks")
    result = job.execute_in_process(instance=instance)
    assert {event.step_key for event in result.all_node_events} == {"_numbers_checks"}
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def _failed(found: Mapping[str, dg.AssetCheckEvaluation]) -> set[str]:
    assert list(found) == NAMES
    return {name for name, evaluation in found.items() if not evaluation.passed}


def _offenders(evaluation: dg.AssetCheckEvaluation) -> list[tuple[Any, ...]]:
    table: Any = evaluation.metadata["offenders"].value
    assert [column.name for column in table.schema.columns] == list(table.records[0].data)
    return [tuple(record.data.values()) for record in table.records]


def _figure(evaluation: dg.AssetCheckEvaluation, name: str) -> Any:
    return evaluation.metadata[name].value


def test_a_finished_feed_passes_every_check_with_figures(published: dg.DagsterInstance) -> None:
    found = _check(published)
    assert _failed(found) == set()
    assert {name: found[name].severity.value for name in NAMES} == {
        "all_rows_arrived": "ERROR",
        "no_gaps": "ERROR",
        "no_late_rows": "WARN",
        "no_unassigned_rows": "WARN",
        "stream_not_behind": "ERROR",
    }
    rows = found["all_rows_arrived"]
    figures = {"bricks_recorded": 6, "rows_recorded": 25_003, "rows_in_table": 25_003, "entries_equal": 25_003}
    assert {name: _figure(rows, name) for name in figures} == figures
    assert rows.description
    assert "feed 'numbers': 6 bricks are materialized with 25,003 rows" in rows.description
    assert all(_figure(evaluation, "offenders_total") == 0 for evaluation in found.values())


def test_a_check_shows_the_feed_at_a_glance(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    assert run_bricks(build_defs(_feed()), "numbers", instance, 0, 1).success
    client = redis_server.client()
    client.xgroup_create("numbers", "workers", id="0")
    client.xreadgroup("workers", "one", {"numbers": ">"}, count=300)
    table: Any = _check(instance)["stream_not_behind"].metadata["overview"].value
    assert [tuple(record.data.values()) for record in table.records] == [
        ("bricks", "2 of 6 done; next: 0.0.0.2"),
        ("rows", "20,000 recorded of 25,003 in the table: 5,003 behind"),
        ("stream", "numbers: 20,000 of 10,000,000 entries (0.2%), last ID 1-10000"),
        ("consumer groups", "workers: 300 pending, 19,700 to come"),
    ]


def test_a_feed_that_has_not_begun_or_is_half_way_passes(instance: dg.DagsterInstance) -> None:
    assert _failed(_check(instance)) == set()
    assert run_bricks(build_defs(_feed()), "numbers", instance, 0, 1).success
    assert _failed(_check(instance)) == set()


def _planned(instance: dg.DagsterInstance, run_id: str) -> int:
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED
    return len(instance.get_records_for_run(run_id, of_type=kind).records)


def test_a_run_that_publishes_says_that_the_stream_has_what_is_recorded_and_looks_at_no_table_for_it(
    instance: dg.DagsterInstance,
) -> None:
    result = run_bricks(build_defs(_feed()), "numbers", instance, 0, 1)
    assert {event.step_key for event in result.all_events if event.is_step_start} == {"numbers"}
    [found] = result.get_asset_check_evaluations()
    assert (found.asset_key, found.check_name, found.passed) == (STREAM, "stream_not_behind", True)
    assert found.description == (
        "feed 'numbers': stream 'numbers' reaches 1-10000. The last recorded entry is 1-10000."
    )
    assert _planned(instance, result.run_id) == 0


def test_a_run_that_publishes_old_bricks_says_that_the_stream_lost_others(
    published: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    redis_server.client().delete("numbers")
    result = run_bricks(build_defs(_feed()), "numbers", published, 0, 1)
    assert result.success
    [found] = result.get_asset_check_evaluations()
    assert not found.passed
    assert "Launch 0.0.0.2...0.0.0.5" in (found.description or "")


def test_a_refused_launch_leaves_the_checks_as_they_were(instance: dg.DagsterInstance) -> None:
    assert run_bricks(build_defs(_feed()), "numbers", instance, 0, 1).success
    assert _failed(_check(instance)) == set()
    refused = run_bricks(build_defs(_feed()), "numbers", instance, 4, 5)
    assert not refused.success
    assert refused.get_asset_check_evaluations() == []
    assert _planned(instance, refused.run_id) == 0
    for name in NAMES:
        [latest] = instance.event_log_storage.get_asset_check_execution_history(dg.AssetCheckKey(STREAM, name), limit=1)
        assert latest.status.value == "SUCCEEDED"
        assert latest.run_id != refused.run_id


def test_an_entry_deleted_from_the_stream_is_named(published: dg.DagsterInstance, redis_server: RedisServer) -> None:
    redis_server.client().xdel("numbers", "1-7", "2-5000")
    found = _check(published)
    assert _failed(found) == {"all_rows_arrived"}
    offenders = _offenders(found["all_rows_arrived"])
    assert offenders[0] == ("0.0.0.1", "entry 1-7 against table", "n=10006, word=w10006", "not in the stream")
    assert [offender[1] for offender in offenders] == [
        "entry 1-7 against table",
        "entry 2-5000 against table",
        "stream against record",
    ]
    assert _figure(found["all_rows_arrived"], "entries_missing") == 2


def test_entries_that_workers_deleted_from_the_middle_are_not_lost(
    published: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    client.xgroup_create("numbers", "workers", "0")
    client.xreadgroup("workers", "one", {"numbers": ">"})
    client.xdel("numbers", "1-7", "2-5000")
    client.xtrim("numbers", minid="0-11", approximate=False)
    found = _check(published)
    assert _failed(found) == set()
    assert _figure(found["all_rows_arrived"], "entries_deleted_by_workers") == 2
    assert _figure(found["all_rows_arrived"], "entries_missing") == 0


def test_an_entry_of_something_else_is_found(published: dg.DagsterInstance, redis_server: RedisServer) -> None:
    redis_server.client().xadd("numbers", {"who": "somebody else"}, id="4-900")
    found = _check(published)
    assert _failed(found) == {"all_rows_arrived"}
    offenders = _offenders(found["all_rows_arrived"])
    assert ("", "stream against table", "25,003 entries", "25,004 entries") in offenders
    assert ("0.0.0.4", "entry 4-900 against table", "no row", "who=somebody else") in offenders
    redis_server.client().xadd("numbers", {"who": "nobody"}, id="99999999-1")
    redis_server.client().xtrim("numbers", maxlen=10, approximate=False)
    found = _check(published)
    assert [offender[:2] for offender in _offenders(found["all_rows_arrived"]) if "against table" in offender[1]] == [
        ("0.0.0.4", "entry 4-900 against table"),
        ("none", "entry 99999999-1 against table"),
        ("", "stream against table"),
    ]


def test_a_row_that_changed_is_named_and_a_late_row_too(published: dg.DagsterInstance, home: Path) -> None:
    _write(home, [*IDS, 40_002], {3: "other"})
    found = _check(published)
    assert _failed(found) == {"all_rows_arrived", "no_late_rows"}
    late = _offenders(found["no_late_rows"])
    assert [offender[:3] for offender in late] == [("0.0.0.0", 10_000, 10_000), ("0.0.0.4", 3, 4)]
    assert all(recorded != table for *_, recorded, table in late)
    assert _figure(found["no_late_rows"], "rows_late") == 1
    arrived = _offenders(found["all_rows_arrived"])
    assert [offender[1] for offender in arrived] == ["table against record"] * 2 + ["entry 0-4 against table"]
    assert arrived[2][2:] == ("n=3, word=other", "n=3, word=w3")


def test_rows_that_went_away_are_found(published: dg.DagsterInstance, home: Path) -> None:
    _write(home, IDS[:-2])
    assert _failed(_check(published)) == {"all_rows_arrived", "no_late_rows"}


def test_a_change_of_what_was_trimmed_is_found_by_its_content(
    published: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    redis_server.client().xtrim("numbers", minid="2-100", approximate=False)
    assert _failed(_check(published)) == set()
    _write(home, IDS, {3: "other"})
    found = _check(published)
    assert _failed(found) == {"all_rows_arrived", "no_late_rows"}
    assert [offender[0] for offender in _offenders(found["all_rows_arrived"])] == ["0.0.0.0"]


def test_rows_in_no_brick_are_counted_by_place(published: dg.DagsterInstance, home: Path) -> None:
    _write(home, [*IDS, None, None, -1, 60_000, 70_000, 80_000])
    found = _check(published)
    assert _failed(found) == {"no_unassigned_rows"}
    assert _offenders(found["no_unassigned_rows"]) == [("null", 2), ("negative", 1), ("beyond", 3)]
    assert _failed(_check(published, where="n IS NOT NULL AND n >= 0 AND n < 60000")) == set()


def test_a_run_deleted_in_the_middle_leaves_a_gap(instance: dg.DagsterInstance) -> None:
    defs = build_defs(_feed())
    runs = [run_bricks(defs, "numbers", instance, *bricks) for bricks in ((0, 0), (1, 2), (3, 5))]
    instance.delete_run(runs[1].run_id)
    found = _check(instance)
    assert _failed(found) == {"no_gaps"}
    assert _offenders(found["no_gaps"]) == [("0.0.0.1", 10_000), ("0.0.0.2", 5_000)]
    assert "Launch 0.0.0.1...0.0.0.2. " in (found["no_gaps"].description or "")
    assert run_bricks(defs, "numbers", instance, 1, 2).success
    assert _failed(_check(instance)) == set()


def test_a_stream_that_was_lost_and_what_to_launch(published: dg.DagsterInstance, redis_server: RedisServer) -> None:
    redis_server.client().delete("numbers")
    found = _check(published)
    assert _failed(found) == {"stream_not_behind"}
    assert [offender[0] for offender in _offenders(found["stream_not_behind"])] == [f"0.0.0.{n}" for n in (0, 1, 2, 4)]
    assert "Launch 0.0.0.0...0.0.0.5," in (found["stream_not_behind"].description or "")
    assert run_bricks(build_defs(_feed()), "numbers", published, 0, 5).success
    assert _failed(_check(published)) == set()


def test_a_stream_that_lost_its_end_and_what_to_launch(
    published: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    _keep(client, "1-5000")
    found = _check(published)
    assert _failed(found) == {"stream_not_behind"}
    assert "ends at 1-5000, and the last recorded entry is 4-3" in (found["stream_not_behind"].description or "")
    assert "Launch 0.0.0.1...0.0.0.5," in (found["stream_not_behind"].description or "")
    assert run_bricks(build_defs(_feed()), "numbers", published, 1, 5).success
    assert _failed(_check(published)) == set()
    assert client.xlen("numbers") == 25_003


def test_a_server_that_is_not_there_fails_the_run_in_one_sentence(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", "redis://127.0.0.1:1")
    job = build_defs(_feed()).resolve_job_def("numbers_checks")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert data.user_failure_data
    assert "Check UCS_REDIS_URL" in (data.user_failure_data.description or "")


# What a finished brick is recorded with


def test_a_brick_s_content_is_recorded_and_read_back(published: dg.DagsterInstance) -> None:
    whole, short = recorded(published, _feed(), range(6)), contents(published, _feed(), range(6))
    assert [whole[ordinal].rows for ordinal in range(6)] == [10_000, 10_000, 5_000, 0, 3, 0]
    for ordinal, report in whole.items():
        assert report.content_hash is not None
        assert (report.rows, report.first_entry, report.last_entry, report.content_hash) == (
            short[ordinal].rows,
            short[ordinal].first_entry,
            short[ordinal].last_entry,
            short[ordinal].content_hash,
        )
    [event] = [
        record.asset_materialization
        for record in published.fetch_materializations(KEY, limit=10).records
        if record.partition_key == "0.0.0.4"
    ]
    assert event
    assert event.metadata["content_hash"].value == f"{whole[4].content_hash:016x}"
    assert event.tags
    assert event.tags["dagster/data_version"] == f"3-{whole[4].content_hash:016x}"
    assert whole[3].content_hash == whole[5].content_hash == 0
    # Publishing again what is there finds the same content.
    assert run_bricks(build_defs(_feed()), "numbers", published, 0, 5).success
    assert contents(published, _feed(), range(6)) == short


def test_records_from_before_there_were_content_hashes_count_by_their_rows(published: dg.DagsterInstance) -> None:
    for ordinal, rows in ((1, 10_000), (2, 4_999)):
        last = f"{ordinal}-{rows}"
        old = dg.AssetMaterialization(
            KEY,
            partition=name_of_ordinal(ordinal),
            metadata={"rows": rows, "first_entry_id": f"{ordinal}-1", "last_entry_id": last},
            tags={"dagster/data_version": f"{rows}-{last}"},
        )
        published.report_runless_asset_event(old)
    assert contents(published, _feed(), range(6))[1].content_hash is None
    found = _check(published)
    assert [offender[:4] for offender in _offenders(found["no_late_rows"])] == [
        ("0.0.0.2", 4_999, 5_000, "not recorded")
    ]


def _xxhash64(data: bytes) -> int:
    """xxHash64 with seed 0, as its specification has it."""
    p1, p2, p3, p4, p5 = (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
    mask = 2**64 - 1

    def left(value: int, bits: int) -> int:
        return ((value << bits) | (value >> (64 - bits))) & mask

    def mixed(lane: int, word: int) -> int:
        return left((lane + word * p2) & mask, 31) * p1 & mask

    place = 0
    if len(data) >= 32:
        lanes = [(p1 + p2) & mask, p2, 0, -p1 & mask]
        while len(data) - place >= 32:
            lanes = [
                mixed(lane, int.from_bytes(data[place + 8 * n : place + 8 * n + 8], "little"))
                for n, lane in enumerate(lanes)
            ]
            place += 32
        found = sum(left(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
        for lane in lanes:
            found = ((found ^ mixed(0, lane)) * p1 + p4) & mask
    else:
        found = p5
    found = (found + len(data)) & mask
    while len(data) - place >= 8:
        found ^= mixed(0, int.from_bytes(data[place : place + 8], "little"))
        found = (left(found, 27) * p1 + p4) & mask
        place += 8
    if len(data) - place >= 4:
        found ^= int.from_bytes(data[place : place + 4], "little") * p1 & mask
        found = (left(found, 23) * p2 + p3) & mask
        place += 4
    for byte in data[place:]:
        found = left(found ^ byte * p5 & mask, 11) * p1 & mask
    found = (found ^ found >> 33) * p2 & mask
    found = (found ^ found >> 29) * p3 & mask
    return found ^ found >> 32


def test_the_content_hash_is_the_sum_of_xxhash64_over_the_entries_in_the_stream(redis_server: RedisServer) -> None:
    assert [_xxhash64(text) for text in (b"", b"a", b"abc")] == [
        0xEF46DB3751D8E999,
        0xD24EC4F1A98C6E5B,
        0x44BC2CF5AD770999,
    ]
    stream = OrderedStream("feed", redis_server.client())
    table = Table(
        "id UInt64, s Nullable(String), f Float64",
        "SELECT number * 3000, if(number % 3 = 0, NULL, repeat('x\\n', number)), number / 7 FROM numbers(20)",
    )
    feed = table.feed(59_999, constants={"c": "d"})
    source = source_of(feed)
    reports = list(publish(feed, source, stream, feed.ordinals, lambda _: {}))
    sums = dict.fromkeys(feed.ordinals, 0)
    for entry_id, fields in stream.entries(EntryId(0, 0), EntryId(99, 0)):
        payload = b"".join(bulk(name) + bulk(value) for name, value in fields.items())
        sums[entry_id.ordinal] = (sums[entry_id.ordinal] + _xxhash64(payload)) % 2**64
    assert len(set(sums.values())) == 6
    assert {report.ordinal: report.content_hash for report in reports} == sums
    assert {ordinal: content.hash for ordinal, content in source.census().bricks.items()} == sums


# Feeds that publish during checks


class _Disturbed(Source):
    """A table during whose scan something else happens, once, after the first rows were read."""

    def __init__(self, source: Source, accident: Any) -> None:
        super().__init__(source.feed, source._engine)
        self._accident = accident

    def scan(self, first: int, last: int) -> Generator[pa.RecordBatch, None, None]:
        for number, batch in enumerate(super().scan(first, last)):
            if number == 1:
                self._accident()
            yield batch


def test_a_stream_that_is_trimmed_during_the_check_raises_no_alarm(
    published: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    stream = OrderedStream("numbers", redis_server.client())
    source = _Disturbed(
        open_source(_feed(settings={"max_block_size": 2000})),
        lambda: stream.client.xtrim("numbers", minid="2-3", approximate=False),
    )
    facts = collect(source.feed, source, stream, published, held_only=True)
    assert all(finding.passed for finding in findings(facts))
    assert facts.verdict.trimmed > 0
    assert facts.verdict.extra is None
    assert facts.verdict.end.length == facts.expected_length == 5_001


def test_a_stream_that_is_published_during_the_check_raises_no_alarm(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    defs = build_defs(_feed())
    assert run_bricks(defs, "numbers", instance, 0, 1).success
    stream = OrderedStream("numbers", redis_server.client())
    source = _Disturbed(
        open_source(_feed(settings={"max_block_size": 2000})),
        lambda: run_bricks(defs, "numbers", instance, 2, 4),
    )
    facts = collect(source.feed, source, stream, instance, held_only=True)
    assert all(finding.passed for finding in findings(facts))
    assert (facts.verdict.equal, facts.verdict.unpublished, facts.expected_length) == (20_000, 0, None)
    assert stream.state().length == 25_003


def test_a_brick_that_is_half_published_raises_no_alarm(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    defs, client = build_defs(_feed()), redis_server.client()
    assert run_bricks(defs, "numbers", instance, 0, 0).success
    second = run_bricks(defs, "numbers", instance, 1, 5)
    instance.delete_run(second.run_id)
    _keep(client, "1-5000")
    assert _failed(_check(instance)) == set()
    feed = _feed()
    verdict = verify(feed, open_source(feed), OrderedStream("numbers", client))
    assert (verdict.agrees, verdict.equal, verdict.missing, verdict.unpublished) == (False, 15_000, 0, 10_003)


def _keep(client: Any, last: str) -> None:
    """Takes the stream back to what it was when it ended at an entry, as a server that lost its latest writes would."""
    kept = client.xrange("numbers", "-", last)
    client.delete("numbers")
    with client.pipeline(transaction=False) as pipeline:
        for entry_id, fields in kept:
            pipeline.xadd("numbers", fields, id=entry_id)
        pipeline.execute()


# Cost


class _Counted(EmbeddedEngine):
    """The embedded engine, which remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[str] = []

    def rows(self, query: str, parameters: Mapping[str, int], hide: Redact) -> list[dict[str, Any]]:
        self.queries.append(query)
        return super().rows(query, parameters, hide)

    def batches(self, query: str, parameters: Mapping[str, int], hide: Redact) -> Generator[pa.RecordBatch, None, None]:
        self.queries.append(query)
        return super().batches(query, parameters, hide)


def test_the_table_is_read_by_one_aggregate_query_and_only_what_the_stream_holds_is_scanned(
    published: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    feed, engine = _feed(), _Counted()
    source, stream = Source(feed, engine), OrderedStream("numbers", client)
    client.xtrim("numbers", minid="2-4001", approximate=False)
    facts = collect(feed, source, stream, published, held_only=True)
    assert all(finding.passed for finding in findings(facts))
    assert facts.verdict.rows == 5_003
    assert sum("sumWithOverflow" in query for query in engine.queries) == 1
    client.xtrim("numbers", maxlen=0)
    engine.queries.clear()
    assert all(finding.passed for finding in findings(collect(feed, source, stream, published, held_only=True)))
    assert len(engine.queries) == 1


def _record_all(instance: dg.DagsterInstance, feed: Feed, versions: Mapping[int, str]) -> None:
    """Records bricks as done as Dagster would, but all at once: events that differ in their bricks only."""
    instance.report_runless_asset_event(dg.AssetMaterialization(feed.name, partition="none"))
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    events, tags = SqlEventLogStorageTable, AssetEventTagsTable
    with storage.index_connection() as connection:
        [model] = connection.execute(sqlalchemy.select(events).where(events.c.partition == "none")).mappings()
        copies = [{**model, "id": model["id"] + n, "partition": name_of_ordinal(o)} for n, o in enumerate(versions, 1)]
        connection.execute(events.insert(), copies)
        connection.execute(
            tags.insert(),
            [
                {"event_id": copy["id"], "asset_key": model["asset_key"], "key": "dagster/data_version", "value": text}
                for copy, text in zip(copies, versions.values(), strict=True)
            ],
        )


@pytest.fixture
def large(home: Path, instance: dg.DagsterInstance, redis_server: RedisServer) -> tuple[Source, OrderedStream]:
    """A feed of 100,000 bricks of one row each, all published and recorded."""
    ids = [n * 10_000 for n in range(100_000)]
    write_table(home, "large", {"n": pa.array(ids)})
    feed = BrickFeed(name="large", table="large", key="n", bricks={"class": "number", "last": 999_999_999})
    source, stream = open_source(feed), OrderedStream("large", redis_server.client())
    found = source.census()
    assert len(found.bricks) == 100_000
    with stream.client.pipeline(transaction=False) as pipeline:
        for ordinal, key in enumerate(ids):
            pipeline.xadd("large", {"n": key}, id=f"{ordinal}-1")
        pipeline.execute()
    _record_all(instance, feed, {o: f"{c.rows}-{c.hash:016x}" for o, c in found.bricks.items()})
    return source, stream


def test_the_checks_are_correct_at_100_000_bricks(
    large: tuple[Source, OrderedStream], instance: dg.DagsterInstance
) -> None:
    source, stream = large
    facts = collect(source.feed, source, stream, instance, held_only=True)
    assert len(facts.records) == facts.verdict.equal == 100_000
    assert all(finding.passed for finding in findings(facts))
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        events = SqlEventLogStorageTable
        connection.execute(events.delete().where(events.c.partition == "0.0.54.321"))
    stream.client.xdel("large", "77777-1", "99999-1")
    found = {f.check.name: f for f in findings(collect(source.feed, source, stream, instance, held_only=True))}
    assert {name for name, finding in found.items() if not finding.passed} == {"no_gaps", "all_rows_arrived"}
    assert found["no_gaps"].offenders == [("0.0.54.321", 1)]
    assert [offender[0] for offender in found["all_rows_arrived"].offenders] == ["0.0.77.777", "0.0.99.999", ""]
    late = CheckInputs(facts.feed, facts.records, facts.verdict, facts.census._replace(bricks={}))
    [_, _, finding, *_] = findings(late)
    assert len(finding.offenders) == 100_000
    assert "0.0.0.0...0.0.99.999" in finding.sentence


@pytest.mark.parametrize("reaches", [2_499, 2_000, 999, 0, None])
def test_what_a_run_checks_of_many_bricks_is_what_the_whole_record_shows(
    instance: dg.DagsterInstance, redis_server: RedisServer, reaches: int | None
) -> None:
    """`reaches`: the last brick in the stream, of 2,500 recorded and 3,000 in all; None without a stream."""
    feed = BrickFeed(name="large", table="large", key="n", bricks={"class": "number", "last": 29_999_999})
    # The last three have no rows.
    _record_all(instance, feed, {n: f"{int(n < 2_497)}-{n:016x}" for n in range(2_500)})
    stream = OrderedStream("large", redis_server.client())
    if reaches is not None:
        stream.client.xadd("large", {"n": 0}, id=f"{reaches}-1")
    facts = collect_without_table(feed, instance, opened())
    state = stream.state()
    everything = contents(instance, feed, feed.partitions.starts)
    assert len(everything) == 2_500
    assert not_behind(facts) == not_behind(CheckInputs(feed, everything, Verdict(state, state), TableStats({}, {})))
    lost = 0 if reaches == 2_499 else 2_496 - (-1 if reaches is None else reaches)
    assert not_behind(facts).figures["bricks_lost"] == lost
    assert len(facts.records) == (1_000 if lost < 997 else 2_500)


def test_a_check_shows_a_hundred_offenders_and_counts_all(published: dg.DagsterInstance, home: Path) -> None:
    _write(home, IDS, dict.fromkeys(range(20_000), "other"))
    rows = _check(published)["all_rows_arrived"]
    assert len(_offenders(rows)) == 100
    assert _figure(rows, "offenders_total") == 20_002


# Definitions


def test_a_feed_brings_its_checks_their_job_and_the_schedule_it_asks_for() -> None:
    defs = build_defs(_feed("a"), _feed("b", check_schedule="30 5 * * *"))
    dg.Definitions.validate_loadable(defs)
    keys = defs.resolve_asset_graph().asset_check_keys
    assert {(key.asset_key.to_user_string(), key.name) for key in keys} == {
        (f"redis/{feed}", name) for feed in "ab" for name in NAMES
    }
    [schedule] = defs.schedules or ()
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.job_name, schedule.cron_schedule) == ("b_checks", "30 5 * * *")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


@pytest.mark.parametrize("schedule", ["", "daily", "* * * *", "61 * * * *", "* * * * * *"])
def test_a_schedule_that_is_no_cron_text_is_refused(schedule: str) -> None:
    with pytest.raises(FeedError, match=r"feed 'numbers': check_schedule '.*' is not a cron schedule. Give minute"):
        _feed(check_schedule=schedule)


def test_a_feed_may_not_have_the_name_of_another_one_s_job() -> None:
    with pytest.raises(FeedError, match="feed 'a_checks' has the name of the job that runs the checks of feed 'a'"):
        build_defs(_feed("a"), _feed("a_checks"))
    dg.Definitions.validate_loadable(build_defs(_feed("a"), _feed("a__checks"), _feed("a_checks2")))


# Engines that merge rows


@pytest.mark.parametrize(
    ("engine", "final", "warned"),
    [
        ("MergeTree", False, False),
        ("ReplacingMergeTree", False, True),
        ("ReplacingMergeTree", True, False),
        ("SummingMergeTree", False, True),
        ("AggregatingMergeTree", False, True),
        ("CollapsingMergeTree(sign)", False, True),
        ("VersionedCollapsingMergeTree(sign, version)", False, True),
    ],
)
def test_a_table_that_merges_rows_is_warned_of_unless_read_with_final(engine: str, final: bool, warned: bool) -> None:
    table = Table("id UInt64, sign Int8, version UInt8", "VALUES (1, 1, 1)", order_by="id", engine=engine)
    source = source_of(table.feed(9_999, final=final))
    assert source.engine() == engine.split("(")[0]
    warning = source.warning() or ""
    assert bool(warning) == warned
    assert not warned or warning.startswith(f"feed 'feed': table '{table.name}' is a {engine.split('(')[0]} read with")


_BEHIND = (
    "VIEW {0}_view AS SELECT * FROM {0}",
    "VIEW {0}_over_view AS SELECT * FROM {0}_view",
    "VIEW {0}_final_view AS SELECT * FROM {0} FINAL",
    "VIEW {0}_grouped_view AS SELECT id, max(v) AS v FROM {0} GROUP BY id",
    "MATERIALIZED VIEW {0}_target TO {0} AS SELECT * FROM {0}",
    "TABLE {0}_merge AS {0} ENGINE = Merge(currentDatabase(), '^{0}$')",
    "TABLE {0}_buffer AS {0} ENGINE = Buffer(currentDatabase(), {0}, 1, 9, 9, 9, 9, 9999, 9999)",
)


@pytest.mark.parametrize(
    ("table", "final", "said"),
    [
        ("{}_view", False, "reads default.{}, a ReplacingMergeTree, without FINAL"),
        ("{}_view", True, "Write FINAL into the query of the view"),
        ("{}_over_view", True, "Write FINAL into the query of the view"),
        ("{}_final_view", False, None),
        ("{}_grouped_view", False, None),
        ("{}_target", False, "Set `final: true`"),
        ("{}_target", True, None),
        ("{}_merge", False, "Set `final: true`"),
        ("{}_merge", True, None),
        ("{}_buffer", False, "Set `final: true`"),
        ("{}_buffer", True, "Rows in the buffer are read in addition to their versions"),
        ("merge('default', '^{}$')", False, "Set `final: true`"),
        ("view(SELECT * FROM {})", False, "Write FINAL into the query of the view"),
        ("`{}`", False, "Set `final: true`"),
    ],
)
def test_a_table_that_merges_rows_is_warned_of_behind_a_view_or_another_table_too(
    table: str, final: bool, said: str | None, replacing: Table
) -> None:
    feed = replacing.feed(9_999, final=final).model_copy(update={"table": table.format(replacing.name)})
    warning = source_of(feed).warning()
    assert (said is None) == (warning is None)
    assert (said or "").format(replacing.name) in (warning or "")


@pytest.fixture(scope="module")
def replacing() -> Table:
    """A table with two versions of each row, and some that read from it."""
    made = Table("id UInt64, v UInt8", "VALUES (1, 1), (2, 1)", order_by="id", engine="ReplacingMergeTree")
    made.run(f"SYSTEM STOP MERGES {made.name}")
    made.run(f"INSERT INTO {made.name} VALUES (1, 2), (2, 2)")
    for query in _BEHIND:
        made.run(f"CREATE {query.format(made.name)}")
    return made


@pytest.mark.parametrize("table", ["numbers(3)", "`numbers`", "nowhere", "no.where", "a.b.c", "it's"])
def test_the_engine_of_what_is_no_plain_table_is_unknown(table: str) -> None:
    feed = numbers(1).feed(9_999)
    source = source_of(feed.model_copy(update={"table": table}))
    assert source.engine() is None
    assert source.warning() is None


def test_the_warning_stands_beside_the_check_that_it_explains(
    published: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "engine", lambda _: "ReplacingMergeTree")
    found = _check(published)
    assert "read without FINAL" in _figure(found["no_late_rows"], "warning")
    assert "warning" not in found["no_gaps"].metadata
