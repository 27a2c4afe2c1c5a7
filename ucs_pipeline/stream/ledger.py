"""What an any-order feed has put into its stream: a Redis hash next to it, one field per partition.

A field reads `<rows> <content> <open or done> <replay> <requests> <first id> <last id>`. It is written by the scripts
of `any_order.guard`, in the transactions that add the rows, and only read here. Everything up to the ids is known
before a transaction is sent, so one comparison shows whether the ledger has the state that a publisher expects: the
*head*.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from typing_extensions import Self

from ucs_pipeline.entries.display import hash_text, printable
from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.errors import StreamError, counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redis_keys import ledger_key
from ucs_pipeline.stream.ledger_mark import read_pair
from ucs_pipeline.stream.stream import RedisStream

_NOBODY = "-"
"""Stands for no requests."""

_PAGE = 1000
_STATES = {"open": False, "done": True}


class LedgerEntry(NamedTuple):
    """The ledger's entry of one partition."""

    rows: int = 0
    """Rows in the stream since the latest replay began."""
    content_hash: int = 0
    """Sum modulo 2^64 of their hashes."""
    done: bool = False
    """Whether the partition is complete."""
    replay: int = 0
    """How many times it was published before."""
    requests: tuple[str, ...] = ()
    """The replay requests that were served: all of them, since a repeated request must not be served twice.

    The last one is that of the current rows.
    """
    first: EntryId | None = None
    last: EntryId | None = None

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """From a field of the ledger.

        Raises:
            ValueError: it is invalid.
        """
        rows, content, state, replay, requests, first, last = text.decode().split(" ")
        if state not in _STATES:
            raise ValueError(state)
        ids = EntryId.parse(first), EntryId.parse(last)
        asked = () if requests == _NOBODY else tuple(requests.split(","))
        return cls(int(rows), int(content, 16), _STATES[state], int(replay), asked, *ids)

    @property
    def head(self) -> bytes:
        """The start of the field."""
        state = "done" if self.done else "open"
        requests = ",".join(self.requests) or _NOBODY
        return f"{self.rows} {hash_text(self.content_hash)} {state} {self.replay} {requests} ".encode()

    def plus(self, rows: int, content_hash: int, *, done: bool) -> Self:
        """With more rows; the ids are not known yet."""
        content = (self.content_hash + content_hash) % 2**64
        return self._replace(rows=self.rows + rows, content_hash=content, done=done, first=None, last=None)

    def again(self, request: str) -> Self:
        """The beginning of a replay."""
        return type(self)(replay=self.replay + 1, requests=(*self.requests, request))


class ResumePoint(NamedTuple):
    """Where publishing a partition begins."""

    expected: bytes
    """Head of its entry in the ledger; empty without an entry."""
    account: LedgerEntry
    """The entry before the rows are added."""


class Ledger:
    """The ledger of a feed."""

    def __init__(self, feed: Feed, stream: RedisStream) -> None:
        self._feed = feed
        self._stream = stream
        self.key = ledger_key(feed.stream_name, feed.name)

    def accounts(self, starts: Sequence[int]) -> dict[int, LedgerEntry]:
        """Its entries of some partitions, by start.

        Raises:
            StreamError: it is no ledger, or Redis refuses or cannot be reached.
        """
        found: dict[int, LedgerEntry] = {}
        for position in range(0, len(starts), _PAGE):
            page = starts[position : position + _PAGE]
            for start, text in zip(page, self._texts([*map(self._feed.partitions.name, page)]), strict=True):
                if text is not None:
                    found[start] = self._account(start, text)
        return found

    def rows(self) -> int:
        """Rows the feed ever added to the stream, replays included.

        Raises:
            StreamError: it is no ledger, or Redis refuses or cannot be reached.
        """
        return int(self._texts(["rows"])[0] or 0)

    def refuse_others(self) -> None:
        """Makes sure that all entries ever added to the stream are the feed's.

        Raises:
            StreamError: other clients write to the stream as well, or Redis does not count added entries, refuses or
                cannot be reached.
        """
        [rows], state = self._read(["rows"])
        own = int(rows or 0)
        if not state.exists or state.added == own:
            return
        found = (
            "Redis before version 7 does not count whether other clients add entries"
            if state.added is None
            else f"{counted(state.added, 'entry')} came, {own:,} from this feed by its ledger"
        )
        raise StreamError(
            f"feed {self._feed.name!r}: the entries of stream {self._stream.name!r} do not name their feed, and "
            f"{found}. Read brick by brick with `ucs read {self._feed.name} BRICK`, or use a consumer group.",
            "UCS-SHARED-STREAM",
        )

    def _texts(self, names: Sequence[str]) -> list[bytes | None]:
        return self._read(names)[0]

    def _read(self, names: Sequence[str]) -> tuple[list[bytes | None], State]:
        """Fields of the ledger, and the stream at the same moment; no fields if the stream is lost."""
        pair = read_pair(self._stream, self._feed.name, names)
        return [None] * len(names) if pair.lost() else pair.fields, pair.state

    def _account(self, start: int, text: bytes) -> LedgerEntry:
        try:
            return LedgerEntry.parse(text)
        except ValueError:
            raise StreamError(
                f"feed {self._feed.name!r}: brick {self._feed.partitions.name(start)}: ledger {self.key!r} has the "
                f"value {printable(text.decode(errors='replace'))!r}, which ucs has not written. Restore the ledger, "
                "or delete the ledger and the stream to publish again.",
                "UCS-LEDGER",
            ) from None


def numbering_text(feed: Feed) -> str:
    """The feed's partitions as text: a ledger is useless to a feed with other partitions."""
    bricks = feed.bricks
    details: Mapping[str, str] = {
        "number": f"width {bricks.width}",
        "time": f"zone {bricks.zone}, unit {bricks.unit}",
        "text": f"base {bricks.base}, digit {bricks.digit}",
    }
    return f"class {bricks.kind}, level {bricks.level}, {details[bricks.kind]}"
