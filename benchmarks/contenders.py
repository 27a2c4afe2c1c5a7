"""Ways to move the rows of a table into a stream. Each moves them once, and returns how many it moved in which time."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import redis

from benchmarks.reader import reader_beside
from benchmarks.scripts import add_in_pipelines, add_row_by_row
from benchmarks.shapes import STREAM
from ucs_pipeline import BrickFeed
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.stream.stream import OrderedStream, RedisStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, open_source
from ucs_pipeline_tests.support.home import make_home, run_bricks

ROW_BY_ROW, PIPELINES = 10_000, 100_000
"""Rows that the slow contenders move: enough to measure, few enough to wait for."""


class Moved(NamedTuple):
    """Rows, and the seconds it took to move them."""

    rows: int
    seconds: float


@dataclass
class Stage:
    """What all contenders share: a table, a server, and the same rows in the forms that some of them start from."""

    feed: Feed
    server: RedisServer
    directory: Path
    unix: bool

    def __post_init__(self) -> None:
        self.url = self.server.unix_url if self.unix else self.server.url
        self.client: Any = redis.Redis.from_url(self.url, protocol=2)
        self.source: Source = open_source(self.feed)
        self.commands = self.directory / "commands"
        with self.commands.open("wb") as file:
            for entries in encode(STREAM.encode(), self.source.scan(self.feed.ordinals[0], self.feed.ordinals[-1])):
                file.write(entries.requests.rows(0, entries.count))
        self.fields = [part for pair in self._first_row().items() for part in pair]
        self.reach = ["-s", self.client.connection_pool.connection_kwargs["path"]] if self.unix else []
        self.reach = self.reach or ["-p", str(self.server.port)]

    def _first_row(self) -> dict[bytes, bytes]:
        first = next(encode(STREAM.encode(), self.source.scan(self.feed.ordinals[0], self.feed.ordinals[0])))
        return first.fields(0, 1)[first.id(0)]


def row_by_row(stage: Stage) -> Moved:
    """The usual script: one XADD, one answer."""
    with _timed() as seconds:
        rows = add_row_by_row(stage.client, stage.feed, ROW_BY_ROW)
    return Moved(rows, seconds())


def pipelines(stage: Stage) -> Moved:
    """The same with redis-py's pipelines."""
    with _timed() as seconds:
        rows = add_in_pipelines(stage.client, stage.feed, PIPELINES)
    return Moved(rows, seconds())


def row_path(stage: Stage) -> Moved:
    """This project's way from the table to the stream, without Dagster."""
    stream = OrderedStream(STREAM, stage.client)
    with _timed() as seconds:
        reports = publish(stage.feed, stage.source, stream, stage.feed.ordinals, lambda _: {})
        rows = sum(report.published for report in reports)
    return Moved(rows, seconds())


def any_order(stage: Stage) -> Moved:
    """The same of a feed that goes in any order: with a ledger, and with ids that Redis gives."""
    given = stage.feed.model_dump(by_alias=True, exclude_defaults=True)
    feed = BrickFeed(**{**given, "stream": {**given.get("stream", {}), "order": "any"}})
    stream = RedisStream(STREAM, stage.client)
    with _timed() as seconds:
        reports = publish(feed, stage.source, stream, feed.ordinals, lambda _: {})
        rows = sum(report.published for report in reports)
    return Moved(rows, seconds())


def dagster_run(stage: Stage) -> Moved:
    """A run of the feed's asset over all bricks, from the start of its step to its success."""
    seconds, _ = _run_process(stage)
    return Moved(stage.client.xlen(STREAM), seconds)


def dagster_process(stage: Stage) -> Moved:
    """The same, from the start of the process to its end."""
    _, seconds = _run_process(stage)
    return Moved(stage.client.xlen(STREAM), seconds)


def cli_pipe(stage: Stage) -> Moved:
    """`redis-cli --pipe` of a ready-made file of the same commands with the same ids: what Redis can take."""
    with stage.commands.open("rb") as file, _timed() as seconds:
        command = [shutil.which("redis-cli") or "redis-cli", *stage.reach, "--pipe"]
        subprocess.run(command, stdin=file, stdout=subprocess.DEVNULL, check=True)
    return Moved(stage.client.xlen(STREAM), seconds())


def cli_pipe_beside_a_reader(stage: Stage) -> Moved:
    """The same, on a machine as busy as in a run: another process reads and encodes the rows, and sends none."""
    with reader_beside(stage.feed):
        return cli_pipe(stage)


def benchmark(stage: Stage) -> Moved:
    """`redis-benchmark` with an entry like the first one, over and over, from four connections."""
    rows = "1000000"
    command = [shutil.which("redis-benchmark") or "redis-benchmark", *stage.reach, "-P", "100", "-c", "4", "-q"]
    with _timed() as seconds:
        subprocess.run(
            [*command, "-n", rows, b"XADD", STREAM.encode(), b"*", *stage.fields],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    return Moved(stage.client.xlen(STREAM), seconds())


CONTENDERS: dict[str, Callable[[Stage], Moved]] = {
    "row by row": row_by_row,
    "redis-py pipelines": pipelines,
    "ucs row path": row_path,
    "ucs any order": any_order,
    "ucs Dagster run": dagster_run,
    "ucs Dagster process": dagster_process,
    "redis-benchmark": benchmark,
    "redis-cli --pipe, rows read beside": cli_pipe_beside_a_reader,
    "redis-cli --pipe": cli_pipe,
}


def child() -> None:
    """One run in this process; prints the seconds of its step."""
    feed = BrickFeed(**json.loads(sys.argv[1]))
    with dg.DagsterInstance.get() as instance:
        result = run_bricks(build_defs(feed), feed.name, instance, feed.ordinals[0], feed.ordinals[-1])
        assert result.success
        ends = {}
        for kind in (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS):
            [record] = instance.get_records_for_run(result.run_id, of_type=kind).records
            ends[kind] = record.event_log_entry.timestamp
    print(ends[dg.DagsterEventType.STEP_SUCCESS] - ends[dg.DagsterEventType.STEP_START])


def _run_process(stage: Stage) -> tuple[float, float]:
    """Seconds of the step and of the whole process."""
    home = stage.directory / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    make_home(home)
    settings = stage.feed.model_dump_json(by_alias=True, exclude_defaults=True)
    command = [sys.executable, "-W", "ignore", "-c", "from benchmarks.contenders import child; child()", settings]
    environment = {**os.environ, "DAGSTER_HOME": str(home), "UCS_REDIS_URL": stage.url}
    with _timed() as seconds:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return float(done.stdout.split()[-1]), seconds()


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    started = time.perf_counter()
    ended: list[float] = []
    yield partial(ended.__getitem__, 0)
    ended.append(time.perf_counter() - started)
