"""Turns confirmed rows into one report per brick, empty bricks included."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.entries.entry_id import EntryId

if TYPE_CHECKING:
    # Definitions load this module in every process, and Arrow takes a quarter of a second.
    from ucs_pipeline.entries.batches import Batch
    from ucs_pipeline.entries.encode import BrickSlice

Fields = Mapping[bytes, bytes]
"""Fields of an entry."""

Key = int | str
"""A key in its reported form."""


@dataclass(frozen=True)
class BrickReport:
    """A brick (or a coarser partition) whose every row is in the stream."""

    ordinal: int
    """Start of the partition: the ordinal of its first brick."""
    rows: int
    first_key: Key | None
    last_key: Key | None
    first_entry: EntryId | None
    last_entry: EntryId | None
    content_hash: int | None = None
    """Sum modulo 2^64 of the xxHash64 of every row's payload; None in a record made before there was one."""
    published: int = 0
    """Rows added by this run; the others were in the stream before it."""
    bytes: int = 0
    """Bytes sent to Redis for the rows added."""
    seconds: float = 0.0
    """Time that the rows added took, at the pace of the last second or more before the brick was done."""
    length_before: int | None = None
    """Entries in the stream before the brick's first row was added; None if none was added."""
    length_after: int | None = None
    preview: Mapping[EntryId, Fields] = field(default_factory=dict, compare=False)
    """Its first entries, for display."""
    adopted: bool = False
    """Whether another program published it before the feed's stream began, so that the stream never had its rows."""
    remark: str | None = field(default=None, compare=False)
    """A warning about the run that reports it."""
    replay: int = 0
    """How many times an any-order feed had published it before."""
    open: bool = False
    """Whether the table may still add to it, so that it is not to be recorded as done."""


_PREVIEW_ROWS = 3
_PACE_SECONDS = 1.0


class ConfirmedBatch(NamedTuple):
    """Rows known to be in the stream: just added, or added earlier."""

    transaction: "Batch"
    length: int | None = None
    """Entries in the stream right after the rows were added; None if they were there before."""


class Throughput:
    """How fast rows arrive.

    Redis proves several bricks at a time, so the time between two of them is not meaningful.
    """

    def __init__(self, started: float) -> None:
        """`started`: when the pass began, in seconds of some clock."""
        self._marks = deque([(started, 0)])

    def seconds(self, rows: int, now: float) -> float:
        """Time that the latest rows took, at the pace of the last second or more."""
        if not rows:
            return 0.0
        arrived = self._marks[-1][1] + rows
        while len(self._marks) > 1 and now - self._marks[1][0] >= _PACE_SECONDS:
            self._marks.popleft()
        since, before = self._marks[0]
        self._marks.append((now, arrived))
        return rows * (now - since) / (arrived - before)


class BrickAggregator:
    """Counts the rows of each partition of a pass."""

    def __init__(self, partitions: Partitions, wanted: Sequence[int], started: float) -> None:
        """`wanted`: starts of the partitions to report, consecutive."""
        self._numbering = partitions
        self._from = wanted[0]
        self._starts = iter(wanted)
        self._next: int | None = next(self._starts)
        self._open: BrickReport | None = None
        self._pace = Throughput(started)

    def reports(self, spans: Iterator[ConfirmedBatch]) -> Generator[BrickReport, None, None]:
        """A report for every wanted partition, in order, each as soon as a later row shows that it is complete."""
        for span in spans:
            entries, start, stop = span.transaction.entries, span.transaction.start, span.transaction.stop
            for part in entries.within(start, stop):
                if part.first.ordinal >= self._from:
                    partition = self._numbering.start(part.first.ordinal)
                    yield from self._finish(partition)
                    self._add(span, partition, part)
        yield from self._finish(None)

    def _add(self, span: ConfirmedBatch, partition: int, part: "BrickSlice") -> None:
        entries, stop = span.transaction.entries, span.transaction.stop
        low, high, rows, key = part.start, part.stop, part.rows, self._numbering.bricks.reported
        brick = self._open or BrickReport(
            *(partition, 0, key(entries.key(low)), None, part.first, None, 0),
            preview=entries.fields(low, min(low + _PREVIEW_ROWS, high)),
        )
        change: dict[str, object] = {
            "rows": brick.rows + rows,
            "content_hash": ((brick.content_hash or 0) + entries.content_hash(low, high)) % 2**64,
            "last_key": key(entries.key(high - 1)),
            "last_entry": part.last,
        }
        if span.length is not None:
            after = span.length - (stop - high)
            change |= {
                "published": brick.published + rows,
                "bytes": brick.bytes + entries.size(low, high),
                "length_after": after,
            }
            if brick.length_before is None:
                change["length_before"] = after - rows
        self._open = replace(brick, **change)  # type: ignore[arg-type]

    def _finish(self, before: int | None) -> Generator[BrickReport, None, None]:
        """Reports every partition before one that is not reported yet; all of them if there is none."""
        while self._next is not None and (before is None or self._next < before):
            open_brick = self._open if self._open and self._open.ordinal == self._next else None
            report = open_brick or BrickReport(self._next, 0, None, None, None, None, 0)
            if open_brick:
                self._open = None
            yield replace(report, seconds=self._pace.seconds(report.published, time.monotonic()))
            self._next = next(self._starts, None)


def tap(spans: Iterator[ConfirmedBatch], moved: Callable[[ConfirmedBatch], None]) -> Iterator[ConfirmedBatch]:
    """The same items; calls a function with each."""
    for span in spans:
        moved(span)
        yield span
