"""Rows per second from a ClickHouse table into a Redis stream, side by side with other ways, as ratios.

    uv run python -m benchmarks.throughput [--rows 3000000] [--rounds 5] [--shape flights] [--json]

Every round runs every contender once, in turn, on one redis-server of its own, so that a noisy machine is noisy to
all of them. Compare the ratios; the rows per second belong to the machine.
"""

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, PIPELINES, ROW_BY_ROW, Stage
from benchmarks.servers import clickhouse_over_http
from benchmarks.shapes import SHAPES, STREAM, write_rows
from ucs_pipeline.clickhouse.embedded import embedded_connection
from ucs_pipeline_tests.servers.redis_server import RedisServer

CEILING = "redis-cli --pipe"
_AOF = {"appendonly": "yes", "appendfsync": "everysec"}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs every contender `rounds` times; rows per second of each round, what Redis did in its time, and memory."""
    shape = SHAPES[options.shape]
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name), _AOF if options.aof else {}, options.server) as server,
        clickhouse_over_http() if options.http else nullcontext(),
    ):
        if not options.http:
            embedded_connection()  # the engine's start is not what is measured
        path = write_rows(Path(name), options.rows)
        stage = Stage(shape.feed(path, options.rows), server, Path(name), options.unix)
        speeds: dict[str, list[float]] = {contender: [] for contender in options.contenders}
        works: dict[str, list[float]] = {contender: [] for contender in options.contenders}
        waits: dict[str, list[float]] = {contender: [] for contender in options.contenders}
        for _ in range(options.rounds):
            for contender in speeds:
                stage.client.flushall()
                working, waiting = _redis_seconds(server.pid)
                moved = CONTENDERS[contender](stage)
                speeds[contender].append(moved.rows / moved.seconds)
                worked, waited = _redis_seconds(server.pid)
                works[contender].append((worked - working) / moved.seconds)
                waits[contender].append((waited - waiting) / moved.seconds)
                found = stage.client.xlen(STREAM)
                if found != moved.rows or (contender.startswith(("ucs", CEILING)) and found != options.rows):
                    raise SystemExit(f"{contender} left {found:,} entries of {options.rows:,}")
    return {
        "rows": options.rows,
        "rounds": options.rounds,
        "shape": f"{options.shape}: {shape.about}",
        "clickhouse": "over HTTP" if options.http else "embedded",
        "redis": f"{'unix socket' if options.unix else 'TCP'}, {'AOF everysec' if options.aof else 'no AOF'}",
        "rows_per_second": speeds,
        "redis_works": works,
        "redis_waits": waits,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _redis_seconds(pid: int) -> tuple[float, float]:
    """Seconds that the server's main thread has been on a processor, and in line for one."""
    worked, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(worked) / 1e9, int(waited) / 1e9


def ratios(result: Mapping[str, Any], to: str) -> dict[str, tuple[float, float, float]]:
    """Ratio of each contender to one of them: median, lowest and highest over the rounds."""
    speeds = result["rows_per_second"]
    found = {}
    for contender, own in speeds.items():
        each = [speed / other for speed, other in zip(own, speeds[to], strict=True)]
        found[contender] = (statistics.median(each), min(each), max(each))
    return found


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draws the medians and their spread as a picture, PNG or SVG by the file's name."""
    import matplotlib.pyplot as plt

    found = ratios(result, CEILING)
    middle = [median for median, _, _ in found.values()]
    spread = [
        [median - low for median, low, _ in found.values()],
        [high - median for median, _, high in found.values()],
    ]
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(found) + 1.2), layout="constrained")
    axes.barh(
        list(found), middle, xerr=spread, color=["#4f43dd" if name.startswith("ucs") else "#bbb" for name in found]
    )
    axes.axvline(1, color="#888", linewidth=0.8)
    axes.set_xlabel(f"rows per second, {CEILING} = 1")
    axes.set_title(f"{result['rows']:,} rows; {result['shape']}", loc="left", fontsize="medium")
    figure.savefig(path)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="flights")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--http", action="store_true", help="read from a ClickHouse over HTTP: the tests' own server")
    parser.add_argument("--unix", action="store_true", help="reach Redis over its unix socket")
    parser.add_argument("--aof", action="store_true", help="a Redis with appendonly yes and appendfsync everysec")
    parser.add_argument("--server", metavar="PROGRAM", help="a redis-server or valkey-server, by its path")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture too: uv run --group plot python ...")
    parser.add_argument("--json", action="store_true", help="print every figure for machines")
    options = parser.parse_args()
    if CEILING not in options.contenders:
        options.contenders.append(CEILING)
    result = measure(options)
    to_pipe = ratios(result, CEILING)
    if options.plot:
        draw(result, options.plot)
    if options.json:
        result["ratio_to_pipe"] = {
            name: dict(zip(("median", "low", "high"), r, strict=True)) for name, r in to_pipe.items()
        }
        print(json.dumps(result, indent=2))
        return
    print(f"{options.rows:,} rows, {result['shape']}; {options.rounds} rounds, medians")
    print(f"ClickHouse {result['clickhouse']}; Redis over {result['redis']}")
    print("of the time, Redis is at work on a processor, or waits in line for one; the rest it has nothing to do")
    for name, speeds in result["rows_per_second"].items():
        median, low, high = to_pipe[name]
        works, waits = (100 * statistics.median(result[part][name]) for part in ("redis_works", "redis_waits"))
        of_pipe = f"{median:5.2f} x {CEILING} ({low:.2f}-{high:.2f})"
        redis = f"Redis works {works:3.0f} %, waits {waits:2.0f} %"
        print(f"{name:<35} {statistics.median(speeds):>10,.0f} rows/s   {of_pipe}   {redis}")
    print(f"the slow ones moved at most {ROW_BY_ROW:,} and {PIPELINES:,} of the rows")
    print(f"peak memory of this process: {result['peak_rss_mb']:,} MB (engine, benchmark's own records and all)")


if __name__ == "__main__":
    main()
