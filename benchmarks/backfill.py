"""From the launch of a backfill to its last materialized brick, compared with `redis-cli --pipe` of the same rows.

    uv run python -m benchmarks.backfill [--bricks 1000] [--rounds 1]

A real web server, daemon and code server of the project's own configuration take the backfill over the UI's own query.
The daemon polls for new backfills every 30 seconds, which no setting of Dagster changes: that wait is random, and is
shown separately.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest

from benchmarks.contenders import Stage, cli_pipe
from benchmarks.shapes import SHAPES, write_rows
from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit

_FEEDS = """
from ucs_pipeline import BrickFeed
from ucs_pipeline_tests.support.connections import build_defs

defs = build_defs(BrickFeed.model_validate_json({!r}))
"""


class Times(NamedTuple):
    """Seconds since 1970 at which each thing happened."""

    launched: float
    run_created: float
    """The daemon has seen the backfill, and queued its run."""
    run_started: float
    step_started: float
    last_green: float


def backfill(feed: Feed, home: Path, redis_url: str) -> Times:
    """One backfill of all bricks of a feed."""
    asset = dg.AssetKey(feed.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        settings = feed.model_dump_json(by_alias=True, exclude_defaults=True)
        with Cockpit(home, redis_url, _FEEDS.format(settings)) as cockpit, dg.DagsterInstance.get() as instance:
            launched = time.time()
            cockpit.launch(feed.name, [feed.partitions.name(start) for start in feed.partitions.starts])
            while not (ended := instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))):
                if instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])):
                    raise SystemExit(f"the run failed:\n{cockpit.log()}")
                time.sleep(1)
            if len(instance.get_materialized_partitions(asset)) != len(feed.partitions.starts):
                raise SystemExit("not every brick is green")
            record = instance.get_run_record_by_id(ended[0].run_id)
            assert record
            assert record.start_time
            [step] = instance.get_records_for_run(ended[0].run_id, of_type=dg.DagsterEventType.STEP_START).records
            [last] = instance.fetch_materializations(asset, limit=1).records
            created = record.create_timestamp.timestamp()
            return Times(launched, created, record.start_time, step.timestamp, last.timestamp)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bricks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    rows = chosen.bricks * BRICK
    ratios: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name, RedisServer(Path(name)) as server:
        stage = Stage(SHAPES["flights"].feed(write_rows(Path(name), rows), rows), server, Path(name), unix=False)
        for _ in range(chosen.rounds):
            stage.client.flushall()
            home = Path(tempfile.mkdtemp(dir=name))
            times = backfill(stage.feed, home, server.url)
            if (found := stage.client.xlen(stage.feed.stream_name)) != rows:
                raise SystemExit(f"the backfill left {found:,} entries of {rows:,}")
            stage.client.flushall()
            pipe = cli_pipe(stage).seconds
            whole, waited = times.last_green - times.launched, times.run_created - times.launched
            ratios.append((pipe / whole, pipe / (whole - waited)))
            phases = [
                f"the daemon looked after {waited:.1f} s",
                f"the run started after {times.run_started - times.run_created:.1f} s",
                f"its step after {times.step_started - times.run_started:.1f} s",
                f"the last brick was green after {times.last_green - times.step_started:.1f} s",
            ]
            print(f"{rows:,} rows, {chosen.bricks:,} bricks: {', '.join(phases)}: {whole:.1f} s in all; ", end="")
            print(f"redis-cli --pipe {pipe:.1f} s", flush=True)
    for what, each in zip(("from launch", "from the daemon's look"), zip(*ratios, strict=True), strict=True):
        print(f"{what:<24} {statistics.median(each):.2f} x redis-cli --pipe ({min(each):.2f}-{max(each):.2f})")


if __name__ == "__main__":
    main()
