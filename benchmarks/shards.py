"""One table to one stream and to several, published at the same time by a process for each shard.

    uv run python -m benchmarks.shards [--bricks 100] [--rounds 3]

Every way moves the same rows of `benchmarks.shapes`; the shards of the last two ways are shared out over two
redis-servers, as a cluster would. Ratios are to one stream; a machine of few cores shows none above one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.shapes import SHAPES, write_rows
from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.redis_server import RedisServer

WAYS = ((1, 1), (2, 1), (4, 1), (2, 2), (4, 2))
"""Shards, and redis-servers that they are shared out over."""

_PUBLISH = """
import sys
from ucs_pipeline import BrickFeed
from ucs_pipeline_tests.support.connections import connect_redis
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline_tests.support.connections import open_source
from ucs_pipeline_tests.support.connections import open_stream
from ucs_pipeline.publishing.run import publish
part = streams_of(BrickFeed.model_validate_json(sys.argv[1]))[int(sys.argv[2])]
source, stream = open_source(part), open_stream(part, connect_redis(part.stream_name))
source.shape()
print("ready", flush=True)
sys.stdin.readline()
for report in publish(part, source, stream, part.partitions.starts, lambda _: {}): pass
print("done", flush=True)
"""


def publish(feed: Feed, shards: int, servers: Sequence[RedisServer]) -> float:
    """Seconds from the start of all shards, whose processes wait with their engines running, to the end of the last."""
    with ExitStack() as running:
        processes = []
        for shard in range(shards):
            processes.append(
                running.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-W", "ignore", "-c", _PUBLISH, _settings(feed, shards), str(shard)],
                        env={**os.environ, "UCS_REDIS_URL": servers[shard % len(servers)].url},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
            )
        for process in processes:
            _hear(process, "ready")
        started = time.perf_counter()
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            _hear(process, "done")
        return time.perf_counter() - started


def _hear(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout
    if process.stdout.readline().strip() != word:
        raise SystemExit(f"a publisher failed before it was {word}")


def _settings(feed: Feed, shards: int) -> str:
    stream = feed.stream.model_copy(update={"shards": shards})
    return feed.model_copy(update={"stream": stream}).model_dump_json(by_alias=True, exclude_defaults=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bricks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rows = chosen.bricks * BRICK
    found: dict[tuple[int, int], list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name, ExitStack() as started:
        home = Path(name)
        servers = []
        for number in range(max(servers for _, servers in WAYS)):
            (home / str(number)).mkdir()
            servers.append(started.enter_context(RedisServer(home / str(number))))
        feed = SHAPES["flights"].feed(write_rows(home, rows), rows)
        for _ in range(chosen.rounds):
            for way in WAYS:
                for server in servers:
                    server.client().flushall()
                found[way].append(publish(feed, way[0], servers[: way[1]]))
                streams = (server.client().scan_iter(_type="stream") for server in servers)
                lengths = [servers[n].client().xlen(key) for n, keys in enumerate(streams) for key in keys]
                if sum(lengths) != rows or len(lengths) != way[0]:
                    raise SystemExit(f"{lengths} entries, expected {rows} in {way[0]} streams")
    for (shards, many), seconds in found.items():
        ratios = [one / own for one, own in zip(found[1, 1], seconds, strict=True)]
        speed, ratio = rows / statistics.median(seconds), statistics.median(ratios)
        print(
            f"streams: {shards}, redis-servers: {many}, {speed:>9,.0f} rows/s, {ratio:.2f} of one stream "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
