"""The oldest ClickHouse that feeds are read from, and a newer one: the same bytes and counts as from the newest."""

from collections.abc import Iterator
from typing import Any

import pytest

from ucs_pipeline.clickhouse.client import EmbeddedEngine, HttpEngine
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.sensors.sealed import Seal, seal
from ucs_pipeline_tests.servers.old_clickhouse import old_clickhouse

COLUMNS = {
    "number": "number",
    "wide": "-toInt256(number)",
    "float": "number / 7",
    "narrow": "[toFloat32(number / 3), nan]",
    "decimal": "toDecimal64(number / 8, 4)",
    "time": "toDateTime(number * 1000, 'Europe/Berlin')",
    "exact": "toDateTime64(number / 3, 3, 'Asia/Tokyo')",
    "day": "toDate(number % 1000)",
    "maybe": "if(number % 5 = 0, NULL, unhex(hex(number)))",
    "word": "toLowCardinality(toString(number % 3))",
    "fixed": "toFixedString(toString(number % 100), 3)",
    "bool": "number % 2 = 1",
    "true": "number % 2 = 1 ? true : false",
    "map": "map('k', toDateTime(number))",
    "tuple": "tuple(number, 'x')",
    "uuid": "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')",
    "address": "toIPv4('1.2.3.4')",
    "enum": "CAST(number % 2 + 1, 'Enum8(\\'one\\' = 1, \\'two\\' = 2)')",
}
FEEDS: tuple[dict[str, Any], ...] = (
    {"key": "number", "bricks": {"class": "number", "last": 49_999}},
    {"key": "toDateTime(number)", "bricks": {"class": "time", "first": "1970-01-01", "last": "1970-01-02"}},
    {"key": "toString(number)", "bricks": {"class": "text"}},
)


# Releases of chDB, and what ClickHouse their engines are.
@pytest.fixture(scope="module", params=[("2.1.1", "24.8."), ("3.7.2", "25.8.")], ids=["24.8", "25.8"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpEngine]:
    wheel, version = request.param
    with old_clickhouse(wheel, tmp_path_factory.mktemp("old")) as url:
        found = HttpEngine(url)
        [row] = found.rows("SELECT version() AS version", {}, str)
        assert row["version"].startswith(version)
        yield found


@pytest.mark.parametrize("settings", FEEDS, ids=["number", "time", "text"])
def test_an_older_engine_gives_the_bytes_and_counts_of_the_newest(
    settings: dict[str, Any],
    engine: HttpEngine,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path_factory.mktemp("home")))
    feed = Feed(name="feed", table="numbers(25000)", columns=COLUMNS, **settings)
    old, new = Source(feed, engine), Source(feed, EmbeddedEngine())
    assert _bytes(old) == _bytes(new)
    assert old.census() == new.census()
    assert not old.has_rows_beyond()
    first, last = feed.ordinals[0], feed.ordinals[-1]
    assert old.count(first, last) == new.count(first, last)


def test_what_seals_a_brick_is_found_on_an_older_engine(engine: HttpEngine) -> None:
    source = Source(Feed(name="feed", table="numbers(25000)", **FEEDS[0]), engine)
    assert [source.newest_key(ordinal) for ordinal in (0, 2, 3)] == [24_999, 24_999, None]
    found = seal(source.feed, 0, source.newest_key(0), 0)
    assert isinstance(found, Seal)
    assert found.open == 2


def test_every_column_and_a_refusal_are_those_of_the_newest(engine: HttpEngine) -> None:
    feed = Feed(name="feed", table="numbers(3)", **FEEDS[0])
    assert [column.field for column in Source(feed, engine).shape().columns] == ["number"]
    wrong = Feed(name="feed", table="nope", **FEEDS[0])
    with pytest.raises(
        SourceError, match=r"feed 'feed': ClickHouse refused the query with UNKNOWN_TABLE: .*\. Check the"
    ):
        Source(wrong, engine).shape()


def test_a_value_of_the_moment_is_refused_though_the_engine_does_not_call_it_so(engine: HttpEngine) -> None:
    feed = Feed(name="feed", table="numbers(3)", columns={"id": "number", "at": "now64()"}, **FEEDS[0])
    with pytest.raises(SourceError, match="field 'at' uses now64, whose value may differ each time"):
        Source(feed, engine).shape()


def _bytes(source: Source) -> bytes:
    ordinals = source.feed.ordinals
    found = encode(b"s", source.scan(ordinals[0], ordinals[-1]))
    return b"".join(bytes(entries.requests.rows(0, entries.count)) for entries in found)
