"""Rows per second into each server that the registries carry, as ratios to `redis-cli --pipe` into the same server.

    uv run python -m benchmarks.by_server [--rows 1000000] [--rounds 3]

Prints a table in Markdown. CPU is that of the server's main thread.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.throughput import CEILING, measure, ratios
from ucs_pipeline.redis.server_programs import probe
from ucs_pipeline_tests.matrix import servers

_CONTENDERS = ["ucs row path", "ucs Dagster run", "ucs any order", CEILING]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"| server | from | {' | '.join(_CONTENDERS[:-1])} | CPU a row, row path | CPU a row, {CEILING} |")
    print("| --- " * 7 + "|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        for package, path, _ in servers(Path(directory)):
            if path is None or (found := probe(str(path))) is None:
                continue
            _row(f"{found.version} | {package}", path, options)


def _row(name: str, path: Path, options: argparse.Namespace) -> None:
    chosen = {"shape": "flights", "contenders": _CONTENDERS, "http": False, "unix": False, "aof": False}
    result = measure(argparse.Namespace(**chosen, rows=options.rows, rounds=options.rounds, server=str(path)))
    to_pipe = ratios(result, CEILING)
    cells = ["{:.2f} ({:.2f}-{:.2f})".format(*to_pipe[contender]) for contender in _CONTENDERS[:-1]]
    for contender in ("ucs row path", CEILING):
        works, speeds = result["redis_works"][contender], result["rows_per_second"][contender]
        cells.append(f"{1e6 * statistics.median(w / s for w, s in zip(works, speeds, strict=True)):.2f} us")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
