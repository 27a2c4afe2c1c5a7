"""Rows cut into the pieces that are sent, compared and counted together. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.entries.encode import Entries
from ucs_pipeline.entries.entry_id import EntryId

TRANSACTION_ROWS = 1024
"""Rows that are appended together, at most. Redis takes about 2 ms for them, while other clients wait."""


_TRANSACTION_BYTES = 1 << 19


@dataclass(frozen=True)
class Batch:
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


def cut(entries: Entries, start: int, stop: int, most: int = TRANSACTION_ROWS) -> Iterator[Batch]:
    """Cuts rows into transactions of at most `most` rows, small enough not to block other clients of Redis."""
    while start < stop:
        end = min(start + most, stop)
        while end - start > 1 and entries.size(start, end) > _TRANSACTION_BYTES:
            end = start + (end - start) // 2
        yield Batch(entries, start, end)
        start = end


class PartitionSlice(NamedTuple):
    """Consecutive rows of one partition inside some entries."""

    partition: int
    start: int
    stop: int

    @property
    def number(self) -> int:
        """How many they are."""
        return self.stop - self.start


def partition_slices(entries: Entries, partitions: Partitions, start: int = 0) -> Iterator[PartitionSlice]:
    """The rows from `start` on, in one piece per partition."""
    open_: PartitionSlice | None = None
    for segment in entries.within(start, entries.count):
        partition = partitions.start(segment.first.ordinal)
        if open_ and open_.partition == partition:
            open_ = open_._replace(stop=segment.stop)
            continue
        if open_:
            yield open_
        open_ = PartitionSlice(partition, segment.start, segment.stop)
    if open_:
        yield open_
