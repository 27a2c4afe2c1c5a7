"""What must be true of the rows that a scan brings before any of them becomes an entry. Pure."""

import pyarrow as pa
import pyarrow.compute as pc

from ucs_pipeline.columns import numbers
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed import BrickFeed


def check(feed: BrickFeed, batch: pa.RecordBatch, first: int, last: int) -> None:
    """Refuses a batch (columns as in `ucs_pipeline.sql.scan`) of the bricks with ordinals `first` to `last`.

    Raises:
        SourceError: it has rows of another brick, or a row that cannot be an entry.
    """
    low, high = (end.as_py() for end in pc.min_max(batch.column("ordinal")).values())
    if low < first or high > last:
        bricks, stray = feed.numbering, low if low < first else high
        raise SourceError(
            f"asked for {bricks.span(first, last)}, the table answered with rows of {bricks.name(stray)}: check the "
            f"parentheses in the feed's `where` and `key`{_column_hint(feed)}"
        )
    if batch.column("payload").null_count:
        raise SourceError("a column became Nullable while the table was being read: run again")
    fewest = batch.column("arguments")
    if pc.min(fewest).as_py() == 0:
        row = int(numbers(fewest).argmin())
        brick = feed.numbering.name(batch.column("ordinal")[row].as_py())
        raise SourceError(
            f"brick {brick}: every field of the row with key {batch.column('key')[row].as_py()} is NULL, and a "
            "stream entry needs at least one: add a constant, or a column that is never NULL, or leave such rows "
            "out with `where`"
        )


def _column_hint(feed: BrickFeed) -> str:
    column = feed.shown.bricks.column
    return "" if column is None else f", and that its column {column!r} holds the ordinals of this class"
