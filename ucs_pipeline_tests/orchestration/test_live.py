"""A run that stays: rows are in the stream as the table gets them, and bricks are recorded as they are sealed."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import clickhouse_connect
import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, evaluate_tick, publish, resources
from ucs_pipeline_tests.support.home import write_table

PATIENCE_S = 300


def _feed(**more: Any) -> Feed:
    settings: dict[str, Any] = {
        "name": "live",
        "table": "live",
        "key": "n",
        "bricks": {"class": "number", "last": 99, "width": 10},
        "tail": "live",
        "poll_s": 0.05,
    }
    return BrickFeed(**{**settings, **more})


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Table:
    """A table of ids that grows, over HTTP or of the embedded engine."""

    def __init__(self, home: Path, url: str | None) -> None:
        self.ids: list[int] = []
        self._home = home
        self._client = clickhouse_connect.get_client(dsn=url) if url else None
        if self._client:
            self._client.command("CREATE OR REPLACE TABLE live (n UInt64) ENGINE = MergeTree ORDER BY n")
        else:
            self.add()

    def add(self, *ids: int) -> None:
        """One more insert."""
        self.ids += ids
        if self._client:
            self._client.insert("live", [[row] for row in ids], ["n"])
        else:
            # The engine may be reading the file.
            write_table(self._home, "live.new", {"n": pa.array(self.ids, pa.uint64())})
            tables = self._home / ".ucs" / "tables"
            (tables / "live.new.parquet").replace(tables / "live.parquet")

    def close(self) -> None:
        """Closes the connection."""
        if self._client:
            self._client.close()


class Run(threading.Thread):
    """What the feed's sensor launches, in a thread."""

    def __init__(self, feed: Feed, instance: dg.DagsterInstance) -> None:
        super().__init__(daemon=True)
        self.feed, self.instance = feed, instance
        self._defs = build_defs(feed)
        self.result: dg.ExecuteInProcessResult | None = None

    def tick(self) -> dg.RunRequest | str:
        """One tick of the sensor: the run that it requests, or why it does not."""
        repository = self._defs.get_repository_def()
        sensor = repository.get_sensor_def("live_sensor")
        data = evaluate_tick(
            sensor, dg.build_sensor_context(instance=self.instance, repository_def=repository, resources=resources())
        )
        return data.run_requests[0] if data.run_requests else str(data.skip_message)

    def run(self) -> None:
        request = self.tick()
        assert isinstance(request, dg.RunRequest)
        self.result = self._defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance, asset_selection=request.asset_selection, tags=request.tags, raise_on_error=False
        )

    def end(self) -> dg.ExecuteInProcessResult:
        """The result, once the run has ended by itself."""
        self.join(PATIENCE_S)
        assert self.result
        return self.result

    @property
    def done(self) -> list[str]:
        """The bricks that are recorded."""
        return sorted(self.instance.get_materialized_partitions(dg.AssetKey("live")))

    @property
    def errors(self) -> list[str]:
        """Why it failed."""
        found = [event.step_failure_data for event in self.end().all_events if event.is_step_failure]
        return [str(failure.user_failure_data and failure.user_failure_data.description) for failure in found]


@pytest.fixture(params=["http", "embedded"])
def table(
    request: pytest.FixtureRequest, home: Path, clickhouse_http: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Table]:
    if request.param == "http":
        monkeypatch.setenv("UCS_CLICKHOUSE_URL", clickhouse_http.url)
    with closing(Table(home, os.environ.get("UCS_CLICKHOUSE_URL"))) as table:
        yield table


over_http = pytest.mark.parametrize("table", ["http"], indirect=True)


def _ids(redis: RedisServer) -> list[tuple[bytes, int]]:
    return [(entry_id, int(fields[b"n"])) for entry_id, fields in redis.client().xrange("live")]


