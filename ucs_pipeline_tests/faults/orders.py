"""Orders to a publisher process, and their execution. Orders and replies cross a pipe."""

import itertools
import json
import os
import random
import resource
import signal
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dagster as dg

from ucs_pipeline import BrickFeed
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import SourceUnavailableError, StreamUnavailableError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.instance.event_log import PooledSqliteEventLogStorage
from ucs_pipeline.orchestration.assets import brick_asset
from ucs_pipeline.orchestration.materializations import recorded
from ucs_pipeline.orchestration.names import LIVE_TAG, OPEN_BRICK_TAG
from ucs_pipeline.orchestration.runs.live import stay
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.faults.shapes import Done
from ucs_pipeline_tests.support.connections import build_defs, connect_redis, open_source
from ucs_pipeline_tests.support.home import run_bricks

_BRICKS = 3
"""Bricks that an any-order feed's publisher takes on at a time."""


@dataclass(frozen=True)
class Reply:
    """How an order ended."""

    error: str | None = None
    passing: bool = False
    """Whether the same order may succeed later, by the error."""
    records: Mapping[int, Done] | None = None


class Order(Protocol):
    """Something a publisher process can carry out."""

    def carry_out(self) -> Reply:
        """Does it, to the end or to the first error."""


@dataclass(frozen=True)
class Publish:
    """Publishes a feed, and writes down finished bricks in a file of its own."""

    environment: Mapping[str, str]
    settings: Mapping[str, Any]
    record: Path
    open: int | None = None
    """Start of the last partition to publish, which the table still fills, so that it is not done. None: all are."""

    def carry_out(self) -> Reply:
        """Calls `transfer`, as the asset does."""
        feed = _feed(self.environment, self.settings)
        try:
            stream = OrderedStream(feed.stream_name, connect_redis(feed.stream_name))
            move = self._in_any_order if feed.any_order else self._in_order
            reports = move(feed, open_source(feed), stream)
            with self.record.open("ab", buffering=0) as record:
                for report in reports:
                    if report.ordinal != self.open and not report.open:
                        record.write(_line(report))
        except UcsError as error:
            return Reply(str(error), isinstance(error, StreamUnavailableError | SourceUnavailableError))
        return Reply()

    def _in_order(self, feed: Feed, source: Source, stream: OrderedStream) -> Iterator[BrickReport]:
        def published(starts: Sequence[int], *, again: bool = False) -> Generator[BrickReport, None, None]:
            return publish(feed, source, stream, starts, self._records, say, again=again)

        wanted = _wanted(feed, self.open)
        return stay(feed, source, stream, wanted, published, say) if _stays(feed, self.open) else published(wanted)

    def _in_any_order(self, feed: Feed, source: Source, stream: OrderedStream) -> Iterator[BrickReport]:
        """A few bricks at a time, in an order that differs from publisher to publisher."""
        starts = feed.partitions.starts
        parts = [starts[first : first + _BRICKS] for first in range(0, len(starts), _BRICKS)]
        random.shuffle(parts)
        for part in parts:
            yield from publish(feed, source, stream, part, self._records, say)

    def _records(self, _starts: Sequence[int]) -> Mapping[int, BrickReport]:
        return read_record(self.record)


@dataclass(frozen=True)
class Materialise:
    """Runs the feed's asset over its bricks in Dagster, and reads back what is recorded."""

    environment: Mapping[str, str]
    settings: Mapping[str, Any]
    accident: "Accident | None" = None
    open: int | None = None
    """As for `Publish`."""

    def carry_out(self) -> Reply:
        """One run in this process."""
        feed = _feed(self.environment, self.settings)
        if self.accident:
            self.accident.prepare()
        try:
            return self._run(feed)
        finally:
            _limit_files(None)

    def _run(self, feed: Feed) -> Reply:
        defs = build_defs(feed)
        with dg.DagsterInstance.get() as instance:
            names = [feed.partitions.name(start) for start in _wanted(feed, self.open)]
            tags = {} if self.open is None else {OPEN_BRICK_TAG: names[-1]}
            tags = {LIVE_TAG: "yes"} if _stays(feed, self.open) else tags
            result = run_bricks(defs, feed.name, instance, names[0], names[-1], **tags)
            if not result.success:
                return Reply(f"run {result.run_id} failed")
            marked = instance.get_materialized_partitions(brick_asset(feed).key)
            found = recorded(instance, feed, feed.partitions.starts)
        return Reply(
            records={
                ordinal: done(report) for ordinal, report in found.items() if feed.partitions.name(ordinal) in marked
            }
        )


@dataclass(frozen=True)
class Accident:
    """What happens to a run at one of its materialisation events."""

    event: int
    """Number of the event, from 1."""
    limit: int | None = None
    """The disk is full: files cannot grow beyond so many bytes any more. None: the process is killed."""
    stored: bool = False
    """Whether it happens after the event was stored, instead of before."""

    def prepare(self) -> None:
        """Makes it happen when its time has come."""
        storage: Any = PooledSqliteEventLogStorage
        store, numbers = storage.store_event, itertools.count(1)

        def store_event(log: PooledSqliteEventLogStorage, event: dg.EventLogEntry) -> None:
            due = event.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION and next(numbers) == self.event
            if due and not self.stored:
                self._happen()
            store(log, event)
            if due and self.stored:
                self._happen()

        storage.store_event = store_event

    def _happen(self) -> None:
        if self.limit is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            _limit_files(self.limit)


def read_record(path: Path) -> dict[int, BrickReport]:
    """Finished bricks, by ordinal. A line that a killed process left half-written does not count."""
    found: dict[int, BrickReport] = {}
    text = path.read_bytes() if path.exists() else b""
    for line in text.split(b"\n")[:-1]:
        try:
            ordinal, rows, first_key, last_key, first, last = json.loads(line)
        except ValueError:
            continue
        first_entry, last_entry = (EntryId.parse(end) if end else None for end in (first, last))
        found[ordinal] = BrickReport(ordinal, rows, first_key, last_key, first_entry, last_entry)
    return found


def done(report: BrickReport) -> Done:
    """The part of a report that the table decides."""
    first, last = (str(entry) if entry else None for entry in (report.first_entry, report.last_entry))
    return Done(report.rows, report.first_key, report.last_key, first, last)


def _feed(environment: Mapping[str, str], settings: Mapping[str, Any]) -> Feed:
    os.environ.update(environment)
    return BrickFeed(**settings)


def _wanted(feed: Feed, last: int | None) -> Sequence[int]:
    starts = feed.partitions.starts
    return starts if last is None or _stays(feed, last) else feed.partitions.between(starts[0], last)


def _stays(feed: Feed, last: int | None) -> bool:
    """Whether a run stays: until the table is whole."""
    return feed.tail == "live" and last is not None


def _limit_files(size: int | None) -> None:
    # Python ignores the signal that comes with a write beyond the limit, so that the write fails with EFBIG.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _line(report: BrickReport) -> bytes:
    return json.dumps([report.ordinal, *done(report)]).encode() + b"\n"


def say(sentence: str) -> None:
    """Writes to the publishers' log."""
    print(f"{time.strftime('%X')} {sentence}", flush=True)
