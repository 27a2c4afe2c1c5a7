"""Where a round is played: servers, proxy, publisher processes, and the stream they write."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pyarrow.parquet as pq
from clickhouse_connect.driver.client import Client
from typing_extensions import Self

from ucs_pipeline_tests.faults.consumer import Consumer
from ucs_pipeline_tests.faults.orders import Accident, Materialise, Publish, Reply
from ucs_pipeline_tests.faults.proxy import Proxy
from ucs_pipeline_tests.faults.rigs import Rig
from ucs_pipeline_tests.faults.shapes import Shape
from ucs_pipeline_tests.faults.workers import Worker
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.support.home import make_home

MAIN, OTHER = 0, 1
"""The publisher that is always there, and the second one of some faults."""

_TIMEOUT_SECONDS = 60
_TICK_SECONDS = 0.004
_MOST_ERRORS = 10
# A publisher's error when Redis lost rows that it had acknowledged; the next run starts from what is left.
_AFTER_A_LOSS = ("was deleted while it was written", "would leave a gap")


class StuckError(Exception):
    """A round did not come to its end."""


class Stage:
    """Everything that lives as long as the campaign, and the state of the current round."""

    def __init__(self, directory: Path, shapes: Sequence[Shape], rng: random.Random, order: str = "strict") -> None:
        """`order`: of the feeds that are published."""
        self.shapes = shapes
        self.rng = rng
        self.any_order = order == "any"
        self._order = order
        self.streams = 0
        self.consumer: Consumer | None = None
        """The consumer of this round's stream."""
        self.unexpected: list[str] = []
        """Errors of this round's publishers that should have continued."""
        self._directory = directory
        self._dealt: list[Shape] = []
        self._rigs: dict[str, Rig] = {}
        self._workers: dict[int, Worker] = {}
        self._started_at: dict[int, float] = {}
        self._following: dict[int, bool] = {}
        self._kept = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.home = make_home(self._directory)
            self._tables = self.home / ".ucs" / "tables"
            self.clickhouse = stack.enter_context(ClickHouseServer())
            self.proxy = stack.enter_context(Proxy())
            stack.callback(self._close)
            self._tables.mkdir(parents=True)
            for shape in self.shapes:
                self._write(shape, shape.content())
            self._kept = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()

    def begin(self, shape: Shape, rig: str, *, embedded: bool) -> None:
        """A fresh server, a fresh stream, and no publisher yet."""
        self.streams += 1
        self.shape = shape
        self.stream = f"s{self.streams}"
        if rig not in self._rigs:
            self._rigs[rig] = Rig(rig, self._directory)
        self.rig = self._rigs[rig]
        self.rig.fresh()
        self.unexpected = []
        self.point_at_server()
        self.record = self._directory / f"{self.stream}.record"
        self.environment = {
            "UCS_REDIS_URL": f"redis://127.0.0.1:{self.proxy.port}/0",
            "UCS_CLICKHOUSE_URL": "" if embedded else self.clickhouse.url,
            "DAGSTER_HOME": str(self.home),
        }
        self.settings: dict[str, Any] = {"name": self.stream, "table": shape.table, "key": "id", **shape.feed.settings}
        self.settings["stream"] = {
            **self.settings.get("stream", {}),
            "timeout_s": _TIMEOUT_SECONDS,
            "order": self._order,
        }
        self.open = shape.open
        if shape.open is not None:
            self._write(shape, shape.parts()[0])
        for entry_id, fields in shape.old:
            self.rig.command("XADD", self.stream, entry_id, *fields)

    def next_shape(self) -> Shape:
        """The feed of the next round: each once, in any order, before any comes again."""
        if not self._dealt:
            self._dealt = self.rng.sample(self.shapes, len(self.shapes))
        return self._dealt.pop()

    def grow(self) -> None:
        """The table gets its other rows, if it lacks any; a publisher may be reading it."""
        if self.open is not None:
            self._insert(self.shape, self.shape.parts()[1])
            self._store(self.shape, self.shape.content())
            self.open = None

    def cap(self) -> None:
        """Gives the stream of this round a low cap, at which the publisher removes what is acknowledged."""
        self.max_len = self.rng.randint(1_000, 10_000)
        self.settings["stream"] |= {"max_len": self.max_len, "when_full": "trim_acknowledged"}

    def point_at_server(self) -> None:
        """Sends publishers to the rig's server; connections to another one are closed."""
        self.proxy.target = self.rig.server.port
        self.proxy.drop()

    def busy(self, which: int) -> bool:
        """Whether that publisher is busy."""
        return which in self._workers and self._workers[which].busy

    def publish(self, which: int = MAIN) -> None:
        """Sets a publisher to work, in a new process if it has none."""
        self.worker(which).begin(Publish(self.environment, self.settings, self.record, self.open))
        self._started_at[which] = time.monotonic()
        self._following[which] = self.open is not None

    def run_asset(self, accident: Accident | None = None) -> Reply:
        """Runs the feed's asset in Dagster, in a new process."""
        self.kill(MAIN)
        worker = self.worker(MAIN)
        worker.begin(Materialise(self.environment, self.settings, accident, self.open))
        reply = worker.poll(2 * _TIMEOUT_SECONDS)
        # An accident stays in the process it happened in.
        self.kill(MAIN)
        return reply or Reply("the run does not end")

    def worker(self, which: int = MAIN) -> Worker:
        """The process of a publisher."""
        if which not in self._workers:
            self._workers[which] = Worker(self._directory / "publishers.log")
        return self._workers[which]

    def kill(self, which: int = MAIN) -> None:
        """Kills a publisher's process, if it has one."""
        if which in self._workers:
            self._workers.pop(which).kill()

    def reach(self, length: int) -> bool:
        """Waits until the stream is so long; False if the publisher ends before."""
        if not self.until(lambda: not self.busy(MAIN) or self.at(length)):
            raise StuckError(f"the stream does not get to {length} entries")
        return self.busy(MAIN)

    def settle(self) -> None:
        """Waits until every publisher has finished without an error."""
        if not self.until(lambda: self.idle):
            raise StuckError("a publisher does not finish")

    def until(self, condition: Callable[[], bool], seconds: float = _TIMEOUT_SECONDS) -> bool:
        """Waits for a condition, and meanwhile lets publishers begin again that ended with an error or too early."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._look_after()
            if condition():
                return True
            time.sleep(_TICK_SECONDS)
        return False

    def at(self, length: int) -> bool:
        """Whether the stream is so long."""
        found = self.rig.length(self.stream)
        return found is not None and found >= length

    @property
    def idle(self) -> bool:
        """Whether no publisher is busy."""
        return not any(worker.busy for worker in self._workers.values())

    def nap(self, seconds: float) -> None:
        """Waits for a random time up to so long."""
        time.sleep(self.rng.random() * seconds)

    def abandon(self) -> None:
        """Kills the publishers."""
        for which in list(self._workers):
            self.kill(which)

    def _look_after(self) -> None:
        for which, worker in list(self._workers.items()):
            reply = worker.poll() if worker.busy else None
            if reply and reply.error is None and self._following[which] and self.open is None:
                # The table has got more meanwhile.
                self.publish(which)
            if reply is None or reply.error is None:
                continue
            expected = reply.passing or (not self.rig.keeps and any(part in reply.error for part in _AFTER_A_LOSS))
            # Only the first contact with a server is not retried by the publisher itself.
            if reply.passing and time.monotonic() - self._started_at[which] > _TIMEOUT_SECONDS / 2:
                expected = False
            if not expected:
                self.unexpected.append(reply.error)
                if len(self.unexpected) > _MOST_ERRORS:
                    raise StuckError("publishers fail again and again")
            if not worker.alive:
                self.kill(which)
            time.sleep(0.05)
            self.publish(which)

    def _write(self, shape: Shape, columns: pa.Table) -> None:
        self._store(shape, columns)
        types = f"id {shape.feed.key.clickhouse}, part UInt8, word Nullable(String)"
        with self._client() as client:
            client.command(f"CREATE OR REPLACE TABLE {shape.table} ({types}) ENGINE = MergeTree ORDER BY tuple()")
        self._insert(shape, columns)

    def _insert(self, shape: Shape, columns: pa.Table) -> None:
        with self._client() as client:
            client.insert_arrow(shape.table, columns)

    def _store(self, shape: Shape, columns: pa.Table) -> None:
        # Under another name until it is whole: a publisher may be reading the table.
        path = self._tables / f"{shape.table}.parquet"
        pq.write_table(columns, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def _client(self) -> Client:
        return clickhouse_connect.get_client(dsn=self.clickhouse.url, autogenerate_session_id=False)

    def _close(self) -> None:
        self.abandon()
        for rig in self._rigs.values():
            rig.close()
