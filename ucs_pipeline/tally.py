"""Turns rows as they arrive in the stream into one report per brick, empty bricks included."""

import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import NamedTuple

from ucs_pipeline.entries import Segment
from ucs_pipeline.plan import BrickReport, Plan
from ucs_pipeline.stream import Transaction

_PREVIEW_ROWS = 3


class Span(NamedTuple):
    """Rows known to be in the stream: just added, or found there."""

    transaction: Transaction
    length: int | None = None
    """Entries in the stream right after the rows were added; None if they were there before."""


class Tally:
    """Counts the rows of each brick of a pass."""

    def __init__(self, course: Plan, started: float) -> None:
        self._course = course
        self._next = course.wanted_from
        self._open: BrickReport | None = None
        self._since = started

    def reports(self, spans: Iterator[Span]) -> Generator[BrickReport, None, None]:
        """A report for every wanted brick, in order, each as soon as a later row shows that the brick is complete."""
        for span in spans:
            entries, start, stop = span.transaction.entries, span.transaction.start, span.transaction.stop
            for part in entries.within(start, stop):
                if part.first.ordinal >= self._course.wanted_from:
                    yield from self._finish(part.first.ordinal)
                    self._add(span, part)
        yield from self._finish(self._course.last + 1)

    def _add(self, span: Span, part: Segment) -> None:
        entries, stop = span.transaction.entries, span.transaction.stop
        low, high, rows = part.start, part.stop, part.rows
        brick = self._open or BrickReport(
            *(part.first.ordinal, 0, entries.key(low), None, part.first, None, 0),
            preview=entries.fields(low, min(low + _PREVIEW_ROWS, high)),
        )
        change: dict[str, object] = {
            "rows": brick.rows + rows,
            "content_hash": ((brick.content_hash or 0) + entries.content_hash(low, high)) % 2**64,
            "last_key": entries.key(high - 1),
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

    def _finish(self, before: int) -> Generator[BrickReport, None, None]:
        """Reports every brick below `before` that is not reported yet."""
        while self._next < before:
            now = time.monotonic()
            open_brick = self._open if self._open and self._open.ordinal == self._next else None
            report = open_brick or BrickReport(self._next, 0, None, None, None, None, 0)
            if open_brick:
                self._open = None
            yield replace(report, seconds=now - self._since)
            self._since = now
            self._next += 1
