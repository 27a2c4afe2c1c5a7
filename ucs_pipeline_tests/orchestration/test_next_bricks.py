"""Which bricks are launched next, and the reason if none is."""

import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.sensors.next_bricks import (
    MANY_TRIES,
    FeedSnapshot,
    LaunchBackoff,
    Request,
    first_to_publish,
    next_bricks,
)
from ucs_pipeline.orchestration.sensors.sealed import Seal, seal
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, evaluate_tick, open_source, resources
from ucs_pipeline_tests.support.home import write_table


def _feed(**more: Any) -> Feed:
    settings: dict[str, Any] = {
        "name": "numbers",
        "table": "numbers",
        "key": "n",
        "bricks": {"class": "number", "last": 99_999},
    }
    return BrickFeed(**{**settings, **more})


def _state(top: EntryId = START, length: int = 0) -> State:
    return State(True, top, length)


# Decisions


def _seen(feed: Feed, **more: Any) -> FeedSnapshot:
    newest, now = more.pop("newest_id", 65_000), more.pop("now", 0.0)
    known: dict[str, Any] = {
        "missing": 3,
        "busy": None,
        "recorded": EntryId(2, 10_000),
        "state": _state(EntryId(2, 10_000), 30_000),
    }
    seen = FeedSnapshot(seal=Seal(None), **{**known, **more})
    start = first_to_publish(feed, seen.missing, seen.recorded, seen.state)
    return seen if start is None else replace(seen, seal=seal(feed, start, newest, now))


@pytest.mark.parametrize(
    ("feed", "seen", "most", "expected"),
    [
        ({}, {}, 100, Request(3, 5)),
        ({}, {}, 2, Request(3, 4)),
        (
            {},
            {"newest_id": 39_999},
            100,
            "brick 0.0.0.3 is not sealed. The newest id is 39,999; an id of 40,000 or more seals it.",
        ),
        ({}, {"newest_id": 40_000}, 100, Request(3, 3)),
        ({}, {"newest_id": 10**30}, 100, Request(3, 9)),
        ({}, {"newest_id": None}, 100, "brick 0.0.0.3 is next, and the table has no id of 30,000 or more"),
        ({}, {"busy": 3}, 100, "a run is already publishing brick 0.0.0.3"),
        ({}, {"missing": None}, 100, "skipped: all 10 bricks are materialized."),
        (
            {},
            {"missing": None, "has_rows_beyond": True},
            100,
            "skipped: all 10 bricks are materialized. The table has rows beyond the last brick: raise `bricks.last`",
        ),
        ({}, {"missing": 8, "state": _state(EntryId(2, 500)), "recorded": EntryId(7, 10_000)}, 100, Request(2, 5)),
        ({}, {"missing": None, "state": _state(), "recorded": EntryId(9, 1), "newest_id": 10**6}, 100, Request(0, 9)),
        (
            {},
            {"full": "It holds 3 entries (max_len 3)."},
            100,
            "skipped: stream 'numbers' is full. It holds 3 entries (max_len 3). [UCS-STREAM-FULL]",
        ),
        ({"tail": "follow"}, {}, 100, Request(3, 6, open=True)),
        ({"tail": "follow"}, {}, 3, Request(3, 5)),
        ({"tail": "follow"}, {"newest_id": 10**6}, 100, Request(3, 9)),
        ({"tail": "follow"}, {"newest_id": 38_000, "open_rows": {3: 1}}, 100, Request(3, 3, open=True)),
        (
            {"tail": "follow"},
            {"newest_id": 38_000, "state": _state(EntryId(3, 8_001)), "open_rows": {3: 8_001}},
            100,
            "brick 0.0.0.3 is not sealed, and all its 8,001 rows are in the stream",
        ),
        ({"tail": "follow"}, {"newest_id": 38_000}, 100, "is not sealed, and all its 0 rows are in the stream"),
        (
            {"tail": "follow"},
            {"newest_id": 38_000, "state": _state(EntryId(3, 8_000)), "open_rows": {3: 8_001}},
            100,
            Request(3, 3, open=True),
        ),
    ],
)
def test_the_next_bricks(feed: dict[str, Any], seen: dict[str, Any], most: int, expected: Request | str) -> None:
    found = next_bricks(_feed(**feed), _seen(_feed(**feed), **seen), most)
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert expected in found
        assert found.startswith("feed 'numbers': ")
    else:
        assert found == expected


