"""The bricks of one feed: their ordinals in its stream, and the partitions that they make. Pure.

Here an ordinal is the left half of the brick's entry ids: the brick's own ordinal plus the feed's `id_offset`. Bricks
are identified by their ordinals. A partition is Dagster's: a brick or, if the feed's `level` is coarser, a block, part
or shard of bricks. It is identified by the ordinal of its first brick, its *start*.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from ucs_pipeline.bricks.base import LEVELS, BrickClass
from ucs_pipeline.bricks.sequences import between, shifted


class ShardId(NamedTuple):
    """One of the shards that partitions are assigned to in turn: each partition to the next shard."""

    number: int
    """From 0 on."""
    of: int
    """How many shards there are."""


class Partitions:
    """Names and ordinals of a feed's bricks and partitions. Partitions are whole, also the first and the last one."""

    def __init__(self, bricks: BrickClass, first: int, last: int, depth: int = 0, offset: int = 0) -> None:
        """The partitions from the one that holds brick `first` to the one that holds `last`, ordinals of the class.

        Raises:
            BrickError: the class has no such bricks.
        """
        self.bricks = bricks
        self.depth = depth
        self.offset = offset
        units = bricks.units(first, last, depth)
        self._end = bricks.unit_after(units[-1], depth)
        self.starts: Sequence[int] = shifted(units, offset)
        """Starts of the partitions, in order."""

    shard_id: ShardId | None = None
    """The shard that these partitions belong to; None if they are all."""

    @property
    def parent(self) -> "Partitions":
        """The partitions of all shards together; itself if these are all."""
        return self

    @cached_property
    def indices(self) -> Sequence[int]:
        """Index of each partition, in order."""
        return [self.index(start) for start in self.starts]

    def index(self, ordinal: int) -> int:
        """Index of the partition that holds a brick. It decides the partition's shard."""
        return self.bricks.unit_index(ordinal - self.offset, self.depth)

    @cached_property
    def ordinals(self) -> Sequence[int]:
        """Ordinals of the bricks, in order."""
        first = self.starts[0] - self.offset
        return shifted(self.bricks.ordinals(first, self._end - 1), self.offset) if self.depth else self.starts

    def __contains__(self, ordinal: int) -> bool:
        return ordinal in self.ordinals

    @property
    def unit(self) -> str:
        """What a partition is: a brick, block, part or shard."""
        return LEVELS[self.depth]

    @property
    def first(self) -> int:
        """Ordinal of the first brick."""
        return self.starts[0]

    @property
    def last(self) -> int:
        """Ordinal of the last brick."""
        return self.ordinals[-1]

    def name(self, ordinal: int) -> str:
        """Name of the partition that holds a brick.

        Raises:
            BrickError: the class has no such brick.
        """
        return self.bricks.unit_name(ordinal - self.offset, self.depth)

    def brick_name(self, ordinal: int) -> str:
        """Name of a brick, also if partitions are coarser."""
        return self.bricks.unit_name(ordinal - self.offset, 0)

    def names(self) -> list[str]:
        """Names of all partitions, in order."""
        return [self.name(start) for start in self.starts]

    def start_named(self, name: str) -> int:
        """Start of a partition, which need not be one of the feed's.

        Raises:
            BrickError: `name` is no partition's.
        """
        return self.bricks.unit_of_name(name, self.depth) + self.offset

    def start(self, ordinal: int) -> int:
        """Start of the partition that holds one of the bricks."""
        return self.starts[bisect_right(self.starts, ordinal) - 1] if self.depth else ordinal

    def end(self, start: int) -> int:
        """Ordinal of the last brick of a partition."""
        if not self.depth:
            return start
        after = self.next(start)
        return self.last if after is None else self.ordinals[bisect_right(self.ordinals, after - 1) - 1]

    def next(self, start: int) -> int | None:
        """Start of the partition after one; None after the last."""
        position = bisect_right(self.starts, start)
        return self.starts[position] if position < len(self.starts) else None

    def reaching(self, ordinal: int) -> int | None:
        """Start of the first partition that ends with a brick or after it; None if all end before it."""
        position = max(0, bisect_right(self.starts, ordinal) - 1)
        return self.starts[position] if self.end(self.starts[position]) >= ordinal else self.next(self.starts[position])

    def before(self, ordinal: int) -> int | None:
        """Ordinal of the last brick of the partitions that begin before a brick; None if none does."""
        position = bisect_left(self.starts, ordinal)
        return self.end(self.starts[position - 1]) if position else None

    def after(self, ordinal: int) -> int:
        """Ordinal of the brick after one, which may be outside the brick range."""
        return self.bricks.unit_after(ordinal - self.offset, 0) + self.offset

    def between(self, first: int, last: int) -> Sequence[int]:
        """Starts of the partitions from one to another."""
        return between(self.starts, first, last)

    def bounds_text(self, start: int) -> str:
        """What is in a partition, for people."""
        return self.bricks.bounds_text(start - self.offset, self.end(start) - self.offset)

    def span(self, first: int, last: int) -> str:
        """The partitions from the one of a brick to that of another, as a range is written in the UI."""
        low, high = self.name(first), self.name(last)
        return low if low == high else f"{low}...{high}"

    def spans(self, starts: Iterable[int]) -> Iterator[str]:
        """Rising starts as names and ranges."""
        first = last = following = None
        for start in starts:
            if first is not None and last is not None and start != following:
                yield self.span(first, last)
                first = None
            first = start if first is None else first
            last, following = start, self.next(start)
        if first is not None and last is not None:
            yield self.span(first, last)
