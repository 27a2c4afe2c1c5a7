"""`ucs_pipeline.publish`: what `ucs publish` does, from Python."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.errors import OutOfTurnError, UcsError, without_code
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, evaluate_tick, launch, publish, resources
from ucs_pipeline_tests.support.home import write_table

ROWS = 25_000
"""Two bricks are sealed, and half of the third is there."""


@pytest.fixture
def home(home: Path) -> Path:
    write_table(home, "orders", {"id": pa.array(range(ROWS))})
    return home


@pytest.fixture(autouse=True)
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}")
    with dg.DagsterInstance.get() as found:
        yield found


def _feed(**more: Any) -> Feed:
    settings = {"table": "orders", "key": "id", "bricks": {"class": "number", "last": 59_999}}
    return BrickFeed(name="orders", **{**settings, **more})


def _ids(redis: RedisServer, stream: str = "orders") -> list[int]:
    return [int(fields[b"id"]) for _, fields in redis.client().xrange(stream)]


def _bricks(instance: dg.DagsterInstance) -> list[str]:
    """The bricks of each run, the first run first."""
    records = instance.get_run_records(dg.RunsFilter(tags={"ucs/feed": "orders"}), ascending=True)
    return [record.dagster_run.tags["ucs/bricks"] for record in records]


def test_it_goes_on_with_the_next_run_until_there_is_none(
    home: Path, redis_server: RedisServer, instance: dg.DagsterInstance
) -> None:
    done = publish(_feed(max_bricks_per_run=1), next=1)
    assert (done.bricks, done.rows, len(done.runs), done.reason) == (1, 10_000, 1, None)
    write_table(home, "orders", {"id": pa.array(range(45_000))})
    done = publish(_feed(max_bricks_per_run=2))
    assert (done.bricks, done.rows, len(done.runs)) == (3, 30_000, 2)
    assert done.reason == (
        "feed 'orders': skipped: brick 0.0.0.4 is not sealed. The newest id is 44,999; an id of 50,000 or more seals "
        "it. To publish it earlier, launch it by hand or set `tail: follow`."
    )
    assert _bricks(instance) == ["0.0.0.0...0.0.0.0", "0.0.0.1...0.0.0.2", "0.0.0.3...0.0.0.3"]
    assert _ids(redis_server) == list(range(40_000))


def test_bricks_are_named_as_in_the_ui_or_by_their_numbers(
    redis_server: RedisServer, instance: dg.DagsterInstance
) -> None:
    for first, last, bricks, rows in (("0.0.0.0", None, 1, 10_000), (1, 2, 2, 15_000), ("0.0.0.0", "2", 3, 0)):
        done = publish(_feed(max_bricks_per_run=2), first, last)
        assert (done.bricks, done.rows, done.reason) == (bricks, rows, None)
        assert done.in_stream == (0 if rows else bricks)
    # A range is cut into runs, as a backfill is.
    assert _bricks(instance)[2:] == ["0.0.0.0...0.0.0.1", "0.0.0.2...0.0.0.2"]
    assert _ids(redis_server) == list(range(ROWS))


@pytest.mark.parametrize(
    ("settings", "asked", "sentence"),
    [
        ({}, {"first": "0.0.0.9"}, "feed 'orders' has no brick 0.0.0.9. Its bricks are 0.0.0.0 to 0.0.0.5"),
        ({}, {"first": 9}, "feed 'orders' has no brick 0.0.0.9. Its bricks are 0.0.0.0 to 0.0.0.5"),
        ({}, {"first": "x"}, "'x' is not a brick name"),
        ({}, {"first": 2, "last": 1}, "feed 'orders': brick 2 comes after 1. Name the earlier one first"),
        ({}, {"last": 1}, "feed 'orders': the first brick is missing. Name it."),
        ({}, {"first": 1, "next": 2}, "feed 'orders': name bricks, or give a number of next bricks, not both."),
        ({}, {"first": 1, "replay": True}, "feed 'orders': replay needs `stream.order: any`"),
        ({"stream": {"order": "any"}}, {"replay": True}, "feed 'orders': the first brick is missing. Name it."),
        (
            {"bricks": {"class": "number", "last": 99_999, "width": 10, "level": "block"}},
            {"first": 0, "last": 1_998},
            "feed 'orders': brick 0.0.1.998 is inside block 0.0.1, and only whole blocks are published. Name the block",
        ),
    ],
)
def test_a_mistake_is_refused_before_there_is_a_run(
    instance: dg.DagsterInstance, settings: dict[str, Any], asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UcsError) as refused:
        publish(_feed(**settings), **asked)
    assert str(refused.value).startswith(sentence)
    assert instance.get_runs() == []


def test_a_refusal_is_the_error_of_the_run(redis_server: RedisServer, instance: dg.DagsterInstance) -> None:
    with pytest.raises(OutOfTurnError, match=r"Launch 0\.0\.0\.0\.\.\.0\.0\.0\.1 instead"):
        publish(_feed(), 1)
    [run] = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert redis_server.client().xlen("orders") == 0


def test_coarser_partitions_are_named_by_the_bricks_at_their_ends(redis_server: RedisServer) -> None:
    bricks = {"class": "number", "last": 29_999, "width": 10, "level": "block"}
    assert publish(_feed(bricks=bricks), 0, 1_999).bricks == 2
    assert _ids(redis_server) == list(range(20_000))
    assert publish(_feed(bricks=bricks), "0.0.2").rows == 5_000


def test_the_rows_of_an_open_brick_are_added_once(redis_server: RedisServer, instance: dg.DagsterInstance) -> None:
    feed = _feed(tail="follow")
    done = publish(feed)
    assert (done.bricks, done.rows, done.reason) == (3, ROWS, None)
    assert _ids(redis_server) == list(range(ROWS))
    assert instance.get_materialized_partitions(dg.AssetKey("orders")) == {"0.0.0.0", "0.0.0.1"}
    done = publish(feed)
    assert (done.runs, done.reason) == (
        *((), "feed 'orders': skipped: brick 0.0.0.2 is not sealed, and all its 5,000 rows are in the stream."),
    )


def test_text_bricks_go_as_with_a_schedule(home: Path) -> None:
    write_table(home, "orders", {"id": pa.array([f"w{n}" for n in range(100)])})
    feed = _feed(bricks={"class": "text", "base": 10, "level": "shard"})
    assert publish(feed).rows == 100
    assert publish(feed).reason == "feed 'orders': skipped: all 10 shards are materialized."


def test_all_shards_go_or_one_of_them(redis_server: RedisServer) -> None:
    feed = _feed(stream={"shards": 2})
    assert publish(streams_of(feed)[1]).rows == 10_000
    done = publish(feed, 0, 2)
    assert (done.bricks, done.rows) == (3, 15_000)
    assert _ids(redis_server, "orders.0") == [*range(10_000), *range(20_000, ROWS)]
    assert _ids(redis_server, "orders.1") == list(range(10_000, 20_000))
    assert publish(feed).reason == (
        "feed 'orders_0': skipped: brick 0.0.0.4 is next, and the table has no id of 40,000 or more. "
        "feed 'orders_1': skipped: brick 0.0.0.3 is next, and the table has no id of 30,000 or more."
    )


def test_a_shard_that_fails_stops_no_other(redis_server: RedisServer) -> None:
    redis_server.client().set("orders.0", "of somebody else")
    with pytest.raises(UcsError, match=r"orders\.0"):
        publish(_feed(stream={"shards": 2}))
    assert _ids(redis_server, "orders.1") == list(range(10_000, 20_000))


def test_bricks_of_an_any_order_feed_go_again_when_that_is_asked(redis_server: RedisServer) -> None:
    feed, client = _feed(stream={"order": "any"}), redis_server.client()
    shown: dict[str, list[int]] = {}

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Any]:
        shown[what] = [total]
        yield shown[what].append

    assert publish(feed, 1).rows == 10_000
    assert publish(feed, 1).rows == 0
    assert client.xlen("orders") == 10_000
    assert publish(feed, 1, replay=True, bar=bar).rows == 10_000
    assert client.xlen("orders") == 20_000
    assert publish(feed, 0, 2, bar=bar).rows == 15_000
    assert sorted(_ids(redis_server)) == sorted([*range(ROWS), *range(10_000, 20_000)])
    # The bar counts what was there before, too.
    assert {what: (rows[0], rows[-1]) for what, rows in shown.items()} == {
        "publishing 0.0.0.1": (10_000, 10_000),
        "publishing 0.0.0.0...0.0.0.2": (ROWS, ROWS),
    }


@pytest.mark.parametrize(
    "settings",
    [{}, {"tail": "follow"}, {"stream": {"order": "any"}}, {"stream": {"max_len": 10_000}}],
    ids=["hold", "follow", "any order", "full"],
)
def test_command_and_sensor_never_disagree(instance: dg.DagsterInstance, settings: dict[str, Any]) -> None:
    feed = _feed(**settings)
    defs = build_defs(feed)
    publish(feed, next=1)
    sensor = defs.resolve_sensor_def("orders_sensor")

    def tick() -> Any:
        return evaluate_tick(
            sensor, dg.build_sensor_context(instance=instance, definitions=defs, resources=resources())
        )

    wanted = tick().run_requests or []
    try:
        done = publish(feed)
        reason = done.reason
    except UcsError as error:
        done, reason = None, str(error)
    runs = done.runs if done else ()
    assert len(runs) == len(wanted)
    for run_id, request in zip(runs, wanted, strict=True):
        run = instance.get_run_by_id(run_id)
        assert run
        # Dagster's tag, of the sensor's runs alone.
        assert {**request.tags, "dagster/sensor_name": None}.items() <= {
            **run.tags,
            "dagster/sensor_name": None,
        }.items()
    if reason:
        skipped = reason if done else without_code(reason).replace("stream", "skipped: stream", 1)
        code = "" if done else " [UCS-STREAM-FULL]"
        assert tick().skip_message == f"{skipped} Next check in 30 s.{code}"


def test_a_launch_makes_one_backfill_of_what_comes_next(instance: dg.DagsterInstance) -> None:
    feed = _feed(tail="follow")
    [(backfill, bricks)] = launch(feed).backfills.items()
    found = instance.get_backfill(backfill)
    assert found
    # The open brick is left out.
    assert bricks == "0.0.0.0...0.0.0.1"
    assert {"ucs/feed": "orders", "ucs/bricks": bricks, "ucs.feed/orders": "yes"}.items() <= found.tags.items()
    # The next one waits for it, unless bricks are named.
    again = launch(feed)
    assert (again.backfills, again.reason) == ({}, f"feed 'orders': skipped: backfill {backfill} is running.")
    assert list(launch(feed, 3, 4).backfills.values()) == ["0.0.0.3...0.0.0.4"]
