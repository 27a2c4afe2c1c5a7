"""The deployment of `deploy/celery/` with real processes; its workers are killed, frozen and woken as they publish."""

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import clickhouse_connect
import dagster as dg
import pytest
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus
from dagster._core.storage.dagster_run import RunsFilter

from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.instance.run_queue import StreamRunCoordinator
from ucs_pipeline.reading.verify import verify
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.many_workers import Deployment, pid_of, wait_until
from ucs_pipeline_tests.servers.postgres_server import PostgresServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import open_source, open_stream

# The daemon polls for new backfills, and for finished ones, every 30 seconds; a dead worker's lease lasts as long; and
# a dozen runs start, on a slow machine one after another.
pytestmark = pytest.mark.timeout(900)
PATIENCE_S = 400

NAMES = ["killed", "crashed", "frozen"]
BRICKS = 20
ROWS = 100
"""Rows in a brick."""
FEEDS = f"""
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.instance.test_celery import feed

defs = build_defs(*map(feed, {NAMES}))
"""


def feed(name: str) -> Feed:
    """A feed of twenty bricks in two runs of ten seconds each."""
    return BrickFeed(
        name=name,
        table="many",
        key="id",
        bricks={"class": "number", "last": BRICKS * 10_000 - 1},
        stream={"max_rows_per_second": ROWS},
        max_bricks_per_run=BRICKS // 2,
    )


class Published(NamedTuple):
    """What there is after every backfill has ended."""

    instance: dg.DagsterInstance
    client: Any
    backfills: dict[str, str]
    victims: dict[str, str]
    """The run of each feed that was interrupted."""
    tops: dict[str, int]
    """Row of its brick at which each stream ended when its publisher was interrupted."""

    def runs(self, name: str) -> list[dg.RunRecord]:
        """Runs of a feed's backfill, in the order in which they were launched."""
        tags = {"dagster/backfill": self.backfills[name]}
        return list(self.instance.get_run_records(RunsFilter(tags=tags), ascending=True))

    def top(self, name: str) -> tuple[int, int]:
        """Brick and row of a stream's last entry; zeros if there is none."""
        for entry_id, _ in self.client.xrevrange(name, count=1):
            brick, _, row = entry_id.decode().partition("-")
            return int(brick), int(row)
        return 0, 0


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, clickhouse_http: ClickHouseServer) -> Iterator[Published]:
    table = clickhouse_connect.get_client(dsn=clickhouse_http.url)
    table.command("CREATE OR REPLACE TABLE many (id UInt64, word String) ENGINE = MergeTree ORDER BY id")
    step = 10_000 // ROWS
    table.command(f"INSERT INTO many SELECT number * {step}, toString(number) FROM numbers({BRICKS * ROWS})")
    table.close()
    with (
        PostgresServer() as postgres,
        RedisServer(tmp_path_factory.mktemp("broker"), {"requirepass": "broker's own"}) as broker,
        RedisServer(tmp_path_factory.mktemp("target")) as target,
        pytest.MonkeyPatch.context() as patch,
    ):
        deployment = Deployment(
            tmp_path_factory.mktemp("deployment"),
            FEEDS,
            workers=len(NAMES),
            UCS_POSTGRES_URL=postgres.url,
            UCS_CELERY_URL=broker.url,
            UCS_REDIS_URL=target.url,
            UCS_CLICKHOUSE_URL=clickhouse_http.url,
        )
        for name, value in deployment.environment.items():
            patch.setenv(name, value)
        with dg.DagsterInstance.get() as instance, deployment, target.client() as client:
            found = Published(instance, client, {}, {}, {})
            for name in NAMES:
                found.backfills[name] = deployment.launch(name, feed(name).partitions.names())
            _interrupt_all(deployment, found)
            wait_until(lambda: all(_ended(found, name) for name in NAMES), lambda: deployment.log("daemon"), PATIENCE_S)
            yield found


