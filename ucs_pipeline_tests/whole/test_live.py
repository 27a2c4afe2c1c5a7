"""A run that stays, launched by the sensor of a real daemon: cancelled, killed, and begun again."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import clickhouse_connect
import dagster as dg
import pytest

from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit

PATIENCE_S = 300
FEEDS = """
from ucs_pipeline import BrickFeed
from ucs_pipeline_tests.support.connections import build_defs

bricks = {"class": "number", "last": 9_999, "width": 10}
defs = build_defs(
    BrickFeed(name="live", table="live", key="n", bricks=bricks, tail="live", sensor_interval_s=5, fresh_within_s=600)
)
"""


@pytest.fixture
def cockpit(tmp_path: Path, redis_server: RedisServer, clickhouse_http: ClickHouseServer) -> Iterator[Cockpit]:
    with Cockpit(tmp_path, redis_server.url, FEEDS, UCS_CLICKHOUSE_URL=clickhouse_http.url) as cockpit:
        yield cockpit


def test_a_run_that_ends_is_followed_by_the_next(
    cockpit: Cockpit, redis_server: RedisServer, clickhouse_http: ClickHouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(cockpit.home))
    with (
        closing(clickhouse_connect.get_client(dsn=clickhouse_http.url)) as table,
        dg.DagsterInstance.get() as instance,
    ):
        table.command("CREATE OR REPLACE TABLE live (n UInt64) ENGINE = MergeTree ORDER BY n")
        cockpit.switch_on("live_sensor")
        rows = 0

        def add(number: int) -> None:
            nonlocal rows
            for _ in range(number):
                table.insert("live", [[rows]], ["n"])
                rows += 1
            _until(lambda: redis_server.client().xlen("live") == rows)

        def run(after: int) -> str:
            """The run that stays, once so many have ended."""
            _until(lambda: len(_runs(instance)) == after + 1 and _runs(instance)[0][1] == "STARTED")
            return _runs(instance)[0][0]

        first = run(0)
        add(25)
        done = {"0.0.0.0", "0.0.0.1"}
        _until(lambda: instance.get_materialized_partitions(dg.AssetKey("live")) == done)
        _until(lambda: _freshness(cockpit) == "HEALTHY")
        assert _runs(instance) == [(first, "STARTED")]

        cockpit.ask("mutation ($it: String!) { terminateRun(runId: $it) { __typename } }", it=first)
        _until(lambda: (first, "CANCELED") in _runs(instance))
        second = run(1)
        add(10)

        # The process that launched it notices.
        os.kill(_process(instance, second), signal.SIGKILL)
        _until(lambda: (second, "FAILURE") in _runs(instance))
        run(2)
        add(10)

        entries = redis_server.client().xrange("live")
        records = instance.get_run_records(ascending=True)
    assert entries == [(b"%d-%d" % (n // 10, n % 10 + 1), {b"n": b"%d" % n}) for n in range(rows)]
    # Never two at once.
    ends = [(record.start_time or 0, record.end_time or float("inf")) for record in records]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends)), ends


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(instance: dg.DagsterInstance) -> list[tuple[str, str]]:
    """Ids and statuses of all runs, the newest first."""
    return [(run.run_id, run.status.value) for run in instance.get_runs()]


def _process(instance: dg.DagsterInstance, run_id: str) -> int:
    """The process of a run."""
    texts = (record.event_log_entry.user_message for record in instance.get_records_for_run(run_id).records)
    return int(next(filter(None, (re.search(r"\(pid: (\d+)\)", text) for text in texts)))[1])


def _freshness(cockpit: Cockpit) -> str | None:
    """The state of the feed in the UI."""
    nodes = cockpit.ask("{ assetNodes { assetKey { path } freshnessStatusInfo { freshnessStatus } } }")["assetNodes"]
    [found] = [node["freshnessStatusInfo"] for node in nodes if node["assetKey"]["path"] == ["live"]]
    return (found or {}).get("freshnessStatus")