def _hours(**more: Any) -> Feed:
    bricks = {"class": "time", "first": "2013-10-27", "last": "2013-10-27", "zone": "Europe/Berlin", "settle_s": 60}
    return _feed(bricks=bricks, **more)


def _at(hour: int, minute: int, second: int = 0, day: int = 27) -> float:
    return datetime(2013, 10, day, hour, minute, second, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (
            _at(21, 0, day=26),
            "brick 2013.10.27.00 is not sealed. It ends at 2013-10-27T01:00:00+02:00 and is sealed 60 s later.",
        ),
        (_at(23, 0, 59, day=26), "brick 2013.10.27.00 is not sealed"),
        (_at(23, 1, day=26), ("2013.10.27.00", "2013.10.27.00")),
        # The third brick is over at 02:00 UTC: two hours after its beginning.
        (_at(1, 30), ("2013.10.27.00", "2013.10.27.01")),
        (_at(2, 0, 59), ("2013.10.27.00", "2013.10.27.01")),
        (_at(2, 1), ("2013.10.27.00", "2013.10.27.02")),
        (_at(23, 0, 59), ("2013.10.27.00", "2013.10.27.22")),
        (_at(23, 1), ("2013.10.27.00", "2013.10.27.23")),
        (_at(12, 0, day=31), ("2013.10.27.00", "2013.10.27.23")),
    ],
)
def test_an_hour_is_sealed_when_it_is_over_and_has_settled(now: float, expected: str | tuple[str, str]) -> None:
    feed = _hours()
    seen = _seen(feed, missing=feed.partitions.first, recorded=START, state=_state(), now=now)
    found = next_bricks(feed, seen, 100)
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert expected in found
    else:
        assert isinstance(found, Request)
        assert (feed.partitions.name(found.first), feed.partitions.name(found.last)) == expected
        assert not found.open


def test_a_feed_that_follows_its_tail_publishes_the_hour_that_is_not_over() -> None:
    feed = _hours(tail="follow")
    first, second, third = feed.partitions.starts[:3]
    seen = _seen(feed, missing=first, recorded=START, state=_state(), now=_at(0, 30))
    assert next_bricks(feed, seen, 100) == Request(first, third, open=True)
    assert next_bricks(feed, seen, 1) == Request(first, first)
    done = {"missing": third, "recorded": EntryId(second, 7), "now": _at(0, 30)}
    for rows, top, expected in (
        (9, EntryId(second, 7), Request(third, third, open=True)),
        (9, EntryId(third, 8), Request(third, third, open=True)),
        (9, EntryId(third, 9), "brick 2013.10.27.02 is not sealed, and all its 9 rows are in the stream"),
    ):
        found = next_bricks(feed, _seen(feed, **done, state=_state(top), open_rows={third: rows}), 100)
        assert found == expected if isinstance(expected, Request) else expected in str(found)


def test_nothing_seals_text_bricks_and_their_sensor_says_so() -> None:
    feed = _feed(bricks={"class": "text"})
    found = next_bricks(feed, _seen(feed, missing=0, recorded=START, state=_state()), 100)
    assert found == (
        "feed 'numbers': skipped: nothing seals text bricks, because a new row may belong to any of them. Launch a "
        "backfill, or set `schedule`."
    )


