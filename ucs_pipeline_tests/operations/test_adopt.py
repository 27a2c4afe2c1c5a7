"""Bricks that another program has published are taken over, and publishing continues after them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.number import name_of_ordinal
from ucs_pipeline.cli.demo_data import ROWS
from ucs_pipeline.clickhouse.source import Source, TableStats
from ucs_pipeline.errors import StreamError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.settings import Stream
from ucs_pipeline.operations import adopt as adopt_module
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.orchestration.checks.facts import collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, open_source, open_stream
from ucs_pipeline_tests.support.home import make_home, run_bricks, run_ucs, write_table

FEED = BrickFeed(name="numbers", table="numbers", key="n", bricks={"class": "number", "last": 59_999})
# Bricks 0, 1, 2 and 4 have rows; 3 and 5 have none.
IDS = [*range(25_000), 40_000, 40_001, 40_001]
END = 2**64 - 1


@pytest.fixture
def home(home: Path) -> Path:
    _write(home, IDS)
    return home


@pytest.fixture(params=["PooledSqliteEventLogStorage", None], ids=["pooled", "stock"])
def instance(home: Path, request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    storage = {
        "module": "ucs_pipeline.instance.event_log",
        "class": request.param,
        "config": {"base_dir": "history/runs"},
    }
    overrides = {"event_log_storage": storage} if request.param else None
    with dg.instance_for_test(temp_dir=str(home), overrides=overrides) as found:
        yield found


def _write(home: Path, ids: list[int]) -> None:
    write_table(home, "numbers", {"n": pa.array(ids), "word": pa.array([f"w{n}" for n in ids])})


def _stream(redis_server: RedisServer) -> OrderedStream:
    return OrderedStream("numbers", redis_server.client())


def _adopt(last: int, redis_server: RedisServer, instance: dg.DagsterInstance, **more: Any) -> adopt_module.Adoption:
    stream = _stream(redis_server)
    return adopt(FEED, name_of_ordinal(last), more.pop("source", open_source(FEED)), stream, instance, **more)


def _publish(first: int, last: int, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return run_bricks(build_defs(FEED), "numbers", instance, first, last)


def _events(instance: dg.DagsterInstance) -> dict[str | None, dict[str, Any]]:
    """Metadata of the latest event of every brick, by name; without the columns, which only runs record."""
    records = instance.fetch_materializations(dg.AssetKey("numbers"), limit=1000, ascending=True).records
    events = [record.asset_materialization for record in records if record.asset_materialization]
    columns = ("dagster/column_schema", "dagster/column_lineage")
    return {
        event.partition: {name: value.value for name, value in event.metadata.items() if name not in columns}
        for event in events
    }


def _failed_checks(redis_server: RedisServer, instance: dg.DagsterInstance) -> list[str]:
    facts = collect(FEED, open_source(FEED), _stream(redis_server), instance, held_only=False)
    return [finding.check.name for finding in findings(facts) if not finding.passed]


def _ids(redis_server: RedisServer) -> list[str]:
    return [entry_id.decode() for entry_id, _ in redis_server.client().xrange("numbers")]


class _Counting(Source):
    """A source that counts how often the whole table is asked for."""

    asked = 0

    def census(self) -> TableStats:
        self.asked += 1
        return super().census()


def _counting() -> _Counting:
    return _Counting(FEED, open_source(FEED)._engine)


def test_adopted_bricks_are_done_with_what_the_table_holds(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    seen: list[int] = []
    found = _adopt(3, redis_server, instance, progress=seen.append)
    assert found == (4, 25_000, 0, (3, END))
    assert seen == [0, 4]
    assert instance.get_materialized_partitions(dg.AssetKey("numbers")) == {f"0.0.0.{n}" for n in range(4)}
    events = _events(instance)
    assert [event["dagster/partition_row_count"] for event in events.values()] == [10_000, 10_000, 5_000, 0]
    assert all((event["note"], event["published"]) == ("adopted", 0) for event in events.values())
    assert not any("first_entry_id" in event for event in events.values())
    assert [event.get("last_entry_id") for event in events.values()] == [None, None, None, f"3-{END}"]
    state = _stream(redis_server).state()
    assert (state.exists, state.top, state.length) == (True, (3, END), 0)
    assert redis_server.client().xinfo_groups("numbers") == []


def test_the_record_is_what_publishing_would_have_written(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    _adopt(1, redis_server, instance)
    [adopted] = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("numbers"), asset_partitions=["0.0.0.1"]), limit=1
    ).records
    redis_server.client().delete("numbers")
    instance.wipe_assets([dg.AssetKey("numbers")])
    assert _publish(0, 1, instance).success
    [published] = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("numbers"), asset_partitions=["0.0.0.1"]), limit=1
    ).records
    assert adopted.asset_materialization
    assert published.asset_materialization
    assert adopted.asset_materialization.tags == published.asset_materialization.tags
    assert adopted.run_id == ""


@pytest.mark.parametrize("last", [0, 2, 3], ids=["first", "with rows", "empty"])
def test_publishing_goes_on_after_the_adopted_brick(
    instance: dg.DagsterInstance, redis_server: RedisServer, last: int
) -> None:
    _adopt(last, redis_server, instance)
    assert _publish(last + 1, 5, instance).success
    rows = {1: 10_000, 2: 5_000, 4: 3}
    expected = [f"{brick}-{row + 1}" for brick in rows if brick > last for row in range(rows[brick])]
    assert _ids(redis_server) == expected
    assert _failed_checks(redis_server, instance) == []
    verdict = collect(FEED, open_source(FEED), _stream(redis_server), instance, held_only=False).verdict
    assert verdict.agrees
    assert (verdict.equal, verdict.trimmed) == (len(expected), 25_003 - len(expected))
    assert _events(instance)["0.0.0.4"]["published"] == 3


def test_checks_pass_before_anything_is_published(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    _adopt(2, redis_server, instance)
    assert _failed_checks(redis_server, instance) == []


def test_launching_adopted_bricks_changes_nothing(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    _adopt(2, redis_server, instance)
    before = _events(instance)
    for first, last in ((0, 2), (2, 2), (1, 1)):
        assert _publish(first, last, instance).success
        assert _events(instance) == before
        assert _stream(redis_server).state().top == (2, END)
    # A range that begins with adopted bricks continues to the others.
    assert _publish(0, 5, instance).success
    assert _ids(redis_server) == ["4-1", "4-2", "4-3"]
    assert _failed_checks(redis_server, instance) == []


def test_a_brick_beyond_the_next_one_is_refused(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    _adopt(1, redis_server, instance)
    assert not _publish(4, 4, instance).success
    assert _ids(redis_server) == []


def test_every_brick_of_a_feed_may_be_adopted(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    _adopt(5, redis_server, instance)
    assert _publish(0, 5, instance).success
    assert _ids(redis_server) == []
    assert _failed_checks(redis_server, instance) == []


def test_rows_that_come_to_an_adopted_brick_are_noticed(
    home: Path, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    _adopt(2, redis_server, instance)
    _write(home, [*IDS, 24_999])
    assert "no_late_rows" in _failed_checks(redis_server, instance)


def test_an_interrupted_adoption_goes_on(
    instance: dg.DagsterInstance, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt_module, "_BATCH", 2)

    def interrupt(recorded: int) -> None:
        if recorded == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _adopt(4, redis_server, instance, progress=interrupt)
    assert not redis_server.client().exists("numbers")
    assert _adopt(4, redis_server, instance) == (3, 3 + 5_000, 2, (4, END))
    assert len(instance.fetch_materializations(dg.AssetKey("numbers"), limit=100).records) == 5
    assert _failed_checks(redis_server, instance) == []


def test_adopting_again_restores_a_lost_stream_without_reading_the_table(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    _adopt(2, redis_server, instance)
    assert _publish(3, 5, instance).success
    redis_server.client().flushall()
    source = _counting()
    assert _adopt(2, redis_server, instance, source=source) == (0, 0, 3, (2, END))
    assert source.asked == 0
    assert _adopt(2, redis_server, instance, source=source) == (0, 0, 3, (2, END))
    # What had been published is published again; what was adopted is not.
    assert _publish(3, 5, instance).success
    assert _ids(redis_server) == ["4-1", "4-2", "4-3"]
    assert _failed_checks(redis_server, instance) == []


@pytest.mark.parametrize(("first", "last"), [(0, 5), (2, 2), (1, 3)])
def test_adopted_bricks_are_not_published_when_the_stream_was_lost(
    instance: dg.DagsterInstance, redis_server: RedisServer, first: int, last: int
) -> None:
    _adopt(2, redis_server, instance)
    redis_server.client().delete("numbers")
    result = _publish(first, last, instance)
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data
    assert f"brick 0.0.0.{first} was adopted" in str(failure.user_failure_data.description)
    assert "Run `ucs adopt numbers <last adopted brick>` again" in str(failure.user_failure_data.description)
    assert not redis_server.client().exists("numbers")


def test_adopted_bricks_behind_others_are_not_published_either(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    assert _publish(0, 0, instance).success
    redis_server.client().delete("numbers")
    _adopt(2, redis_server, instance)
    redis_server.client().delete("numbers")
    assert not _publish(0, 3, instance).success
    assert not redis_server.client().exists("numbers")


def test_a_brick_that_was_published_before_its_stream_was_lost_can_be_adopted(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    assert _publish(0, 2, instance).success
    redis_server.client().flushall()
    # Only the last one is recorded again: it is the end of the adopted part now.
    assert _adopt(2, redis_server, instance) == (1, 5_000, 2, (2, END))
    assert _publish(0, 5, instance).success
    assert _ids(redis_server) == ["4-1", "4-2", "4-3"]
    assert _failed_checks(redis_server, instance) == []


def test_a_stream_in_use_is_refused(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    client = redis_server.client()
    client.xadd("numbers", {"n": 1}, "0-7")
    sentence = r"is in use: its last ID is 0-7, and it holds 1 entry.* Choose another `stream.name`"
    with pytest.raises(StreamError, match=sentence):
        _adopt(2, redis_server, instance)
    client.xtrim("numbers", maxlen=0, approximate=False)
    with pytest.raises(StreamError, match="its last ID is 0-7"):
        _adopt(2, redis_server, instance)
    client.delete("numbers")
    _adopt(2, redis_server, instance)
    for other in (1, 3):
        with pytest.raises(StreamError, match=f"its last ID is 2-{END}"):
            _adopt(other, redis_server, instance)
    assert len(_events(instance)) == 3
    client.delete("numbers")
    client.set("numbers", "a string")
    with pytest.raises(StreamError, match="the key holds another type"):
        _adopt(2, redis_server, instance)


def test_a_redis_without_xsetid_is_refused_by_its_name(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    (tmp_path / "redis.conf").write_text('rename-command XSETID ""\n')
    with (
        RedisServer(tmp_path, arguments=[str(tmp_path / "redis.conf")]) as server,
        pytest.raises(StreamError, match=r"does not have the command XSETID\. Use a server that has it"),
    ):
        _adopt(1, server, instance)


def test_a_stream_that_is_begun_meanwhile_is_left_alone(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    with pytest.raises(StreamError, match="its last ID is 0-"):
        _adopt(2, redis_server, instance, progress=lambda _: client.xadd("numbers", {"n": 0}, "0-*"))
    assert _stream(redis_server).state().top.ordinal == 0


OFFSET = 10**13
BEFORE = BrickFeed(
    name="numbers", table="numbers", key="n", bricks={"class": "number", "last": 59_999}, stream={"id_offset": OFFSET}
)
"""The feed on the stream that a script wrote to before."""


def _script(redis_server: RedisServer, ids: list[int], word: str = "w{}") -> None:
    """What a script has written that pushed rows as they are, with the ids that Redis gives."""
    with redis_server.client().pipeline(transaction=False) as pipe:
        for n in ids:
            pipe.xadd("numbers", {"n": n, "word": word.format(n)})
        pipe.execute()


def _take_over(
    last: str, redis_server: RedisServer, instance: dg.DagsterInstance, feed: Feed = BEFORE, **more: Any
) -> adopt_module.Adoption:
    return adopt(feed, last, open_source(feed), open_stream(feed, redis_server.client()), instance, **more)


def _words(redis_server: RedisServer) -> list[bytes]:
    return [fields[b"n"] for _, fields in redis_server.client().xrange("numbers")]


def test_half_a_brick_that_a_killed_script_left_is_gone_on_with_at_the_exact_row(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    # Of brick 1, 5,000 rows.
    _script(redis_server, IDS[:15_000])
    found = _take_over("0.0.0.0", redis_server, instance)
    assert found == (1, 10_000, 0, (OFFSET + 1, 5_000))
    assert _take_over("0.0.0.0", redis_server, instance) == (0, 0, 1, found.top)
    defs = build_defs(BEFORE)
    for first, last in ((1, 1), (2, 5)):
        assert run_bricks(defs, "numbers", instance, first, last).success
    # Every row once, in order.
    assert _words(redis_server) == [str(n).encode() for n in IDS]
    assert redis_server.client().xrange("numbers", OFFSET, count=1)[0][0] == b"%d-5001" % (OFFSET + 1)
    assert _events(instance)["0.0.0.1"]["published"] == 5_000
    facts = collect(BEFORE, open_source(BEFORE), open_stream(BEFORE, redis_server.client()), instance, held_only=False)
    assert facts.verdict.agrees
    assert (facts.verdict.trimmed, facts.verdict.equal) == (15_000, 10_003)
    assert [finding.sentence for finding in findings(facts) if not finding.passed] == []


def test_the_row_in_the_middle_of_a_brick_is_known_when_the_stream_was_lost(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    _script(redis_server, IDS[:15_000])
    top = _take_over("0.0.0.0", redis_server, instance).top
    redis_server.client().flushall()
    assert not run_bricks(build_defs(BEFORE), "numbers", instance, 0, 1).success
    assert not run_bricks(build_defs(BEFORE), "numbers", instance, 1, 1).success
    assert _take_over("0.0.0.0", redis_server, instance) == (0, 0, 1, top)
    assert run_bricks(build_defs(BEFORE), "numbers", instance, 1, 5).success
    assert _words(redis_server) == [str(n).encode() for n in IDS[15_000:]]


def test_entries_that_are_the_adopted_rows_leave_nothing_to_say(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    _script(redis_server, IDS[:20_000])
    # Consumers have trimmed: what the stream ever had counts.
    if redis_server.client().xinfo_stream("numbers").get("entries-added"):
        redis_server.client().xtrim("numbers", maxlen=7, approximate=False)
    assert _take_over("0.0.0.1", redis_server, instance).top == (OFFSET + 1, END)


@pytest.mark.parametrize(
    ("entries", "word", "last", "found", "do"),
    [
        (25_000, "w{}", "0.0.0.0", "had 25,000 entries .* up to 0.0.0.0 have 10,000 rows", "there, adopt 0.0.0.2."),
        (24_999, "w{}", "0.0.0.0", "end with row 4,999 of brick 0.0.0.2", "`ucs adopt numbers 0.0.0.1 --rows 4999`"),
        (15_000, "w{}", "0.0.0.2", "had 15,000 entries", "`ucs adopt numbers 0.0.0.0 --rows 5000`"),
        (5_000, "w{}", "0.0.0.2", "end in brick 0.0.0.0, the first one", "`--rows 0`"),
        (15_000, "W{}", "0.0.0.0", "are not the first 5,000 rows of brick 0.0.0.1", "adopt with `--rows 5000`"),
        (25_004, "w{}", "0.0.0.0", "bricks of the feed together have 25,003 rows", "`--rows 0`"),
    ],
    ids=["more bricks", "more and a half", "fewer", "less than one", "in another form", "all"],
)
def test_entries_that_are_not_the_adopted_rows_are_refused_with_where_they_end(
    instance: dg.DagsterInstance, redis_server: RedisServer, entries: int, word: str, last: str, found: str, do: str
) -> None:
    _script(redis_server, [*IDS, 50_000][:entries], word)
    with pytest.raises(StreamError, match=found.replace(".", "[.]").replace("[.]*", ".*")) as refused:
        _take_over(last, redis_server, instance)
    assert do in str(refused.value)
    assert _events(instance) == {}
    assert redis_server.client().xlen("numbers") == entries


def test_a_person_may_say_how_many_rows_of_the_next_brick_were_handled(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    _script(redis_server, IDS[:15_000], "W{}")
    assert _take_over("0.0.0.0", redis_server, instance, rows=5_000).top == (OFFSET + 1, 5_000)
    redis_server.client().delete("numbers")
    assert _take_over("0.0.0.0", redis_server, instance, rows=0) == (1, 10_000, 0, (OFFSET, END))
    # A new stream, which has nothing to compare.
    redis_server.client().delete("numbers")
    assert _take_over("0.0.0.0", redis_server, instance, FEED, rows=7).top == (1, 7)
    assert run_bricks(build_defs(FEED), "numbers", instance, 1, 1).success
    assert (_ids(redis_server)[0], len(_ids(redis_server))) == ("1-8", 9_993)
    with pytest.raises(UcsError, match=r"0\.0\.0\.2 has 5,000 rows in the table, and `--rows 5000` is not less"):
        _take_over("0.0.0.1", redis_server, instance, FEED, rows=5_000)
    with pytest.raises(UcsError, match=r"0\.0\.0\.5 is its last brick"):
        _take_over("0.0.0.5", redis_server, instance, FEED, rows=1)


def test_half_a_block_is_gone_on_with_in_the_middle_of_one_of_its_bricks(
    home: Path, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    bricks = {"class": "number", "last": 5_999, "level": "block", "width": 1}
    feed = BrickFeed(name="numbers", table="numbers", key="n", bricks=bricks, stream={"id_offset": OFFSET})
    ids = sorted([*range(3_000), *range(1_500, 1_510)])
    _write(home, ids)
    # Two rows a brick there, and the second one of the last brick is missing.
    _script(redis_server, ids[: 1_506 + 5])
    assert ids[1_506 + 5] == ids[1_506 + 4]
    assert _take_over("0.0.0", redis_server, instance, feed).top == (OFFSET + ids[1_506 + 4], 1)
    assert run_bricks(build_defs(feed), "numbers", instance, "0.0.1", "0.0.2").success
    assert _words(redis_server) == [str(n).encode() for n in ids]
    with pytest.raises(UcsError, match=r"brick 0\.0\.1\.7 is inside block 0\.0\.1.* Name the block before it"):
        _take_over("1007", redis_server, instance, feed)


def test_the_plain_number_that_a_script_kept_names_the_brick(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    assert _take_over("2", redis_server, instance).top == (OFFSET + 2, END)
    assert _take_over("3", redis_server, instance, FEED.model_copy(update={"stream": Stream(name="other")})).top == (
        3,
        END,
    )
    with pytest.raises(UcsError, match=r"has no brick 0\.0\.0\.6\. Its bricks are"):
        _take_over("6", redis_server, instance)


def test_a_brick_off_the_list_is_refused(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    with pytest.raises(
        UcsError, match=r"feed 'numbers' has no brick 0\.0\.0\.6\. Its bricks are 0\.0\.0\.0 to 0\.0\.0\.5"
    ):
        _adopt(6, redis_server, instance)


def test_the_command_adopts_and_the_demo_publishes_the_rest(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ucs_pipeline_tests.support.tables import write_flights

    monkeypatch.delenv("UCS_CLICKHOUSE_URL", raising=False)
    home = make_home(tmp_path)
    write_flights(home / ".ucs" / "tables")
    urls = {"UCS_REDIS_URL": redis_server.url}
    code, output = run_ucs("adopt", "flights", "0.0.0.29", home=home, **urls)
    assert code == 0, output
    assert (
        f"recorded 30 bricks with 300,000 rows (0 recorded before); stream 'flights' continues after 29-{END}" in output
    )
    code, output = run_ucs("demo", home=home, **urls)
    assert code == 0, output
    assert "publishing 0.0.0.30...0.0.0.33" in output
    assert "table and stream agree" in output
    assert redis_server.client().xlen("flights") == ROWS - 300_000
    code, output = run_ucs("verify", "flights", home=home, **urls)
    assert code == 0, output
    code, output = run_ucs("adopt", "flights", "0.0.0.29", home=home, **urls)
    assert code == 2
    assert output.startswith("ucs: feed 'flights': stream 'flights' is in use: its last ID is 33-6776"), output
    code, output = run_ucs("adopt", "flights", "0.0.0.34", home=home, **urls)
    assert (code, output) == (
        2,
        "ucs: feed 'flights' has no brick 0.0.0.34. Its bricks are 0.0.0.0 to 0.0.0.33. [UCS-BRICK-NAME]\n",
    )


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 130), (b"y\n", 0)], ids=["no", "yes"])
def test_the_command_asks_a_person(tmp_path: Path, redis_server: RedisServer, answer: bytes, code: int) -> None:
    import pty
    import subprocess
    import sys

    from ucs_pipeline_tests.support.home import PROJECT
    from ucs_pipeline_tests.support.tables import write_flights

    home = make_home(tmp_path)
    write_flights(home / ".ucs" / "tables")
    person, terminal = pty.openpty()
    os.write(person, answer)
    result = subprocess.run(
        [sys.executable, "-m", "ucs_pipeline.cli.main", "adopt", "flights", "0.0.0.1"],
        cwd=PROJECT,
        env={**os.environ, "DAGSTER_HOME": str(home), "UCS_REDIS_URL": redis_server.url},
        stdin=terminal,
        capture_output=True,
        check=False,
    )
    os.close(terminal)
    os.close(person)
    assert result.returncode == code, result.stderr
    assert b"Record 2 bricks of feed 'flights' without publishing them" in result.stdout
    assert redis_server.client().exists("flights") == (code == 0)
