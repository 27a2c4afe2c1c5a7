"""A feed over several streams, as one ordered feed per stream. No I/O happens here.

Each shard is a feed like any other: an asset with partitions, a stream, a pool, a sensor and checks of its own. With n
shards, it has every nth partition of the whole feed.
"""

from collections.abc import Sequence
from functools import cached_property

from pydantic import PrivateAttr

from ucs_pipeline.bricks.partitions import ShardId
from ucs_pipeline.bricks.sharding import ShardPartitions, holder
from ucs_pipeline.feed.feed import Feed


class Shard(Feed):
    """One stream of a feed with `stream.shards`, and the bricks that are assigned to it."""

    _whole: Feed = PrivateAttr()
    _share: ShardId = PrivateAttr()

    @classmethod
    def of(cls, whole: Feed, number: int) -> "Shard":
        """Shard `number` of a feed, counted from 0."""
        settings = {name: getattr(whole, name) for name in type(whole).model_fields}
        stream = whole.stream.model_copy(update={"name": f"{whole.stream_name}.{number}"})
        name = f"{whole.name}_{number}"
        # What was validated for the whole feed holds for its shards.
        shard = cls.model_construct(
            **{**settings, "name": name, "stream": stream, "group": whole.group or whole.name},
        )
        shard._whole, shard._share = whole, ShardId(number, whole.stream.shards)
        return shard

    @property
    def parent(self) -> Feed:
        """The feed that the user wrote."""
        return self._whole

    @property
    def shard_id(self) -> ShardId:
        """The shard of `parent`."""
        return self._share

    @cached_property
    def partitions(self) -> ShardPartitions:
        """Names and ordinals of the shard's bricks and partitions."""
        return ShardPartitions(self._whole.partitions, self._share)


def streams_of(feed: Feed) -> Sequence[Feed]:
    """The feeds with one stream each that a feed is made of: itself, or its shards."""
    shards = feed.stream.shards
    return [feed] if shards == 1 or feed.shard_id else [Shard.of(feed, number) for number in range(shards)]


def stream_with(feed: Feed, ordinal: int) -> Feed:
    """The one of those feeds whose stream has a brick."""
    feeds = streams_of(feed)
    return feeds[holder(feed.partitions, ordinal, len(feeds))] if len(feeds) > 1 else feed