def test_a_schedule_publishes_text_bricks(home: Path, instance: dg.DagsterInstance) -> None:
    write_table(home, "numbers", {"n": pa.array(["a", "b"])})
    feed = _feed(
        bricks={"class": "text", "first": "2.0.0.0", "last": "2.0.0.9"}, schedule="* * * * *", schedule_bricks=3
    )
    [schedule] = [found for found in build_defs(feed).schedules or () if isinstance(found, dg.ScheduleDefinition)]
    context = dg.build_schedule_context(
        instance, repository_def=build_defs(feed).get_repository_def(), resources=resources()
    )
    [request] = list(evaluate_tick(schedule, context).run_requests)
    assert request.tags["dagster/asset_partition_range_start"] == "2.0.0.0"
    assert request.tags["dagster/asset_partition_range_end"] == "2.0.0.2"


def test_what_fails_is_tried_again_with_growing_pauses_and_named() -> None:
    feed, request, top = _feed(), Request(3, 5), EntryId(2, 10_000)
    tries, now, pauses, said = LaunchBackoff(), 1_000_000.0, list[float](), list[str]()
    for _ in range(MANY_TRIES + 2):
        assert tries.objection(feed, request, top, now) is None
        tries = LaunchBackoff.parse(str(tries.launched(feed, request, top, now)))
        waited = 0
        said.append(tries.objection(feed, request, top, now) or "")
        while tries.objection(feed, request, top, now):
            now, waited = now + 60, waited + 60
        pauses.append(waited / 60)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    launched = "feed 'numbers': skipped: brick 0.0.0.3 was launched {} without progress."
    assert said[2] == f"{launched.format('3 times')} It is launched again in 240 s. [UCS-RUN]"
    assert said[5].startswith(f"{launched.format('6 times')} Read the error of its last run. It is launched again in ")
    # Anything that is not as it was begins a new count.
    assert tries.launched(feed, request, EntryId(3, 17), now).tries == 1
    assert tries.launched(feed, Request(4, 5), top, now).tries == 1
    assert tries.launched(feed, Request(3, 6), top, now).tries == 1


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({}, Request(3, 9, live=True)),
        ({"newest_id": None}, Request(3, 9, live=True)),
        ({"busy": 3}, "a run is already publishing brick 0.0.0.3"),
        ({"missing": None}, "skipped: all 10 bricks are materialized."),
        ({"full": "It holds 3 entries (max_len 3)."}, "is full. It holds 3 entries (max_len 3)."),
    ],
)
def test_a_run_that_stays_waits_for_rows(seen: dict[str, Any], expected: Request | str) -> None:
    feed = _feed(tail="live")
    found = next_bricks(feed, _seen(feed, **seen), 100, live=True)
    assert expected in found if isinstance(expected, str) and isinstance(found, str) else found == expected


def test_a_run_that_has_stayed_without_any_row_is_no_failure() -> None:
    feed, request, top, now = _feed(tail="live", live_max_s=300), Request(3, 9, live=True), EntryId(2, 10_000), 1e6
    tries = LaunchBackoff()
    for _ in range(2 * MANY_TRIES):
        tries = tries.launched(feed, request, top, now)
        assert tries.objection(feed, request, top, now + 30)
        now += 300
        assert tries.objection(feed, request, top, now) is None


@pytest.mark.parametrize("cursor", [None, "", "{}", "[1]", "nonsense", '{"brick": "x", "top": 1}'])
def test_a_cursor_of_something_else_is_no_memory(cursor: str | None) -> None:
    assert LaunchBackoff.parse(cursor) == LaunchBackoff()


@pytest.mark.parametrize("setting", ["schedule", "check_schedule"])
def test_a_schedule_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(FeedError, match=rf"{setting} 'every day' is not a cron schedule"):
        _feed(**{setting: "every day"})


# In Dagster


