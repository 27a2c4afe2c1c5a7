"""The kinds of feeds that are published: the rows of each one's table, and where Python puts them.

Nothing here uses the tested package: bricks are calculated independently.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cache, partial
from hashlib import md5
from itertools import count
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pyarrow as pa

BRICK = 10_000
_UNIT_BRICKS = 1_000
_TEXT_COPIES = 20
_HOUR, _DAY = "%Y.%m.%d.%H", "%Y.%m.%d"
_HEX = "0123456789abcdef"


class Row(NamedTuple):
    """One row of a table. Rows of the same `id` and `part` are the same."""

    id: Any
    part: int
    word: str | None


class Place(NamedTuple):
    """Where a row belongs: ordinals of its brick and of the first brick of its partition."""

    brick: int
    start: int


class Column(NamedTuple):
    """Types of the key."""

    arrow: pa.DataType
    clickhouse: str


def shown(key: Any) -> str:
    """A key as text."""
    return key.isoformat(timespec="milliseconds") if isinstance(key, datetime) else str(key)


def plain(row: Row) -> dict[bytes, bytes | None]:
    """A row as it is."""
    return {b"id": shown(row.id).encode(), b"part": b"%d" % row.part, b"word": row.word.encode() if row.word else None}


_NUMBER = Column(pa.uint64(), "UInt64")
_TIME = Column(pa.timestamp("ms", "UTC"), "DateTime64(3, 'UTC')")
_TEXT = Column(pa.string(), "String")


@dataclass(frozen=True)
class Feed:
    """A table and the feed of it."""

    rows: Sequence[Row]
    """Every row of the table, in some order."""
    starts: Sequence[int]
    """Ordinals that the partitions begin with."""
    place: Callable[[Any], Place | None]
    """Where the row of a key belongs; None if it is no part of the feed."""
    settings: Mapping[str, Any]
    """A user's settings in addition to table, stream and key."""
    key: Column = _NUMBER
    fields: Callable[[Row], Mapping[bytes, bytes | None]] = plain
    """Fields of a row's entry; None is left out."""
    offset: int = 0
    """What is added to the ordinals in the stream. Below it are entries of a previous writer."""
    filled: float = 1.0
    """Share of the rows that the table has at first; the others come later."""


def _dense(number: int) -> Row:
    return Row(number, number % 3, None if number % 7 == 0 else f"w{number}")


