"""A stream: its top, its entries read back, and the transactions that are appended to it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import hiredis
import redis

from ucs_pipeline.entries import Entries
from ucs_pipeline.errors import FeedError, StreamError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.keys import MARKS
from ucs_pipeline.position import START, EntryId, State, floor
from ucs_pipeline.redis_link import classify, translate
from ucs_pipeline.wire import Wire, command

TRANSACTION_ROWS = 1024
"""Rows that are appended together, at most: Redis takes about two milliseconds for them, in which others wait."""

_MAX_SEQUENCE = 2**64 - 1
_TRANSACTION_BYTES = 1 << 19
_PAGE, _FIRST_PAGE, _PAGE_BYTES = 200, 25, 1 << 22


@dataclass(frozen=True)
class Transaction:
    """Consecutive rows that are appended together or not at all."""

    entries: Entries
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Bytes of the requests."""
        return self.entries.size(self.start, self.stop)

    @property
    def ids(self) -> tuple[EntryId, EntryId]:
        """Ids of the first and the last row."""
        return self.entries.id(self.start), self.entries.id(self.stop - 1)


def parse_state(info: Mapping[str, Any] | None) -> State:
    """From what XINFO STREAM answers; None: there is no stream."""
    if info is None:
        return State(False, START, 0)
    entry = info["first-entry"]
    deleted = info.get("max-deleted-entry-id")
    return State(
        True,
        EntryId.parse(info["last-generated-id"]),
        info["length"],
        EntryId.parse(entry[0]) if entry else None,
        info.get("entries-added"),
        EntryId.parse(deleted) if deleted else None,
    )


def cut(entries: Entries, start: int, stop: int, most: int = TRANSACTION_ROWS) -> Iterator[Transaction]:
    """Cuts rows into transactions of at most `most` rows, small enough for Redis not to hold up other clients."""
    while start < stop:
        end = min(start + most, stop)
        while end - start > 1 and entries.size(start, end) > _TRANSACTION_BYTES:
            end = start + (end - start) // 2
        yield Transaction(entries, start, end)
        start = end