class Cockpit:
    """A feed's sensor or schedule, ticked by hand; what it asks for is run at once."""

    def __init__(self, feed: Feed, instance: dg.DagsterInstance, home: Path) -> None:
        self.feed, self.instance, self.home = feed, instance, home
        self.repository = build_defs(feed).get_repository_def()
        self.cursor: str | None = None

    def table(self, rows: int) -> None:
        """The table now has so many ids, from 0 on."""
        write_table(self.home, "numbers", {"n": pa.array(range(rows), pa.int64())})

    def tick(self, *, run: bool = True) -> str:
        """One tick of the sensor: the range it asked for, or why it did not."""
        sensor = self.repository.get_sensor_def(f"{self.feed.name}_sensor")
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self.repository,
            sensor_name=sensor.name,
            resources=resources(),
        )
        data = evaluate_tick(sensor, context)
        self.cursor = data.cursor
        return self._outcome(data, run)

    def scheduled(self) -> str:
        """One tick of the schedule."""
        schedule = self.repository.get_schedule_def(f"{self.feed.name}_schedule")
        context = dg.build_schedule_context(
            instance=self.instance,
            repository_def=self.repository,
            scheduled_execution_time=datetime.now(tz=timezone.utc),
            resources=resources(),
        )
        return self._outcome(evaluate_tick(schedule, context), True)

    def _outcome(self, data: Any, run: bool) -> str:
        if not data.run_requests:
            return str(data.skip_message)
        [request] = data.run_requests
        if run:
            job = self.repository.get_implicit_global_asset_job_def()
            result = job.execute_in_process(
                instance=self.instance,
                asset_selection=request.asset_selection,
                tags=dict(request.tags),
                raise_on_error=False,
            )
            failed = [event.step_failure_data for event in result.all_events if event.is_step_failure]
            assert result.success, failed
        return str(request.tags["ucs/bricks"])

    @property
    def done(self) -> int:
        """How many bricks are materialized."""
        return len(self.instance.get_materialized_partitions(dg.AssetKey(self.feed.name)))


def _not_sealed(brick: str, newest: str, needed: str, check: str = "in 30 s") -> str:
    return (
        f"feed 'numbers': skipped: brick {brick} is not sealed. The newest id is {newest}; an id of {needed} or more "
        f"seals it. To publish it earlier, launch it by hand or set `tail: follow`. Next check {check}."
    )


