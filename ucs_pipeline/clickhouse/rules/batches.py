"""What must be true of the rows that a scan brings before any of them becomes an entry. Pure."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ucs_pipeline.entries.arrow import numbers
from ucs_pipeline.errors import SourceError, SourceUnavailableError, counted
from ucs_pipeline.feed.feed import Feed


def check(feed: Feed, batch: pa.RecordBatch, first: int, last: int) -> None:
    """Refuses a batch (columns as in `sql.queries.scan`) of the bricks with ordinals `first` to `last`.

    Raises:
        SourceError: it has rows of another brick, or a row that cannot be an entry.
    """
    low, high = (end.as_py() for end in pc.min_max(batch.column("ordinal")).values())
    if low < first or high > last:
        bricks, foreign_entry = feed.partitions, low if low < first else high
        raise SourceError(
            f"a query of {bricks.span(first, last)} returned rows of {bricks.name(foreign_entry)}. "
            f"Check the parentheses in the feed's `where` and `key`{_column_hint(feed)}."
        )
    if batch.column("payload").null_count:
        raise SourceError("the table was altered while it was read: a column became Nullable. Launch again.")
    fewest = batch.column("arguments")
    if pc.min(fewest).as_py() == 0:
        row = int(numbers(fewest).argmin())
        brick = feed.partitions.name(batch.column("ordinal")[row].as_py())
        raise SourceError(
            f"brick {brick}: every field of the row with key {batch.column('key')[row].as_py()} is "
            "NULL, and a stream entry needs at least one. Add a constant or a column that is never NULL, or leave such "
            "rows out with `where`.",
            "UCS-ROW",
        )


class Counted:
    """Compares the rows of a scan, brick by brick, with the counts taken before it.

    More rows than counted are new rows. Fewer rows are an older state of the table, from a cache or a lagging replica.
    They are refused before a row of the next brick ends the brick.
    """

    def __init__(self, feed: Feed, counts: Mapping[int, int]) -> None:
        """`counts`: rows per brick, by ordinal; bricks without rows may be left out."""
        self._feed = feed
        self._counts = iter(sorted(counts.items()))
        self._next = next(self._counts, None)
        self._ordinal, self._rows = -1, 0

    def add(self, ordinals: pa.Array) -> None:
        """Takes the ordinals of further rows, in order.

        Raises:
            SourceUnavailableError: a brick before one of them had fewer rows than were counted.
        """
        values = numbers(ordinals)
        bounds = (0, *(np.flatnonzero(values[1:] != values[:-1]) + 1), len(values))
        for start, stop in pairwise(bounds):
            ordinal = int(values[start])
            if ordinal != self._ordinal:
                self._refuse_fewer(ordinal)
                self._ordinal, self._rows = ordinal, 0
            self._rows += int(stop - start)

    def finish(self) -> None:
        """The scan ends here.

        Raises:
            SourceUnavailableError: a brick had fewer rows than were counted.
        """
        self._refuse_fewer(None)

    def _refuse_fewer(self, before: int | None) -> None:
        while self._next and (before is None or self._next[0] < before):
            ordinal, rows = self._next
            read = self._rows if ordinal == self._ordinal else 0
            if read < rows:
                name = self._feed.partitions.brick_name(ordinal)
                raise SourceUnavailableError(
                    f"feed {self._feed.name!r}: brick {name}: ClickHouse counted {counted(rows, 'row')}, and the scan "
                    f"after that returned {read:,}. Rows were deleted, or a cache or a lagging replica answered. "
                    "Launch again; if the error comes back, read from one replica or set "
                    "`settings: {select_sequential_consistency: 1}`.",
                    "UCS-SCAN-INCOMPLETE",
                )
            self._next = next(self._counts, None)


def _column_hint(feed: Feed) -> str:
    column = feed.redacted.bricks.column
    return "" if column is None else f", and that its column {column!r} holds the ordinals of this class"
