"""What Dagster's record of a brick costs, side by side: its stock event log, and ours.

    uv run python -m benchmarks.record_keeping [--bricks 1000] [--rounds 5] [--pause 20] [--postgres] [--json]

Runs an asset that yields the events of a feed and moves no rows. Every round runs every contender once, in turn.
With a pause, in milliseconds, events come as far apart as bricks of rows do; it is taken off the step's time. The logs
are in SQLite files, or in a PostgreSQL of the benchmark's own.
"""

import argparse
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import EventLogEntry
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster_postgres.event_log import PostgresEventLogStorage

from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.instance.event_log import PooledSqliteEventLogStorage
from ucs_pipeline.instance.postgres_event_log import PooledPostgresEventLogStorage
from ucs_pipeline.orchestration.assets import brick_event
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline_tests.servers.postgres_server import PostgresServer

KEY = dg.AssetKey("bricks")


class OneByOne(PooledSqliteEventLogStorage):
    """Connections kept open, and every event in a transaction of its own."""

    def store_event(self, event: EventLogEntry) -> None:
        """Stores one event at once."""
        super().store_event(event)
        self.flush()


SQLITE: dict[str, type[Any]] = {
    "stock": SqliteEventLogStorage,
    "connections kept": OneByOne,
    "and in groups": PooledSqliteEventLogStorage,
}

POSTGRES: dict[str, type[Any]] = {
    "stock": PostgresEventLogStorage,
    "kept, and in groups": PooledPostgresEventLogStorage,
}


def asset(feed: Feed, pause: float) -> dg.AssetsDefinition:
    """An asset with the bricks of a feed, whose events are the feed's and so many milliseconds apart."""
    partitions = dg.StaticPartitionsDefinition(feed.partitions.names())

    @dg.asset(name=feed.name, partitions_def=partitions, output_required=False)
    def events(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        assert len(context.partition_keys) == len(feed.partitions.starts)
        for ordinal in feed.partitions.starts:
            time.sleep(pause / 1000)
            first, last = EntryId(ordinal, 1), EntryId(ordinal, BRICK)
            ids = BRICK * ordinal, BRICK * ordinal + BRICK - 1
            report = BrickReport(ordinal, BRICK, *ids, first, last, ordinal, published=BRICK, seconds=0.02)
            yield brick_event(feed, report, {})

    return events


def run_once(instance: dg.DagsterInstance, bricks: int, pause: float) -> dict[str, float]:
    """One ranged run: milliseconds a brick of its creation, and of its step by the step's own events."""
    feed = Feed(
        name=KEY.to_user_string(), table="rows", key="id", bricks={"class": "number", "last": bricks * BRICK - 1}
    )
    names = feed.partitions.name(0), feed.partitions.name(bricks - 1)
    tags = dict(zip(("dagster/asset_partition_range_start", "dagster/asset_partition_range_end"), names, strict=True))
    defs = dg.Definitions(assets=[asset(feed, pause)], executor=dg.in_process_executor)
    job = defs.resolve_implicit_global_asset_job_def()
    started = time.perf_counter()
    run = instance.create_run_for_job(job, tags=tags)
    instance.get_records_for_run(run.run_id, limit=1)  # whatever waits is written before a read
    created = time.perf_counter()
    if not execute_run(InMemoryJob(job), run, instance).success:
        raise SystemExit(f"run {run.run_id} failed")
    if len(instance.get_materialized_partitions(KEY)) != bricks:
        raise SystemExit(f"run {run.run_id} did not record every brick")
    [step] = instance.get_run_step_stats(run.run_id)
    seconds = {
        "creation": created - started,
        "step": (step.end_time or 0) - (step.start_time or 0) - bricks * pause / 1000,
    }
    return {part: 1000 * value / bricks for part, value in seconds.items()}


def make_home(directory: Path, storage: type[Any], postgres_url: str | None) -> Path:
    """A Dagster home with that event log, and otherwise as Dagster makes it."""
    directory.mkdir()
    place = {"postgres_url": postgres_url} if postgres_url else {"base_dir": f"{directory}/runs"}
    block = {"module": storage.__module__, "class": storage.__name__, "config": place}
    (directory / "dagster.yaml").write_text(json.dumps({"telemetry": {"enabled": False}, "event_log_storage": block}))
    return directory


def measure(bricks: int, rounds: int, pause: float, *, postgres: bool) -> dict[str, dict[str, list[float]]]:
    """Milliseconds a brick by contender and part, of each round."""
    contenders = POSTGRES if postgres else SQLITE
    found: dict[str, dict[str, list[float]]] = {name: {"creation": [], "step": []} for name in contenders}
    for _ in range(rounds):
        for name, storage in contenders.items():
            with tempfile.TemporaryDirectory() as directory, ExitStack() as servers:
                url = servers.enter_context(PostgresServer()).url if postgres else None
                home = make_home(Path(directory) / "home", storage, url)
                with dg.DagsterInstance.from_config(str(home)) as instance:
                    for part, milliseconds in run_once(instance, bricks, pause).items():
                        found[name][part].append(milliseconds)
    for parts in found.values():
        parts["together"] = [sum(each) for each in zip(*parts.values(), strict=True)]
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bricks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0, help="milliseconds between events")
    parser.add_argument("--postgres", action="store_true", help="event logs in PostgreSQL")
    parser.add_argument("--json", action="store_true", help="print every figure for machines")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.DEBUG)
    with redirect_stderr(io.StringIO()):
        found = measure(options.bricks, options.rounds, options.pause, postgres=options.postgres)
    if options.json:
        print(json.dumps({"bricks": options.bricks, "rounds": options.rounds, "ms_per_brick": found}, indent=2))
        return
    print(f"{options.bricks:,} bricks in one run, {options.rounds} rounds, milliseconds a brick, medians")
    print(f"{'event log':<20}{'creation':>10}{'step':>10}{'together':>10}   of stock (lowest to highest)")
    for name, parts in found.items():
        pairs = zip(parts["together"], found["stock"]["together"], strict=True)
        ratios = [own / stock for own, stock in pairs]
        medians = "".join(f"{statistics.median(values):>10.2f}" for values in parts.values())
        print(f"{name:<20}{medians}   {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