def test_a_growing_table_is_published_brick_by_brick_as_it_is_sealed(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    cockpit, client = Cockpit(_feed(max_bricks_per_run=2), instance, home), redis_server.client()
    cockpit.table(9_999)
    assert cockpit.tick() == _not_sealed("0.0.0.0", "9,998", "10,000")
    cockpit.table(35_000)
    assert cockpit.tick() == "0.0.0.0...0.0.0.1"
    assert cockpit.tick() == "0.0.0.2...0.0.0.2"
    assert cockpit.tick() == _not_sealed("0.0.0.3", "34,999", "40,000")
    assert (cockpit.done, client.xlen("numbers")) == (3, 30_000)
    cockpit.table(100_001)
    assert [cockpit.tick() for _ in range(3)] == ["0.0.0.3...0.0.0.4", "0.0.0.5...0.0.0.6", "0.0.0.7...0.0.0.8"]
    assert cockpit.tick() == "0.0.0.9...0.0.0.9"
    done = "feed 'numbers': skipped: all 10 bricks are materialized."
    beyond = "The table has rows beyond the last brick: raise `bricks.last`."
    assert cockpit.tick() == f"{done} {beyond} Next check in 30 s."
    assert client.xlen("numbers") == 100_000
    cockpit.table(100_000)
    assert cockpit.tick() == f"{done} Next check in 30 s."
    (home / ".ucs" / "tables" / "numbers.parquet").unlink()
    assert cockpit.tick() == f"{done} Next check in 30 s."


@pytest.mark.parametrize(
    ("moment", "where", "has_rows_beyond"),
    [
        (datetime(2013, 10, 27, 23, tzinfo=timezone.utc), None, True),
        (datetime(2013, 10, 27, 23, tzinfo=timezone.utc), "n < 2", False),
        (datetime(2013, 10, 27, 22, 59, tzinfo=timezone.utc), None, False),
    ],
)
def test_a_table_of_times_may_go_on_beyond_the_list(
    home: Path, moment: datetime, where: str | None, has_rows_beyond: bool
) -> None:
    # The list ends with the day, at 23:00 UTC.
    rows = {"n": pa.array([1, 2]), "at": pa.array([None, moment], pa.timestamp("s", tz="UTC"))}
    write_table(home, "hours", rows)
    assert open_source(_hours(table="hours", key="at", where=where)).has_rows_beyond() is has_rows_beyond


def test_a_feed_that_follows_its_tail_keeps_the_open_brick_topped_up(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    cockpit, client = Cockpit(_feed(tail="follow"), instance, home), redis_server.client()
    cockpit.table(14_000)
    assert cockpit.tick() == "0.0.0.0...0.0.0.1"
    assert (cockpit.done, client.xlen("numbers")) == (1, 14_000)
    skipped = "feed 'numbers': skipped: brick 0.0.0.1 is not sealed, and all its 4,000 rows are in the stream."
    assert cockpit.tick() == f"{skipped} Next check in 30 s."
    for rows, done in ((14_001, 1), (19_990, 1), (20_003, 2), (41_000, 4)):
        cockpit.table(rows)
        cockpit.tick()
        assert (cockpit.done, client.xlen("numbers")) == (done, rows)
    assert client.xinfo_stream("numbers")["last-generated-id"] == b"4-1000"


def test_a_key_may_have_any_name(instance: dg.DagsterInstance, home: Path) -> None:
    cockpit = Cockpit(_feed(key="key"), instance, home)
    write_table(home, "numbers", {"key": pa.array(range(12_000), pa.int64())})
    assert cockpit.tick() == "0.0.0.0...0.0.0.0"


def test_the_schedule_moves_one_brick_a_tick(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    cockpit = Cockpit(_feed(schedule="*/5 * * * *"), instance, home)
    cockpit.table(25_000)
    assert [cockpit.scheduled() for _ in range(3)] == [
        "0.0.0.0...0.0.0.0",
        "0.0.0.1...0.0.0.1",
        _not_sealed("0.0.0.2", "24,999", "30,000", "at the next tick of the schedule"),
    ]
    assert redis_server.client().xlen("numbers") == 20_000


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_the_schedule_never_overlaps_itself(
    instance: dg.DagsterInstance, home: Path, status: dg.DagsterRunStatus
) -> None:
    cockpit = Cockpit(_feed(schedule="*/5 * * * *"), instance, home)
    cockpit.table(25_000)
    run = instance.create_run_for_job(
        cockpit.repository.get_implicit_global_asset_job_def(),
        asset_selection=frozenset([dg.AssetKey("numbers")]),
        tags={"dagster/asset_partition_range_start": "0.0.0.0", "dagster/asset_partition_range_end": "0.0.0.0"},
        status=status,
    )
    skipped = "feed 'numbers': skipped: a run is already publishing brick 0.0.0.0."
    assert cockpit.scheduled() == f"{skipped} Next check at the next tick of the schedule."
    instance.report_run_canceled(run)
    assert cockpit.scheduled() == "0.0.0.0...0.0.0.0"


def test_what_redis_lost_is_published_again(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    cockpit, client = Cockpit(_feed(), instance, home), redis_server.client()
    cockpit.table(45_000)
    assert cockpit.tick() == "0.0.0.0...0.0.0.3"
    kept = client.xrange("numbers", "-", "1-5000")
    client.delete("numbers")
    for entry_id, fields in kept:
        client.xadd("numbers", fields, id=entry_id)
    assert cockpit.tick() == "0.0.0.1...0.0.0.3"
    assert client.xlen("numbers") == 40_000
    client.delete("numbers")
    assert cockpit.tick() == "0.0.0.0...0.0.0.3"
    assert client.xlen("numbers") == 40_000
    assert "is not sealed" in cockpit.tick()


def test_bricks_that_a_run_has_taken_are_not_asked_for_twice(instance: dg.DagsterInstance, home: Path) -> None:
    cockpit = Cockpit(_feed(), instance, home)
    cockpit.table(25_000)
    assert cockpit.tick(run=False) == "0.0.0.0...0.0.0.1"
    job = cockpit.repository.get_implicit_global_asset_job_def()
    run = instance.create_run_for_job(
        job,
        asset_selection=frozenset([dg.AssetKey("numbers")]),
        tags={"dagster/asset_partition_range_start": "0.0.0.0", "dagster/asset_partition_range_end": "0.0.0.1"},
        status=dg.DagsterRunStatus.STARTED,
    )
    skipped = "feed 'numbers': skipped: a run is already publishing brick 0.0.0.0."
    assert cockpit.tick() == f"{skipped} Next check in 30 s."
    instance.report_run_failed(run)
    assert "was launched 1 time without progress. It is launched again in " in cockpit.tick()


def test_a_full_stream_is_not_launched_into(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    cockpit, client = Cockpit(_feed(stream={"max_len": 20_000}), instance, home), redis_server.client()
    cockpit.table(25_000)
    assert cockpit.tick() == "0.0.0.0...0.0.0.1"
    cockpit.table(45_000)
    assert "stream 'numbers' is full. It holds 20,000 entries (max_len 20,000). It waits until its" in cockpit.tick()
    client.xtrim("numbers", maxlen=0, approximate=False)
    assert cockpit.tick() == "0.0.0.2...0.0.0.3"


def test_a_stream_full_of_bytes_is_not_launched_into(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    cockpit, client = Cockpit(_feed(stream={"max_bytes": 50_000}), instance, home), redis_server.client()
    client.xadd("numbers", {"n": "x" * 60_000}, "0-1")
    cockpit.table(25_000)
    assert "is full. It takes 6" in cockpit.tick()
    assert "bytes (max_bytes 50,000). It waits until its consumers have trimmed" in cockpit.tick()
    client.xtrim("numbers", maxlen=0, approximate=False)
    assert cockpit.tick(run=False) == "0.0.0.0...0.0.0.1"


def test_a_stream_full_of_what_nobody_acknowledged_is_not_launched_into(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    stream = {"max_len": 20_000, "when_full": "trim_acknowledged"}
    cockpit, client = Cockpit(_feed(stream=stream), instance, home), redis_server.client()
    cockpit.table(25_000)
    assert cockpit.tick() == "0.0.0.0...0.0.0.1"
    cockpit.table(45_000)
    sentence = "(max_len 20,000). It waits until its consumer groups have acknowledged the oldest entries"
    assert sentence in cockpit.tick()
    client.xgroup_create("numbers", "workers", "0")
    client.xreadgroup("workers", "a", {"numbers": ">"}, count=2)
    assert sentence in cockpit.tick()
    client.xack("numbers", "workers", "0-1")
    assert cockpit.tick(run=False) == "0.0.0.2...0.0.0.3"


def test_a_server_that_is_away_is_a_reason_to_skip(
    instance: dg.DagsterInstance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cockpit = Cockpit(_feed(), instance, home)
    cockpit.table(25_000)
    monkeypatch.setenv("UCS_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "Redis cannot be reached" in cockpit.tick()
    monkeypatch.undo()


def test_a_feed_without_automation_has_none() -> None:
    defs = build_defs(_feed(sensor=False)).get_repository_def()
    assert [sensor.name for sensor in defs.sensor_defs if not sensor.name.startswith("default_")] == []
    assert defs.schedule_defs == []


def test_a_tick_is_quick_where_there_are_many_bricks(instance: dg.DagsterInstance, home: Path) -> None:
    cockpit = Cockpit(_feed(bricks={"class": "number", "last": 999_999_999}), instance, home)
    cockpit.table(25_000)
    started = time.process_time()
    assert cockpit.tick(run=False) == "0.0.0.0...0.0.0.1"
    # Three times what it takes, in processor time: it does not depend on what else the machine does.
    assert time.process_time() - started < 15
