"""The maximum size of a row in Redis, checked before the row is sent.

Redis closes the connection of a client that sends more, mostly without an error. Retries would make it seem
unreachable.
"""

from typing import Any, NamedTuple

import redis

from ucs_pipeline.entries.encode import Entries
from ucs_pipeline.errors import StreamError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.redis.connection import not_allowed
from ucs_pipeline.stream.stream import RedisStream

_AROUND = 1 << 16
"""Bytes that Redis counts in addition to a row: scripts, and the received part of the next rows."""

_LARGEST_ENTRY = 1 << 30


class Limits(NamedTuple):
    """The most bytes that Redis takes of a row and of each of its values, and the settings of these limits."""

    value: int = 512 << 20
    row: int = _LARGEST_ENTRY - _AROUND
    row_setting: str = "client-query-buffer-limit"
    known: bool = False
    """Whether Redis was asked; if not, these are its defaults."""

    def refused(self, feed: Feed, entries: Entries, start: int) -> tuple[int, StreamError] | None:
        """The first row from `start` on that Redis would not take, and why; None if it takes all of them."""
        for row in entries.longer(min(self.value, self.row), start):
            lengths = entries.lengths(row)
            field, length = max(lengths, key=lambda one: one[1])
            total = sum(len(name) + size for name, size in lengths)
            if length > self.value:
                text, most, setting = f"{length:,} bytes in field {field.decode(errors='replace')!r}", self.value, ""
            elif total > self.row:
                text, most, setting = f"{total:,} bytes in all its fields", self.row, self.row_setting
            else:
                continue
            key = feed.partitions.bricks.reported(entries.key(row))
            setting = setting or "proto-max-bulk-len"
            asked = "" if self.known else ", by default: the Redis user may not run CONFIG GET"
            return row, StreamError(
                f"feed {feed.name!r}: brick {feed.partitions.name(feed.partitions.start(entries.id(row).ordinal))}: "
                f"the row with key {key} has {text}, and Redis takes {most:,} ({setting}{asked}). All rows before it "
                f"were published. Raise {setting} in Redis, shorten the field or leave it out with `columns`, or leave "
                "the row out with `where`.",
                "UCS-ROW",
            )
        return None


def limits_of(stream: RedisStream) -> Limits:
    """The limits of the stream's Redis; its defaults, if it does not report them.

    Raises:
        StreamError: Redis cannot be reached.
    """
    found: dict[str, str] = {}
    client: Any = stream.client
    try:
        for name in ("proto-max-bulk-len", "client-query-buffer-limit", "maxmemory-clients", "maxmemory"):
            found |= client.config_get(name)
    except redis.RedisError as error:
        if not not_allowed(error):
            raise stream.failure(error) from error
    clients = found.get("maxmemory-clients", "0")
    memory = int(found.get("maxmemory", 0)) * int(clients[:-1]) // 100 if clients.endswith("%") else int(clients)
    default = Limits()
    buffer = int(found.get("client-query-buffer-limit", _LARGEST_ENTRY))
    bounds = [(min(buffer, _LARGEST_ENTRY), default.row_setting), *([(memory, "maxmemory-clients")] if memory else [])]
    row, setting = min(bounds)
    return Limits(int(found.get("proto-max-bulk-len", default.value)), row - _AROUND, setting, bool(found))
