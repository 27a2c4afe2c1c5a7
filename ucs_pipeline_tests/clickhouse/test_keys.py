"""The SQL that numbers rows agrees with Python, on the real engine, for every class."""

import random
from bisect import bisect_left
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucs_pipeline.bricks.text import BASES, Digit, TextBricks
from ucs_pipeline.bricks.time import TimeBricks
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.errors import SourceError
from ucs_pipeline_tests.support.tables import Table, source_of

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
KEYS = 100_000
DIGITS: tuple[Digit, ...] = ("sum", "integer")


def _ordinals(table: Table, bricks: dict[str, Any]) -> list[int]:
    """The ordinal that SQL gives to every row, in the order of column `n`."""
    shape = source_of(table.feed(0, key="k", bricks=bricks)).shape()
    query = f"SELECT {shape.keys.ordinal(shape.key)} FROM {table.name} ORDER BY n"
    return [int(line) for line in table.run(query).split()]


def _random(low: int, high: int, near: Sequence[int]) -> list[int]:
    """Numbers below `high`, half of them close to some of interest."""
    rng = random.Random(low + high)
    far = (rng.randrange(low, high) for _ in range(KEYS // 2))
    close = (rng.choice(near) + rng.randint(-8000, 8000) for _ in range(KEYS // 2))
    return [*far, *(min(high - 1, max(low, number)) for number in close)]


def _table(column: str, values: Sequence[object]) -> Table:
    """Values in a column `k`, numbered by `n`."""
    rows = ",".join(f"({n},{value})" for n, value in enumerate(values))
    return Table(f"n UInt32, k {column}", f"VALUES {rows}")


# Number


def test_number_bricks_are_those_of_python() -> None:
    ids = _random(0, 2**63, [0, 10**4, 10**7, 10**10, 10**13, 2**53])
    table = _table("UInt64", ids)
    assert _ordinals(table, {"class": "number", "last": 0}) == [key // 10_000 for key in ids]


# Time

CHANGES = [
    *((2013, 3, 31, 1), (2013, 10, 27, 1)),  # Berlin
    *((2014, 3, 9, 7), (2014, 11, 2, 6)),  # New York
    *((2013, 4, 6, 15), (2013, 10, 5, 15)),  # Lord Howe
]
"""Hours in UTC at or near which clocks change."""


@pytest.mark.parametrize("zone", ZONES)
def test_time_bricks_are_those_of_python_in_every_type_of_key(zone: str) -> None:
    bricks = TimeBricks(zone)
    chosen = {"class": "time", "first": "2012-06-01", "last": "2015-06-30", "zone": zone}
    starts = list(bricks.ordinals(bricks.ordinal_of_name("2012.06.01.00"), bricks.ordinal_of_name("2015.06.30.23")))
    changes = [int(datetime(*hour, tzinfo=timezone.utc).timestamp()) for hour in CHANGES]
    seconds = _random(starts[0] // 1000, starts[-1] // 1000 + 3600, changes)
    expected = [starts[bisect_left(starts, 1000 * second + 1) - 1] for second in seconds]
    some = random.Random(1).sample(range(KEYS), 300)
    assert [expected[n] for n in some] == [
        bricks.ordinal_of_key(datetime.fromtimestamp(seconds[n], timezone.utc)) for n in some
    ]
    for column, unit, scale, more in (
        ("DateTime('Asia/Tokyo')", "s", 1, 0),
        ("UInt32", "s", 1, 0),
        ("Int64", "ms", 1000, 999),
        ("UInt64", "ns", 10**9, 1),
        ("Int128", "us", 10**6, 1),
    ):
        table = _table(column, [second * scale + more for second in seconds])
        assert _ordinals(table, {**chosen, "unit": unit}) == expected, column
    for column, digits in (("DateTime64(3, 'UTC')", ".123"), ("DateTime64(9)", ".999999999")):
        assert _ordinals(_table(column, [f"'{second}{digits}'" for second in seconds]), chosen) == expected, column


@pytest.mark.parametrize("column", ["Date", "Date32"])
@pytest.mark.parametrize("zone", [*ZONES, "America/Sao_Paulo", "Pacific/Auckland"])
def test_a_day_is_in_the_brick_of_its_first_hour(zone: str, column: str) -> None:
    bricks = TimeBricks(zone)
    days = [date(2012, 6, 1) + timedelta(n) for n in range(1000)]
    table = _table(column, [f"'{day}'" for day in days])
    found = _ordinals(table, {"class": "time", "first": "2012-06-01", "last": "2015-06-30", "zone": zone})
    assert found == [bricks.ordinal_of_key(day) for day in days]


def _rows(table: Table, bricks: dict[str, Any], first: str, last: str) -> dict[str, int]:
    source = source_of(table.feed(0, key="k", bricks=bricks))
    partitions = source.feed.partitions
    counts = source.count(partitions.start_named(first), partitions.start_named(last))
    return {partitions.name(ordinal): rows for ordinal, rows in counts.items()}


@pytest.mark.parametrize("column", ["DateTime", "Nullable(DateTime)", "DateTime64(6)", "UInt32", "Int64"])
def test_a_range_of_hours_is_asked_for_by_bounds_on_the_key_and_the_rest_is_outside(column: str) -> None:
    berlin = TimeBricks("Europe/Berlin")
    first, end = (int(bound.timestamp()) for bound in berlin.get_brick_bounds("2013.10.27.02"))
    table = _table(column, [first - 3601, first - 1, first, first + 3600, end - 1, end, end + 3599, end + 3600])
    bricks = {"class": "time", "first": "2013-10-27T01", "last": "2013-10-27T03", "zone": "Europe/Berlin"}
    assert _rows(table, bricks, "2013.10.27.02", "2013.10.27.02") == {"2013.10.27.02": 3}
    assert _rows(table, bricks, "2013.10.27.01", "2013.10.27.03") == {
        "2013.10.27.01": 1,
        "2013.10.27.02": 3,
        "2013.10.27.03": 2,
    }
    census = source_of(table.feed(0, key="k", bricks=bricks)).census()
    assert sum(content.rows for content in census.bricks.values()) == 6
    assert census.unassigned == {"null": 0, "negative": 0, "before": 1, "beyond": 1}


def test_times_before_1970_and_null_are_counted_by_themselves() -> None:
    times = ("'1969-12-31 23:59:59.500'", "NULL", "'1970-01-01 00:00:00'", "'2299-12-31 23:00:00'")
    table = _table("Nullable(DateTime64(3, 'UTC'))", times)
    bricks = {"class": "time", "first": "1970-01-01", "last": "1970-01-01"}
    census = source_of(table.feed(0, key="k", bricks=bricks)).census()
    assert [content.rows for content in census.bricks.values()] == [1]
    assert census.unassigned == {"null": 1, "negative": 1, "before": 0, "beyond": 1}
    assert _rows(table, bricks, "1970.01.01.00", "1970.01.01.23") == {"1970.01.01.00": 1}


@pytest.mark.parametrize(
    ("column", "value"),
    [("Date", "'2149-06-06'"), ("DateTime", "4294967295"), ("DateTime64(9)", "'2262-04-11 23:47:16'")],
)
def test_bounds_beyond_what_a_type_can_hold_are_none(column: str, value: str) -> None:
    table = _table(column, [value])
    bricks = {"class": "time", "first": "2299-12-31", "last": "2299-12-31"}
    assert _rows(table, bricks, "2299.12.31.00", "2299.12.31.23") == {}
    assert source_of(table.feed(0, key="k", bricks=bricks)).census().unassigned["before"] == 1


@pytest.mark.parametrize(
    ("column", "inside", "beyond"),
    [
        ("Date32", "2299-12-31", "2300-01-01"),
        ("DateTime64(3, 'UTC')", "2299-12-31 23:59:59.999", "2300-01-01 00:00:00.000"),
        ("DateTime64(0, 'UTC')", "2299-12-31 23:59:59", "2300-01-01 05:59:59"),
    ],
)
def test_the_far_ends_of_a_type_are_in_their_own_bricks(column: str, inside: str, beyond: str) -> None:
    table = _table(f"Nullable({column})", ["NULL", f"'{inside}'", f"'{beyond}'"])
    bricks = {"class": "time", "first": "2299-12-01", "last": "2299-12-31"}
    hour = "23" if " " in inside else "00"
    assert _rows(table, bricks, "2299.12.01.00", "2299.12.31.23") == {f"2299.12.31.{hour}": 1}
    census = source_of(table.feed(0, key="k", bricks=bricks)).census()
    assert [content.rows for content in census.bricks.values()] == [1]
    assert census.unassigned == {"null": 1, "negative": 0, "before": 0, "beyond": 1}
    day = beyond[:10]
    name = f"{day.replace('-', '.')}.{beyond[11:13] or '00'}"
    assert _rows(table, {"class": "time", "first": f"{day}T00", "last": f"{day}T22"}, name, name) == {name: 1}


def test_the_last_part_of_the_last_second_is_in_its_brick() -> None:
    table = _table("DateTime64(9, 'UTC')", ["'2262-04-11 23:47:15.5'", "'2262-04-11 23:47:16.8'"])
    bricks = {"class": "time", "first": "2262-04-11", "last": "2262-04-11"}
    assert _rows(table, bricks, "2262.04.11.00", "2262.04.11.23") == {"2262.04.11.23": 2}


def test_a_key_that_is_no_time_is_refused() -> None:
    table = _table("String", ["'2013-01-01'"])
    with pytest.raises(SourceError, match=r"key 'k' has type String, expected a time \(Date,"):
        source_of(table.feed(0, key="k", bricks={"class": "time", "first": "2013-01-01", "last": "2013-01-01"})).shape()


# Text


@pytest.mark.parametrize("digit", ["sum", "integer"])
@pytest.mark.parametrize("base", BASES)
def test_text_bricks_are_those_of_python(base: int, digit: Digit) -> None:
    table = Table("n UInt32, k String", f"SELECT number, concat('key ', toString(number * 7919)) FROM numbers({KEYS})")
    bricks, settings = TextBricks(base, digit), {"class": "text", "base": base, "digit": digit, "last": "0.0.0.0"}
    assert _ordinals(table, settings) == [bricks.ordinal_of_key(f"key {n * 7919}") for n in range(KEYS)]


@settings(max_examples=25)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=40), st.sampled_from(BASES), st.sampled_from(DIGITS))
def test_any_bytes_are_in_the_same_text_brick_in_sql_and_in_python(keys: list[bytes], base: int, digit: Digit) -> None:
    table = _table("String", [f"unhex('{key.hex()}')" for key in keys])
    found = _ordinals(table, {"class": "text", "base": base, "digit": digit, "last": "0.0.0.0"})
    assert found == [TextBricks(base, digit).ordinal_of_key(key) for key in keys]


@pytest.mark.parametrize(
    ("column", "values", "texts"),
    [
        ("LowCardinality(String)", ["'N14228'", "'x'"], ["N14228", "x"]),
        ("Nullable(String)", ["'N14228'", "'x'"], ["N14228", "x"]),
        ("FixedString(8)", ["'N14228'", "'x'"], ["N14228", "x"]),
        ("Enum8('a' = 1, 'b' = 2)", ["'b'", "'a'"], ["b", "a"]),
        ("UUID", ["'61f0c404-5cb3-11e7-907b-a6006ad3dba0'"], ["61f0c404-5cb3-11e7-907b-a6006ad3dba0"]),
        ("IPv4", ["'1.2.3.4'"], ["1.2.3.4"]),
        (
            "Int128",
            ["-5", "170141183460469231731687303715884105727"],
            ["-5", "170141183460469231731687303715884105727"],
        ),
    ],
)
def test_keys_of_other_types_count_by_their_text(column: str, values: list[str], texts: list[str]) -> None:
    found = _ordinals(_table(column, values), {"class": "text"})
    assert found == [TextBricks().ordinal_of_key(text) for text in texts]


def test_a_key_without_one_text_form_is_refused() -> None:
    with pytest.raises(SourceError, match=r"key 'k' has type Float64, expected text, or a type with one text form"):
        source_of(_table("Float64", ["1.5"]).feed(0, key="k", bricks={"class": "text"})).shape()


def test_a_range_of_text_bricks_is_one_query_and_uses_a_column_of_the_table_if_there_is_one() -> None:
    plain = Table("k Nullable(String)", "SELECT if(number % 10 = 0, NULL, toString(number)) FROM numbers(1000)")
    bricks: dict[str, Any] = {"class": "text", "first": "2.0.0.0", "last": "4.9.9.9"}
    expected = [n for n in range(1000) if n % 10 and 2000 <= TextBricks().ordinal_of_key(str(n)) <= 4999]
    source = source_of(plain.feed(0, key="k", bricks=bricks))
    assert sum(source.count(source.feed.partitions.first, source.feed.partitions.last).values()) == len(expected)
    census = source.census()
    assert sum(content.rows for content in census.bricks.values()) == len(expected)
    assert census.unassigned["null"] == 100
    assert sum(census.unassigned.values()) == 1000 - len(expected)
    ordinal = source.shape().keys.ordinal(source.shape().key._replace(type="String"))
    indexed = Table(
        f"k String, b UInt32 MATERIALIZED {ordinal}",
        "(k) SELECT toString(number) FROM numbers(100000)",
        order_by="b SETTINGS index_granularity = 100",
    )
    by_index = source_of(indexed.feed(0, key="k", bricks={**bricks, "column": "b"}))
    shape = by_index.shape()
    within = shape.keys.within(shape.key, 2026, 2030)
    assert within
    explained = indexed.run(f"EXPLAIN indexes = 1 {sql.count(shape, within)}")
    assert "Granules: 1/" in explained or "Granules: 2/" in explained
    counts = by_index.count(2026, 2030)
    keys = [TextBricks().ordinal_of_key(str(n)) for n in range(100_000)]
    assert counts == {ordinal: keys.count(ordinal) for ordinal in range(2026, 2031)}
