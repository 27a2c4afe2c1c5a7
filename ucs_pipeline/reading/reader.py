"""The entries of a feed in the order of its table, from one stream or several.

Every entry id is a position in the table, so streams are merged by ids. A row of one stream may follow a row of another
once no row between the two can still come. That is so when every other shard is complete up to its last brick before
that row.

The ids of an any-order feed are no positions in the table: its entries come in the order of its stream.
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
    """Reads a feed's entries in the order of its table, without a gap.

    Those of an any-order feed come in the order of its stream, if no other client writes to it. Holds a few megabytes
    of each stream in at most two thousand entries, or one entry that is larger. Nothing is written to Redis: the id of
    the last entry is the reader's position. Trimmed entries are left out.
    """

    def __init__(self, feed: Feed, after: EntryId | str | None, at: "RedisServer | redis.Redis") -> None:
        """Begins after an entry; with None, at the first entry in the stream.

        Args:
            feed: a feed with one stream or several.
            after: id of the last entry that was handled, in any of the streams.
            at: the Redis to read from, or a client of it with replies that are not decoded.
        """
        start = EntryId.parse(after) if isinstance(after, str) else after
        self._arms = [StreamCursor(part, open_stream(part, at), start or floor(part)) for part in streams_of(feed)]

    def take(self, most: int) -> list[Entry]:
        """The next entries, at most `most`; fewer if the next one is not in its stream yet.

        Raises:
            StreamError: a stream has another number of shards, may have entries of another program (for an any-order
                feed), or cannot be read.
        """
        taken: list[Entry] = []
        while len(taken) < most and (arm := self._next()):
            taken.append(arm.entries.popleft())
        return taken

    @property
    def finished(self) -> bool:
        """Whether all bricks of the feed are complete and their entries were returned: then no more will come.

        Shards record that they are complete; a feed with one stream does not, and is never finished.
        """
        return not any(arm.entries or not arm.complete_before(None) for arm in self._arms)

    def _next(self) -> "StreamCursor | None":
        """The stream that has the next entry; None if that is not in its stream yet."""
        while True:
            found = min((arm for arm in self._arms if arm.entries), key=lambda arm: arm.entries[0].id, default=None)
            ordinal = found.entries[0].id.ordinal if found else None
            behind = [arm for arm in self._arms if not arm.entries and not arm.complete_before(ordinal)]
            if not behind:
                return found
            if not any(arm.read() for arm in behind):
                return None


class StreamCursor:
    """One of the streams: entries read ahead, and the brick up to which no others will come."""

    def __init__(self, feed: Feed, stream: OrderedStream, last: EntryId) -> None:
        self.entries: deque[Entry] = deque()
        self._feed = feed
        self._stream = stream
        self._last = last
        self._complete = -1
        self._page = Page()

    def complete_before(self, ordinal: int | None) -> bool:
        """Whether all its entries before a brick of another stream were returned; without a brick: all of them."""
        bricks = self._feed.partitions
        last = bricks.last if ordinal is None else bricks.before(ordinal)
        return last is None or last <= self._complete

    def read(self) -> bool:
        """Reads the next entries; returns whether it read anything new."""
        before = self._last, self._complete
        if not self._read() and self._feed.shard_id:
            state = self._stream.state()
            note = refuse_other_sharding(self._feed, self._stream, state)
            reach = note.reach(state) if note else -1
            # Complete bricks are read by now, unless they exceed a chunk.
            if not self._read():
                self._complete = max(self._complete, reach)
        return (self._last, self._complete) != before

    def _read(self) -> bool:
        """Reads a chunk; returns whether there may be more."""
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
    """The entries of a feed in the order of its table, up to the first gap: of one stream, or merged from several.

    Those of an any-order feed come in the order of its stream, if no other client writes to it.

    Args:
        feed: a feed.
        after: id of the last entry that was handled; None: begins with the first entries in the stream.
        at: the Redis to read from, or a client of it with replies that are not decoded.
        follow: whether to wait for more, until all bricks of the feed are complete.
        poll_s: seconds between two polls while waiting.

    Raises:
        StreamError: a stream has another number of shards, may have entries of another program (for an any-order feed),
            or cannot be read.
    """
    reader = Reader(feed, after, at)
    while True:
        found = reader.take(1)
        yield from found
        if not found:
            if not follow or reader.finished:
                return
            time.sleep(poll_s)
