"""Reads a stream back and holds it against the table, row by row, as bytes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ucs_pipeline.compare import table_fields
from ucs_pipeline.entries import EntryId, encode
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.source import Source
from ucs_pipeline.stream import Comparer, OrderedStream, Transaction, cut

_SHOWN = 10


@dataclass
class Verdict:
    """What a comparison of table and stream found, in rows."""

    rows: int = 0
    """Rows of the feed in the table."""
    equal: int = 0
    """Rows whose entry is in the stream and says the same."""
    different: int = 0
    """Rows whose entry says something else."""
    missing: int = 0
    """Rows without an entry, trimmed ones aside."""
    trimmed: int = 0
    """Rows before the stream's first entry: published, and trimmed away since."""
    extra: int = 0
    """Entries in the stream that are no row of the feed."""
    examples: list[str] = field(default_factory=list)
    """The first few rows that do not agree, a sentence each."""

    @property
    def agrees(self) -> bool:
        """Whether every row is in the stream, once, or was trimmed away, and nothing else is."""
        return not (self.different or self.missing or self.extra)


def verify(
    feed: BrickFeed, source: Source, stream: OrderedStream, progress: Callable[[int], None] = lambda _: None
) -> Verdict:
    """Compares every row of the feed with its entry.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        progress: takes the number of rows compared so far, from time to time.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read.
    """
    verdict = Verdict()
    state, first = stream.state(), stream.first()
    # Below its first entry a stream has been trimmed; an empty one has been up to its top.
    trimmed = EntryId(first.ordinal, first.row - 1) if first else state.top
    with Comparer(stream) as comparer:
        for entries in encode(stream.name.encode(), source.scan(feed.ordinals[0], feed.ordinals[-1])):
            for transaction in cut(entries, 0, entries.count):
                verdict.rows += transaction.rows
                if comparer.holds(transaction.entries, transaction.start, transaction.stop):
                    verdict.equal += transaction.rows
                else:
                    _compare_each(stream, transaction, trimmed, verdict)
            progress(verdict.rows)
    verdict.extra = state.length - verdict.equal - verdict.different
    if verdict.extra > 0:
        verdict.examples.append(f"the stream holds {verdict.extra:,} entries that are no row of the feed")
    return verdict


def _compare_each(stream: OrderedStream, transaction: Transaction, trimmed: EntryId, verdict: Verdict) -> None:
    there = dict(stream.entries(*transaction.ids))
    for entry_id, expected in table_fields(transaction).items():
        found = there.get(entry_id)
        if found == expected:
            verdict.equal += 1
        elif found is not None:
            verdict.different += 1
            _example(verdict, f"entry {entry_id} is {found}, expected {expected}")
        elif entry_id <= trimmed:
            verdict.trimmed += 1
        else:
            verdict.missing += 1
            _example(verdict, f"entry {entry_id} is not in the stream, expected {expected}")


def _example(verdict: Verdict, text: str) -> None:
    if len(verdict.examples) < _SHOWN:
        verdict.examples.append(text)
