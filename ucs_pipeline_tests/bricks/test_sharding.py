"""Bricks are assigned to shards, in Python and in SQL alike: each to one, in order."""

import random
from collections import Counter
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucs_pipeline.bricks.partitions import Partitions, ShardId
from ucs_pipeline.bricks.sharding import ShardPartitions, holder
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.settings import Bricks
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.orchestration.sensors.sealed import Seal, seal
from ucs_pipeline_tests.support.tables import Table, source_of

ZONES = ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata", "America/Havana")
LEVELS = ("brick", "block", "part", "shard")


@st.composite
def numberings(draw: st.DrawFn) -> Partitions:
    """Of any class, level and range."""
    level, offset = draw(st.sampled_from(LEVELS)), draw(st.sampled_from([0, 7]))
    depth = LEVELS.index(level)
    kind = draw(st.sampled_from(["number", "text", "time"]))
    bricks: dict[str, Any] = {"class": kind, "level": level}
    if kind == "number":
        first = draw(st.integers(0, 10 ** (8 + 3 * depth)))
        bricks |= {"first": first, "last": first + draw(st.integers(0, 40)) * 10 ** (4 + 3 * depth)}
    elif kind == "text":
        ends = sorted(draw(st.lists(st.integers(0, 999), min_size=2, max_size=2)))
        bricks |= dict(zip(("first", "last"), (".".join(f"{end:04}") for end in ends), strict=True))
    else:
        day = date(1971, 1, 1) + timedelta(draw(st.integers(0, 365 * 60)))
        last = day + timedelta(draw(st.integers(0, (2, 40, 400, 2000)[depth])))
        bricks |= {"first": str(day), "last": str(last), "zone": draw(st.sampled_from(ZONES))}
    return Bricks(**bricks).partitions(offset)


@settings(max_examples=60)
@given(numberings(), st.integers(1, 9))
def test_shards_share_out_the_partitions_and_each_keeps_their_order(whole: Partitions, shards: int) -> None:
    dealt = [ShardPartitions(whole, ShardId(number, shards)) for number in range(shards)]
    assert sorted(start for one in dealt for start in one.starts) == list(whole.starts)
    for number, one in enumerate(dealt):
        starts = list(one.starts)
        assert starts == sorted(starts)
        assert all(holder(whole, start, shards) == number for start in starts)
        for before, start, after in zip([None, *starts], starts, [*starts[1:], None], strict=False):
            assert (one.start(start), one.end(start), one.next(start)) == (start, whole.end(start), after)
            assert one.before(start) == (None if before is None else whole.end(before))
            assert one.end(start) in one
            assert one.reaching(one.end(start)) == start
            assert all(start not in other for other in dealt if other is not one)
        if starts and (not whole.depth or (whole.depth == 1 and len(starts) < 4)):
            assert one.last == one.ordinals[-1]
            assert [n for n in whole.ordinals if n in one] == list(one.ordinals)


@pytest.mark.parametrize(
    "bricks",
    [
        {"class": "number", "first": 123_456, "last": 999_999},
        {"class": "number", "last": 99_999_999, "level": "block"},
        {"class": "text", "first": "0.1.2.3"},
        {"class": "time", "first": "2013-03-30", "last": "2013-04-02"},
        {"class": "time", "first": "2013-03-01", "last": "2013-11-02", "zone": "Europe/Berlin", "level": "block"},
        {"class": "time", "first": "2009-03-01", "last": "2013-11-02", "zone": "Europe/Berlin", "level": "part"},
    ],
)
def test_each_partition_goes_to_the_next_shard(bricks: dict[str, Any]) -> None:
    whole = Bricks(**bricks).partitions(0)
    held = [holder(whole, start, 4) for start in whole.starts]
    assert held == [(held[0] + n) % 4 for n in range(len(held))]


def test_a_list_that_begins_elsewhere_is_dealt_the_same() -> None:
    for first, last in ((0, 999_999), (40_000, 2_000_000)):
        whole = Bricks(**{"class": "number", "first": first, "last": last}).partitions(0)
        assert [holder(whole, ordinal, 3) for ordinal in (4, 5, 6)] == [1, 2, 0]


def _agree(table: Table, bricks: dict[str, Any], keys: list[int], shards: int) -> None:
    """Rows of each shard by the engine and by Python: `keys` are the ordinals of the rows' bricks."""
    feed = table.feed(0, key="k", bricks=bricks, stream={"shards": shards})
    whole = feed.partitions
    rows = Counter(keys)
    *_, one, other = streams_of(feed)
    for part in (one, other):
        assert source_of(part).count(whole.first, whole.last) == {n: rows[n] for n in rows if n in part.partitions}
    found = source_of(other).census().bricks
    expected = Counter({n: rows[n] for n in rows if n in other.partitions})
    assert set(found) == {other.partitions.start(n) for n in expected}
    assert sum(content.rows for content in found.values()) == expected.total()