def _entries(ids: Sequence[int]) -> list[tuple[bytes, int]]:
    rows = [(n // 10, sum(other // 10 == n // 10 and other <= n for other in ids), n) for n in ids]
    return [(b"%d-%d" % (brick, row), n) for brick, row, n in rows]


def test_rows_go_as_they_come_and_bricks_are_recorded_as_they_are_sealed(
    table: Table, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    run = Run(_feed(), instance)
    run.start()
    for ids in ([1], [2, 4], [9], [12, 13], [25], [41], [42, 57, 58]):
        table.add(*ids)
        _until(lambda: _ids(redis_server) == _entries(table.ids))
    # Two of them have no rows.
    _until(lambda: run.done == [f"0.0.0.{n}" for n in range(5)])
    assert run.result is None
    table.add(99, 100)
    assert run.end().success
    assert _ids(redis_server) == _entries(table.ids[:-1])
    assert run.done == [f"0.0.0.{n}" for n in range(10)]
    events = run.end().asset_materializations_for_node("live")
    assert [event.partition for event in events] == run.done
    # What the passes before had added counts.
    assert [event.metadata["dagster/partition_row_count"].value for event in events] == [4, 2, 1, 0, 2, 2, 0, 0, 0, 1]
    added = [event.metadata["published"].value for event in events]
    assert added == [4, 2, 1, 0, 2, 2, 0, 0, 0, 1]


@over_http
def test_it_ends_by_itself_and_the_next_one_goes_on(
    table: Table, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    table.add(1, 2, 11, 12)
    run = Run(_feed(live_max_s=1), instance)
    run.start()
    assert run.end().success
    assert (run.done, _ids(redis_server)) == (["0.0.0.0"], _entries(table.ids))
    [seen] = [event for event in _observations(run.end()) if event.asset_key == dg.AssetKey(["redis", "live"])]
    assert seen.metadata["published"].value == 4
    table.add(13, 21)
    run = Run(_feed(live_max_s=1), instance)
    run.start()
    assert run.end().success
    assert (run.done, _ids(redis_server)) == (["0.0.0.0", "0.0.0.1"], _entries(table.ids))
    assert run.end().dagster_run.tags["ucs/bricks"] == "0.0.0.1...0.0.0.9"


def _observations(result: dg.ExecuteInProcessResult) -> list[dg.AssetObservation]:
    return [event.asset_observation_data.asset_observation for event in result.all_events if event.is_asset_observation]


@over_http
def test_the_sensor_launches_one_run_that_waits_for_rows(table: Table, instance: dg.DagsterInstance) -> None:
    run = Run(_feed(max_bricks_per_run=4), instance)
    request = run.tick()
    assert isinstance(request, dg.RunRequest)
    assert {name: tag for name, tag in request.tags.items() if name != "dagster/sensor_name"} == {
        "dagster/asset_partition_range_start": "0.0.0.0",
        "dagster/asset_partition_range_end": "0.0.0.3",
        "ucs/feed": "live",
        "ucs/bricks": "0.0.0.0...0.0.0.3",
        "ucs.feed/live": "yes",
        "ucs/live": "yes",
        # The sensor begins the next run: a retry of Dagster's would be a second one.
        "dagster/max_retries": "0",
    }
    run.start()
    busy = "feed 'live': skipped: a run is already publishing brick 0.0.0.{}."
    _until(lambda: busy.format(0) in str(run.tick()))
    table.add(1, 11)
    _until(lambda: run.done == ["0.0.0.0"])
    assert busy.format(1) in str(run.tick())
    table.add(50)
    assert run.end().success
    # It has come to the end of its bricks.
    request = run.tick()
    assert isinstance(request, dg.RunRequest)
    assert request.tags["ucs/bricks"] == "0.0.0.4...0.0.0.7"


@over_http
def test_a_run_without_new_rows_writes_nothing_down(
    table: Table, instance: dg.DagsterInstance, redis_server: RedisServer, clickhouse_http: ClickHouseServer
) -> None:
    table.add(1, 2)
    run, client = Run(_feed(bricks={"class": "number", "last": 9, "width": 10}), instance), redis_server.client()
    run.start()
    _until(lambda: client.xlen("live") == 2)
    asked = clickhouse_http.fault()["requests"]
    _until(lambda: clickhouse_http.fault()["requests"] > asked + 5)
    [record] = instance.get_run_records()
    known, token = len(instance.all_logs(record.dagster_run.run_id)), client.get("{live}:writer")
    asked = clickhouse_http.fault()["requests"]
    _until(lambda: clickhouse_http.fault()["requests"] > asked + 20)
    assert len(instance.all_logs(record.dagster_run.run_id)) == known
    # Nobody has taken the stream over to find nothing.
    assert client.get("{live}:writer") == token
    table.add(10)
    assert run.end().success


@over_http
def test_a_row_before_the_last_one_is_refused(
    table: Table, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    table.add(1, 5)
    run = Run(_feed(), instance)
    run.start()
    _until(lambda: len(_ids(redis_server)) == 2)
    # Nothing is skipped: the next pass finds it.
    table.add(3, 7)
    assert not run.end().success
    [error] = run.errors
    assert error.startswith("feed 'live': brick 0.0.0.0: entry 0-2 of stream 'live' ")
    assert "differs from the table" in error
    assert _ids(redis_server) == _entries([1, 5])


@over_http
def test_it_waits_while_the_stream_is_full(
    table: Table, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    bricks = {"class": "number", "last": 19, "width": 10}
    run, client = Run(_feed(stream={"max_len": 3}, bricks=bricks), instance), redis_server.client()
    run.start()
    table.add(1, 2, 3, 4, 11)
    _until(lambda: client.xlen("live") == 3)
    client.xtrim("live", minid="0-3", approximate=False)
    _until(lambda: [n for _, n in _ids(redis_server)] == [3, 4, 11])
    client.xtrim("live", maxlen=0, approximate=False)
    table.add(12, 20)
    assert run.end().success
    assert [n for _, n in _ids(redis_server)] == [12]


@over_http
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "lost"])
def test_it_goes_on_over_a_restart_of_redis(
    table: Table, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    (tmp_path / "own").mkdir()
    options = {"appendonly": "yes", "appendfsync": "always"} if kept else {"save": "", "appendonly": "no"}
    with RedisServer(tmp_path / "own", options) as redis:
        monkeypatch.setenv("UCS_REDIS_URL", redis.url)
        run = Run(_feed(bricks={"class": "number", "last": 29, "width": 10}), instance)
        run.start()
        table.add(1, 2, 11)
        _until(lambda: run.done == ["0.0.0.0"])
        redis.kill()
        table.add(12, 21)
        redis.start()
        # Without a row of its own, a stream that came back shorter is noticed as well.
        _until(lambda: _ids(redis) == _entries(table.ids))
        table.add(30)
        assert run.end().success
        assert _ids(redis) == _entries(table.ids[:-1])


@over_http
def test_it_goes_on_when_clickhouse_answers_again(
    table: Table, instance: dg.DagsterInstance, redis_server: RedisServer, clickhouse_http: ClickHouseServer
) -> None:
    table.add(1)
    run = Run(_feed(), instance)
    run.start()
    _until(lambda: len(_ids(redis_server)) == 1)
    clickhouse_http.fault(fail_next=3)
    _until(lambda: clickhouse_http.fault()["fail_next"] == 0)
    table.add(2, 100)
    assert run.end().success
    assert _ids(redis_server) == _entries([1, 2])


@over_http
@pytest.mark.usefixtures("table")
def test_hours_are_sealed_by_the_clock(
    instance: dg.DagsterInstance, redis_server: RedisServer, clickhouse_http: ClickHouseServer
) -> None:
    now = datetime.now(timezone.utc)
    hour = now.replace(minute=0, second=0, microsecond=0)
    bricks = {
        "class": "time",
        "settle_s": 0,
        "first": f"{hour - timedelta(hours=1):%Y-%m-%dT%H}",
        "last": f"{hour + timedelta(hours=5):%Y-%m-%dT%H}",
    }
    with closing(clickhouse_connect.get_client(dsn=clickhouse_http.url)) as client:
        client.command(
            "CREATE OR REPLACE TABLE live (at DateTime64(3, 'UTC'), n UInt64) ENGINE = MergeTree ORDER BY (at, n)"
        )

        def add(n: int, moment: datetime) -> None:
            client.insert("live", [[moment, n]], ["at", "n"])
            _until(lambda: [row for _, row in _ids(redis_server)][-1:] == [n])

        run = Run(_feed(key="at", bricks=bricks, live_max_s=10), instance)
        run.start()
        add(1, hour - timedelta(minutes=1))
        add(2, now)
        # Another row of the same instant is one that has come after it.
        add(3, now)
        _until(lambda: run.done[:1] == [f"{hour - timedelta(hours=1):%Y.%m.%d.%H}"])
        assert run.end().success
    assert [n for _, n in _ids(redis_server)] == [1, 2, 3]


@over_http
def test_the_checks_hold_while_it_stays(table: Table, instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    table.add(1, 2, 11, 12)
    run = Run(_feed(), instance)
    run.start()
    _until(lambda: run.done == ["0.0.0.0"] and redis_server.client().xlen("live") == 4)
    checked = build_defs(run.feed).resolve_job_def("live_checks").execute_in_process(instance=instance)
    found = {check.check_name: check.passed for check in checked.get_asset_check_evaluations()}
    assert found == dict.fromkeys(found, True)
    assert len(found) == 5
    assert run.result is None
    table.add(100)
    assert run.end().success


@over_http
def test_ucs_publish_adds_what_is_there_and_does_not_stay(
    table: Table, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    (Path(instance.root_directory) / "dagster.yaml").write_text("telemetry: {enabled: false}")
    table.add(1, 2, 11)
    done = publish(_feed())
    assert (done.bricks, done.rows) == (2, 3)
    assert _ids(redis_server) == _entries(table.ids)
    skipped = "feed 'live': skipped: brick 0.0.0.1 is not sealed, and its only row is in the stream."
    assert publish(_feed()).reason == skipped
    table.add(12)
    assert publish(_feed()).rows == 1


@over_http
@pytest.mark.usefixtures("table")
def test_what_is_wrong_with_the_table_is_said_by_the_sensor(instance: dg.DagsterInstance) -> None:
    run = Run(_feed(key="missing"), instance)
    assert "missing" in str(run.tick())
