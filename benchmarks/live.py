"""How soon a row is with a consumer after its insert, with `tail: live`, and what a run costs that has nothing to do.

    uv run python -m benchmarks.live [--rates 1 100 10000] [--seconds 60] [--idle 30] [--engines http embedded]

A process of its own is the run that the feed's sensor launches. This one inserts, ten times a second at most, and reads
the stream by XREADGROUP. A row's time begins before the insert that brings it. The embedded engine has no inserts:
its table is a directory of Parquet files, and each insert is one more. CPU is that of the run, in cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import clickhouse_connect
import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.servers import clickhouse_over_http
from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.names import LIVE_TAG
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import CLICKHOUSE_URL, build_defs
from ucs_pipeline_tests.support.home import PROJECT, run_bricks

INSERTS_A_SECOND = 10
_START_SECONDS = 120
_BOUNDS_MS = (50, 100, 200, 300, 400, 500, 750, 1_000, 2_000, 5_000, float("inf"))


def _feed(table: str) -> Feed:
    return BrickFeed(
        name="rows",
        table=table,
        key="id",
        tail="live",
        bricks={"class": "number", "last": 9_999_999},
        live_max_s=86_400,
    )


def child() -> None:
    """The run; its argument is the table."""
    feed = _feed(sys.argv[1])
    with dg.DagsterInstance.get() as instance:
        run_bricks(build_defs(feed), "rows", instance, 0, 999, **{LIVE_TAG: "yes"})


def main() -> None:
    """Runs the cases and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[1, 100, 10_000], help="rows a second")
    parser.add_argument("--seconds", type=float, default=60, help="of inserts at each rate")
    parser.add_argument("--idle", type=float, default=30, help="seconds without any row before that")
    parser.add_argument("--engines", nargs="+", choices=["http", "embedded"], default=["http", "embedded"])
    chosen = parser.parse_args()
    for engine in chosen.engines:
        for rate in chosen.rates:
            with clickhouse_over_http() if engine == "http" else nullcontext():
                _case(engine, rate, chosen.seconds, chosen.idle)


def _case(engine: str, rate: int, seconds: float, idle_s: float) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        RedisServer(Path(name)) as server,
        _table(Path(name)) as (table, insert),
    ):
        shutil.copy(PROJECT / "dagster.yaml", name)
        client = server.client()
        client.xgroup_create("rows", "readers", id="0", mkstream=True)
        began, took, ended = dict[int, float](), list[float](), threading.Event()

        def read() -> None:
            while not ended.is_set():
                for _, entries in client.xreadgroup("readers", "one", {"rows": ">"}, count=10_000, block=100):
                    now = time.perf_counter()
                    took.extend(now - began.pop(int(fields[b"id"])) for _, fields in entries)

        def add(ids: Sequence[int]) -> None:
            began.update(dict.fromkeys(ids, time.perf_counter()))
            insert(ids)

        def wait() -> None:
            deadline = time.monotonic() + _START_SECONDS
            while began:
                if run.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{len(began):,} rows did not come")
                time.sleep(0.05)

        command = [sys.executable, "-W", "ignore", "-c", "from benchmarks.live import child; child()", table]
        environment = {**os.environ, "DAGSTER_HOME": name, "UCS_REDIS_URL": server.url}
        run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            add([0])
            wait()
            took.clear()
            idle = _cores(run.pid, lambda: time.sleep(idle_s))
            busy = _cores(run.pid, lambda: _insert(add, rate, seconds))
            wait()
        finally:
            ended.set()
            reader.join()
            run.kill()
            run.wait()
    _show(engine, rate, sorted(took), idle, busy)


def _insert(add: Callable[[Sequence[int]], None], rate: int, seconds: float) -> None:
    pause, following, started = max(1 / rate, 1 / INSERTS_A_SECOND), 1, time.perf_counter()
    while (gone := time.perf_counter() - started) < seconds:
        # What an insert has taken too long is made up for by the next one.
        upto = max(following + 1, 1 + round(rate * (gone + pause)))
        add(range(following, upto))
        following = upto
        time.sleep(max(0.0, started + (following - 1) / rate - time.perf_counter()))


@contextmanager
def _table(home: Path) -> Iterator[tuple[str, Callable[[Sequence[int]], None]]]:
    """A table, and what inserts ids into it."""
    if url := os.environ.get(CLICKHOUSE_URL):
        with closing(clickhouse_connect.get_client(dsn=url)) as client:
            client.command("CREATE OR REPLACE TABLE live_rows (id UInt64) ENGINE = MergeTree ORDER BY id")

            def insert(ids: Sequence[int]) -> None:
                client.insert("live_rows", [ids], ["id"], column_oriented=True)

            yield "live_rows", insert
        return
    (files := home / "rows").mkdir()

    def write(ids: Sequence[int]) -> None:
        # A file has all its rows, or is not there.
        path = files / f"{ids[0]}.parquet"
        pq.write_table(pa.table({"id": pa.array(ids, pa.uint64())}), path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    yield f"file('{files}/*.parquet')", write


def _cores(pid: int, body: Callable[[], None]) -> float:
    """Cores that a process uses meanwhile."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, started = used(), time.perf_counter()
    body()
    return (used() - before) / (time.perf_counter() - started)


def _show(engine: str, rate: int, took: Sequence[float], idle: float, busy: float) -> None:
    p50, p99 = (1000 * took[min(len(took) - 1, int(len(took) * share))] for share in (0.5, 0.99))
    print(
        f"{engine}, {rate:,} rows/s: p50 {p50:,.0f} ms  p99 {p99:,.0f} ms  longest {1000 * took[-1]:,.0f} ms  "
        f"({len(took):,} rows)  cores: idle {idle:.3f}, busy {busy:.3f}"
    )
    low = 0.0
    for high in _BOUNDS_MS:
        count = sum(low <= 1000 * seconds < high for seconds in took)
        if count:
            print(f"  {low:>6,.0f} to {high:>6,.0f} ms {count:>9,} {'#' * -(-60 * count // len(took))}")
        low = high
    sys.stdout.flush()


if __name__ == "__main__":
    main()
