"""The entries of a feed in the order of its table, also where they are in several streams.

Every entry id is a position in the table, so that merging streams is merging ids. What a reader has to know is when a
row of one stream may follow one of another: when no row between the two is still to come. That is so when every other
shard is complete up to its last brick before that row, which the partitions name.

The ids of an any-order feed are no positions in the table: its entries come in the order of its one stream.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import redis

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.redis.connection import RedisServer
from ucs_pipeline.stream.ledger import Ledger
from ucs_pipeline.stream.shard_state import refuse_other_sharding
from ucs_pipeline.stream.stream import OrderedStream, Page, floor, open_stream

_LAST_ROW = 2**64 - 1


class Entry(NamedTuple):
    """One row in a stream."""

    id: EntryId
    """Its position in the table, as text `<brick>-<row>`; of an any-order feed, when it was added."""
    fields: Mapping[bytes, bytes]


class Reader:
    """Reads a feed's entries in the order of its table: always the next ones, without a hole.

    Those of an any-order feed come in the order of its stream, as long as nobody else writes to it.
    Holds a few megabytes of each stream in at most two thousand entries, or one entry that is larger. Nothing is
    written to Redis: where a reader is, is the id of the last entry it gave. Entries that were trimmed away are left
    out.
    """

    def __init__(self, feed: Feed, after: EntryId | str | None, at: "RedisServer | redis.Redis") -> None:
        """Begins after an entry; with the first ones that are there if it is None.

        Args:
            feed: a feed with one stream or several.
            after: id of the last entry that was handled, of whichever stream.
            at: the Redis to read from, or a client of it with replies that are not decoded.
        """
        start = EntryId.parse(after) if isinstance(after, str) else after
        self._arms = [StreamCursor(part, open_stream(part, at), start or floor(part)) for part in streams_of(feed)]

    def take(self, most: int) -> list[Entry]:
        """The next entries, at most so many; fewer where the one after them is not in its stream yet.

        Raises:
            StreamError: a stream was written with another number of shards, has entries that may be another program's
                (of an any-order feed), or cannot be read.
        """
        taken: list[Entry] = []
        while len(taken) < most and (arm := self._next()):
            taken.append(arm.entries.popleft())
        return taken

    @property
    def finished(self) -> bool:
        """Whether all bricks of the feed are complete and their entries were given: then no more will come.

        Shards write down that they are complete; a feed with one stream does not, and is never finished.
        """
        return not any(arm.entries or not arm.complete_before(None) for arm in self._arms)

    def _next(self) -> "StreamCursor | None":
        """The stream whose first entry is the next one; None if that is not in its stream yet."""
        while True:
            found = min((arm for arm in self._arms if arm.entries), key=lambda arm: arm.entries[0].id, default=None)
            ordinal = found.entries[0].id.ordinal if found else None
            behind = [arm for arm in self._arms if not arm.entries and not arm.complete_before(ordinal)]
            if not behind:
                return found
            if not any(arm.read() for arm in behind):
                return None


class StreamCursor:
    """One of the streams: entries that were read ahead, and up to which brick there will be no others."""

    def __init__(self, feed: Feed, stream: OrderedStream, last: EntryId) -> None:
        self.entries: deque[Entry] = deque()
        self._feed = feed
        self._stream = stream
        self._last = last
        self._complete = -1
        self._page = Page()

    def complete_before(self, ordinal: int | None) -> bool:
        """Whether all its entries before a brick of another stream were given; without a brick: all of them."""
        bricks = self._feed.partitions
        last = bricks.last if ordinal is None else bricks.before(ordinal)
        return last is None or last <= self._complete

    def read(self) -> bool:
        """Reads the next entries; returns whether more is known now."""
        before = self._last, self._complete
        if not self._read() and self._feed.shard_id:
            state = self._stream.state()
            note = refuse_other_sharding(self._feed, self._stream, state)
            reach = note.reach(state) if note else -1
            # What was complete by then is read by now, unless there is more of it than a chunk.
            if not self._read():
                self._complete = max(self._complete, reach)
        return (self._last, self._complete) != before

    def _read(self) -> bool:
        """Whether there may be more than what was read now."""
        ordinal, row = self._last
        first = EntryId(ordinal + 1, 0) if row == _LAST_ROW else EntryId(ordinal, row + 1)
        end = EntryId(_LAST_ROW if self._feed.any_order else self._feed.partitions.last, _LAST_ROW)
        if first > end:
            return False
        most = self._page.most
        found = [Entry(*one) for one in self._stream.entries(first, end, most)]
        if self._feed.any_order:
            Ledger(self._feed, self._stream).refuse_others()
        if found:
            self._last = found[-1].id
            self._page = self._page.after(found)
            self.entries.extend(found)
        return len(found) == most


def read_entries(
    feed: Feed,
    after: EntryId | str | None,
    at: "RedisServer | redis.Redis",
    *,
    follow: bool = False,
    poll_s: float = 0.5,
) -> Iterator[Entry]:
    """The entries of a feed in the order of its table, up to the first hole: of one stream, or merged from several.

    Those of an any-order feed come in the order of its stream, as long as nobody else writes to it.

    Args:
        feed: a feed.
        after: id of the last entry that was handled; None: begins with the first ones that are there.
        at: the Redis to read from, or a client of it with replies that are not decoded.
        follow: whether to wait for more, until all bricks of the feed are complete.
        poll_s: seconds between two looks while waiting.

    Raises:
        StreamError: a stream was written with another number of shards, has entries that may be another program's (of
            an any-order feed), or cannot be read.
    """
    reader = Reader(feed, after, at)
    while True:
        found = reader.take(1)
        yield from found
        if not found:
            if not follow or reader.finished:
                return
            time.sleep(poll_s)
