"""Finds rows of an any-order feed in its stream, with entries of other clients between them."""

from array import array
from collections.abc import Generator, Mapping
from contextlib import closing
from itertools import islice

import numpy as np
import numpy.typing as npt

from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.encode import UnnumberedEntries, encode
from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.stream.ledger import LedgerEntry
from ucs_pipeline.stream.stream import RedisStream

_MOST_MISSES = 100
_LAST = EntryId(2**64 - 1, 2**64 - 1)
_ROWS = 1_000
"""Rows that are Python objects at the same time."""
_WINDOW = 1_000_000
"""Entries whose hashes are kept at the same time: 8 MB."""

Fields = Mapping[bytes, bytes]


def rows_of(feed: Feed, source: Source, start: int) -> Generator[list[Fields], None, None]:
    """The rows of a partition as fields of entries, in chunks.

    Raises:
        SourceError: the table cannot be read.
    """
    with closing(source.scan(start, feed.partitions.end(start))) as scan:
        for entries in encode(feed.stream_name.encode(), scan, UnnumberedEntries):
            for first in range(0, entries.count, _ROWS):
                yield list(entries.fields(first, min(first + _ROWS, entries.count)).values())


def trimmed_rows(
    feed: Feed, source: Source, stream: RedisStream, start: int, account: LedgerEntry, state: State
) -> int:
    """How many rows of a partition are gone because the stream was trimmed: those before the first one that is left.

    The first row that is left is the earliest row of the table that equals one of the entries. There may be any number
    of entries of other clients: a hash of each is kept, at most `_WINDOW` of them, and the table is read again for the
    next ones. Almost always the first ones are enough.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        start: the partition.
        account: its entry in the ledger.
        state: the stream; the rows before its first entry are gone.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read.
    """
    if account.first is None or account.last is None or (state.first and state.first <= account.first):
        return 0
    left = stream.walk(state.first, account.last) if state.first else iter(())
    while hashes := array("q", (_hash(fields) for _, fields in islice(left, _WINDOW))):
        window, place = np.sort(np.frombuffer(hashes, np.int64)), 0
        with closing(rows_of(feed, source, start)) as pages:
            for rows in pages:
                found = _among(window, np.fromiter(map(_hash, rows), np.int64, len(rows)))
                if found.any() and place + found.argmax() < account.rows:
                    return place + int(found.argmax())
                place += len(rows)
    return account.rows


def _hash(fields: Fields) -> int:
    return hash(frozenset(fields.items()))


def _among(window: npt.NDArray[np.int64], hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = window[np.searchsorted(window[:-1], hashes)] == hashes
    return found


class RowFinder:
    """Searches the rows of one partition one after the other: they are in the stream in the order of the table.

    The search for a missing row runs to the end of the partition, so after a hundred missing rows it stops.
    """

    def __init__(self, stream: RedisStream, account: LedgerEntry, state: State, trimmed: int) -> None:
        """`state`: the stream; the rows before its first entry are gone, which are the first `trimmed` ones."""
        self._stream = stream
        first, self._last = account.first or _LAST, account.last or EntryId(0, 0)
        self._at = first if state.first is None else max(first, state.first)
        self._misses = 0
        self._entries = stream.walk(self._at, self._last)
        self._trimmed = trimmed

    @property
    def reached(self) -> EntryId:
        """The id that the search for the next row starts from."""
        return self._at

    def find(self, row: Fields) -> EntryId | None:
        """The id of the next row; None if it is missing."""
        if self._misses == _MOST_MISSES:
            return None
        for entry_id, fields in self._entries:
            if fields == row:
                self._at = entry_id.next()
                return entry_id
        self._misses += 1
        self._entries = self._stream.walk(self._at, self._last)
        return None

    def trimmed(self) -> bool:
        """Whether the next row is gone because the stream was trimmed. Then skips the row."""
        self._trimmed -= 1
        return self._trimmed >= 0
