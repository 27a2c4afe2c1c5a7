"""What a run costs against the number of its bricks: the reason for the default of `max_bricks_per_run`.

    uv run python -m benchmarks.runs [--full 1 10 100 1000] [--thin 1000 10000]

Each run is a process of its own, as Dagster starts it: import, definitions, the engine's start, the run's records, and
the bricks. Full bricks have 10,000 rows each; thin ones have a single row, so that all the time is Dagster's, and show
whether the cost of a brick grows with the number of bricks in a run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg

from benchmarks.memory import write
from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.support.home import PROJECT, run_bricks


def child() -> None:
    """One run of some bricks of a file, by its arguments."""
    path, bricks, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    feed = BrickFeed(
        name="rows",
        table=f"file('{path}')",
        key=f"id * {step}",
        bricks={"class": "number", "last": bricks * BRICK - 1},
        # No trimming: it would slow the later bricks down.
        stream={"max_len": bricks * BRICK},
    )
    with dg.DagsterInstance.get() as instance:
        assert run_bricks(build_defs(feed), "rows", instance, 0, bricks - 1).success


def main() -> None:
    """Runs the cases and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--thin", type=int, nargs="*", default=[1000, 10_000])
    chosen = parser.parse_args()
    for kind, step, sizes in (("full", 1, chosen.full), ("thin", BRICK, chosen.thin)):
        for bricks in sizes:
            seconds = _seconds(bricks, step)
            print(
                f"{bricks:>7,} {kind} bricks  {seconds:6.1f} s  {bricks / seconds:7.1f} bricks/s  "
                f"{1000 * seconds / bricks:8.1f} ms a brick",
                flush=True,
            )


def _seconds(bricks: int, step: int) -> float:
    with tempfile.TemporaryDirectory() as name, RedisServer(Path(name)) as server:
        home, path = Path(name), Path(name) / "rows.parquet"
        shutil.copy(PROJECT / "dagster.yaml", home)
        write(str(path), bricks * BRICK // step)
        command = [sys.executable, "-W", "ignore", "-c", "from benchmarks.runs import child; child()"]
        started = time.perf_counter()
        subprocess.run(
            [*command, str(path), str(bricks), str(step)],
            env={**os.environ, "DAGSTER_HOME": name, "UCS_REDIS_URL": server.url},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
