"""The tables that are published, and what a stream of each must hold."""

import random
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from ucs_pipeline_tests.faults.feeds import FEEDS, Row, shown

OTHERS = b"who"
"""Field of the entries that another producer adds to the stream of an any-order feed."""

Entry = list[Any]
"""An entry as Redis answers it: `[id, [field, value, ...]]`, all in bytes."""

_OLD_ENTRIES = 5


class Done(NamedTuple):
    """The expected record of a finished partition."""

    rows: int
    first_key: int | str | None
    last_key: int | str | None
    first_entry: str | None
    last_entry: str | None

    def without_ids(self) -> "Done":
        """The same for a feed of any order, whose ids Redis gives."""
        return self._replace(first_entry=None, last_entry=None)


class Shape:
    """A feed of one kind and size."""

    def __init__(self, kind: str, rows: int) -> None:
        self.kind = kind
        self.table = f"{kind}_{rows}"
        self.title, feed = FEEDS[kind]
        self.feed = feed(rows)
        placed = [(place, row) for row in self.feed.rows if (place := self.feed.place(row.id))]
        self._placed = sorted(placed, key=lambda pair: (pair[0].brick, *pair[1][:2]))
        self.rows = len(self._placed)
        """Rows of the feed; its table may have others."""
        self.at_first = round(self.feed.filled * self.rows)
        """Rows that the table has at first."""
        self.open = self._placed[self.at_first][0].start if self.at_first < self.rows else None
        """The partition that is not whole as long as the table has no more; None if it has all."""

    @property
    def starts(self) -> list[int]:
        """Ordinals that the partitions begin with in the stream."""
        return [start + self.feed.offset for start in self.feed.starts]

    @cached_property
    def old(self) -> list[Entry]:
        """Entries of a previous writer, which are in the stream first."""
        numbers = range(_OLD_ENTRIES if self.feed.offset else 0)
        return [[b"1763400000000-%d" % number, [b"old", b"%d" % number]] for number in numbers]

    def content(self) -> pa.Table:
        """The whole table, in no order."""
        return self._table(random.Random(self.table).sample(self.feed.rows, len(self.feed.rows)))

    def parts(self) -> tuple[pa.Table, pa.Table]:
        """What the table has at first, and what comes later."""
        rows = [row for _, row in self._placed]
        return self._table(rows[: self.at_first]), self._table(rows[self.at_first :])

    def _table(self, rows: Iterable[Row]) -> pa.Table:
        ids, parts, words = zip(*rows, strict=True)
        return pa.table(
            {
                "id": pa.array(ids, self.feed.key.arrow),
                "part": pa.array(parts, pa.uint8()),
                "word": pa.array(words, pa.string()),
            }
        )

    @cached_property
    def entries(self) -> list[Entry]:
        """Everything a stream of this feed holds, in order."""
        found: list[Entry] = []
        brick, number = -1, 0
        for place, row in self._placed:
            brick, number = (brick, number + 1) if place.brick == brick else (place.brick, 1)
            fields = [text for field in self.feed.fields(row).items() if field[1] is not None for text in field]
            found.append([b"%d-%d" % (brick + self.feed.offset, number), fields])
        return found

    @cached_property
    def done(self) -> dict[int, Done]:
        """The expected records of all partitions, by start."""
        ends: dict[int, list[int]] = {}
        for number, (place, _) in enumerate(self._placed):
            ends.setdefault(place.start, [number, number])[1] = number
        return {
            start + self.feed.offset: self._done(*ends[start]) if start in ends else Done(0, None, None, None, None)
            for start in self.feed.starts
        }

    def _done(self, first: int, last: int) -> Done:
        keys = (self._placed[number][1].id for number in (first, last))
        first_key, last_key = (key if isinstance(key, int) else shown(key) for key in keys)
        first_entry, last_entry = (self.entries[number][0].decode() for number in (first, last))
        return Done(last - first + 1, first_key, last_key, first_entry, last_entry)


def shapes(rows: int, kinds: Iterable[str] = FEEDS) -> list[Shape]:
    """A table of each kind."""
    return [Shape(kind, rows) for kind in kinds]
