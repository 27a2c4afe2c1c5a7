"""SQL that numbers rows by time.

The hours of a zone are calculated here and written into the query: ClickHouse's time zone database may differ from
Python's. Pure.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.bricks.sequences import RangeSequence
from ucs_pipeline.bricks.time import DAY, HOUR, MILLISECONDS, PER_SECOND, TimeBricks, Unit
from ucs_pipeline.clickhouse.sql.keys import Key, KeySql, Within
from ucs_pipeline.clickhouse.sql.row_payload import integer_limits, literal

_DATETIME64 = re.compile(r"DateTime64\((\d)")
_LAST_DAY = {"Date": 65535, "Date32": 120529}
"""Largest day since 1970 that every engine writes the same way."""
_UNBOUNDED = ("Date32", "DateTime64")


class TimeKeySql(KeySql):
    """Of time bricks."""

    def __init__(self, partitions: Partitions, bricks: TimeBricks, unit: Unit) -> None:
        """`unit`: what integers count, since 1970."""
        super().__init__(partitions)
        self._bricks = bricks
        self._unit: Unit = unit

    def refusal(self, type_name: str) -> str | None:
        """Why keys of this type cannot be numbered; None if they can."""
        base = Key("", type_name).base
        if base in _LAST_DAY or base.startswith("DateTime") or integer_limits(type_name):
            return None
        return "a time (Date, Date32, DateTime, DateTime64, or an integer that counts `bricks.unit` since 1970)"

    def ordinal(self, key: Key) -> str:
        """The ordinal of a key's brick."""
        plus = f" + {self._numbering.offset}" if self._numbering.offset else ""
        return f"toUInt64(({self._begin(key)}) * {MILLISECONDS}{plus})"

    def within(self, key: Key, first: int, last: int) -> Within | None:
        """The condition that a key is in a range of bricks."""
        low, end = self._limits(key, first, last)
        above, below = self._compared(key, ">=", low), self._compared(key, "<", end)
        return None if above == "0" else Within(above if below == "1" else f"{above} AND {below}", {})

    def outside(self, key: Key) -> Sequence[str]:
        """Conditions that a key is in no brick."""
        low, end = self._limits(key, self._numbering.first, self._numbering.last)
        return (
            f"isNull({key.sql})",
            self._compared(key, "<", 0),
            self._compared(key, "<", low),
            self._compared(key, ">=", end),
        )

    def _begin(self, key: Key) -> str:
        """SQL for the second at which a key's brick begins."""
        if key.base in _LAST_DAY:
            day = f"toInt64({key.sql})"
            # A day without an hour in the brick range is outside it, and never queried.
            return _piecewise(day, [(first, f"{day} * {DAY} + {late}") for first, late in self._midnights()])
        moment = self._seconds(key)
        return _piecewise(moment, [(run[0], _hours(moment, run)) for run in self._runs()])

    def _index(self, key: Key) -> str:
        depth = self._numbering.depth
        if not depth:
            return f"intDiv({self._begin(key)}, {HOUR})"
        day = f"toDate32(toInt32({self._local_day(key)}))"
        months = f"(toYear({day}) - 1970) * 12 + toMonth({day}) - 1"
        return (f"toInt32({day})", months, f"toYear({day}) - 1970")[depth - 1]

    def _local_day(self, key: Key) -> str:
        """SQL for the days of the zone's calendar since 1970."""
        if key.base in _LAST_DAY:
            return f"toInt64({key.sql})"
        moment, found = self._seconds(key), list(self._midnights())
        pieces = [(first * DAY + late, f"intDiv({moment} - {late}, {DAY})") for first, late in found]
        for position, (following, _) in enumerate(found[1:]):
            # The day before a change is longer or shorter than others.
            begin, day = pieces[position]
            pieces[position] = begin, f"least({day}, {following - 1})"
        return _piecewise(moment, pieces)

    def _midnights(self) -> Iterable[tuple[int, int]]:
        return self._bricks.midnights(self._day(self._start) - 1, self._day(self._end) + 1)

    @property
    def _start(self) -> int:
        return (self._numbering.first - self._numbering.offset) // MILLISECONDS

    @property
    def _end(self) -> int:
        return self._after(self._numbering.last)

    def _after(self, ordinal: int) -> int:
        return (self._numbering.after(ordinal) - self._numbering.offset) // MILLISECONDS

    def _runs(self) -> Iterable[range]:
        offset = self._numbering.offset
        ordinals = self._numbering.ordinals
        assert isinstance(ordinals, RangeSequence)
        for run in ordinals.runs:
            yield range((run[0] - offset) // MILLISECONDS, (run[-1] - offset) // MILLISECONDS + 1, HOUR)

    def _limits(self, key: Key, first: int, last: int) -> tuple[int, int]:
        """First and end of a range of bricks, in what the key counts."""
        low, end = (first - self._numbering.offset) // MILLISECONDS, self._after(last)
        if key.base in _LAST_DAY:
            return self._day(low), self._day(end)
        if key.base.startswith("DateTime"):
            return low, end
        return low * PER_SECOND[self._unit], end * PER_SECOND[self._unit]

    def _day(self, seconds: int) -> int:
        """The first day whose midnight is not before a time."""
        day = seconds // DAY - 1
        while next(late for _, late in self._bricks.midnights(day, day)) + day * DAY < seconds:
            day += 1
        return day

    def _largest(self, key: Key) -> int:
        """The largest value of the key that a literal can have, in what the key counts."""
        if key.base in _LAST_DAY:
            return _LAST_DAY[key.base]
        if match := _DATETIME64.match(key.base):
            return int(min((_LAST_DAY["Date32"] + 1) * DAY, 2**63 // 10 ** int(match[1])) - 1)
        return (integer_limits(key.type) or (0, 2**32 - 1))[1]

    def _compared(self, key: Key, operator: Literal["<", ">="], value: int) -> str:
        """SQL that compares a key with a number of what it counts; 0 or 1 if its type has no number that large."""
        if value <= self._largest(key):
            return f"{key.sql} {operator} {self._literal(key, value)}"
        if key.base.startswith(_UNBOUNDED):
            # Newer engines take later days than older ones, and any take the last part of a second.
            return f"toInt64({key.sql}) {operator} {value}"
        return str(int(operator == "<"))

    def _literal(self, key: Key, value: int) -> str:
        if key.base in _LAST_DAY:
            return f"to{key.base}({value})"
        if match := _DATETIME64.match(key.base):
            return f"toDateTime64({value}, {match[1]}, 'UTC')"
        if key.base.startswith("DateTime"):
            return f"toDateTime({value}, 'UTC')"
        return f"CAST({literal(str(value))}, {literal(key.base)})"

    def _seconds(self, key: Key) -> str:
        if key.base.startswith("DateTime"):
            return f"toInt64({key.sql})"
        return f"toInt64(intDiv({key.sql}, {PER_SECOND[self._unit]}))"


def _hours(moment: str, run: range) -> str:
    # The last brick of a run may be longer than an hour.
    return f"{run[0]} + least(intDiv({moment} - {run[0]}, {HOUR}), {len(run) - 1}) * {HOUR}"


def _piecewise(value: str, pieces: Sequence[tuple[int, str]]) -> str:
    """SQL for the interval that holds a value. Intervals are given by their starts."""
    *earlier, (_, last) = pieces
    if not earlier:
        return last
    cases: Callable[[int], str] = lambda i: f"{value} < {pieces[i + 1][0]}, {pieces[i][1]}"  # noqa: E731
    return f"multiIf({', '.join(map(cases, range(len(earlier))))}, {last})"
