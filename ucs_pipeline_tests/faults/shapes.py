"""The tables that are published: what is in them, and what a stream of them must hold, worked out in Python."""

import random
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from ucs_pipeline.bricks import BRICK

Entry = list[Any]
"""An entry as Redis answers it: `[id, [field, value, ...]]`, all in bytes."""


class Done(NamedTuple):
    """What a record of a finished brick has to say."""

    rows: int
    first_key: int | None
    last_key: int | None
    first_entry: str | None
    last_entry: str | None


class Row(NamedTuple):
    """One row of a table."""

    id: int
    part: int
    word: str | None


def _dense(number: int) -> Row:
    return Row(number, number % 3, None if number % 7 == 0 else f"w{number}")


def _sparse(number: int) -> Row:
    # Whole bricks stay empty between two runs of rows.
    return Row(number * 7 + number // 9_000 * 25_000, 0, f"s{number}" if number % 2 else None)


def _twins(number: int) -> Row:
    # Four rows share a key, two and two of them are the same in every column.
    pair = number // 2
    return Row(number // 4 * 3, pair % 2, None if pair % 5 == 0 else f"p{pair}")


_ROWS: dict[str, Callable[[int], Row]] = {"dense": _dense, "sparse": _sparse, "twins": _twins}


class Shape:
    """A table of one kind and size."""

    def __init__(self, kind: str, rows: int) -> None:
        self.table = f"{kind}_{rows}"
        self.rows = sorted((_ROWS[kind](number) for number in range(rows)), key=lambda row: (row.id, row.part))
        self.last = self.rows[-1].id + 2 * BRICK

    @property
    def ordinals(self) -> range:
        """Ordinals of the feed's bricks; the last ones are empty."""
        return range(self.last // BRICK + 1)

    def columns(self) -> pa.Table:
        """The table's content, in no order."""
        mixed = self.rows.copy()
        random.Random(self.table).shuffle(mixed)
        ids, parts, words = zip(*mixed, strict=True)
        return pa.table(
            {
                "id": pa.array(ids, pa.uint64()),
                "part": pa.array(parts, pa.uint8()),
                "word": pa.array(words, pa.string()),
            }
        )

    @cached_property
    def entries(self) -> list[Entry]:
        """Everything a stream of this table holds, in order."""
        found: list[Entry] = []
        brick, number = -1, 0
        for row in self.rows:
            brick, number = (brick, number + 1) if row.id // BRICK == brick else (row.id // BRICK, 1)
            fields = [b"id", b"%d" % row.id, b"part", b"%d" % row.part]
            found.append([b"%d-%d" % (brick, number), fields + ([b"word", row.word.encode()] if row.word else [])])
        return found

    @cached_property
    def done(self) -> dict[int, Done]:
        """What the records of all bricks must say, by ordinal."""
        keys: dict[int, list[int]] = {ordinal: [] for ordinal in self.ordinals}
        for row in self.rows:
            keys[row.id // BRICK].append(row.id)
        return {
            ordinal: Done(len(ids), ids[0], ids[-1], f"{ordinal}-1", f"{ordinal}-{len(ids)}")
            if ids
            else Done(0, None, None, None, None)
            for ordinal, ids in keys.items()
        }


def shapes(rows: int) -> list[Shape]:
    """One table of each kind."""
    return [Shape(kind, rows) for kind in _ROWS]
