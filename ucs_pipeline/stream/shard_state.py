"""The state of a shard, kept next to its stream: how bricks are assigned, and up to which one they are complete.

A hash in the stream's own cluster slot, `{flights.0}:shard`, with the fields `shard`, `shards`, `level`, `done` and
`top`: every brick of the shard up to the ordinal `done` is complete, as long as the stream's last ID is not below
`top`. The last ID alone proves only the bricks below its own, not its own brick, nor bricks without rows after it. If
`done` and `top` are lost or old, a reader only waits; `shards` and `level` prevent two assignments in one stream. A
publisher drops `done` and `top` if they are ahead of its stream.
"""

from typing import Any, NamedTuple

from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redis_keys import companion_key, fencing_token_key
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.redis.discovery import client_for
from ucs_pipeline.stream.stream import OrderedStream, floor

_NOWHERE = -1


def shard_state_key(stream: str) -> str:
    """Key of the shard state of a stream."""
    return companion_key(stream, "shard")


class ShardState(NamedTuple):
    """The state of one shard."""

    sharding: tuple[str, ...]
    """Number of the shard, number of shards, and level of the partitions."""
    done: int = _NOWHERE
    """Ordinal of a brick; it and those before it are complete if the stream's last ID is not below `top`."""
    top: EntryId | None = None

    @classmethod
    def of(cls, feed: Feed) -> "ShardState":
        """The state of a shard before any brick of it is complete."""
        share = feed.shard_id
        assert share
        return cls((str(share.number), str(share.of), feed.partitions.unit))

    def __str__(self) -> str:
        return f"shard {self.sharding[0]} of {self.sharding[1]}, by {self.sharding[2]}s"

    def reach(self, state: State) -> int:
        """Ordinal up to which all bricks of the shard are complete in its stream."""
        done = self.done if self.top and self.top <= state.top else _NOWHERE
        return max(done, state.top.ordinal - 1)


def read_shard_state(stream: OrderedStream) -> ShardState | None:
    """The state next to a stream; None if there is none.

    Raises:
        StreamError: Redis refuses or cannot be reached.
    """
    found = {_text(name): _text(value) for name, value in stream.call("HGETALL", shard_state_key(stream.name)).items()}
    if not found:
        return None
    sharding = tuple(found.get(name, "?") for name in ("shard", "shards", "level"))
    return ShardState(
        sharding, int(found.get("done", _NOWHERE)), EntryId.parse(found["top"]) if "top" in found else None
    )


def write_shard_state(stream: OrderedStream, note: ShardState) -> None:
    """Writes a state.

    Raises:
        StreamError: Redis refuses or cannot be reached.
    """
    fields = dict(zip(("shard", "shards", "level"), note.sharding, strict=True))
    fields |= {"done": str(note.done), "top": str(note.top or START)}
    stream.call("HSET", shard_state_key(stream.name), *(part for pair in fields.items() for part in pair))


def refuse_other_sharding(feed: Feed, stream: OrderedStream, state: State) -> ShardState | None:
    """Makes sure that earlier bricks were assigned to the feed's current shards; returns the shard's state.

    Raises:
        StreamError: it was not, or Redis refuses or cannot be reached.
    """
    begun = state.top > floor(feed)
    if feed.shard_id is None:
        if not begun and _there(stream, f"{stream.name}.0", shard_state_key(f"{stream.name}.0")):
            raise StreamError(
                f"feed {feed.name!r}: stream {stream.name!r} has no entries, and {stream.name + '.0'!r} has those of "
                "the same feed with `stream.shards`. All bricks would be published once more. Set `stream.shards` "
                "again, or choose a new `stream.name`.",
                "UCS-SHARDS",
            )
        return None
    own, found = ShardState.of(feed), read_shard_state(stream)
    if begun and (found is None or found.sharding != own.sharding):
        raise _sharded_otherwise(feed, stream.name, found, own)
    if begun:
        return found
    first = streams_of(feed.parent)[0]
    other = _elsewhere(stream, first.stream_name)
    if other and other.sharding[1:] != own.sharding[1:]:
        raise _sharded_otherwise(feed, first.stream_name, other, ShardState.of(first))
    base = feed.parent.stream_name
    if _there(stream, base, fencing_token_key(base)):
        raise StreamError(
            f"feed {feed.parent.name!r}: stream {base!r} has the entries of the feed without `stream.shards`. All "
            f"bricks would be published once more, to {base + '.0'!r} and the next. Leave `stream.shards` out again, "
            "choose a new `stream.name`, or delete that stream.",
            "UCS-SHARDS",
        )
    return found


def _sharded_otherwise(feed: Feed, stream: str, found: ShardState | None, own: ShardState) -> StreamError:
    there = (
        f"was written as {found}" if found else f"has entries, and no key {shard_state_key(stream)!r} names their shard"
    )
    return StreamError(
        f"feed {feed.parent.name!r}: stream {stream!r} {there}, expected {own}. Bricks that it has would be published "
        "to other streams once more. Set `stream.shards` and `bricks.level` back, choose a new `stream.name`, or "
        "delete all streams of the feed.",
        "UCS-SHARDS",
    )


def _elsewhere(stream: OrderedStream, name: str) -> ShardState | None:
    """The state of another stream; None if there is none or this user lacks the right."""
    try:
        return read_shard_state(_at(name, stream)) if _there(stream, name, shard_state_key(name)) else None
    except StreamUnavailableError:
        raise
    except StreamError:
        return None


def _at(name: str, stream: OrderedStream) -> OrderedStream:
    """Another stream, on the same server or, in a cluster, on another node."""
    return OrderedStream(name, client_for(name, stream.client))


def _there(stream: OrderedStream, *keys: str) -> bool:
    """Whether another stream and its key exist; False if not, or if this user lacks the right."""
    try:
        return bool(_at(keys[0], stream).call("EXISTS", *keys) == len(keys))
    except StreamUnavailableError:
        raise
    except StreamError:
        return False


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
