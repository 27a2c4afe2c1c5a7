"""Positions in a stream: entry ids, and the state of a stream. Pure, and fast to import."""

from typing import NamedTuple

_MAX_ROW = 2**64 - 1


class EntryId(NamedTuple):
    """Id of a stream entry: the brick's ordinal and the row's number in the brick, from 1. Ids compare as positions."""

    ordinal: int
    row: int

    def __str__(self) -> str:
        return f"{self.ordinal}-{self.row}"

    def next(self) -> "EntryId":
        """The id after this one."""
        return EntryId(self.ordinal, self.row + 1) if self.row < _MAX_ROW else EntryId(self.ordinal + 1, 0)

    @classmethod
    def parse(cls, text: str | bytes) -> "EntryId":
        """From Redis' text form, `<ordinal>-<row>`."""
        ordinal, row = (text.decode() if isinstance(text, bytes) else text).split("-")
        return cls(int(ordinal), int(row))


START = EntryId(0, 0)
"""The last ID of a stream that never had an entry."""


class State(NamedTuple):
    """The state of a stream, read in one step: other clients may write and trim at the same time."""

    exists: bool
    top: EntryId
    """The last ID; trims and deletes do not lower it. `START` if there is no stream."""
    length: int
    """Entries in it now."""
    first: EntryId | None = None
    """Id of the first entry that is still there; None if there is none."""
    added: int | None = None
    """Entries ever added; None before Redis 7, which does not count them."""
    deleted: EntryId | None = None
    """The highest id that was deleted by itself (XDEL); None before Redis 7."""
    others: bool = False
    """Whether it has entries of a previous writer below the feed's; `first` is the feed's own, `length` counts all."""

    def may_have_had(self, entry_id: EntryId) -> bool:
        """Whether a missing entry up to the last ID may have existed: then it was trimmed or deleted."""
        # With entries of a previous writer, the adopted part was never in the stream, and nothing counts it.
        if self.added is not None and self.added == self.length and not self.others:
            return False
        return entry_id <= self.trimmed or (self.deleted is not None and entry_id <= self.deleted)

    def may_have_been_read(self, entry_id: EntryId, given: EntryId) -> bool:
        """Whether a worker may have deleted a missing entry up to the last ID.

        `given`: the highest id that a consumer group received.
        """
        # Before Redis 7 only the group proves that the entry existed.
        return entry_id <= given and (self.deleted is None or self.may_have_had(entry_id))

    @property
    def trimmed(self) -> EntryId:
        """Entries up to this id are gone from the stream's front. An empty stream was trimmed up to its last ID."""
        return EntryId(self.first.ordinal, self.first.row - 1) if self.first else self.top
