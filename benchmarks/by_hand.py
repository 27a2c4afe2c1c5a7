"""By hand: from `ucs publish`, or a click in the UI, to materialized bricks of the demo's flights.

    uv run python -m benchmarks.by_hand [--rounds 5]

The command is timed as a whole process. The brick is launched over the web server's API, as the button does it, in a
`dagster dev` without other runs, and is done once Dagster's record has it. The parts between are by its own clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg
import pytest

from ucs_pipeline.cli.demo_data import DATASETS, write_data
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit
from ucs_pipeline_tests.support.home import PROJECT, make_home

_PARTS = ("queued", "its process started", "its step started", "materialized")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name, RedisServer(Path(name)) as server:
        for command in (["publish", "flights"], ["status"], ["--version"]):
            seconds = [_command(Path(name), server, command) for _ in range(rounds)]
            print(f"ucs {' '.join(command):<16} {_spread(seconds)}", flush=True)
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name)) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("DAGSTER_HOME", name)
        with Cockpit(Path(name), server.url) as cockpit, dg.DagsterInstance.get() as instance:
            # The first run finds files of the system in no cache.
            times = [_brick(cockpit, instance, f"0.0.0.{n}") for n in range(rounds + 1)][1:]
        print("one brick from the click, seconds until it is")
        for part, each in zip(_PARTS, zip(*times, strict=True), strict=True):
            print(f"  {part:<20} {_spread(each)}")


def _command(directory: Path, server: RedisServer, command: list[str]) -> float:
    server.client().flushall()
    with tempfile.TemporaryDirectory(dir=directory) as name:
        home = make_home(Path(name))
        write_data(DATASETS["flights"], home / ".ucs" / "tables")
        started = time.perf_counter()
        subprocess.run(
            [Path(sys.executable).parent / "ucs", *command],
            cwd=PROJECT,
            env={**os.environ, "DAGSTER_HOME": name, "UCS_REDIS_URL": server.url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - started


def _brick(cockpit: Cockpit, instance: dg.DagsterInstance, brick: str) -> tuple[float, ...]:
    launched = time.time()
    run_id = cockpit.launch_run("flights", **{"dagster/partition": brick})
    queued = time.time()
    while brick not in instance.get_materialized_partitions(dg.AssetKey("flights")):
        time.sleep(0.01)
    done = time.time()
    while (record := instance.get_run_record_by_id(run_id)) and not record.end_time:
        time.sleep(0.05)
    assert record
    assert record.start_time
    [step] = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_START).records
    return tuple(at - launched for at in (queued, record.start_time, step.timestamp, done))


def _spread(seconds: "list[float] | tuple[float, ...]") -> str:
    return f"{statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
