"""Peak memory of a publishing process against the number of rows, and with a slow Redis.

    uv run python -m benchmarks.memory [--rows 1000000 20000000] [--http]

Each case is a process of its own: ClickHouse's engine on a Parquet file of so many rows, and the row path; or, over
HTTP, the row path alone. *Idle* is that process once everything is imported and the engine, if any, has answered.
Memory is what belongs to the process alone (RssAnon): pages of the mapped file are the kernel's to drop. The stream
keeps its newest 100,000 entries, so that Redis needs little.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.servers import clickhouse_over_http
from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline_tests.servers.redis_server import RedisServer

_STOPPED_SECONDS, _RUNNING_SECONDS = 0.09, 0.01


def publish(path: str, rows: int, url: str) -> None:
    """Publishes the file, and prints seconds, idle and peak memory in MiB."""
    import redis

    from ucs_pipeline.feed.feed import Feed
    from ucs_pipeline.publishing.run import publish
    from ucs_pipeline.stream.stream import OrderedStream
    from ucs_pipeline_tests.support.connections import open_source

    feed = Feed(
        name="rows",
        table=f"file('{path}')",
        key="id",
        bricks={"class": "number", "last": rows - 1},
        stream={"max_len": 100_000, "when_full": "trim"},
    )
    source, stream = open_source(feed), OrderedStream("rows", redis.Redis.from_url(url, protocol=2))
    assert source.count(0, 0) == {0: min(rows, BRICK)}
    idle = _own()
    started = time.perf_counter()
    with peaks(lambda: [("own", _own())], 0.02) as peak:
        moved = sum(report.rows for report in publish(feed, source, stream, feed.ordinals, lambda _: {}))
    assert moved == rows, f"{moved} rows arrived"
    print(f"{time.perf_counter() - started:.1f} {idle} {peak['own']}")


def main() -> None:
    """Runs the cases and prints them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 20_000_000])
    parser.add_argument("--http", action="store_true", help="read from a ClickHouse over HTTP: the tests' own server")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name)) as server,
        clickhouse_over_http() if chosen.http else nullcontext(),
    ):
        first = 0
        for rows, crawling in [*((rows, False) for rows in chosen.rows), (chosen.rows[0], True)]:
            path = Path(name) / f"{rows}.parquet"
            if not path.exists():
                _in_a_process("write", str(path), str(rows))
            server.client().flushall()
            with _crawling(server, crawling):
                seconds, idle, peak = _in_a_process("publish", str(path), str(rows), server.url).split()
            first = first or int(peak)
            what = "Redis stopped nine tenths of the time" if crawling else "Redis at full speed"
            took, memory = f"{float(seconds):>7.1f} s", f"idle {int(idle):>5} MiB  peak {int(peak):>5} MiB"
            print(f"{rows:>12,} rows  {took}  {memory}  {int(peak) / first:5.2f}  {what}", flush=True)


def write(path: str, rows: int) -> None:
    """Writes the file, with the engine itself."""
    import chdb

    chdb.connect(":memory:").query(
        f"INSERT INTO FUNCTION file('{path}', Parquet) SELECT number AS id, number AS rec_id, "
        "['AA', 'DL', 'UA'][number % 3 + 1] AS task_for, ['EWR', 'JFK', 'LGA'][number % 3 + 1] AS before, "
        "if(number % 7 = 0, NULL, number % 100) AS delay, toDateTime(number) AS at, 'ucs_worker' AS function_type "
        f"FROM numbers({rows}) SETTINGS max_threads = 1"
    )


def _in_a_process(*arguments: str) -> str:
    command = [sys.executable, "-c", "from benchmarks.memory import child; child()", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def child() -> None:
    """A case in a process of its own, by its arguments."""
    what, path, rows, *url = sys.argv[1:]
    if what == "write":
        write(path, int(rows))
    else:
        publish(path, int(rows), *url)


def _own() -> int:
    """Memory of this process alone, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [own] = [int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon")]
    return own


@contextmanager
def peaks(measure: Callable[[], Iterable[tuple[str, int]]], seconds: float) -> Iterator[dict[str, int]]:
    """The highest of each figure, which are measured again after so many seconds."""
    highest, over = dict[str, int](), threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            for what, figure in measure():
                highest[what] = max(highest.get(what, 0), figure)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield highest
    finally:
        over.set()
        thread.join()


@contextmanager
def _crawling(server: RedisServer, wanted: bool) -> Iterator[None]:
    over = threading.Event()

    def slow_down() -> None:
        while wanted and not over.wait(_RUNNING_SECONDS):
            os.kill(server.pid, signal.SIGSTOP)
            over.wait(_STOPPED_SECONDS)
            os.kill(server.pid, signal.SIGCONT)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