def _interrupt_all(deployment: Deployment, found: Published) -> None:
    """Kills a worker and the process of a run, freezes a worker, restarts the daemon; then repairs the deployment."""
    pids: dict[str, int] = {}

    def all_stopped() -> bool:
        # Each as soon as it is under way: its first run does not last until the others' have begun.
        for name in NAMES:
            if name not in pids and found.top(name) > (0, ROWS // 2):
                pids[name] = _stop_in_mid_brick(found, name)
        return len(pids) == len(NAMES)

    wait_until(all_stopped, lambda: deployment.log("daemon"), PATIENCE_S)
    workers = {name: deployment.worker_of(pid) for name, pid in pids.items()}
    assert len(set(workers.values())) == len(NAMES)
    deployment.signal(workers["killed"], signal.SIGKILL)
    os.kill(pids["crashed"], signal.SIGKILL)
    deployment.signal(workers["frozen"], signal.SIGSTOP)
    deployment.stop("daemon")
    deployment.start_daemon()
    deployment.start_worker("worker-anew")
    # The frozen one continues after another publisher has taken over its brick.
    before = found.top("frozen")
    wait_until(lambda: found.top("frozen") > before, lambda: deployment.log("daemon"), PATIENCE_S)
    deployment.signal(workers["frozen"], signal.SIGCONT)


def _stop_in_mid_brick(found: Published, name: str) -> int:
    """Stops the process of a feed's first run when its stream ends in the middle of a brick. Returns its id."""
    [record] = [run for run in found.runs(name) if run.dagster_run.status is dg.DagsterRunStatus.STARTED]
    found.victims[name] = record.dagster_run.run_id
    pid = pid_of(found.instance, record.dagster_run.run_id)
    assert pid is not None
    for _ in range(50):
        os.kill(pid, signal.SIGSTOP)
        _, row = found.top(name)
        if 0 < row < ROWS:
            found.tops[name] = row
            return pid
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.15)
    raise AssertionError(f"stream {name!r} was never in the middle of a brick")


def _ended(found: Published, name: str) -> bool:
    backfill = found.instance.get_backfill(found.backfills[name])
    return backfill is not None and backfill.status in BULK_ACTION_TERMINAL_STATUSES


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_equals_its_table(published: Published, name: str) -> None:
    it = feed(name)
    verdict = verify(it, open_source(it), open_stream(it, published.client))
    assert verdict.agrees, verdict
    assert verdict.equal == BRICKS * ROWS


@pytest.mark.parametrize("name", NAMES)
def test_every_brick_is_recorded_although_its_publisher_was_interrupted(published: Published, name: str) -> None:
    backfill = published.instance.get_backfill(published.backfills[name])
    assert backfill is not None
    assert backfill.status is BulkActionStatus.COMPLETED_SUCCESS
    assert published.instance.get_materialized_partitions(dg.AssetKey(name)) == set(feed(name).partitions.names())
    assert 0 < published.tops[name] < ROWS


@pytest.mark.parametrize("name", NAMES)
def test_another_run_took_the_place_of_the_interrupted_one(published: Published, name: str) -> None:
    runs = [record.dagster_run for record in published.runs(name)]
    [victim] = [run for run in runs if run.run_id == published.victims[name]]
    # A frozen one was marked as failed; when it continues, it may find its bricks in the stream, and record them as
    # done.
    assert victim.status is dg.DagsterRunStatus.FAILURE or name == "frozen"
    [again] = [run for run in runs if run.parent_run_id == victim.run_id]
    assert again.status is dg.DagsterRunStatus.SUCCESS


@pytest.mark.parametrize("name", NAMES)
def test_runs_that_were_refused_meanwhile_are_launched_after_it(published: Published, name: str) -> None:
    runs = [record.dagster_run for record in published.runs(name)]
    failed = [run for run in runs if run.status is dg.DagsterRunStatus.FAILURE]
    refused = [run for run in failed if run.run_id != published.victims[name]]
    assert refused
    for run in refused:
        [again] = [other for other in runs if other.parent_run_id == run.run_id]
        assert again.tags["dagster/asset_partition_range_start"] == run.tags["dagster/asset_partition_range_start"]


def test_the_queue_keeps_streams_to_one_writer_on_postgresql_too(published: Published) -> None:
    assert isinstance(published.instance.run_coordinator, StreamRunCoordinator)
    pools = {f"redis_stream_{name}" for name in NAMES}
    assert pools <= published.instance.event_log_storage.get_concurrency_keys()
    # Another run was active at the same time as the frozen one.
    for name in ("killed", "crashed"):
        times = sorted((run.start_time or 0.0, run.end_time or 0.0) for run in published.runs(name))
        assert all(end <= start for (_, end), (start, _) in pairwise(times))
