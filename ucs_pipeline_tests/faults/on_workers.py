"""`python -m ucs_pipeline_tests.faults.on_workers`: the deployment of `deploy/celery/` under kills.

Backfills of many feeds at once on several workers, while runs and workers are killed, workers frozen and woken, and the
daemon restarted, all at random. Ends when every backfill has, and compares every stream with its table. A backfill
that ended as failed, because its runs died more often than they are retried, is launched again for what it lacks.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import clickhouse_connect
import dagster as dg
import pytest
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus
from dagster._core.storage.dagster_run import RunsFilter

from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.reading.verify import verify
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.many_workers import Deployment, pid_of
from ucs_pipeline_tests.servers.postgres_server import PostgresServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import connect_redis, open_source, open_stream

ROWS = 1_000
"""Rows in a brick."""

_FROZEN_SECONDS = 60
"""Longer than a worker's lease."""


def feed(number: int, bricks: int) -> Feed:
    """One of the feeds: all read one table, each into a stream of its own, in runs of a tenth of the bricks."""
    return BrickFeed(
        name=f"feed_{number}",
        table="many",
        key="id",
        bricks={"class": "number", "last": bricks * 10_000 - 1},
        max_bricks_per_run=max(1, bricks // 10),
        stream={"max_rows_per_second": 5 * ROWS},
    )


class Campaign:
    """Backfills that continue while processes die."""

    def __init__(self, deployment: Deployment, instance: dg.DagsterInstance, feeds: list[Feed], seed: int) -> None:
        self.injected: Counter[str] = Counter()
        self.launched_again = 0
        self._deployment = deployment
        self._instance = instance
        self._random = random.Random(seed)
        self._feeds = {item.name: item for item in feeds}
        self._backfills = {item.name: deployment.launch(item.name, item.partitions.names()) for item in feeds}
        self._asleep: dict[str, float] = {}

    def run(self, minutes: float, every: float) -> bool:
        """Injects a fault every so many seconds on average. Returns whether every backfill ended in time."""
        deadline = time.monotonic() + 60 * minutes
        following = time.monotonic() + every
        while waiting := [name for name in self._feeds if not self._done(name)]:
            if time.monotonic() > deadline:
                print(f"not done: {waiting}")
                return False
            for worker in [name for name, until in self._asleep.items() if until < time.monotonic()]:
                self._wake(worker)
            if time.monotonic() > following:
                following = time.monotonic() + self._random.uniform(0.5, 1.5) * every
                self._inject()
            time.sleep(1)
        return True

    def _done(self, name: str) -> bool:
        backfill = self._instance.get_backfill(self._backfills[name])
        if backfill is None or backfill.status not in BULK_ACTION_TERMINAL_STATUSES:
            return False
        if backfill.status is not BulkActionStatus.COMPLETED_SUCCESS:
            held = self._instance.get_materialized_partitions(dg.AssetKey(name))
            lacking = [brick for brick in self._feeds[name].partitions.names() if brick not in held]
            if lacking:
                self.launched_again += 1
                self._backfills[name] = self._deployment.launch(name, lacking)
                return False
        return True

    def _inject(self) -> None:
        faults: dict[str, Callable[[], bool]] = {
            "run killed": self._kill_run,
            "worker killed with its runs": self._kill_worker,
            "worker frozen for a minute": self._freeze_worker,
            "daemon restarted": self._restart_daemon,
        }
        fault = self._random.choices(list(faults), [6, 4, 2, 1])[0]
        if faults[fault]():
            self.injected[fault] += 1
            print(f"{time.strftime('%H:%M:%S')} {fault}", flush=True)

    def _kill_run(self) -> bool:
        runs = self._instance.get_runs(RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        pids = [pid for run in runs if (pid := pid_of(self._instance, run.run_id))]
        if not pids:
            return False
        with suppress(ProcessLookupError):
            os.kill(self._random.choice(pids), signal.SIGKILL)
            return True
        return False

    def _kill_worker(self) -> bool:
        worker = self._awake()
        if worker is None:
            return False
        self._deployment.signal(worker, signal.SIGKILL)
        self._deployment.stop(worker)
        self._deployment.start_worker(f"worker-{self.injected.total()}-anew")
        return True

    def _freeze_worker(self) -> bool:
        worker = self._awake()
        # One has to stay awake, or nothing is to be seen.
        if worker is None or self._asleep:
            return False
        self._deployment.signal(worker, signal.SIGSTOP)
        self._asleep[worker] = time.monotonic() + _FROZEN_SECONDS
        return True

    def _wake(self, worker: str) -> None:
        del self._asleep[worker]
        self._deployment.signal(worker, signal.SIGCONT)

    def _restart_daemon(self) -> bool:
        self._deployment.stop("daemon")
        self._deployment.start_daemon()
        return True

    def _awake(self) -> str | None:
        workers = [name for name in self._deployment.workers if name not in self._asleep]
        return self._random.choice(workers) if workers else None


def compare(feeds: list[Feed], instance: dg.DagsterInstance) -> bool:
    """Compares every stream with its table, and every record with its bricks. Reports differences."""
    good = True
    rows = bricks = 0
    for item in feeds:
        verdict = verify(item, open_source(item), open_stream(item, connect_redis(item.stream_name)))
        recorded = instance.get_materialized_partitions(dg.AssetKey(item.name))
        rows += verdict.equal
        bricks += len(recorded)
        if not verdict.agrees or recorded != set(item.partitions.names()):
            good = False
            print(f"{item.name}: {verdict}; {len(recorded)} bricks recorded")
    print(f"{len(feeds)} streams, {bricks:,} bricks recorded, {rows:,} rows equal to the table's")
    return good


def main() -> None:
    """Runs the campaign; ends with 1 if a stream or a record is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m ucs_pipeline_tests.faults.on_workers", description=__doc__)
    parser.add_argument("--feeds", type=int, default=10)
    parser.add_argument("--bricks", type=int, default=100, help="bricks of each feed (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--every", type=float, default=15, help="seconds between faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=40, help="time limit (default: %(default)s)")
    options = parser.parse_args()
    feeds = [feed(number, options.bricks) for number in range(options.feeds)]
    text = (
        "from ucs_pipeline_tests.support.connections import build_defs\n"
        "from ucs_pipeline_tests.faults.on_workers import feed\n"
        f"defs = build_defs(*(feed(number, {options.bricks}) for number in range({options.feeds})))\n"
    )
    started = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ucs-workers-")))
        homes = {name: directory / name for name in ("broker", "target", "dagster")}
        for home in homes.values():
            home.mkdir()
        clickhouse = stack.enter_context(ClickHouseServer())
        with clickhouse_connect.get_client(dsn=clickhouse.url) as table:
            table.command("CREATE TABLE many (id UInt64, word String) ENGINE = MergeTree ORDER BY id")
            rows, step = options.bricks * ROWS, 10_000 // ROWS
            table.command(f"INSERT INTO many SELECT number * {step}, toString(number) FROM numbers({rows})")
        deployment = Deployment(
            homes["dagster"],
            text,
            workers=options.workers,
            UCS_POSTGRES_URL=stack.enter_context(PostgresServer()).url,
            UCS_CELERY_URL=stack.enter_context(RedisServer(homes["broker"])).url,
            UCS_REDIS_URL=stack.enter_context(RedisServer(homes["target"])).url,
            UCS_CLICKHOUSE_URL=clickhouse.url,
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in deployment.environment.items():
            patch.setenv(name, value)
        instance = stack.enter_context(dg.DagsterInstance.get())
        stack.enter_context(deployment)
        campaign = Campaign(deployment, instance, feeds, options.seed)
        ended = campaign.run(options.minutes, options.every)
        runs = Counter(run.status.value for run in instance.get_runs())
        for fault, count in campaign.injected.items():
            print(f"{fault}: {count}")
        print(f"runs: {dict(runs)}; backfills launched again: {campaign.launched_again}")
        print(f"{time.monotonic() - started:.0f} s in all, {options.workers} workers")
        sys.exit(0 if compare(feeds, instance) and ended else 1)


if __name__ == "__main__":
    main()
