"""Time bricks: names, lists and bounds calculated by hand, clock changes included."""

from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucs_pipeline.bricks.time import TimeBricks
from ucs_pipeline.errors import BrickError

BERLIN = TimeBricks("Europe/Berlin")
NEW_YORK = TimeBricks("America/New_York")
HOUR = 3_600_000


def _ms(year: int, month: int, day: int, hour: int, minute: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, tzinfo=timezone.utc).timestamp()) * 1000


@pytest.mark.parametrize(
    ("moment", "name"),
    [
        (datetime(2013, 1, 1, tzinfo=timezone.utc), "2013.01.01.00"),
        (datetime(2013, 1, 1, 0, 59, 59, 999_999, tzinfo=timezone.utc), "2013.01.01.00"),
        (datetime(2013, 1, 1, 1, tzinfo=timezone.utc), "2013.01.01.01"),
        (datetime(2012, 2, 29, 23, 30, tzinfo=timezone.utc), "2012.02.29.23"),
        (datetime(2013, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "2012.12.31.23"),
        (datetime(2013, 7, 4, 5), "2013.07.04.05"),
        (date(2013, 7, 4), "2013.07.04.00"),
        (datetime(1970, 1, 1, tzinfo=timezone.utc), "1970.01.01.00"),
    ],
)
def test_a_time_is_in_the_brick_of_its_hour(moment: date, name: str) -> None:
    assert TimeBricks().get_brick_name(moment) == name


@pytest.mark.parametrize(
    ("bricks", "utc", "name"),
    [
        (BERLIN, (2013, 1, 1, 23, 30), "2013.01.02.00"),
        # Forward at 01:00 UTC: 02:00 is never shown.
        (BERLIN, (2013, 3, 31, 0, 59), "2013.03.31.01"),
        (BERLIN, (2013, 3, 31, 1, 0), "2013.03.31.03"),
        # Back at 01:00 UTC: 02:00 to 03:00 is shown twice.
        (BERLIN, (2013, 10, 26, 23, 59), "2013.10.27.01"),
        (BERLIN, (2013, 10, 27, 0, 0), "2013.10.27.02"),
        (BERLIN, (2013, 10, 27, 1, 59), "2013.10.27.02"),
        (BERLIN, (2013, 10, 27, 2, 0), "2013.10.27.03"),
        # Forward at 07:00 timezone.utc, back at 06:00 UTC.
        (NEW_YORK, (2013, 3, 10, 6, 59), "2013.03.10.01"),
        (NEW_YORK, (2013, 3, 10, 7, 0), "2013.03.10.03"),
        (NEW_YORK, (2013, 11, 3, 4, 59), "2013.11.03.00"),
        (NEW_YORK, (2013, 11, 3, 5, 0), "2013.11.03.01"),
        (NEW_YORK, (2013, 11, 3, 6, 59), "2013.11.03.01"),
        (NEW_YORK, (2013, 11, 3, 7, 0), "2013.11.03.02"),
        # Half an hour off UTC; clocks that change by half an hour, at 15:30 and 15:00 UTC.
        (TimeBricks("Asia/Kolkata"), (2013, 1, 1, 0, 29), "2013.01.01.05"),
        (TimeBricks("Asia/Kolkata"), (2013, 1, 1, 0, 30), "2013.01.01.06"),
        (TimeBricks("Australia/Lord_Howe"), (2013, 10, 5, 15, 30), "2013.10.06.02"),
        (TimeBricks("Australia/Lord_Howe"), (2013, 10, 5, 16, 0), "2013.10.06.03"),
        (TimeBricks("Australia/Lord_Howe"), (2013, 4, 6, 14, 0), "2013.04.07.01"),
        (TimeBricks("Australia/Lord_Howe"), (2013, 4, 6, 15, 29), "2013.04.07.01"),
        (TimeBricks("Australia/Lord_Howe"), (2013, 4, 6, 15, 30), "2013.04.07.02"),
    ],
)
def test_clock_changes_make_no_second_brick_of_a_name_and_none_of_a_skipped_hour(
    bricks: TimeBricks, utc: tuple[int, int, int, int, int], name: str
) -> None:
    moment = datetime(*utc, tzinfo=timezone.utc)
    assert bricks.get_brick_name(moment) == name
    first, end = bricks.get_brick_bounds(name)
    assert first <= moment < end


@pytest.mark.parametrize(
    ("bricks", "first", "last", "names"),
    [
        (TimeBricks(), "2012.02.28.23", "2012.02.29.01", ["2012.02.28.23", "2012.02.29.00", "2012.02.29.01"]),
        (TimeBricks(), "2013.12.31.23", "2014.01.01.00", ["2013.12.31.23", "2014.01.01.00"]),
        (BERLIN, "2013.03.31.01", "2013.03.31.04", ["2013.03.31.01", "2013.03.31.03", "2013.03.31.04"]),
        (BERLIN, "2013.10.27.01", "2013.10.27.03", ["2013.10.27.01", "2013.10.27.02", "2013.10.27.03"]),
        (NEW_YORK, "2013.03.10.01", "2013.03.10.03", ["2013.03.10.01", "2013.03.10.03"]),
        (NEW_YORK, "2013.11.03.00", "2013.11.03.02", ["2013.11.03.00", "2013.11.03.01", "2013.11.03.02"]),
    ],
)
def test_a_list_has_every_hour_that_clocks_show_once(
    bricks: TimeBricks, first: str, last: str, names: list[str]
) -> None:
    assert bricks.get_brick_list(first, last) == names


@pytest.mark.parametrize(
    ("bricks", "name", "first", "end"),
    [
        (TimeBricks(), "2013.01.01.00", _ms(2013, 1, 1, 0), _ms(2013, 1, 1, 1)),
        (BERLIN, "2013.01.01.00", _ms(2012, 12, 31, 23), _ms(2013, 1, 1, 0)),
        (BERLIN, "2013.03.31.01", _ms(2013, 3, 31, 0), _ms(2013, 3, 31, 1)),
        (BERLIN, "2013.03.31.03", _ms(2013, 3, 31, 1), _ms(2013, 3, 31, 2)),
        (BERLIN, "2013.10.27.02", _ms(2013, 10, 27, 0), _ms(2013, 10, 27, 2)),
        (BERLIN, "2013.10.27.03", _ms(2013, 10, 27, 2), _ms(2013, 10, 27, 3)),
        (NEW_YORK, "2013.11.03.01", _ms(2013, 11, 3, 5), _ms(2013, 11, 3, 7)),
        (NEW_YORK, "2013.03.10.03", _ms(2013, 3, 10, 7), _ms(2013, 3, 10, 8)),
    ],
)
def test_bounds_are_instants_and_the_ordinal_is_the_first_of_them(
    bricks: TimeBricks, name: str, first: int, end: int
) -> None:
    assert [int(bound.timestamp()) * 1000 for bound in bricks.get_brick_bounds(name)] == [first, end]
    assert bricks.ordinal_of_name(name) == first
    assert bricks.name_of_ordinal(first) == name


@pytest.mark.parametrize(
    ("bricks", "bad", "why"),
    [
        (BERLIN, "2013.03.31.02", "skip that hour"),
        (NEW_YORK, "2013.03.10.02", "skip that hour"),
        (TimeBricks(), "2013.02.29.00", "a day of the calendar"),
        (TimeBricks(), "2013.01.01.24", "an hour from 00 to 23"),
        (TimeBricks(), "2013.1.1.0", "Expected YYYY.MM.DD.HH"),
        (TimeBricks(), "0.0.0.0", "Expected YYYY.MM.DD.HH"),
        (TimeBricks(), None, "Expected YYYY.MM.DD.HH"),
        (TimeBricks(), "1969.12.31.23", "before 1970"),
        (BERLIN, "1970.01.01.00", "before 1970"),
    ],
)
def test_what_is_no_brick_is_refused(bricks: TimeBricks, bad: str, why: str) -> None:
    with pytest.raises(BrickError, match=why):
        bricks.get_brick_bounds(bad)


def test_times_before_1970_and_what_is_no_time_are_refused() -> None:
    with pytest.raises(BrickError, match=r"1969-12-31 23:59:59.* is before 1970"):
        TimeBricks().get_brick_name(datetime(1969, 12, 31, 23, 59, 59, tzinfo=timezone.utc))
    with pytest.raises(BrickError, match="is not a time"):
        TimeBricks().get_brick_name("2013-01-01")  # type: ignore[arg-type]
    with pytest.raises(BrickError, match="reversed"):
        TimeBricks().get_brick_list("2013.01.01.01", "2013.01.01.00")
    with pytest.raises(BrickError, match="'Europe/Berlinn' is not a time zone"):
        TimeBricks("Europe/Berlinn")


@pytest.mark.parametrize("zone", ["localtime", "Localtime", "posixrules", "posix/Europe/Berlin", "right/UTC"])
def test_a_zone_that_is_another_one_on_each_machine_is_refused(zone: str) -> None:
    with pytest.raises(BrickError, match=f"'{zone}' may be another time zone on another machine. Name one, such as"):
        TimeBricks(zone)


def test_a_zone_whose_clocks_went_back_by_more_than_the_hour_they_showed_is_refused() -> None:
    # Troll station changes by two hours: 01 and 02 are shown, and then 01 and 02 again.
    troll = TimeBricks("Antarctica/Troll")
    first, last = troll.ordinal_of_name("2013.10.01.00"), troll.ordinal_of_name("2013.10.31.00")
    with pytest.raises(BrickError, match="were set back by more than one hour at 2013-10-27"):
        troll.ordinals(first, last)
    assert len(troll.ordinals(first, troll.ordinal_of_name("2013.10.26.23"))) == 26 * 24


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
def test_eleven_years_of_bricks_are_those_that_a_clock_shows(zone: str) -> None:
    bricks = TimeBricks(zone)
    first, last = bricks.ordinal_of_name("2013.01.01.00"), bricks.ordinal_of_name("2023.12.31.23")
    shown: dict[str, int] = {}
    for seconds in range(first // 1000, last // 1000 + 3600, 1800):
        shown.setdefault(f"{datetime.fromtimestamp(seconds, ZoneInfo(zone)):%Y.%m.%d.%H}", seconds * 1000)
    ordinals = bricks.ordinals(first, last)
    assert list(ordinals) == list(shown.values())
    assert [bricks.name_of_ordinal(ordinal) for ordinal in ordinals] == list(shown)
    positions = range(0, len(ordinals), 997)
    assert [ordinals.index(ordinals[position]) for position in positions] == list(positions)
    assert all(bricks.unit_after(ordinals[position], 0) == ordinals[position + 1] for position in positions)
    assert all(bricks.unit_after(ordinals[position + 1] - 1, 0) == ordinals[position + 1] for position in positions)


@pytest.mark.parametrize(
    ("name", "depth", "first", "after"),
    [
        ("2013.03.31", 1, "2013.03.31.00", "2013.04.01.00"),
        ("2012.02", 2, "2012.02.01.00", "2012.03.01.00"),
        ("2013.12", 2, "2013.12.01.00", "2014.01.01.00"),
        ("2013", 3, "2013.01.01.00", "2014.01.01.00"),
    ],
)
def test_coarser_units_are_days_months_and_years(name: str, depth: int, first: str, after: str) -> None:
    start = BERLIN.unit_of_name(name, depth)
    assert start == BERLIN.ordinal_of_name(first)
    assert BERLIN.unit_name(start + 5 * HOUR, depth) == name
    assert BERLIN.unit(start + 5 * HOUR, depth) == start
    assert BERLIN.unit_after(start, depth) == BERLIN.ordinal_of_name(after)


def test_a_day_whose_first_hour_is_skipped_begins_with_its_second_and_a_skipped_day_has_no_name() -> None:
    # In São Paulo clocks went forward at midnight; Samoa crossed the date line.
    brazil, samoa = TimeBricks("America/Sao_Paulo"), TimeBricks("Pacific/Apia")
    assert brazil.name_of_ordinal(brazil.unit_of_name("2013.10.20", 1)) == "2013.10.20.01"
    first, last = samoa.ordinal_of_name("2011.12.29.00"), samoa.ordinal_of_name("2011.12.31.05")
    assert [samoa.unit_name(day, 1) for day in samoa.units(first, last, 1)] == ["2011.12.29", "2011.12.31"]
    with pytest.raises(BrickError, match=r"'2011.12.30' is not a block name"):
        samoa.unit_of_name("2011.12.30", 1)


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)), st.sampled_from([BERLIN, NEW_YORK, TimeBricks()]))
def test_a_brick_holds_what_it_is_named_for(moment: datetime, bricks: TimeBricks) -> None:
    aware = moment.replace(tzinfo=timezone.utc)
    first, end = bricks.get_brick_bounds(bricks.get_brick_name(aware))
    assert first <= aware < end
    assert bricks.get_brick_name(end - timedelta(microseconds=1)) == bricks.get_brick_name(first)
    assert bricks.get_brick_name(end) != bricks.get_brick_name(first)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2013-01-01", 1356998400),
        ("2013-01-01T00", 1356998400),
        ("2013-01-01T00Z", 1356998400),
        ("2013-01-01T01:00:00+01:00", 1356998400),
        *((f"2013-01-01T00:00:00.{'5'.ljust(digits, '0')}+00:00", 1356998400.5) for digits in range(1, 10)),
        ("2013-01-01T00:00:00.123456789Z", 1356998400.123456),
    ],
)
def test_a_time_in_iso_8601_is_the_same_in_every_python(text: str, seconds: float) -> None:
    assert TimeBricks("UTC").timestamp(text.encode(), "s") == seconds
