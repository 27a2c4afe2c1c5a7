"""A table that grows by the second, two sensors of a real daemon, and no manual launch."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import clickhouse_connect
import dagster as dg
import pytest
from dagster._core.scheduler.instigation import InstigatorTick

from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit

SECONDS, ROWS_A_SECOND, STEP = 120, 20, 100
"""The table grows by a brick in five seconds: a hundred rows, a hundred ids apart."""
INTERVAL_S = 20
FEEDS = f"""
from ucs_pipeline import BrickFeed
from ucs_pipeline_tests.support.connections import build_defs

def feed(name, **more):
    bricks = {{"class": "number", "last": 9_999_999}}
    return BrickFeed(name=name, table="growing", key="id", bricks=bricks, sensor_interval_s={INTERVAL_S}, **more)

defs = build_defs(feed("sealed"), feed("live", tail="follow", fresh_within_s=600))
"""


@pytest.fixture
def cockpit(tmp_path: Path, redis_server: RedisServer, clickhouse_http: ClickHouseServer) -> Iterator[Cockpit]:
    with Cockpit(tmp_path, redis_server.url, FEEDS, UCS_CLICKHOUSE_URL=clickhouse_http.url) as cockpit:
        yield cockpit


class Writer(threading.Thread):
    """Appends rows every second, as somebody else's program would, and notes when."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._client = clickhouse_connect.get_client(dsn=url)
        self._client.command("CREATE OR REPLACE TABLE growing (id UInt64) ENGINE = MergeTree ORDER BY id")
        self.appended: dict[int, float] = {}
        """Time of each row, by its id."""

    def run(self) -> None:
        began = time.monotonic()
        with closing(self._client):
            for second in range(SECONDS):
                first = second * ROWS_A_SECOND
                ids = [row * STEP for row in range(first, first + ROWS_A_SECOND)]
                self._client.insert("growing", [[row] for row in ids], ["id"])
                self.appended |= dict.fromkeys(ids, time.time())
                time.sleep(max(0.0, began + second + 1 - time.monotonic()))


class Reader(threading.Thread):
    """Reads streams as a consumer would, and notes when each entry came."""

    def __init__(self, server: RedisServer, *streams: str) -> None:
        super().__init__(daemon=True)
        self._client = server.client()
        self._next: dict[bytes, bytes] = {stream.encode(): b"0-0" for stream in streams}
        self.came: dict[str, dict[int, float]] = {stream: {} for stream in streams}
        """Time of each row, by its id, in the order in which they came."""
        self.ended = False

    def run(self) -> None:
        while not self.ended:
            for stream, entries in self._client.xread(self._next, block=200) or ():
                for entry_id, fields in entries:
                    row = int(fields[b"id"])
                    assert entry_id == b"%d-%d" % (row // 10_000, row % 10_000 // STEP + 1)
                    self.came[stream.decode()][row] = time.time()
                    self._next[stream] = entry_id


def test_a_table_that_grows_is_in_its_streams_by_itself(
    cockpit: Cockpit, redis_server: RedisServer, clickhouse_http: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = Writer(clickhouse_http.url), Reader(redis_server, "sealed", "live")
    cockpit.switch_on("sealed_sensor")
    cockpit.switch_on("live_sensor")
    reader.start()
    writer.start()
    writer.join()
    rows = list(writer.appended)
    sealed = [row for row in rows if row // 10_000 < rows[-1] // 10_000]
    deadline = time.monotonic() + 10 * INTERVAL_S
    while len(reader.came["live"]) < len(rows) or len(reader.came["sealed"]) < len(sealed):
        assert time.monotonic() < deadline, {name: len(came) for name, came in reader.came.items()}
        time.sleep(0.1)
    # Nothing comes after the last one.
    time.sleep(INTERVAL_S)
    reader.ended = True
    reader.join()
    assert _freshness(cockpit) == {"live": "HEALTHY", "sealed": None}
    assert list(reader.came["live"]) == rows
    assert list(reader.came["sealed"]) == sealed
    assert redis_server.client().xlen("live") == len(rows)
    assert redis_server.client().xlen("sealed") == len(sealed)

    monkeypatch.setenv("DAGSTER_HOME", str(cockpit.home))
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_run_records(ascending=True)
        done = {name: len(instance.get_materialized_partitions(dg.AssetKey(name))) for name in reader.came}
        ticks = _ticks(instance, "live_sensor")
    assert {record.dagster_run.status for record in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert done == {"sealed": rows[-1] // 10_000, "live": rows[-1] // 10_000}
    launches = [tick for tick in ticks if tick.run_ids]
    came, appended = reader.came["live"][rows[-1]], writer.appended[rows[-1]]
    lags = sorted(reader.came["live"][row] - writer.appended[row] for row in rows)
    print(
        f"\n{len(rows):,} rows in {SECONDS} s, {len(launches)} runs of the feed that follows; a row is in the stream "
        f"after {statistics.median(lags):.1f} s (median; longest {lags[-1]:.1f} s, last row {came - appended:.1f} s)"
    )
    # The first tick after the last row launched its run, unless one was running.
    assert launches[-1].timestamp < came
    between = [tick for tick in ticks if appended < tick.timestamp < launches[-1].timestamp]
    assert all("already publishing" in (tick.tick_data.skip_reason or "") for tick in between), between


def _ticks(instance: dg.DagsterInstance, sensor: str) -> list[InstigatorTick]:
    """Every tick of a sensor, in order of time."""
    [state] = [state for state in instance.all_instigator_state() if state.instigator_name == sensor]
    return sorted(instance.get_ticks(state.instigator_origin_id, state.selector_id), key=lambda tick: tick.timestamp)


def _freshness(cockpit: Cockpit) -> dict[str, str | None]:
    """The freshness of each feed in the UI."""
    nodes = cockpit.ask("{ assetNodes { assetKey { path } freshnessStatusInfo { freshnessStatus } } }")["assetNodes"]
    found = {"/".join(node["assetKey"]["path"]): node["freshnessStatusInfo"] for node in nodes}
    return {name: (found[name] or {}).get("freshnessStatus") for name in ("live", "sealed")}
