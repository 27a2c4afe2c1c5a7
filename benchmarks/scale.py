"""What a feed of many bricks costs Dagster: loading it, a tick of its sensor, and `ucs status`.

    uv run python -m benchmarks.scale [--bricks 100 10000 100000]

All bricks but the last two are recorded as done, in the project's own event log; the table seals one more. Ticks are
medians, and the first one in a process is shown separately: the daemon's cost after a new deployment.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.number import BRICK, name_of_ordinal
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import (
    build_defs,
    connect_redis,
    evaluate_tick,
    feed_statuses,
    open_source,
    resources,
)

PROJECT = Path(__file__).parents[1]
_TICKS = 5


def feed_of(bricks: int) -> Feed:
    """A feed of so many bricks."""
    return BrickFeed(name="rows", table="rows", key="id", bricks={"class": "number", "last": bricks * BRICK - 1})


def load(bricks: int) -> None:
    """Loads the definitions of such a feed as a code server does, and prints the bytes it sends to the web server."""
    from dagster._core.remote_representation.external_data import RepositorySnap
    from dagster_shared.serdes import serialize_value

    repository = build_defs(feed_of(bricks)).get_repository_def()
    print(len(serialize_value(RepositorySnap.from_def(repository))))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bricks", type=int, nargs="+", default=[100, 10_000, 100_000])
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    for bricks in chosen.bricks:
        command = [sys.executable, "-W", "ignore", "-c", f"from benchmarks.scale import load; load({bricks})"]
        started = time.perf_counter()
        sent = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = time.perf_counter() - started
        print(f"{bricks:>9,} bricks  load {seconds:5.2f} s ({int(sent) / 1e6:.1f} MB)", end="", flush=True)
        with tempfile.TemporaryDirectory() as name, RedisServer(Path(name)) as server:
            first, ticks, status = _measure(Path(name), server.url, bricks)
        print(f"  first tick {first:5.2f} s  tick {ticks:6.3f} s  ucs status {status:5.2f} s")


def _measure(home: Path, url: str, bricks: int) -> tuple[float, float, float]:
    os.environ |= {"DAGSTER_HOME": str(home), "UCS_REDIS_URL": url}
    shutil.copy(PROJECT / "dagster.yaml", home)
    tables = home / ".ucs" / "tables"
    tables.mkdir(parents=True)
    # One row in each brick, the last one included, which makes the one before it sealed.
    pq.write_table(pa.table({"id": pa.array(range(0, bricks * BRICK, BRICK))}), tables / "rows.parquet")
    feed = feed_of(bricks)
    with dg.DagsterInstance.get() as instance:
        stream = OrderedStream(feed.stream_name, connect_redis(feed.stream_name))
        adopt(feed, name_of_ordinal(bricks - 3), open_source(feed), stream, instance)
        repository = build_defs(feed).get_repository_def()
        sensor = repository.get_sensor_def(f"{feed.name}_sensor")

        def tick() -> None:
            context = dg.build_sensor_context(
                instance, repository_def=repository, sensor_name=sensor.name, resources=resources()
            )
            [request] = evaluate_tick(sensor, context).run_requests or []
            assert request.tags["ucs/bricks"] == f"{name_of_ordinal(bricks - 2)}...{name_of_ordinal(bricks - 2)}"

        first = _seconds(tick)
        ticks = statistics.median(_seconds(tick) for _ in range(_TICKS))
        return first, ticks, _seconds(lambda: feed_statuses([feed], instance))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
