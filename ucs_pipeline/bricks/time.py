"""Time class of the numbering standard: bricks are hours, `YYYY.MM.DD.HH` in a time zone. Pure.

A brick is one hour of local time. When clocks go back, the repeated hour is one brick, two hours long; when they go
forward, the hour that is skipped has no brick. A brick's ordinal is its beginning in milliseconds since 1970. Inside
here times are whole seconds since 1970.
"""

import re
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from ucs_pipeline.bricks.base import Bounds, BrickClass
from ucs_pipeline.bricks.sequences import RangeSequence
from ucs_pipeline.errors import BrickError

HOUR = 3600
DAY = 24 * HOUR
MILLISECONDS = 1000
Unit = Literal["s", "ms", "us", "ns"]
PER_SECOND: Mapping[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""How many of a unit make a second."""
_NAME = re.compile(r"(\d{4})\.(\d{2})\.(\d{2})\.(\d{2})", re.ASCII)
_OF_THE_MACHINE = ("localtime", "posixrules", "posix/", "right/")
"""Names among the zones of some machines: the machine's own zone, and copies, some with leap seconds."""
_PARTS = (".01", ".01", ".00")


def zone_database(zone: str) -> str:
    """Description of where this machine has the rules of a zone from."""
    found = next((path for path in zoneinfo.TZPATH if (Path(path) / zone).is_file()), None)
    return f"found in {found}" if found else f"found in the package tzdata {version('tzdata')}"


def parsed(text: str) -> datetime:
    """A time in ISO 8601. Python 3.10 by itself knows neither `Z` nor seconds with other than 3 or 6 decimals.

    Raises:
        ValueError: it is none.
    """
    whole = re.sub(r"\.(\d+)", lambda decimals: f".{decimals[1][:6]:0<6}", text)
    return datetime.fromisoformat(re.sub("Z$", "+00:00", whole))


class TimeBricks(BrickClass):
    """Bricks of one hour in a time zone.

    >>> TimeBricks("Europe/Berlin").get_brick_name(datetime(2013, 1, 1, 23, 30, tzinfo=timezone.utc))
    '2013.01.02.00'
    >>> TimeBricks("Europe/Berlin").get_brick_list("2013.03.31.01", "2013.03.31.03")
    ['2013.03.31.01', '2013.03.31.03']
    """

    def __init__(self, zone: str = "UTC") -> None:
        """Bricks in a zone of the IANA time zone database.

        Raises:
            BrickError: there is no such zone, or it depends on the machine.
        """
        if zone.casefold().startswith(_OF_THE_MACHINE):
            raise BrickError(
                f"{zone!r} may be another time zone on another machine. Name one, such as UTC or Europe/Berlin."
            )
        try:
            self.zone = ZoneInfo(zone)
        except (ValueError, OSError, KeyError):
            raise BrickError(f"{zone!r} is not a time zone. Name one, such as UTC or Europe/Berlin.") from None

    def get_brick_name(self, key: date) -> str:
        """Name of the brick that holds a time; one without a zone is in the bricks' own, a day is its first hour.

        Raises:
            BrickError: it is before 1970, or no time.
        """
        return self.name_of_ordinal(self.ordinal_of_key(key))

    def get_brick_bounds(self, name: str) -> Bounds[datetime]:
        """Half-open bounds of a brick, in UTC: in a zone whose clocks change, Python's arithmetic is off by the change.

        >>> first, end = TimeBricks("Europe/Berlin").get_brick_bounds("2013.10.27.02")
        >>> end - first
        datetime.timedelta(seconds=7200)
        """
        first = self.ordinal_of_name(name)
        return Bounds(
            *(datetime.fromtimestamp(n // MILLISECONDS, timezone.utc) for n in (first, self.unit_after(first, 0)))
        )

    def ordinal_of_key(self, key: date) -> int:
        """Ordinal of the brick that holds a time.

        Raises:
            BrickError: it is before 1970, or no time.
        """
        if not isinstance(key, date):
            raise BrickError(f"{key!r} is not a time. Time bricks take dates and datetimes.")
        moment = key if isinstance(key, datetime) else datetime(key.year, key.month, key.day)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=self.zone)
        seconds = (moment - datetime.fromtimestamp(0, timezone.utc)) // timedelta(seconds=1)
        return self._ordinal(self._start(seconds), key)

    def timestamp(self, key: int | bytes, unit: Unit) -> float:
        """Seconds since 1970 of a key as it comes from the table: a count of units, or text in ISO 8601."""
        if isinstance(key, int) or key.isdigit():
            return int(key) / PER_SECOND[unit]
        time = parsed(key.decode())
        # A day has no zone; anything else has.
        return (time if time.tzinfo else time.replace(tzinfo=self.zone)).timestamp()

    def ordinal_of_name(self, name: str) -> int:
        """Beginning of a brick in milliseconds since 1970.

        Raises:
            BrickError: `name` is not a brick.
        """
        start = self._first_from(name)
        if start is None:
            raise BrickError(
                f"{name!r} is not a brick name. Expected YYYY.MM.DD.HH: a day of the calendar and an hour from 00 to "
                "23, such as 2013.01.31.07."
            )
        if self._name(start) != name:
            raise BrickError(f"{name!r} is not a brick. Clocks in {self.zone.key} skip that hour.")
        return self._ordinal(start, name)

    def name_of_ordinal(self, ordinal: int) -> str:
        """Name of the brick that begins at a millisecond since 1970."""
        return self._name(ordinal // MILLISECONDS)

    def ordinals(self, first: int, last: int) -> RangeSequence:
        """Ordinals from that of a brick up to `last`.

        Raises:
            BrickError: clocks in the zone are set back by more than the hour they are in.
        """
        runs: list[range] = []
        for start, stop in self._grids(first // MILLISECONDS, last // MILLISECONDS):
            grid = range(start, stop, HOUR)
            if runs and grid and runs[-1][-1] + HOUR == grid[0]:
                grid = range(runs.pop()[0], stop, HOUR)
            if grid:
                runs.append(grid)
        return RangeSequence(
            range(r.start * MILLISECONDS, (r[-1] + 1) * MILLISECONDS, HOUR * MILLISECONDS) for r in runs
        )

    def unit(self, ordinal: int, depth: int) -> int:
        """Ordinal of the first brick of the day, month or year that holds a brick."""
        return self.unit_of_name(self.unit_name(ordinal, depth), depth)

    def units(self, first: int, last: int, depth: int) -> Sequence[int]:
        """Ordinals of the first bricks of hours, days, months or years."""
        if not depth:
            return self.ordinals(first, last)
        found = [self.unit(first, depth)]
        while (following := self.unit_after(found[-1], depth)) <= last:
            found.append(following)
        return found

    def unit_after(self, start: int, depth: int) -> int:
        """Ordinal of the first brick after an hour, day, month or year."""
        if not depth:
            seconds = start // MILLISECONDS
            return next(at for at in self._changes(seconds) if self._start(at) == at) * MILLISECONDS
        year, month, day = [*map(int, self.unit_name(start, depth).split(".")), 1, 1][:3]
        following = [
            date(year, month, day) + timedelta(1),
            date(year + month // 12, month % 12 + 1, 1),
            date(year + 1, 1, 1),
        ]
        return self.ordinal_of_key(following[depth - 1])

    def unit_of_name(self, name: str, depth: int) -> int:
        """Ordinal of the first brick of an hour, day, month or year."""
        if not depth:
            return self.ordinal_of_name(name)
        start = self._first_from(f"{name}{''.join(_PARTS[3 - depth :])}") if isinstance(name, str) else None
        if start is None or not self._name(start).startswith(f"{name}."):
            raise self.no_unit(name, depth)
        return self._ordinal(start, name)

    def unit_index(self, ordinal: int, depth: int) -> int:
        """Hours of UTC since 1970; or days, months or years since then on the calendar of the zone."""
        if not depth:
            return ordinal // (HOUR * MILLISECONDS)
        year, month, day = [*map(int, self.unit_name(ordinal, depth).split(".")), 1, 1][:3]
        since = (year - 1970) * 12 + month - 1
        return ((date(year, month, day) - date(1970, 1, 1)).days, since, since // 12)[depth - 1]

    def bounds_text(self, first: int, last: int) -> str:
        """The times, in the bricks' zone."""
        ends = (first, self.unit_after(last, 0))
        low, high = (datetime.fromtimestamp(end // MILLISECONDS, self.zone).isoformat() for end in ends)
        return f"{low} <= time < {high}"

    def midnights(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Days since 1970 from which on the local midnight comes so many seconds after that of UTC."""
        known: int | None = None
        for day in range(first, last + 1):
            local = datetime(1970, 1, 1) + timedelta(day)
            late = int(local.replace(tzinfo=self.zone).timestamp()) - day * DAY
            if late != known:
                yield day, late
                known = late

    def _first_from(self, name: object) -> int | None:
        """Beginning of the brick of a name or, if clocks skip it, of the one they skip to; None if it is no name."""
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        try:
            local = datetime.strptime(match[0], "%Y.%m.%d.%H") if match else None
            return self._start(int(local.replace(tzinfo=self.zone).timestamp())) if local else None
        except (ValueError, OverflowError):
            return None

    def _name(self, start: int) -> str:
        local = datetime.fromtimestamp(start, self.zone)
        return f"{local.year:04}.{local.month:02}.{local.day:02}.{local.hour:02}"

    def _ordinal(self, start: int, what: object) -> int:
        if start < 0:
            raise BrickError(f"{str(what)!r} is before 1970. Time bricks are hours that begin in 1970 (UTC) or later.")
        return start * MILLISECONDS

    def _offset(self, seconds: int) -> int:
        """Seconds that clocks in the zone are ahead of UTC."""
        offset = datetime.fromtimestamp(seconds, self.zone).utcoffset()
        return int(offset.total_seconds()) if offset else 0

    def _hour(self, seconds: int) -> int:
        """The hour that clocks show, counted."""
        return (seconds + self._offset(seconds)) // HOUR

    def _start(self, seconds: int) -> int:
        """When clocks began to show the hour they show."""
        hour = self._hour(seconds)
        while True:
            offset = self._offset(seconds)
            start = seconds - (seconds + offset) % HOUR
            if self._offset(start) != offset:
                start = self._change(start, seconds)
            if self._hour(start - 1) != hour:
                return start
            seconds = start - 1

    def _change(self, low: int, high: int) -> int:
        """The second at which clocks change, somewhere after `low` and not after `high`."""
        offset = self._offset(low)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
        return high

    def _changes(self, seconds: int) -> Iterator[int]:
        """Where the next bricks may begin: at each full hour of the clocks, and where they are changed."""
        while True:
            following = seconds + HOUR - (seconds + self._offset(seconds)) % HOUR
            changed = self._offset(following) != self._offset(seconds)
            yield (seconds := self._change(seconds, following) if changed else following)

    def _grids(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Rows of beginnings, an hour apart: the first one, and the end."""
        days = range(first, last, DAY)
        pairs = ((low, min(low + DAY, last)) for low in days)
        changes = [self._change(*pair) for pair in pairs if self._offset(pair[0]) != self._offset(pair[1])]
        for start, stop in pairwise([first, *changes, last + 1]):
            grid = start + -(start + self._offset(start)) % HOUR
            before, now = self._hour(start - 1), self._hour(start)
            if start != first and now < before:
                raise BrickError(
                    f"clocks in {self.zone.key} were set back by more than one hour at "
                    f"{datetime.fromtimestamp(start, timezone.utc).isoformat()}. Its hours have no order: choose "
                    "another zone."
                )
            if start == first or now > before:
                yield start, min(start + 1, stop)
                grid += HOUR if grid == start else 0
            elif grid == start:
                grid += HOUR
            yield grid, stop
