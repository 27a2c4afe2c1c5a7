"""Whether a stream and the ledger of an any-order feed belong together: the mark.

Each of the two keys can be deleted, renamed, copied over or restored from an old copy without the other. The ledger is
then about another stream. A stream's own properties do not identify it, since other clients can reproduce them: they
add entries (its count and its last ID), and they trim (its first entry, and every entry the feed ever wrote).

So the feed keeps a mark in the stream, and the same in the ledger: a consumer group without readers,
`ucs:ledger:<feed>`, whose position is a new random number with every transaction. The mark is deleted, copied and
restored with the stream, stays when the stream is trimmed to nothing, and needs no further right. Its position is above
all entries, so it has no lag, has nothing pending and prevents no trimming. Since each transaction moves it, an old
copy of either key differs from the other key.

The alternative is to read an entry that the feed has added, by its ID. That costs as little, but fails once the entry
is trimmed.

A ledger from before the mark is compared with its stream by the count of entries ever added, once, and both get the
mark.
"""

from collections.abc import Sequence
from typing import NamedTuple

import redis

from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.errors import StreamError
from ucs_pipeline.feed.redis_keys import ledger_key, mark_name
from ucs_pipeline.stream.stream import RedisStream, parse_state

_OWN = ("mark", "added", "rows", "top")


class Pair(NamedTuple):
    """Stream and ledger at one moment."""

    stream: str
    feed: str
    state: State
    mark: bytes | None
    """The mark in the stream."""
    noted: bytes | None
    """The mark in the ledger."""
    added: int
    """Entries that the stream ever had when the feed last added to it, by the ledger."""
    rows: int
    """Rows the feed ever added, by the ledger."""
    top: EntryId | None
    """The stream's last ID then."""
    fields: list[bytes | None]
    """The requested fields of the ledger."""

    def lost(self) -> bool:
        """Whether the ledger's stream is certainly gone.

        Then the ledger is ignored. As `any_order.guard` decides it when publishing begins.

        Raises:
            StreamError: they may or may not belong together.
        """
        if self.mark is None and self._gone():
            return True
        if self.mark != self.noted:
            raise self._doubt()
        return False

    def _gone(self) -> bool:
        state = self.state
        if self.noted is None:
            return self.added > (state.added if state.added is not None else int(state.top > EntryId(0, 0)))
        if not state.exists or state.top == EntryId(0, 0) or not self.rows:
            return True
        # No entry is as old as the feed's last ones, and there are more than other clients can have added since.
        later = self.top is not None and (state.first is None or state.first > self.top)
        return later and state.added is not None and state.length > state.added - self.added

    def _doubt(self) -> StreamError:
        ledger, group = ledger_key(self.stream, self.feed), mark_name(self.feed)
        if self.mark is None:
            assert self.noted
            found = (
                f"The stream has no consumer group {group!r}, which identifies it: the stream was replaced, or the "
                "group was destroyed"
            )
            ways_out = (
                f"If the feed's rows are in the stream, or were trimmed from it, run `XGROUP CREATE {self.stream} "
                f"{group} {self.noted.decode()}`. If the stream is another one, run `DEL {ledger}`: then all bricks "
                "are published again."
            )
        else:
            found = (
                f"The stream has consumer group {group!r} of another time"
                if self.noted
                else f"The stream has consumer group {group!r}, which the ledger does not know"
            ) + ": one of the two was deleted, restored, renamed or copied over without the other"
            ways_out = (
                "Restore both from one backup, or, to publish all bricks once more, run "
                f"`XGROUP DESTROY {self.stream} {group}` and `DEL {ledger}`."
            )
        return StreamError(
            f"feed {self.feed!r}: stream {self.stream!r} and ledger {ledger!r} do not belong together. {found}. No row "
            f"was added. Stop other runs of the feed first. {ways_out}",
            "UCS-LEDGER",
        )


def read_pair(stream: RedisStream, feed: str, fields: Sequence[str]) -> Pair:
    """Reads stream and ledger, with some fields of the ledger.

    Raises:
        StreamError: Redis refuses or cannot be reached.
    """
    mark = mark_name(feed).encode()
    with stream.client.pipeline(transaction=True) as pipe:
        pipe.hmget(ledger_key(stream.name, feed), [*_OWN, *fields])
        pipe.xinfo_stream(stream.name)
        pipe.xinfo_groups(stream.name)
        try:
            texts, info, groups = pipe.execute(raise_on_error=False)
        except redis.RedisError as error:
            raise stream.failure(error) from error
    for answer in (texts, info, groups):
        if isinstance(answer, redis.RedisError) and "no such key" not in str(answer):
            raise stream.failure(answer) from answer
    there = not isinstance(info, redis.RedisError)
    noted, added, rows, top, *found = map(_bytes, texts)
    marks = [group["last-delivered-id"] for group in groups if _bytes(group["name"]) == mark] if there else []
    return Pair(
        stream.name,
        feed,
        parse_state(info if there else None),
        _bytes(marks[0]) if marks else None,
        noted,
        int(added or -1),
        int(rows or 0),
        EntryId.parse(top) if top else None,
        found,
    )


def _bytes(value: bytes | str | None) -> bytes | None:
    # The caller's client may decode replies.
    return value.encode() if isinstance(value, str) else value
