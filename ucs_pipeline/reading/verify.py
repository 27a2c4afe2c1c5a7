"""Reads a stream back and compares it with the table, row by row, as bytes.

The stream may be written and trimmed meanwhile: rows above its last ID at the start are not compared, and an entry
below the stream's first one counts as trimmed. A missing entry that a consumer group received counts as deleted by its
worker (XACKDEL, XDELEX, XDEL); one that no group received counts as missing.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from ucs_pipeline.bricks.sequences import between
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.batches import Batch, cut
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.stream.comparer import StreamComparer
from ucs_pipeline.stream.stream import OrderedStream, floor, given_to_groups

SHOWN, _SHOWN_BYTES = 100, 1 << 22
"""Limits of the differences, or extra entries, that are kept: their number and bytes."""


class Difference(NamedTuple):
    """A row whose entry differs."""

    entry: EntryId
    expected: dict[bytes, bytes]
    found: dict[bytes, bytes] | None
    """None if the entry is missing."""
    numbered: bool = True
    """Whether the entry's id is the row's position; Redis assigns the ids of an any-order feed."""

    @property
    def name(self) -> str:
        """The name of the row."""
        return f"entry {self.entry}" if self.numbered else f"row {self.entry.row} of its brick"

    @property
    def size(self) -> int:
        """Bytes of the row and its entry."""
        return _size(self.expected) + _size(self.found or {})

    def __str__(self) -> str:
        there = "not in the stream" if self.found is None else str(self.found)
        return f"{self.name} is {there}, expected {self.expected}"


@dataclass
class Verdict:
    """The result of a comparison of table and stream, in rows."""

    begin: State
    """The stream when the comparison began."""
    end: State
    """The stream when the comparison was over."""
    rows: int = 0
    """Rows of the compared bricks in the table."""
    equal: int = 0
    """Rows whose entry is in the stream and equal."""
    different: int = 0
    """Rows whose entry differs."""
    missing: int = 0
    """Rows up to the stream's last ID without an entry, except trimmed ones and those that workers deleted."""
    trimmed: int = 0
    """Rows before the stream's first entry: published, then trimmed."""
    deleted: int = 0
    """Rows after the stream's first entry whose entry is missing, and was received by a consumer group."""
    unpublished: int = 0
    """Rows above the stream's last ID."""
    differences: list[Difference] = field(default_factory=list)
    """The first rows that are different or missing."""
    strays: list[tuple[EntryId, dict[bytes, bytes]]] = field(default_factory=list)
    """The first entries after the table's last row up to the stream's last ID, where other clients add theirs."""
    shared: bool = False
    """Whether other clients write to the stream as well, so that extra entries are not known."""
    _shown_bytes: int = 0

    def show(self, difference: Difference) -> None:
        """Keeps the first few differences."""
        if len(self.differences) < SHOWN and self._shown_bytes < _SHOWN_BYTES:
            self.differences.append(difference)
            self._shown_bytes += difference.size

    @property
    def extra(self) -> int | None:
        """Entries in the stream that are no row of the feed.

        None if the stream was written or trimmed meanwhile, has entries of a previous writer below the feed's, or is
        shared.
        """
        known = self.begin == self.end and not self.end.others and not self.shared
        return self.begin.length - self.equal - self.different if known else None

    @property
    def agrees(self) -> bool:
        """Whether every row is in the stream once, was trimmed or was deleted by a worker, without other entries."""
        return not (self.different or self.missing or self.unpublished or self.extra)


def verify(
    feed: Feed,
    source: Source,
    stream: OrderedStream,
    progress: Callable[[int], None] = lambda _: None,
    *,
    held_only: bool = False,
) -> Verdict:
    """Compares the rows of the feed with their entries.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        progress: called with the number of rows compared so far.
        held_only: read only the bricks in the stream, instead of all bricks of the feed.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read.
    """
    begin = stream.state()
    verdict = Verdict(begin, begin)
    ordinals = held(feed, begin) if held_only else feed.partitions.ordinals
    last = floor(feed)
    if ordinals:
        with StreamComparer(stream) as comparer, closing(source.scan(ordinals[0], ordinals[-1])) as scan:
            for entries in encode(stream.name.encode(), scan):
                trimmed, published = entries.up_to(begin.trimmed), entries.up_to(begin.top)
                last = entries.id(published - 1) if published else last
                verdict.rows += entries.count
                verdict.trimmed += trimmed
                verdict.unpublished += entries.count - published
                for transaction in cut(entries, trimmed, published):
                    if comparer.holds(transaction.entries, transaction.start, transaction.stop):
                        verdict.equal += transaction.rows
                    else:
                        _compare_each(stream, transaction, verdict)
                progress(verdict.rows)
    if begin.first is not None and last < begin.top:
        size = 0
        for foreign_entry in islice(stream.walk(max(last.next(), begin.first), begin.top), SHOWN):
            verdict.strays.append(foreign_entry)
            if (size := size + _size(foreign_entry[1])) >= _SHOWN_BYTES:
                break
    verdict.end = stream.state()
    return verdict


def held(feed: Feed, state: State) -> Sequence[int]:
    """Ordinals of the feed's bricks between the stream's first entry and its last ID."""
    if state.first is None:
        return range(0)
    return between(feed.partitions.ordinals, state.first.ordinal, state.top.ordinal)


def _compare_each(stream: OrderedStream, transaction: Batch, verdict: Verdict) -> None:
    rows = transaction.entries.fields(transaction.start, transaction.stop)
    for entry_id, found in stream.walk(*transaction.ids):
        expected = rows.pop(entry_id, None)
        if found == expected:
            verdict.equal += 1
        elif expected is not None:
            verdict.different += 1
            verdict.show(Difference(entry_id, expected, found))
    if not rows:
        return
    # Read after the entries: a row that is missing because of a trim is below the first entry by now.
    state, given = stream.state(), given_to_groups(stream)
    for entry_id, expected in rows.items():
        if entry_id <= state.trimmed:
            verdict.trimmed += 1
        elif state.may_have_been_read(entry_id, given):
            verdict.deleted += 1
        else:
            verdict.missing += 1
            verdict.show(Difference(entry_id, expected, None))


def _size(fields: Mapping[bytes, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in fields.items())
