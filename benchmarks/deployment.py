"""A whole `dagster dev` with a feed of very many bricks, or with very many feeds: times, memory, and the proof.

    uv run python -m benchmarks.deployment [--bricks 100000] [--order strict|any] [--shards 0]
    uv run python -m benchmarks.deployment --feeds 100

One feed: a backfill of every brick is launched at once, cancelled in the middle, and launched again for the bricks that
are missing, as the UI's buttons do it. Many feeds: their sensors are switched on together. Rows are few, so that the
time is Dagster's. At the end, the stream must hold each row once.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from benchmarks.memory import peaks, write
from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit
from ucs_pipeline_tests.support.home import run_ucs

ROWS = 5
"""Rows a brick."""
_BRICKS_OF_MANY = 20
_FEEDS = """
from benchmarks.deployment import feeds
from ucs_pipeline_tests.support.connections import build_defs

defs = build_defs(*feeds({bricks}, {number}, {stream}))
"""
_BACKFILL = "query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
_PAGE = """
query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  partitionKeysByDimension { partitionKeys }
  assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
} } }
"""


def feeds(bricks: int, number: int, stream: dict[str, object]) -> list[Feed]:
    """So many feeds of one file, each with so many bricks."""
    return [
        BrickFeed(
            name=f"rows_{n}",
            table=f"file('{os.environ['ROWS_FILE']}')",
            key=f"id * {BRICK // ROWS}",
            bricks={"class": "number", "last": bricks * BRICK - 1},
            stream=stream,
        )
        for n in range(number)
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bricks", type=int, default=100_000)
    parser.add_argument("--order", choices=["strict", "any"], default="strict")
    parser.add_argument("--shards", type=int, default=0)
    parser.add_argument("--feeds", type=int, help="so many feeds of 20 bricks each, instead of one with many")
    chosen = parser.parse_args()
    bricks, number = (_BRICKS_OF_MANY, chosen.feeds) if chosen.feeds else (chosen.bricks, 1)
    stream: dict[str, object] = {"order": chosen.order, **({"shards": chosen.shards} if chosen.shards else {})}
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name)) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        home, rows = Path(name), bricks * ROWS
        patch.setenv("DAGSTER_HOME", name)
        patch.setenv("UCS_REDIS_URL", server.url)
        patch.setenv("ROWS_FILE", str(home / "rows.parquet"))
        write(os.environ["ROWS_FILE"], rows)
        text = _FEEDS.format(bricks=bricks, number=number, stream=stream)
        cockpit = Cockpit(home, server.url, text, ROWS_FILE=os.environ["ROWS_FILE"])
        with ExitStack() as stack:
            with _timed("dagster dev answers"):
                stack.enter_context(cockpit)
            instance = stack.enter_context(dg.DagsterInstance.get())
            stack.enter_context(_peak_memory(cockpit))
            if chosen.feeds:
                _many_feeds(cockpit, instance, number)
            else:
                _many_bricks(cockpit, instance, bricks)
            with _timed("ucs status"):
                code, _ = run_ucs("-w", str(home / "workspace.yaml"), "status", home=home)
            if code:
                raise SystemExit("ucs status failed")
        # What is not sealed is not published by a sensor: the last brick of each of many feeds.
        wanted = number * (rows - ROWS) if chosen.feeds else rows
        entries = sum(server.client().xlen(key) for key in server.client().scan_iter(_type="stream"))
        if entries != wanted:
            raise SystemExit(f"the streams hold {entries:,} entries of {wanted:,}")
        print(f"{entries:,} entries in the streams, as rows in the table")


def _many_bricks(cockpit: Cockpit, instance: dg.DagsterInstance, bricks: int) -> None:
    names = feeds(bricks, 1, {})[0].partitions.names()
    asset = dg.AssetKey("rows_0")

    def done() -> set[str]:
        return set(instance.get_materialized_partitions(asset))

    def ended(backfill: str) -> bool:
        status = cockpit.ask(_BACKFILL, id=backfill)["partitionBackfillOrError"]["status"]
        if status in ("FAILED", "COMPLETED_FAILED"):
            raise SystemExit(f"the backfill ended as {status}:\n{cockpit.log()}")
        return status in ("COMPLETED_SUCCESS", "CANCELED")

    with _timed("the asset's partitions, before"):
        cockpit.ask(_PAGE, key={"path": ["rows_0"]})
    with _timed(f"launching {bricks:,} partitions"):
        backfill = cockpit.launch("rows_0", names)
    with _timed("a third of them green"):
        _until(lambda: len(done()) > bricks // 3)
    with _timed("the asset's partitions, at work"):
        cockpit.ask(_PAGE, key={"path": ["rows_0"]})
    with _timed("cancelling"):
        cockpit.cancel(backfill)
        _until(lambda: ended(backfill))
    green = done()
    missing = [name for name in names if name not in green]
    with _timed(f"the other {len(missing):,} green"):
        backfill = cockpit.launch("rows_0", missing)
        _until(lambda: len(done()) == bricks)
    with _timed("until Dagster calls the backfill completed"):
        _until(lambda: ended(backfill))
    with _timed("the asset's partitions, after"):
        cockpit.ask(_PAGE, key={"path": ["rows_0"]})
    with _timed("a tick of the sensor"):
        cockpit.switch_on("rows_0_sensor")
        _until(lambda: bool(_ticks(instance)))
    [tick] = _ticks(instance)[:1]
    print(f"  of which evaluation: {tick.end_timestamp - tick.timestamp:.1f} s ({tick.skip_reason})")


def _ticks(instance: dg.DagsterInstance) -> list[Any]:
    sensors = [state for state in instance.all_instigator_state() if "rows_0_sensor" in state.instigator_name]
    return [
        tick
        for state in sensors
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
        if tick.end_timestamp
    ]


def _many_feeds(cockpit: Cockpit, instance: dg.DagsterInstance, number: int) -> None:
    with _timed("all sensors on"):
        for n in range(number):
            cockpit.switch_on(f"rows_{n}_sensor")

    def green() -> int:
        return sum(len(instance.get_materialized_partitions(dg.AssetKey(f"rows_{n}"))) for n in range(number))

    with _timed("all but the last brick of each feed green"):
        _until(lambda: green() >= number * (_BRICKS_OF_MANY - 1))


_PARTS = {"dagster_webserver": "web server", "grpc": "code server", "daemon": "daemon", "multiprocessing": "a run"}


def _memory(session: int) -> Iterator[tuple[str, int]]:
    """Resident memory of each process of `dagster dev`, in KiB."""
    listed = subprocess.run(["ps", "-s", str(session), "-o", "rss=,args="], stdout=subprocess.PIPE, text=True)
    for line in listed.stdout.splitlines():
        size, command = line.split(maxsplit=1)
        what = next((what for word, what in _PARTS.items() if word in command), "the rest")
        yield what, int(size)


def _until(reached: Callable[[], bool]) -> None:
    while not reached():
        # Each time reads the state of every brick: seldom enough not to slow down what is measured.
        time.sleep(3)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"{time.perf_counter() - started:>8.1f} s  {what}", flush=True)


@contextmanager
def _peak_memory(cockpit: Cockpit) -> Iterator[None]:
    with peaks(lambda: _memory(cockpit.pid), 1) as highest:
        yield
    for what, kib in sorted(highest.items()):
        print(f"{kib // 1024:>8,} MiB  {what}, at most")


if __name__ == "__main__":
    main()