@pytest.mark.parametrize(
    ("zone", "level"),
    [
        *((zone, "brick") for zone in ("UTC", "Australia/Lord_Howe", "America/Havana")),
        *((zone, "block") for zone in ("Europe/Berlin", "Australia/Lord_Howe", "America/Havana")),
        ("Europe/Berlin", "part"),
        ("America/Havana", "shard"),
    ],
)
def test_hours_and_their_levels_are_dealt_the_same_in_sql(zone: str, level: str) -> None:
    rng = random.Random(zone + level)
    bricks = {"class": "time", "first": "2012-03-01", "last": "2014-11-30", "zone": zone, "level": level}
    whole = Bricks(**bricks).partitions(0)
    low, high = whole.first // 1000, whole.last // 1000
    changes = [
        datetime(2013, *hour, tzinfo=timezone.utc).timestamp()
        for hour in ((3, 10, 5), (3, 31, 1), (10, 5, 15), (11, 3, 5))
    ]
    near = [int(rng.choice(changes)) + rng.randint(-90_000, 90_000) for _ in range(1000)]
    seconds = [rng.randrange(low, high) for _ in range(1000)] + near
    shards = {"brick": 5, "block": 7, "part": 3, "shard": 3}[level]
    ordinals = [whole.bricks.ordinal_of_key(datetime.fromtimestamp(second, timezone.utc)) for second in seconds]  # type: ignore[attr-defined]
    _agree(Table("k Nullable(Int64)", f"VALUES {','.join(f'({n})' for n in seconds)}"), bricks, ordinals, shards)
    if level == "brick":
        return
    days = [str(date(2012, 3, 1) + timedelta(n)) for n in range(0, 900, 7)]
    ordinals = [whole.bricks.ordinal_of_key(date.fromisoformat(day)) for day in days]  # type: ignore[attr-defined]
    _agree(Table("k Date", "VALUES " + ",".join(f"('{day}')" for day in days)), bricks, ordinals, shards)


@pytest.mark.parametrize(
    ("column", "bricks", "shards"),
    [
        ("UInt64", {"class": "number", "last": 3_000_000}, 7),
        ("Nullable(Int128)", {"class": "number", "last": 3_000_000, "width": 100}, 3),
        ("Nullable(UInt32)", {"class": "number", "last": 3_000_000, "width": 3, "level": "block"}, 2),
        ("UInt16", {"class": "number", "first": 20_000, "last": 3_000_000}, 4),
        ("String", {"class": "text", "base": 10}, 3),
        ("LowCardinality(Nullable(String))", {"class": "text", "digit": "integer", "level": "block"}, 8),
    ],
)
def test_ids_and_texts_are_dealt_the_same_in_sql(column: str, bricks: dict[str, Any], shards: int) -> None:
    rng = random.Random(column)
    keys = [rng.randrange(20_000, 60_000) for _ in range(1000)]
    table = Table(f"k {column}", "VALUES " + ",".join(f"({key!r})" for key in keys))
    numbered = Bricks(**bricks).brick_class()
    if bricks["class"] == "text":
        ordinals = [numbered.ordinal_of_key(str(key)) for key in keys]  # type: ignore[attr-defined]
    else:
        ordinals = [key // bricks.get("width", 10_000) for key in keys]
    _agree(table, bricks, ordinals, shards)


def test_rows_in_no_brick_are_counted_by_the_first_shard_alone() -> None:
    table = Table(
        "k Nullable(Int64)", "VALUES (NULL), (-5), (-10001), (5), (10005), (20005), (30005), (50005), (60005)"
    )
    feed = table.feed(0, key="k", bricks={"class": "number", "first": 10_000, "last": 49_999}, stream={"shards": 2})
    first, second = (source_of(part).census() for part in streams_of(feed))
    assert first.unassigned == {"null": 1, "negative": 2, "before": 1, "beyond": 2}
    assert sum(second.unassigned.values()) == 0
    assert (set(first.bricks), set(second.bricks)) == ({2}, {1, 3})


def test_a_shard_is_sealed_by_rows_and_hours_of_the_others() -> None:
    ids = Feed(name="ids", table="t", key="k", bricks={"class": "number", "last": 99_999}, stream={"shards": 3})
    # Brick 4 still grows: it is in shard 1, and the next bricks of shards 0 and 2 are 6 and 5.
    found = [seal(part, part.partitions.first, 45_000, 0) for part in streams_of(ids)]
    assert [one.open for one in found if isinstance(one, Seal)] == [6, 4, 5]
    assert seal(streams_of(ids)[2], 8, 92_000, 0) == Seal(None)
    hours = Feed(
        name="hours",
        table="t",
        key="k",
        bricks={"class": "time", "first": "2013-01-01", "last": "2013-01-01", "settle_s": 60},
        stream={"shards": 5},
    )
    now = datetime(2013, 1, 1, 7, 1, tzinfo=timezone.utc).timestamp()
    found = [seal(part, part.partitions.first, None, now) for part in streams_of(hours)]
    opens = sorted(hours.partitions.name(one.open) for one in found if isinstance(one, Seal) and one.open is not None)
    assert opens == [f"2013.01.01.{hour:02}" for hour in (7, 8, 9, 10, 11)]
    over = datetime(2013, 1, 1, 22, 1, tzinfo=timezone.utc).timestamp()
    assert sum(seal(part, 0, None, over) == Seal(None) for part in streams_of(hours)) == 3
