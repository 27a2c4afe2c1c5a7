"""Rows per second from a ClickHouse table into a Redis stream, side by side with other ways, as ratios.

    uv run python -m benchmarks.throughput [--rows 3000000] [--rounds 5] [--json]

Every round runs every contender once, in turn, on one redis-server of its own, so that a noisy machine is noisy to
all of them. Compare the ratios; the rows per second belong to the machine.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ucs_pipeline.demo_data import write_flights
from ucs_pipeline.embedded_clickhouse import embedded_connection
from ucs_pipeline.entries import encode
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.source import EmbeddedEngine, Source
from ucs_pipeline.stream import OrderedStream
from ucs_pipeline.transfer import transfer
from ucs_pipeline_tests.redis_server import RedisServer

COLUMNS = {
    "id": "id",
    "rec_id": "id",
    "task_for": "carrier",
    "before": "origin",
    "after": "dest",
    "dep_delay": "dep_delay",
    "time_hour": "time_hour",
}
CONSTANTS = {"function_type": "ucs_worker"}
STREAM = "flights"
ROW_BY_ROW, PIPELINES = 10_000, 100_000
"""Rows that the slow contenders move: enough to measure, few enough to wait for."""


def flights(directory: Path, rows: int) -> Path:
    """Parquet file of the demo's flights, repeated with rising ids until there are `rows` of them."""
    whole = pq.read_table(write_flights(directory))
    path = directory / f"flights_{rows}.parquet"
    parts, start = [], 0
    while start < rows:
        part = whole.slice(0, rows - start)
        parts.append(part.set_column(0, whole.schema.field("id"), pc.add(part["id"], start)))
        start += part.num_rows
    pq.write_table(pa.concat_tables(parts), path, row_group_size=100_000)
    return path


def feed_over(path: Path, rows: int) -> BrickFeed:
    """The demo's feed over a file."""
    return BrickFeed(
        name=STREAM,
        table=f"file('{path}')",
        key="id",
        bricks={"class": "number", "first": 0, "last": rows - 1},
        columns=COLUMNS,
        constants=CONSTANTS,
    )


def records(path: Path, rows: int) -> list[dict[Any, Any]]:
    """The rows as the old script had them: a list of dicts made by pandas."""
    table = pq.read_table(path).slice(0, rows).to_pandas()
    frame = pd.DataFrame({field: table[column].astype(str) for field, column in COLUMNS.items()}).assign(**CONSTANTS)
    return [dict(record) for record in frame.to_dict("records")]


def write_commands(source: Source, feed: BrickFeed, path: Path) -> None:
    """The same rows as a file of plain XADD commands with the same ids, for `redis-cli --pipe`."""
    with path.open("wb") as file:
        for entries in encode(STREAM.encode(), source.scan(feed.ordinals[0], feed.ordinals[-1])):
            file.write(entries.requests.rows(0, entries.count))


def measure(rows: int, rounds: int) -> dict[str, Any]:
    """Runs every contender `rounds` times; rows per second of each round, and memory."""
    with tempfile.TemporaryDirectory() as name, RedisServer(Path(name)) as server:
        directory = Path(name)
        path = flights(directory, rows)
        feed = feed_over(path, rows)
        source = Source(feed, EmbeddedEngine())
        source.shape()
        client = server.client()
        stream = OrderedStream(STREAM, client)
        commands = directory / "commands"
        write_commands(source, feed, commands)
        few, some = records(path, ROW_BY_ROW), records(path, PIPELINES)
        redis_cli = shutil.which("redis-cli") or "redis-cli"

        def row_by_row() -> int:
            for record in few:
                client.xadd(STREAM, record)
            return len(few)

        def pipelines() -> int:
            for start in range(0, len(some), 1000):
                with client.pipeline(transaction=False) as pipeline:
                    for record in some[start : start + 1000]:
                        pipeline.xadd(STREAM, record)
                    pipeline.execute()
            return len(some)

        def ours() -> int:
            return sum(report.published for report in transfer(feed, source, stream, feed.ordinals, lambda _: {}))

        def pipe() -> int:
            with commands.open("rb") as file:
                command = [redis_cli, "-p", str(server.port), "--pipe"]
                subprocess.run(command, stdin=file, stdout=subprocess.DEVNULL, check=True)
            return rows

        contenders: dict[str, Callable[[], int]] = {
            "row by row": row_by_row,
            "redis-py pipelines": pipelines,
            "ucs row path": ours,
            "redis-cli --pipe": pipe,
        }
        speeds: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(rounds):
            for contender, run in contenders.items():
                client.flushall()
                started = time.perf_counter()
                moved = run()
                speeds[contender].append(moved / (time.perf_counter() - started))
                if client.xlen(STREAM) != moved:
                    raise SystemExit(f"{contender} left {client.xlen(STREAM)} entries, expected {moved}")
    return {
        "rows": rows,
        "rounds": rounds,
        "rows_per_second": speeds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def ratios(result: dict[str, Any], to: str) -> dict[str, tuple[float, float, float]]:
    """Ratio of each contender to one of them: median, lowest and highest over the rounds."""
    speeds = result["rows_per_second"]
    found = {}
    for contender, own in speeds.items():
        each = [speed / other for speed, other in zip(own, speeds[to], strict=True)]
        found[contender] = (statistics.median(each), min(each), max(each))
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print every figure for machines")
    options = parser.parse_args()
    embedded_connection()  # the engine's start is not what is measured
    result = measure(options.rows, options.rounds)
    to_pipe = ratios(result, "redis-cli --pipe")
    if options.json:
        result["ratio_to_pipe"] = {
            name: dict(zip(("median", "low", "high"), r, strict=True)) for name, r in to_pipe.items()
        }
        print(json.dumps(result, indent=2))
        return
    print(f"{options.rows:,} rows of 8 fields, {options.rounds} rounds, medians")
    for name, speeds in result["rows_per_second"].items():
        median, low, high = to_pipe[name]
        speed = statistics.median(speeds)
        print(f"{name:<20} {speed:>10,.0f} rows/s   {median:5.2f} x redis-cli --pipe ({low:.2f}-{high:.2f})")
    print(f"peak memory of this process: {result['peak_rss_mb']:,} MB (engine, benchmark's own records and all)")


if __name__ == "__main__":
    main()
