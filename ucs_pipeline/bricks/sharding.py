"""The bricks of one shard: partitions are assigned by their index, independent of the feed's first brick. Pure."""

from collections.abc import Sequence
from functools import cached_property

from ucs_pipeline.bricks.partitions import Partitions, ShardId
from ucs_pipeline.bricks.sequences import RangeSequence, shifted


class ShardPartitions(Partitions):
    """The partitions of a feed that are assigned to one shard, possibly none."""

    shard_id: ShardId

    def __init__(self, whole: Partitions, share: ShardId) -> None:
        self.bricks, self.depth, self.offset = whole.bricks, whole.depth, whole.offset
        self._whole = whole
        self.shard_id = share
        self.starts = _dealt(whole, share)

    @property
    def parent(self) -> Partitions:
        """The partitions of all shards together."""
        return self._whole

    @cached_property
    def ordinals(self) -> Sequence[int]:
        """Ordinals of the bricks, in order."""
        if not self.depth:
            return self.starts
        every = [self.bricks.ordinals(start - self.offset, self.end(start) - self.offset) for start in self.starts]
        return shifted(RangeSequence(run for part in every for run in _ranges(part)), self.offset)

    def __contains__(self, ordinal: int) -> bool:
        return ordinal in self._whole and holder(self._whole, ordinal, self.shard_id.of) == self.shard_id.number

    @property
    def last(self) -> int:
        """Ordinal of the last brick."""
        return self.end(self.starts[-1])

    def start(self, ordinal: int) -> int:
        """Start of the partition that holds one of the bricks."""
        return self._whole.start(ordinal)

    def end(self, start: int) -> int:
        """Ordinal of the last brick of a partition."""
        return self._whole.end(start)


def holder(whole: Partitions, ordinal: int, shards: int) -> int:
    """Number of the shard that a brick is assigned to."""
    return whole.index(ordinal) % shards


def _dealt(whole: Partitions, share: ShardId) -> Sequence[int]:
    # With equal steps indices rise by one, so every nth start is the shard's, n being the number of shards.
    if isinstance(whole.starts, range):
        return _every(whole, whole.starts, share)
    if isinstance(whole.starts, RangeSequence):
        return RangeSequence(_every(whole, run, share) for run in whole.starts.runs)
    return [start for start, n in zip(whole.starts, whole.indices, strict=True) if n % share.of == share.number]


def _every(whole: Partitions, row: range, share: ShardId) -> range:
    return row[(share.number - whole.index(row[0])) % share.of :: share.of]


def _ranges(ordinals: Sequence[int]) -> Sequence[range]:
    if isinstance(ordinals, RangeSequence):
        return ordinals.runs
    assert isinstance(ordinals, range)
    return [ordinals]
