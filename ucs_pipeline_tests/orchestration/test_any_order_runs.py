"""An any-order feed in Dagster: runs in any order, replays, sensor, checks, and what the command line shows of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.number import name_of_ordinal
from ucs_pipeline.errors import FeedError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.operations.metrics import prometheus_text
from ucs_pipeline.orchestration.checks.finding import CHECKS
from ucs_pipeline.orchestration.materializations import ROWS
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import (
    build_defs,
    evaluate_tick,
    feed_figures,
    feed_statuses,
    open_source,
    open_stream,
    read_brick,
    resources,
)
from ucs_pipeline_tests.support.home import write_table

# Bricks 0, 1, 2 and 4 have rows; 3 and 5 have none.
IDS = [*range(25_000), 40_000, 40_001, 40_001]
KEY = dg.AssetKey("numbers")
NAMES = [check.name for check in CHECKS]


def _feed(name: str = "numbers", **more: Any) -> Feed:
    settings: dict[str, Any] = {
        "table": "numbers",
        "key": "n",
        "bricks": {"class": "number", "last": 59_999},
        "stream": {"name": "events", "order": "any"},
    }
    return BrickFeed(name=name, **{**settings, **more})


@pytest.fixture
def home(home: Path) -> Path:
    _write(home, IDS)
    return home


@pytest.fixture
def client(redis_server: RedisServer) -> Any:
    return redis_server.client()


def _write(home: Path, ids: list[int], changed: Mapping[int, str] | None = None) -> None:
    words = [(changed or {}).get(n, f"w{n}") for n in ids]
    write_table(home, "numbers", {"n": pa.array(ids), "word": pa.array(words)})


def _run(
    instance: dg.DagsterInstance,
    first: int,
    last: int,
    *,
    replay: bool | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """One run; the figures of its events, by brick."""
    ends = [name_of_ordinal(end) for end in (first, last)]
    config = {} if replay is None else {"ops": {"numbers": {"config": {"replay": replay}}}}
    result = (
        build_defs(_feed())
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            instance=instance,
            asset_selection=[KEY],
            run_config=config,
            tags={
                **dict(
                    zip(("dagster/asset_partition_range_start", "dagster/asset_partition_range_end"), ends, strict=True)
                ),
                **(tags or {}),
            },
        )
    )
    found = [event.step_materialization_data.materialization for event in result.get_asset_materialization_events()]
    return {str(event.partition): {name: value.value for name, value in event.metadata.items()} for event in found}


def test_bricks_are_published_in_any_order_and_once(instance: dg.DagsterInstance, client: Any) -> None:
    client.xadd("events", {"who": "somebody else"})
    assert list(_run(instance, 4, 5)) == ["0.0.0.4", "0.0.0.5"]
    figures = _run(instance, 0, 5)
    assert {brick: figure["published"] for brick, figure in figures.items()} == {
        **{f"0.0.0.{n}": rows for n, rows in enumerate([10_000, 10_000, 5_000, 0, 0, 0])}
    }
    assert figures["0.0.0.4"]["note"] == "already in the stream"
    assert (figures["0.0.0.4"][ROWS], figures["0.0.0.3"]["note"]) == (3, "the brick has no rows")
    assert figures["0.0.0.1"]["first_id"] == 10_000
    assert client.xrange("events", figures["0.0.0.1"]["first_entry_id"], count=1)[0][1][b"n"] == b"10000"
    assert [*figures["0.0.0.1"]["first_entries"].records[0].data] == ["field", "row 1", "row 2", "row 3"]
    assert client.xlen("events") == 25_004
    assert len(instance.get_materialized_partitions(KEY)) == 6


def test_a_replay_is_a_matter_of_run_configuration(instance: dg.DagsterInstance, client: Any) -> None:
    _run(instance, 4, 4)
    assert _run(instance, 4, 4, replay=False)["0.0.0.4"]["published"] == 0
    tags = {"dagster/backfill": "one"}
    replayed = _run(instance, 4, 4, replay=True, tags=tags)["0.0.0.4"]
    assert (replayed["published"], replayed["replay"]) == (3, 1)
    # A run of the same backfill again, as when its process died before the event was stored.
    again = _run(instance, 4, 4, replay=True, tags=tags)["0.0.0.4"]
    assert (again["published"], again["replay"], again["note"]) == (0, 1, "already in the stream")
    assert _run(instance, 4, 4)["0.0.0.4"]["replay"] == 1
    assert _run(instance, 4, 4, replay=True)["0.0.0.4"]["replay"] == 2
    assert client.xlen("events") == 9


def test_a_feed_of_any_order_has_no_pool_and_may_share_its_stream() -> None:
    graph = build_defs(_feed("a"), _feed("b"), _feed("c", stream={})).resolve_asset_graph()
    assert [graph.get(dg.AssetKey(name)).pools for name in "abc"] == [set(), set(), {"redis_stream_c"}]
    checks = {key.name for key in graph.asset_check_keys if key.asset_key == dg.AssetKey(["redis", "events"])}
    assert checks == {f"{feed}_{name}" for feed in "ab" for name in NAMES}
    with pytest.raises(FeedError, match=r"writing to stream 'events' \('a' and 'b'\)"):
        build_defs(_feed("a"), _feed("b", stream={"name": "events"}))


def _tick(instance: dg.DagsterInstance) -> tuple[str, str] | str:
    """The bricks that the sensor launches, or why it launches none."""
    definitions = build_defs(_feed())
    context = dg.build_sensor_context(instance=instance, definitions=definitions, resources=resources())
    found = evaluate_tick(definitions.resolve_sensor_def("numbers_sensor"), context)
    if not found.run_requests:
        return str(found.skip_message)
    tags = found.run_requests[0].tags
    return tags["dagster/asset_partition_range_start"], tags["dagster/asset_partition_range_end"]


def test_the_sensor_launches_what_is_sealed_and_not_done_and_what_redis_lost(
    instance: dg.DagsterInstance, client: Any, home: Path
) -> None:
    _run(instance, 2, 2)
    assert _tick(instance) == ("0.0.0.0", "0.0.0.1")
    _run(instance, 0, 1)
    assert _tick(instance) == ("0.0.0.3", "0.0.0.3")
    _run(instance, 3, 3)
    assert "brick 0.0.0.4 is not sealed. The newest id is 40,001; an id of 50,000 or more seals it." in _tick(instance)
    _write(home, [*IDS, 70_000])
    assert _tick(instance) == ("0.0.0.4", "0.0.0.5")
    _run(instance, 4, 5)
    beyond = "The table has rows beyond the last brick: raise `bricks.last`. Next check in 30 s."
    assert _tick(instance) == f"feed 'numbers': skipped: all 6 bricks are materialized. {beyond}"
    client.hdel("{events}:ledger:numbers", "0.0.0.1", "0.0.0.4")
    assert _tick(instance) == ("0.0.0.1", "0.0.0.1")
    client.flushall()
    assert _tick(instance) == ("0.0.0.0", "0.0.0.2")


def _check(instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    result = build_defs(_feed()).resolve_job_def("numbers_checks").execute_in_process(instance=instance)
    # Of a stream that several feeds may share, a check has its feed's name before its own.
    return {found.check_name.removeprefix("numbers_"): found for found in result.get_asset_check_evaluations()}


def _failed(found: Mapping[str, dg.AssetCheckEvaluation]) -> set[str]:
    assert list(found) == NAMES
    return {name for name, evaluation in found.items() if not evaluation.passed}


def test_the_checks_find_rows_among_those_of_others(instance: dg.DagsterInstance, client: Any, home: Path) -> None:
    client.xadd("events", {"who": "somebody else"})
    _run(instance, 1, 5)
    client.xadd("events", {"who": "somebody else"})
    found = _check(instance)
    assert _failed(found) == set()
    assert found["all_rows_arrived"].metadata["entries_equal"].value == 15_003
    assert "1 before the newest are not, which an any-order feed allows" in str(found["no_gaps"].description)
    assert found["stream_not_behind"].metadata["rows_in_ledger"].value == 15_003
    client.xtrim("events", maxlen=2_004, approximate=False)
    found = _check(instance)
    assert _failed(found) == set()
    assert found["all_rows_arrived"].metadata["entries_equal"].value == 2_003
    # One of the rows of brick 2 that are still there goes.
    client.xdel("events", client.xrange("events", count=10)[-1][0])
    found = _check(instance)
    assert _failed(found) == {"all_rows_arrived"}
    assert "and lacks 1." in str(found["all_rows_arrived"].description)
    # A group that was given it may have had a worker that deleted it.
    client.xgroup_create("events", "workers", "0")
    client.xreadgroup("workers", "one", {"events": ">"})
    found = _check(instance)
    assert _failed(found) == set()
    assert found["all_rows_arrived"].metadata["entries_deleted_by_workers"].value == 1
    _write(home, IDS, {40_000: "other"})
    assert _failed(_check(instance)) == {"all_rows_arrived", "no_late_rows"}


def test_the_checks_say_what_redis_lost(instance: dg.DagsterInstance, client: Any) -> None:
    _run(instance, 0, 5)
    client.flushall()
    found = _check(instance)
    assert _failed(found) == {"stream_not_behind"}
    assert "Launch 0.0.0.0...0.0.0.2, 0.0.0.4" in str(found["stream_not_behind"].description)


def test_a_brick_is_read_from_among_the_entries_of_others(instance: dg.DagsterInstance, client: Any) -> None:
    with pytest.raises(UcsError, match=r"brick 0\.0\.0\.2 is not published yet"):
        read_brick(_feed(), "0.0.0.2", client)
    _run(instance, 2, 2)
    frame = read_brick(_feed(), "0.0.0.2", client)
    assert list(frame["n"]) == [str(n) for n in range(20_000, 25_000)]
    # Another feed's rows lie between: the same brick, published by a feed of another name at the same time.
    ledger = "{events}:ledger:numbers"
    client.xadd("events", {"n": 1, "word": "w1"})
    last = client.xadd("events", {"n": 24_999, "word": "w24999"})
    client.xdel("events", frame.index[-1])
    line = client.hget(ledger, "0.0.0.2").rsplit(b" ", 1)[0]
    client.hset(ledger, "0.0.0.2", line + b" " + last)
    client.xadd("events", {"n": 2, "word": "w2"})
    client.hset(ledger, "0.0.0.2", line + b" " + client.xadd("events", {"n": 3, "word": "w3"}))
    again = read_brick(_feed(), "0.0.0.2", client)
    assert list(again["n"]) == list(frame["n"])
    client.xtrim("events", minid=str(frame.index[4_000]), approximate=False)
    assert list(read_brick(_feed(), "0.0.0.2", client)["n"]) == list(frame["n"][4_000:])
    client.xtrim("events", maxlen=0, approximate=False)
    with pytest.raises(UcsError, match=r"brick 0\.0\.0\.2 was trimmed: stream 'events' is empty"):
        read_brick(_feed(), "0.0.0.2", client)


def test_entries_of_others_in_the_place_of_trimmed_ones_are_not_taken_for_a_bricks(
    instance: dg.DagsterInstance, client: Any
) -> None:
    _run(instance, 4, 4)
    ids = [entry_id for entry_id, _ in client.xrange("events")]
    ledger = "{events}:ledger:numbers"
    client.xdel("events", ids[-1])
    client.xadd("events", {"who": "somebody else"})
    last = client.xadd("events", {"n": 40_001, "word": "w40001"})
    client.hset(ledger, "0.0.0.4", client.hget(ledger, "0.0.0.4").rsplit(b" ", 1)[0] + b" " + last)
    client.xtrim("events", minid=ids[1], approximate=False)
    assert list(read_brick(_feed(), "0.0.0.4", client)["n"]) == ["40001", "40001"]


def test_status_and_metrics_leave_out_what_ids_do_not_say(instance: dg.DagsterInstance) -> None:
    _run(instance, 2, 2)
    [status] = feed_statuses([_feed()], instance)
    assert (status.done, status.next_brick, status.rows, status.order) == (1, "0.0.0.0", 5_000, "any")
    text = prometheus_text(feed_figures([_feed()], instance))
    assert 'ucs_stream_entries{feed="numbers",stream="events"} 5000.0' in text
    assert "ucs_stream_top" not in text


def test_bricks_are_not_adopted(instance: dg.DagsterInstance, client: Any) -> None:
    feed = _feed()
    with pytest.raises(UcsError, match=r"stream\.order is any.*set `bricks\.first`"):
        adopt(feed, "0.0.0.1", open_source(feed), open_stream(feed, client), instance)
