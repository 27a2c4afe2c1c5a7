"""A stream: its state, its entries, and commands about it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import redis

from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import FeedError, StreamError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redis_keys import MARKS
from ucs_pipeline.redis.connection import (
    UNKNOWN_IN_SCRIPT,
    RedisServer,
    connect_redis,
    no_command,
    not_allowed,
    translate,
    where,
)
from ucs_pipeline.redis.url import ADDRESS

_MAX_SEQUENCE = 2**64 - 1
_IN_SCRIPTS = (
    *("EXISTS", "GET", "SET", "DEL", "RENAME", "HGET", "HMGET", "HSET", "HSETNX", "HINCRBY", "HDEL", "HLEN"),
    *("XINFO", "XGROUP", "XLEN", "XDEL", "XRANGE", "XREVRANGE"),
)
_PAGE_ROWS, _PAGE_BYTES = 1_000, 1 << 22

Fields = Mapping[bytes, bytes] | Mapping[str, str]
"""Fields of an entry, as a client returns them."""


def parse_state(info: Mapping[str, Any] | None) -> State:
    """From the reply to XINFO STREAM; None: there is no stream."""
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


class Page(NamedTuple):
    """How many entries are read at once, limited by the largest earlier one; few if none is known."""

    most: int = 16

    def after(self, entries: Iterable[tuple[EntryId, Fields]]) -> "Page":
        """The page after these entries, at least one."""
        largest = max(sum(len(name) + len(value) for name, value in fields.items()) for _, fields in entries)
        return Page(max(1, min(_PAGE_ROWS, 2 * self.most, _PAGE_BYTES // max(1, largest))))


class RedisStream:
    """A stream in Redis."""

    def __init__(self, name: str, client: "redis.Redis") -> None:
        self.name = name
        self.client = client

    def state(self) -> State:
        """Last ID, length and first entry.

        Raises:
            StreamError: the key is not a stream, or Redis refuses or cannot be reached.
        """
        try:
            info: dict[str, Any] = self.client.xinfo_stream(self.name)
        except redis.RedisError as error:
            if "no such key" in str(error):
                return parse_state(None)
            raise self.failure(error) from error
        return parse_state(info)

    def entries(
        self, first: EntryId, last: EntryId, most: int | None = None
    ) -> list[tuple[EntryId, dict[bytes, bytes]]]:
        """Entries from `first` to `last`, both included; the first `most` of them."""
        return [(EntryId.parse(entry_id), fields) for entry_id, fields in self._read(first, last, most)]

    def call(self, *arguments: str) -> Any:
        """redis-py's reply to a command about the stream, or a key next to it.

        Raises:
            StreamError: Redis refuses or cannot be reached.
        """
        client: Any = self.client
        try:
            return client.execute_command(*arguments)
        except redis.RedisError as error:
            raise self.failure(error) from error

    def walk(self, first: EntryId, last: EntryId) -> Iterator[tuple[EntryId, dict[bytes, bytes]]]:
        """The same, in pages."""
        page = Page()
        while first <= last:
            found = self.entries(first, last, page.most)
            yield from found
            if len(found) < page.most:
                return
            page = page.after(found)
            first = found[-1][0].next()

    def _read(self, first: EntryId, last: EntryId, count: int | None, *, reverse: bool = False) -> list[Any]:
        command = self.client.xrevrange if reverse else self.client.xrange
        try:
            return cast("list[Any]", command(self.name, str(first), str(last), count))
        except redis.RedisError as error:
            raise self.failure(error) from error

    def refuse_eviction(self) -> None:
        """Makes sure that Redis does not evict whole keys when it is full.

        Raises:
            StreamError: its eviction policy allows that, or it refuses or cannot be reached.
        """
        try:
            memory: dict[str, Any] = self.client.info("memory")
        except redis.RedisError as error:
            if not_allowed(error):
                return
            raise self.failure(error) from error
        policy = str(memory.get("maxmemory_policy", ""))
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            raise StreamError(
                f"stream {self.name!r}: Redis has maxmemory-policy {policy} and may evict the whole stream when memory "
                "is short. Set noeviction, or a volatile-* policy, which keeps keys without a time to live.",
                "UCS-EVICTION",
            )

    def reconnect(self) -> None:
        """Closes unused connections: after a failover, they may lead to the old server."""
        self.client.connection_pool.disconnect(inuse_connections=False)

    def lost(self, before: EntryId, top: EntryId | None) -> StreamUnavailableError:
        """The error for a stream whose last ID went back, or that is gone."""
        return StreamUnavailableError(
            f"stream {self.name!r} {f'ends at {top}' if top else 'is gone'}, and ended at {before} a moment ago. Redis "
            "lost entries in a failover or by a restored older copy, or another server answers. Wait: the next attempt "
            "publishes them again.",
            "UCS-ENTRIES-LOST",
        )

    def named(self, error: StreamError) -> StreamError:
        """The same error, with the stream's name, and the place of the server's URL."""
        if UNKNOWN_IN_SCRIPT in str(error) and (missing := self._missing_commands()):
            error = no_command(" and ".join(missing))
        return type(error)(f"stream {self.name!r}: {str(error).replace(ADDRESS, where(self.client))}")

    def _missing_commands(self) -> list[str]:
        """Which commands of the scripts this server does not have; none if it does not report them."""
        client: Any = self.client
        try:
            found = client.execute_command("COMMAND INFO", *_IN_SCRIPTS)
        except redis.RedisError:
            return []
        return [name for name, about in zip(_IN_SCRIPTS, found, strict=True) if about is None]

    def failure(self, error: Exception) -> StreamError:
        """The error for an exception of the client, with the stream's name."""
        return self.named(translate(error, self.client))