class RedisStream:
    """A stream in Redis."""

    def __init__(self, name: str, client: "redis.Redis") -> None:
        self.name = name
        self.client = client

    def state(self) -> State:
        """Top, length and first entry.

        Raises:
            StreamError: the key is not a stream, or Redis refuses or cannot be reached.
        """
        try:
            info: dict[str, Any] = self.client.xinfo_stream(self.name)
        except redis.RedisError as error:
            if "no such key" in str(error):
                return parse_state(None)
            raise self.named(translate(error)) from error
        return parse_state(info)

    def entries(
        self, first: EntryId, last: EntryId, most: int | None = None
    ) -> list[tuple[EntryId, dict[bytes, bytes]]]:
        """Entries from `first` to `last`, both included; the first `most` of them."""
        return [(EntryId.parse(entry_id), fields) for entry_id, fields in self._read(first, last, most)]

    def call(self, *arguments: str) -> Any:
        """The answer to a command about the stream, or a key beside it, as redis-py gives it.

        Raises:
            StreamError: Redis refuses or cannot be reached.
        """
        client: Any = self.client
        try:
            return client.execute_command(*arguments)
        except redis.RedisError as error:
            raise self.named(translate(error)) from error

    def walk(self, first: EntryId, last: EntryId) -> Iterator[tuple[EntryId, dict[bytes, bytes]]]:
        """The same, a few at a time: as many as take little memory, since those of others may be of any size."""
        most = _FIRST_PAGE
        while first <= last:
            page, size = self._read(first, last, most), 1
            for entry_id, fields in page:
                size += sum(len(name) + len(value) for name, value in fields.items())
                yield EntryId.parse(entry_id), fields
            if len(page) < most:
                return
            first = EntryId.parse(page[-1][0]).next()
            most = max(1, min(_PAGE, 2 * most, most * _PAGE_BYTES // size))

    def _read(self, first: EntryId, last: EntryId, count: int | None, *, reverse: bool = False) -> list[Any]:
        command = self.client.xrevrange if reverse else self.client.xrange
        try:
            return cast("list[Any]", command(self.name, str(first), str(last), count))
        except redis.RedisError as error:
            raise self.named(translate(error)) from error

    def refuse_eviction(self) -> None:
        """Makes sure that Redis does not throw whole keys away when it is full.

        Raises:
            StreamError: its eviction policy allows that, or it refuses or cannot be reached.
        """
        try:
            memory: dict[str, Any] = self.client.info("memory")
        except redis.exceptions.NoPermissionError:
            return
        except redis.RedisError as error:
            raise self.named(translate(error)) from error
        policy = str(memory.get("maxmemory_policy", ""))
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            raise StreamError(
                f"stream {self.name!r}: Redis has maxmemory-policy {policy}, by which it may evict the whole stream "
                "when memory is short; expected noeviction (or a volatile-* policy, which spares keys without a time "
                "to live): change the policy"
            )

    def named(self, error: StreamError) -> StreamError:
        """The same error, with the stream's name in front."""
        return type(error)(f"stream {self.name!r}: {error}")


def reading_groups(stream: RedisStream) -> list[dict[str, Any]]:
    """The consumer groups of a stream, without those that are marks of ledgers: nobody reads with them.

    Raises:
        redis.RedisError: Redis refuses or cannot be reached.
    """
    groups: list[dict[str, Any]] = stream.client.xinfo_groups(stream.name)
    return [group for group in groups if not group["name"].startswith(MARKS.encode())]


class OrderedStream(RedisStream):
    """A stream that one ordered feed writes to."""

    def __init__(self, name: str, client: "redis.Redis", begin: EntryId = START) -> None:
        """`begin`: entries below it are another program's."""
        super().__init__(name, client)
        self._begin = begin

    def state(self) -> State:
        """As of any stream; entries of another program below the feed's are told apart."""
        state = super().state()
        if state.first is None or state.first >= self._begin:
            return state
        own = self._read(self._begin, EntryId(_MAX_SEQUENCE, _MAX_SEQUENCE), 1)
        return state._replace(first=EntryId.parse(own[0][0]) if own else None, others=True)

    def last_row(self, ordinal: int) -> int:
        """Number of the last row of a brick that is still in the stream; 0 if there is none."""
        found = self._read(EntryId(ordinal, _MAX_SEQUENCE), EntryId(ordinal, 0), 1, reverse=True)
        return EntryId.parse(found[0][0]).row if found else 0


def open_stream(feed: BrickFeed, client: "redis.Redis") -> OrderedStream:
    """The stream of a feed.

    Raises:
        FeedError: it has several.
    """
    if feed.stream.shards > 1 and not feed.share:
        raise FeedError(f"feed {feed.name!r} has {feed.stream.shards} streams: open those of its shards, one by one")
    return OrderedStream(feed.stream_name, client, floor(feed))


class Comparer:
    """Compares rows with the entries of the same ids, as bytes, over a connection of its own."""

    def __init__(self, stream: OrderedStream) -> None:
        self._stream = stream
        self._wire = Wire(stream.client)
        self._key = stream.name.encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._wire.close()

    def holds(self, entries: Entries, start: int, stop: int) -> bool:
        """Whether the stream holds exactly these rows, byte for byte."""
        first, last = entries.id(start), entries.id(stop - 1)
        self._wire.send([command(b"XRANGE", self._key, str(first).encode(), str(last).encode())])
        expected = b"".join((b"*%d\r\n" % (stop - start), entries.views.rows(start, stop)))
        if self._wire.expect(expected):
            return True
        reply = self._wire.reply()
        if isinstance(reply, hiredis.ReplyError):
            raise self._stream.named(classify(str(reply)))
        return False