def _sparse(number: int) -> Row:
    # Whole bricks stay empty between two runs of rows.
    return Row(number * 7 + number // 9_000 * 25_000, 0, f"s{number}" if number % 2 else None)


def _twins(number: int) -> Row:
    # Four rows share a key, two and two of them are the same in every column.
    pair = number // 2
    return Row(number // 4 * 3, pair % 2, None if pair % 5 == 0 else f"p{pair}")


def _numbers(
    row: Callable[[int], Row], rows: int, width: int = BRICK, level: str = "brick", offset: int = 0, **more: Any
) -> Feed:
    table = [row(number) for number in range(rows)]
    # The last bricks are empty.
    last = max(row.id for row in table) + 2 * BRICK
    bricks = _UNIT_BRICKS if level == "block" else 1
    starts = range(0, last // width + 1, bricks)
    numbered = {"class": "number", "last": last, "width": width, "level": level}
    settings = {"bricks": numbered, "stream": {"id_offset": offset}, **more}
    return Feed(table, starts, lambda key: _place(key // width, bricks), settings, offset=offset)


def _place(brick: int, bricks: int) -> Place:
    return Place(brick, brick // bricks * bricks)


def _transformed(rows: int) -> Feed:
    feed = _numbers(_dense, rows, transform="ucs_pipeline_tests.support.transforms:shouted")

    def fields(row: Row) -> dict[bytes, bytes | None]:
        return {b"word": row.word.upper().encode() if row.word else None, b"sum": b"%d" % (row.id + row.part)}

    return replace(feed, fields=fields)


def _growing(rows: int, **settings: Any) -> Feed:
    return replace(_numbers(_dense, rows, **settings), filled=0.6)


def _times(first: str, zone: str, rows_an_hour: int, level: str, rows: int) -> Feed:
    begin = datetime.fromisoformat(first).replace(tzinfo=ZoneInfo(zone)).astimezone(timezone.utc)
    table = []
    for number in range(rows):
        hour, within = divmod(number, rows_an_hour)
        # Every ninth hour is empty, and two rows share a time.
        at = begin + timedelta(hours=hour + (hour + 4) // 8, milliseconds=within // 2 * (7_200_000 // rows_an_hour))
        table.append(Row(at, within % 2, None if within % 5 == 0 else f"t{number}"))
    # A brick begins when the clocks of the zone begin to show its hour, a block when they begin to show its day.
    last = (table[-1].id + timedelta(days=1)).astimezone(ZoneInfo(zone)).date()
    begins: dict[str, int] = {}
    places: dict[datetime, Place] = {}
    for number in count():
        at = begin + timedelta(hours=number)
        local = at.astimezone(ZoneInfo(zone))
        if local.date() > last:
            break
        hour, day = (begins.setdefault(local.strftime(f), round(at.timestamp() * 1000)) for f in (_HOUR, _DAY))
        places[at] = Place(hour, day if level == "block" else hour)

    def place(key: datetime) -> Place:
        return places[key.replace(minute=0, second=0, microsecond=0)]

    starts = sorted({found.start for found in places.values()})
    bricks = {"class": "time", "first": first, "last": str(last), "zone": zone, "level": level}
    return Feed(table, starts, place, {"bricks": bricks}, _TIME)


def _texts(base: int, digit: str, level: str, ends: tuple[str, str], rows: int) -> Feed:
    first, last = (_number(map(int, end.split(".")), base) for end in ends)
    bricks = base**2 if level == "part" else 1

    @cache
    def place(key: str) -> Place | None:
        text = md5(key.encode(), usedforsecurity=False).hexdigest()
        groups = (text[start : start + 8] for start in range(0, 32, 8))
        values = (sum(map(_HEX.index, group)) if digit == "sum" else int(group, 16) for group in groups)
        brick = _number((value % base for value in values), base)
        return _place(brick, bricks) if first <= brick <= last else None

    table: list[Row] = []
    inside = 0
    for number in count():
        key = f"word {number}"
        copies = _TEXT_COPIES if place(key) else 1
        table += (Row(key, part, None if part % 4 == 0 else f"{number}") for part in range(copies))
        inside += copies if copies > 1 else 0
        if inside >= rows:
            break
    settings = {"class": "text", "base": base, "digit": digit, "first": ends[0], "last": ends[1], "level": level}
    return Feed(table, range(first, last + 1, bricks), place, {"bricks": settings}, _TEXT)


def _number(digits: Iterable[int], base: int) -> int:
    number = 0
    for digit in digits:
        number = number * base + digit
    return number


FEEDS: Mapping[str, tuple[str, Callable[[int], Feed]]] = {
    "dense": ("number, no id missing", partial(_numbers, _dense)),
    "sparse": ("number, empty bricks", partial(_numbers, _sparse)),
    "twins": ("number, ids in four rows", partial(_numbers, _twins)),
    "blocks": ("number, a block a partition", partial(_numbers, _twins, width=10, level="block")),
    "offset": ("number, above an old program's entries", partial(_numbers, _dense, offset=10**13)),
    "transformed": ("number, through a Python function", _transformed),
    "growing": ("number, its open brick followed", partial(_growing, tail="follow")),
    "live": (
        "number, by a run that stays until the table is whole",
        partial(_growing, tail="live", poll_s=0.05, live_max_s=3),
    ),
    "hours": ("time, an hour of Berlin twice", partial(_times, "2013-10-26", "Europe/Berlin", 600, "brick")),
    "days": (
        "time, a day a partition, one of New York an hour short",
        partial(_times, "2013-03-08", "America/New_York", 200, "block"),
    ),
    "sums": ("text, base 10", partial(_texts, 10, "sum", "brick", ("2.0.0.0", "2.9.9.9"))),
    "integers": (
        "text, base 100 of integers, a part a partition",
        partial(_texts, 100, "integer", "part", ("0.0.0.0", "9.99.99.99")),
    ),
}
"""Each kind by name: what it is, and the feed of so many rows."""

ORDERED = ("offset", "growing", "live")
"""Those that only a feed with `order: strict` can be."""