def reading_groups(stream: RedisStream) -> list[dict[str, Any]]:
    """The consumer groups of a stream, without the marks of ledgers, which have no readers.

    Raises:
        redis.RedisError: Redis refuses or cannot be reached.
    """
    groups: list[dict[str, Any]] = stream.client.xinfo_groups(stream.name)
    return [group for group in groups if not group["name"].startswith(MARKS.encode())]


def given_to_groups(stream: RedisStream) -> EntryId:
    """The highest id that a consumer group received.

    Raises:
        StreamError: Redis refuses or cannot be reached.
    """
    try:
        groups = reading_groups(stream)
    except redis.ResponseError as error:
        if "no such key" in str(error):
            return START
        raise stream.failure(error) from error
    except redis.RedisError as error:
        raise stream.failure(error) from error
    return max((EntryId.parse(group["last-delivered-id"]) for group in groups), default=START)


class OrderedStream(RedisStream):
    """A stream that one ordered feed writes to."""

    def __init__(self, name: str, client: "redis.Redis", begin: EntryId = START) -> None:
        """`begin`: entries below it are a previous writer's."""
        super().__init__(name, client)
        self._begin = begin

    def state(self) -> State:
        """As of any stream; entries of a previous writer below the feed's are counted separately."""
        state = super().state()
        if state.first is None or state.first >= self._begin:
            return state
        own = self._read(self._begin, EntryId(_MAX_SEQUENCE, _MAX_SEQUENCE), 1)
        return state._replace(first=EntryId.parse(own[0][0]) if own else None, others=True)

    def last_row(self, ordinal: int) -> int:
        """Number of the last row of a brick that is still in the stream; 0 if there is none."""
        found = self._read(EntryId(ordinal, _MAX_SEQUENCE), EntryId(ordinal, 0), 1, reverse=True)
        return EntryId.parse(found[0][0]).row if found else 0


def open_stream(feed: Feed, at: "RedisServer | redis.Redis") -> OrderedStream:
    """The stream of a feed, at a server or by a client of it.

    Raises:
        FeedError: it has several streams.
        StreamError: the server's URL is invalid.
    """
    if feed.stream.shards > 1 and not feed.shard_id:
        raise FeedError(
            f"feed {feed.name!r} has {feed.stream.shards} stream shards. Open one of them, such as {feed.name}_0."
        )
    client = connect_redis(at, feed.stream_name) if isinstance(at, RedisServer) else at
    return OrderedStream(feed.stream_name, client, floor(feed))


def floor(feed: Feed) -> EntryId:
    """The lower bound of a feed's entries: the start or, with `id_offset`, the last entry of a previous writer."""
    return EntryId(feed.partitions.first, 0) if feed.stream.id_offset else START
