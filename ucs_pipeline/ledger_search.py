"""Finds rows of an any-order feed in its stream, where the entries of others may be between them."""

from collections.abc import Mapping

from ucs_pipeline.ledger import Account
from ucs_pipeline.position import EntryId, State
from ucs_pipeline.stream import RedisStream

_MOST_MISSES = 100
_LAST = EntryId(2**64 - 1, 2**64 - 1)

Fields = Mapping[bytes, bytes]


class Search:
    """The rows of one partition, looked for one after the other: they are in the stream in the order of the table.

    A row that is not found is looked for from the row before it to the end of the partition, so after a hundred of
    them nothing more is.
    """

    def __init__(self, stream: RedisStream, account: Account, state: State) -> None:
        """`state`: the stream; the rows before its first entry are gone."""
        self._stream = stream
        first, self._last = account.first or _LAST, account.last or EntryId(0, 0)
        self._at = first if state.first is None else max(first, state.first)
        self._misses = 0
        self._entries = stream.walk(self._at, self._last)
        self._cut = first < self._at or state.first is None
        self._left: set[frozenset[tuple[bytes, bytes]]] | None = None

    @property
    def reached(self) -> EntryId:
        """From where on the next row is looked for."""
        return self._at

    def find(self, row: Fields) -> EntryId | None:
        """The id of the next row; None if it is not there."""
        if self._misses == _MOST_MISSES:
            return None
        for entry_id, fields in self._entries:
            if fields == row:
                self._at, self._cut = entry_id.next(), False
                return entry_id
        self._misses += 1
        self._entries = self._stream.walk(self._at, self._last)
        return None

    def trimmed(self, row: Fields) -> bool:
        """Whether the next row is gone because the stream was trimmed: none of the partition before it is there."""
        if not self._cut:
            return False
        if self._left is None:
            self._left = {frozenset(fields.items()) for _, fields in self._stream.walk(self._at, self._last)}
        self._cut = frozenset(row.items()) not in self._left
        return self._cut
