"""One feed over several streams, through Dagster: each shard by itself, and all of them merged."""

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner

from ucs_pipeline import BrickFeed
from ucs_pipeline.cli.main import ucs
from ucs_pipeline.entries.entry_id import State
from ucs_pipeline.errors import FeedError, StreamError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.orchestration.build import feeds_of
from ucs_pipeline.orchestration.checks.facts import collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline.project.locations import Location
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.ordered.shard_progress import noted
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.stream.shard_state import read_shard_state
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import (
    build_defs,
    connect_redis,
    evaluate_tick,
    feed_statuses,
    open_source,
    open_stream,
    read_brick,
    read_entries,
    resources,
)
from ucs_pipeline_tests.support.home import PROJECT, python, run_bricks, write_table

# Of ten bricks, brick 3 has no rows; one row is beyond the list, and one key is NULL.
IDS: Sequence[int | None] = [*(n for n in range(10, 905) if n // 100 != 3), None, 1000]


def _feed(name: str = "rows", shards: int = 3, stream: str | None = None, **more: Any) -> Feed:
    settings: dict[str, Any] = {"table": "rows", "key": "id", "bricks": {"class": "number", "last": 999, "width": 100}}
    return BrickFeed(name=name, stream={"shards": shards, "name": stream}, **{**settings, **more})


def _write(home: Path, ids: Sequence[int | None]) -> None:
    words = pa.array([None if n is None or n % 7 == 0 else f"w{n}" for n in ids])
    write_table(home, "rows", {"id": pa.array(ids, pa.int64()), "word": words})


@pytest.fixture
def home(home: Path) -> Path:
    _write(home, IDS)
    return home


def _expected(ids: Sequence[int | None] = IDS) -> list[tuple[str, dict[bytes, bytes]]]:
    found, rows = list[tuple[str, dict[bytes, bytes]]](), dict.fromkeys(range(10), 0)
    for n in ids:
        if n is not None and n < 1000:
            rows[n // 100] += 1
            word = {} if n % 7 == 0 else {b"word": b"w%d" % n}
            found.append((f"{n // 100}-{rows[n // 100]}", {b"id": b"%d" % n, **word}))
    return found


def _merged(feed: Feed) -> list[tuple[str, dict[bytes, bytes]]]:
    return [(str(entry_id), dict(fields)) for entry_id, fields in read_entries(feed)]


def _publish(feed: Feed, shard: int, instance: dg.DagsterInstance, first: int = 0, last: int = -1) -> str | None:
    """One run of a shard; why it failed, if it did."""
    part = streams_of(feed)[shard]
    starts = part.partitions.starts
    result = run_bricks(build_defs(feed), part.name, instance, starts[first], starts[last])
    [*failures] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return None if result.success else failures[0].user_failure_data.description  # type: ignore[union-attr]


# Definitions


def test_a_feed_with_shards_is_as_many_assets_in_one_group() -> None:
    defs = build_defs(_feed(schedule="* * * * *"))
    graph = defs.resolve_asset_graph()
    nodes = [node for node in graph.asset_nodes if node.is_materializable]
    assert {node.key.to_user_string(): (node.group_name, sorted(node.pools or ())) for node in nodes} == {
        f"rows_{n}": ("rows", [f"redis_stream_rows_2e_{n}"]) for n in range(3)
    }
    keys = [node.partitions_def.get_partition_keys() for node in nodes if node.partitions_def]
    assert sorted(map(list, keys)) == [[f"0.0.0.{brick}" for brick in range(n, 10, 3)] for n in range(3)]
    assert sorted(sensor.name for sensor in defs.sensors or ()) == [f"rows_{n}_sensor" for n in range(3)]
    assert sorted(one.name for one in defs.schedules or ()) == [f"rows_{n}_schedule" for n in range(3)]
    [first, *_] = found = feeds_of(defs)
    assert [feed.stream_name for feed in found] == ["rows.0", "rows.1", "rows.2"]
    assert first.parent == _feed(schedule="* * * * *")
    description = build_defs(_feed()).get_assets_def("rows_1").descriptions_by_key[dg.AssetKey("rows_1")]
    assert "Shard 1 of the 3 of feed `rows`" in description


def test_one_shard_is_a_feed_as_any_other() -> None:
    assert streams_of(_feed(shards=1)) == [_feed(shards=1)]
    assert "shards" not in str(_feed(shards=1).model_dump(exclude_defaults=True))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (_feed("rows_1", 1), "2 feeds are named 'rows_1' (shard 1 of 'rows' and 'rows_1')"),
        (_feed("rows", 1, "other"), "2 feeds are named 'rows' ('rows' and 'rows')"),
        (_feed("rows_0_checks", 1), "'rows_0_checks' has the name of the job that runs the checks of feed 'rows_0'"),
        (_feed("z", 1, "rows.2"), "2 feeds are writing to stream 'rows.2' (shard 2 of 'rows' and 'z')"),
        (
            _feed("z", 2, "rows"),
            "2 feeds are writing to stream 'rows.0' (shard 0 of 'rows' and shard 0 of 'z')",
        ),
    ],
)
def test_names_of_shards_are_taken(other: Feed, sentence: str) -> None:
    with pytest.raises(FeedError) as refused:
        build_defs(_feed(), other)
    assert sentence in str(refused.value)


def test_more_shards_than_partitions_are_refused_and_more_partitions_than_one_asset_carries_are_not() -> None:
    with pytest.raises(FeedError, match=r"stream.shards is 11, and the feed has 10 bricks"):
        _feed(shards=11)
    with pytest.raises(FeedError, match=r"stream.shards is 1000000000, and"):
        _feed(shards=10**9)
    many = {"class": "number", "last": 4 * 10**9 - 1}
    assert len(streams_of(_feed(shards=4, bricks=many))[3].partitions.starts) == 100_000
    with pytest.raises(FeedError, match="400,000 bricks, and Dagster supports 100,000"):
        _feed(shards=3, bricks=many)


def test_the_whole_feed_has_no_stream_to_write_to(redis_server: RedisServer) -> None:
    with pytest.raises(FeedError, match=r"feed 'rows' has 3 stream shards\. Open one of them"):
        open_stream(_feed(), redis_server.client())


# Publishing


def test_shards_are_published_each_in_order_and_merged_they_are_the_table(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    feed, client = _feed(), redis_server.client()
    assert _merged(feed) == []
    assert _publish(feed, 1, instance) is None
    assert _merged(feed) == []
    assert _publish(feed, 0, instance, 0, 1) is None
    # Brick 3 has no rows, and brick 2, in shard 2, is not there yet.
    assert _merged(feed) == _expected()[:190]
    assert _publish(feed, 2, instance) is None
    assert _merged(feed) == [one for one in _expected() if int(one[0].split("-")[0]) < 6]
    assert _publish(feed, 0, instance, 2) is None
    assert _merged(feed) == _expected()
    for part in streams_of(feed):
        ids = [entry_id.decode() for entry_id, _ in client.xrange(part.stream_name)]
        assert ids == [one for one, _ in _expected() if int(one.split("-")[0]) in part.partitions]
    assert client.hgetall("{rows.2}:shard") == {
        b"shard": b"2",
        b"shards": b"3",
        b"level": b"brick",
        b"done": b"8",
        b"top": b"8-100",
    }
    assert list(read_brick(feed, "0.0.0.9")["id"]) == [str(n) for n in range(900, 905)]
    statuses = feed_statuses(streams_of(feed), instance)
    assert [(one.feed, one.bricks, one.done, one.rows) for one in statuses] == [
        ("rows_0", 4, 4, 195),
        ("rows_1", 3, 3, 300),
        ("rows_2", 3, 3, 300),
    ]


def test_a_shard_refuses_a_hole_in_its_own_bricks(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    refusal = _publish(_feed(), 1, instance, 1)
    assert refusal
    assert "publishing 0.0.0.4 now would leave a gap. Stream 'rows.1' is empty, and brick 0.0.0.1," in refusal
    assert "Launch 0.0.0.1...0.0.0.7 instead" in refusal
    assert redis_server.client().xlen("rows.1") == 0


_RUN = """
import dagster as dg
from ucs_pipeline_tests.support.home import run_bricks
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline import BrickFeed
feed = BrickFeed.model_validate_json({settings!r})
with dg.instance_for_test(temp_dir={home!r}) as instance:
    run_bricks(build_defs(feed), "rows_1", instance, 1, 59)
"""


def test_a_shard_whose_run_is_killed_goes_on_and_the_others_know_nothing_of_it(
    home: Path, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    write_table(home, "rows", {"id": pa.array(range(12_000), pa.int64())})
    # Three seconds for each stream.
    feed, client = _feed(shards=2, bricks={"class": "number", "last": 11_999, "width": 100}), redis_server.client()
    slow = feed.model_copy(update={"stream": feed.stream.model_copy(update={"max_rows_per_second": 2000})})
    text = _RUN.format(settings=slow.model_dump_json(by_alias=True, exclude_defaults=True), home=str(home))
    process = python(text, home)
    while client.xlen("rows.1") < 1000:
        assert process.poll() is None, (home / "process.log").read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = client.xlen("rows.1")
    assert reached < 6000
    assert len(instance.get_materialized_partitions(dg.AssetKey("rows_1"))) * 100 <= reached
    for part in streams_of(feed):
        assert sum(report.rows for report in _move(part)) == 6000
        ids = [entry_id.decode() for entry_id, _ in client.xrange(part.stream_name)]
        assert ids == [f"{brick}-{row}" for brick in part.ordinals for row in range(1, 101)]


def _move(part: Feed) -> list[BrickReport]:
    """Publishes all bricks of a shard, as a run does, without Dagster."""
    stream = open_stream(part, connect_redis(part.stream_name))
    return list(
        noted(part, stream, publish(part, open_source(part), stream, part.partitions.starts, lambda _: {}), None)
    )


@pytest.mark.usefixtures("home", "redis_server")
def test_a_note_ahead_of_its_stream_is_forgotten_before_the_stream_grows_again() -> None:
    part = streams_of(_feed())[0]
    reports = _move(part)
    stream = open_stream(part, connect_redis(part.stream_name))
    top = stream.state().top
    stream.client.delete(part.stream_name)
    assert list(noted(part, stream, iter(()), None)) == []
    note = read_shard_state(stream)
    assert note
    assert note.reach(State(True, top, 0)) < reports[-1].ordinal


def test_checks_look_at_their_own_shard_and_rows_in_no_brick_are_said_once(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    feed = _feed()
    for shard in range(3):
        assert _publish(feed, shard, instance) is None

    def failed() -> list[tuple[str, str]]:
        found = []
        for part in streams_of(feed):
            stream = open_stream(part, redis_server.client())
            facts = collect(part, open_source(part), stream, instance, held_only=False)
            assert facts.verdict.agrees
            found += [(part.name, one.check.name) for one in findings(facts) if not one.passed]
        return found

    assert failed() == [("rows_0", "no_unassigned_rows")]
    # A late row in brick 4 is no concern of the shards that do not have it.
    _write(home, [*IDS, 499])
    redis_server.client().xtrim("rows.1", minid="7-1", approximate=False)
    [*_, late] = found = [one for one in _found_late(feed, instance, redis_server) if one]
    assert [one for one, _ in found] == ["rows_1"]
    assert "0.0.0.4" in late[1]
    job = build_defs(feed).resolve_job_def("rows_2_checks").execute_in_process(instance=instance)
    assert all(evaluation.passed for evaluation in job.get_asset_check_evaluations())


def _found_late(feed: Feed, instance: dg.DagsterInstance, server: RedisServer) -> list[tuple[str, str] | None]:
    found: list[tuple[str, str] | None] = []
    for part in streams_of(feed):
        facts = collect(part, open_source(part), open_stream(part, server.client()), instance, held_only=True)
        found += [
            (part.name, one.sentence) for one in findings(facts) if one.check.name == "no_late_rows" and not one.passed
        ]
    return found


def test_hours_are_dealt_and_merged_as_well(instance: dg.DagsterInstance, home: Path) -> None:
    seconds = list(range(1_382_832_000, 1_382_832_000 + 12 * 3600, 60))
    write_table(home, "rows", {"id": pa.array(seconds, pa.int64())})
    bricks = {"class": "time", "first": "2013-10-27T02", "last": "2013-10-27T12", "zone": "Europe/Berlin"}
    feed = _feed(shards=2, bricks=bricks)
    for shard in range(2):
        part = streams_of(feed)[shard]
        ends = [part.partitions.name(end) for end in (part.partitions.first, part.partitions.last)]
        assert run_bricks(build_defs(feed), part.name, instance, *ends).success
    inside = [second for second in seconds if feed.partitions.first <= second * 1000 < feed.partitions.last + 3_600_000]
    assert [int(fields[b"id"]) for _, fields in _merged(feed)] == inside


# Sensors


def test_each_shard_publishes_what_the_table_seals(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    feed, client = _feed(shards=2, tail="follow"), redis_server.client()
    repository = build_defs(feed).get_repository_def()

    def tick(shard: int) -> str:
        sensor = repository.get_sensor_def(f"rows_{shard}_sensor")
        context = dg.build_sensor_context(
            instance, repository_def=repository, sensor_name=sensor.name, resources=resources()
        )
        data = evaluate_tick(sensor, context)
        for request in data.run_requests or []:
            job = repository.get_implicit_global_asset_job_def()
            chosen = request.asset_selection
            assert job.execute_in_process(instance=instance, asset_selection=chosen, tags=dict(request.tags)).success
            return str(request.tags["ucs/bricks"])
        return str(data.skip_message)

    _write(home, list(range(230)))
    assert tick(0) == "0.0.0.0...0.0.0.2"
    # Brick 3 has not begun: it is open too.
    assert tick(1) == "0.0.0.1...0.0.0.3"
    # Brick 2 is not done: its rows are read, and those of brick 3 are not.
    assert client.hget("{rows.0}:shard", "done") == b"0"
    assert len(_merged(feed)) == 230
    sentence = "feed 'rows_0': skipped: brick 0.0.0.2 is not sealed, and all its 30 rows are in the stream."
    assert tick(0) == f"{sentence} Next check in 30 s."
    _write(home, list(range(410)))
    assert tick(1) == "0.0.0.3...0.0.0.5"
    assert len(_merged(feed)) == 230
    assert tick(0) == "0.0.0.2...0.0.0.4"
    assert _merged(feed) == _expected(list(range(410)))


# Another number of shards


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            _feed(shards=2),
            _feed(shards=3),
            r"stream 'rows.0' was written as shard 0 of 2, by bricks, expected shard 0 of 3",
        ),
        (
            _feed(shards=4),
            _feed(shards=2),
            r"stream 'rows.0' was written as shard 0 of 4, by bricks, expected shard 0 of 2",
        ),
        (
            _feed(shards=1),
            _feed(shards=2),
            r"feed 'rows': stream 'rows' has the entries of the feed without `stream.shards`",
        ),
        (
            _feed(shards=2),
            _feed(shards=1),
            r"feed 'rows': stream 'rows' has no entries, and 'rows.0' has those of the same",
        ),
    ],
)
def test_another_number_of_shards_is_refused_until_the_streams_are_deleted(
    before: Feed, after: Feed, sentence: str, redis_server: RedisServer
) -> None:
    _move(streams_of(before)[0])
    client = redis_server.client()
    keys = client.dbsize()
    for part in streams_of(after):
        with pytest.raises(StreamError, match=sentence):
            _move(part)
    assert client.dbsize() == keys
    client.delete(*(part.stream_name for part in streams_of(before)))
    for part in streams_of(after):
        _move(part)
    assert _merged(after) == _expected()


def test_a_sensor_says_that_the_number_of_shards_is_another(instance: dg.DagsterInstance) -> None:
    _move(streams_of(_feed(shards=2))[0])
    for shard in range(3):
        sensor = build_defs(_feed()).get_repository_def().get_sensor_def(f"rows_{shard}_sensor")
        data = evaluate_tick(sensor, dg.build_sensor_context(instance, resources=resources()))
        assert "'rows.0' was written as shard 0 of 2" in str(data.skip_message)


@pytest.mark.usefixtures("home")
def test_an_entry_by_somebody_else_in_the_stream_of_a_shard_is_refused(redis_server: RedisServer) -> None:
    redis_server.client().xadd("rows.1", {"a": "b"}, "1-1")
    with pytest.raises(StreamError, match=r"'rows.1' has entries, and no key '{rows.1}:shard' names"):
        _move(streams_of(_feed())[1])


def test_a_finished_shard_that_is_launched_again_stays_finished(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    assert _publish(_feed(), 0, instance) is None
    note = client.hgetall("{rows.0}:shard")
    assert _publish(_feed(), 0, instance, 0, 0) is None
    assert client.hgetall("{rows.0}:shard") == note
    client.delete("rows.0")
    assert _publish(_feed(), 0, instance, 0, 0) is None
    assert client.hget("{rows.0}:shard", "done") == b"0"


def test_adopted_bricks_of_a_shard_count_as_complete(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    feed, client = _feed(), redis_server.client()
    # Bricks 0 to 4.
    for part, last in zip(streams_of(feed), ("0.0.0.3", "0.0.0.4", "0.0.0.2"), strict=True):
        adopt(part, last, open_source(part), open_stream(part, client), instance)
    assert _merged(feed) == []
    assert _publish(feed, 2, instance, 1) is None
    assert [one for one, _ in _merged(feed)] == [f"5-{row}" for row in range(1, 101)]


# The command line


def test_commands_take_the_whole_feed_or_one_shard(
    home: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(PROJECT / "dagster.yaml", home)
    defs = build_defs(_feed(shards=2))
    location = Location("here", defs.get_repository_def(), feeds_of(defs))
    monkeypatch.setattr("ucs_pipeline.project.locations.locations", lambda: [location])
    monkeypatch.setattr("ucs_pipeline.cli.checks.locations", lambda: [location])

    def said(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(ucs, arguments)
        assert done.exit_code == code, done.output
        return done.output

    adopted = said("adopt", "rows", "0.0.0.0")
    assert "recorded 1 brick with 90 rows (0 recorded before); stream 'rows.0' continues after 0-" in adopted
    assert "rows.1" not in adopted
    redis_server.client().flushall()
    for part in streams_of(_feed(shards=2)):
        _move(part)
    assert [(one["feed"], one["stream"], one["redis"]["length"]) for one in json.loads(said("status", "--json"))] == [
        ("rows_0", "rows.0", 490),
        ("rows_1", "rows.1", 305),
    ]
    lines = [
        f"{entry},{fields[b'id'].decode()},{fields.get(b'word', b'NULL').decode()}" for entry, fields in _expected()
    ]
    assert said("read", "rows", "--csv").replace("\\N", "NULL").splitlines() == ["entry_id,id,word", *lines]
    shown = said("read", "rows", "--rows", "3")
    assert "streams rows.0 to rows.1" in shown
    assert "0-3 " in shown
    assert "0-4 " not in shown
    assert said("read", "rows", "0.0.0.9", "--csv").splitlines()[1].startswith("9-1,900,")
    assert "brick 0.0.0.9 in stream rows.1" in said("read", "rows", "0.0.0.9")
    # Rows outside of the list fail a check of the first shard.
    assert said("verify", "rows", code=1).count("table and stream agree") == 2
    assert said("verify", "rows_1").count("table and stream agree") == 1
