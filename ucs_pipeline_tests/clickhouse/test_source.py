"""Tables read in order, whole and the same from a server and from the embedded engine; refusals a user can act on."""

import http.client
import os
import random
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import clickhouse_connect
import pytest

from ucs_pipeline.clickhouse import client
from ucs_pipeline.clickhouse.client import EmbeddedEngine, Engine, HttpEngine, _Tail
from ucs_pipeline.clickhouse.embedded import embedded_connection
from ucs_pipeline.clickhouse.errors import ADDRESS
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.clickhouse.sql.row_payload import integer_limits
from ucs_pipeline.entries.encode import Entries, encode
from ucs_pipeline.errors import SourceError, SourceUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.support.connections import CLICKHOUSE_URL, open_source
from ucs_pipeline_tests.support.home import PROJECT

PASSWORD = "secret"
_numbers = count()


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@dataclass
class Place:
    """A ClickHouse to read from, and a way to change its tables."""

    engine: Engine
    run: Callable[[str], object]

    def table(self, columns: str, *inserts: str, engine: str = "MergeTree ORDER BY tuple()") -> str:
        """A new table."""
        name = f"source_{next(_numbers)}"
        self.run(f"CREATE TABLE {name} ({columns}) ENGINE = {engine}")
        for rows in inserts:
            self.run(f"INSERT INTO {name} {rows}")
        return name

    def source(self, table: str, **more: Any) -> Source:
        """A feed over it, keyed by `id` by default."""
        return Source(_feed(table, **more), self.engine)

    def read(self, table: str, **more: Any) -> list[dict[bytes, bytes]]:
        """The rows of such a feed as entries, in order."""
        return _entries(self.source(table, **more))


def _feed(table: str, **more: Any) -> Feed:
    return Feed(**{"name": "feed", "table": table, "key": "id", "bricks": {"class": "number", "last": 999_999}, **more})


def _encoded(source: Source) -> list[Entries]:
    ordinals = source.feed.ordinals
    return list(encode(b"s", source.scan(ordinals[0], ordinals[-1])))


def _bytes(source: Source) -> bytes:
    """Every request of a feed: what Redis would be sent."""
    return b"".join(bytes(entries.requests.rows(0, entries.count)) for entries in _encoded(source))


def _entries(source: Source) -> list[dict[bytes, bytes]]:
    return [fields for entries in _encoded(source) for fields in entries.fields(0, entries.count).values()]


def _keys(source: Source) -> list[int | str]:
    key = source.feed.partitions.bricks.reported
    return [key(entries.key(index)) for entries in _encoded(source) for index in range(entries.count)]


@pytest.fixture(scope="module")
def embedded(_home: None) -> Place:
    return Place(EmbeddedEngine(), embedded_connection().query)


@pytest.fixture(scope="module")
def server(clickhouse_http: ClickHouseServer) -> Iterator[Place]:
    client = clickhouse_connect.get_client(dsn=clickhouse_http.url, autogenerate_session_id=False)
    yield Place(HttpEngine(clickhouse_http.url), client.command)
    client.close()


@pytest.fixture(params=["server", "embedded"])
def place(request: pytest.FixtureRequest, clickhouse_http: ClickHouseServer) -> Place:
    clickhouse_http.clear_faults()
    found: Place = request.getfixturevalue(request.param)
    return found


def test_server_and_embedded_engine_give_the_same_bytes(server: Place, embedded: Place) -> None:
    columns = (
        "id UInt64, f Float64, d Decimal(18, 4), t DateTime('Europe/Berlin'), s Nullable(String), a Array(Float32), "
        "l LowCardinality(Nullable(String)), m Map(String, DateTime), b Bool, i Int256, x FixedString(3)"
    )
    rows = (
        "SELECT intDiv(number, 3), number / 7, number / 8, toDateTime(number * 1000), "
        "if(number % 5 = 0, NULL, unhex(hex(number))), [number / 3, nan], toString(number % 3), "
        "map('k', toDateTime(number)), number % 2, -number, toString(number % 100) FROM numbers(30000)"
    )
    one, other = (_bytes(place.source(place.table(columns, rows))) for place in (server, embedded))
    assert one == other
    assert one.count(b"XADD") == 30_000


HOSTILE = [
    *("a`b", "x'; DROP TABLE t", "count()", "with space", "日本 ü", "back\\slash", 'quo"te', "1", "a.b"),
    *("_ucs_key", "_ucs_0"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_column_of_any_name_is_taken_as_that_column(name: str, place: Place) -> None:
    table = place.table(f"id UInt32, {sql.quote(name)} String, other UInt8", "VALUES (5, 'here', 1)")
    assert place.read(table) == [{b"id": b"5", name.encode(): b"here", b"other": b"1"}]
    assert place.read(table, columns={"f": name}) == [{b"f": b"here"}]
    assert place.read(table, columns={name: "other"}) == [{name.encode(): b"1"}]


@pytest.mark.parametrize("name", [*HOSTILE, "ordinal", "rows", "key", "payload", "arguments", "first"])
def test_a_key_column_of_any_name_numbers_the_rows(name: str, place: Place) -> None:
    table = place.table(f"{sql.quote(name)} UInt32", "SELECT number * 5000 FROM numbers(4)")
    source = place.source(table, key=name)
    assert _keys(source) == [0, 5000, 10_000, 15_000]
    assert source.count(0, 99) == {0: 2, 1: 2}


def test_columns_with_the_names_of_the_scan_itself_keep_their_values(place: Place) -> None:
    names = ["key", "ordinal", "arguments", "payload", "rows", "_ucs_key", "_ucs_0", "_ucs_1"]
    values = ", ".join(map(str, range(1, len(names) + 1)))
    table = place.table("id UInt32, " + ", ".join(f"{name} UInt8" for name in names), f"VALUES (0, {values})")
    source = place.source(
        table, columns={name: name for name in names}, where="rows = 5 AND _ucs_key = 6 AND ordinal = 2"
    )
    assert _entries(source) == [{name.encode(): b"%d" % n for n, name in enumerate(names, 1)}]
    assert source.count(0, 0) == {0: 1}


def test_tables_of_any_name_in_any_database(place: Place) -> None:
    for database, name in (("my db", "my`table"), ("d-b", "x'; DROP TABLE t")):
        place.run(f"CREATE DATABASE IF NOT EXISTS {sql.quote(database)}")
        whole = f"{sql.quote(database)}.{sql.quote(name)}"
        place.run(f"CREATE OR REPLACE TABLE {whole} (id UInt8) ENGINE = Memory")
        place.run(f"INSERT INTO {whole} VALUES (7)")
        assert place.read(f"{database}.{name}") == [{b"id": b"7"}]
        assert place.read(whole) == [{b"id": b"7"}]


def test_a_mapping_may_swap_columns_and_use_expressions(place: Place) -> None:
    table = place.table("id UInt32, a String, b String", "VALUES (1, 'x', 'y')")
    columns = {"a": "b", "b": "a", "id": "concat(a, '-', b) -- both", "sum": "id + 1", "none": "NULL"}
    assert place.read(table, columns=columns) == [{b"a": b"y", b"b": b"x", b"id": b"x-y", b"sum": b"2"}]


@pytest.mark.parametrize(
    "where", ["id > 1", "id > 1 -- a comment", "id = 0 OR id > 1", "id IN (2, 3) /* x */", "id>1 # x"]
)
def test_where_leaves_rows_out_of_scan_and_count(where: str, place: Place) -> None:
    table = place.table("id UInt32", "SELECT number FROM numbers(4)")
    source = place.source(table, where=where)
    expected = [0, 2, 3] if "OR" in where else [2, 3]
    assert _keys(source) == expected
    assert source.count(0, 9) == {0: len(expected)}


def test_a_where_that_escapes_its_parentheses_is_caught(place: Place) -> None:
    table = place.table("id UInt32", "SELECT number * 10000 FROM numbers(4)")
    with pytest.raises(
        SourceError, match=r"feed 'feed': a query of 0\.0\.0\.1\.\.\.0\.0\.0\.2 returned rows of 0\.0\.0\.0.*`where`"
    ):
        list(place.source(table, where="1) OR (1").scan(1, 2))


def test_final_merges_what_a_replacing_table_still_holds_twice(place: Place) -> None:
    table = place.table(
        "id UInt32, v String",
        "VALUES (1, 'old'), (2, 'only')",
        "VALUES (1, 'new')",
        engine="ReplacingMergeTree ORDER BY id",
    )
    merged = place.source(table, final=True)
    assert [fields[b"v"] for fields in _entries(merged)] == [b"new", b"only"]
    assert merged.count(0, 0) == {0: 2}
    assert place.source(table).count(0, 0) == {0: 3}


def test_settings_of_a_feed_reach_its_queries(place: Place) -> None:
    table = place.table("id UInt32", "SELECT number FROM numbers(1000)")
    small = list(place.source(table, settings={"max_block_size": 100, "max_threads": 1}).scan(0, 0))
    assert max(batch.num_rows for batch in small) <= 100
    columns = {"s": "getSetting('max_rows_in_join')"}
    assert place.read(table, columns=columns, settings={"max_rows_in_join": 77}, where="id = 0") == [{b"s": b"77"}]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_rows_to_read": 5000},
        {"max_result_rows": 100},
        {"max_rows_to_sort": 100},
    ],
)
def test_a_limit_that_is_exceeded_is_an_error_whatever_the_profile_says(settings: dict[str, int], place: Place) -> None:
    table = place.table("id UInt32", "SELECT number FROM numbers(100000)")
    with pytest.raises(SourceError, match=r"feed 'feed': ClickHouse refused the query with TOO_MANY_ROWS"):
        _encoded(place.source(table, settings=settings))


def test_what_text_looks_like_does_not_depend_on_the_profile(embedded: Place) -> None:
    connection = embedded_connection()
    connection.query("SET bool_true_representation = 'yes', date_time_output_format = 'unix_timestamp'")
    connection.query("SET output_format_json_quote_64bit_integers = 1, output_format_decimal_trailing_zeros = 1")
    connection.query("SET session_timezone = 'Asia/Tokyo', limit = 1, output_format_arrow_string_as_string = 1")

    class Fixed(EmbeddedEngine):
        def _connect(self) -> Any:
            return connection

    columns = {
        "b": "id > 0",
        "c": "true",
        "t": "toDateTime(id)",
        "a": "[toUInt64(id)]",
        "d": "toDecimal32(id, 3)",
        "ts": "[toDateTime(id, 'UTC')]",
    }
    table = embedded.table("id UInt32", "VALUES (0), (1)")
    found = _entries(Source(_feed(table, columns=columns), Fixed()))
    assert found[1] == {
        b"b": b"1",
        b"c": b"true",
        b"t": b"1970-01-01T00:00:01+00:00",
        b"a": b"[1]",
        b"d": b"1",
        b"ts": b'["1970-01-01T00:00:01Z"]',
    }


def test_every_column_means_what_select_star_means(place: Place) -> None:
    table = place.table(
        "id UInt8, e UInt8 EPHEMERAL, a UInt8 ALIAS id + 1, m UInt8 MATERIALIZED id + 2", "(id, e) VALUES (1, 2)"
    )
    # As SELECT * has it.
    assert place.read(table) == [{b"id": b"1"}]
    assert place.read(table, columns={"a": "a", "m": "m"}) == [{b"a": b"2", b"m": b"3"}]


def test_the_census_is_the_sum_of_the_scan(place: Place) -> None:
    columns = "id Int64, s Nullable(String), f Float64, t DateTime('Asia/Tokyo'), b Bool, a Array(Float32)"
    rows = "SELECT number * 7, if(number % 5 = 0, NULL, toString(number)), number / 7, number, number % 2, [number / 3]"
    source = place.source(place.table(columns, f"{rows} FROM numbers(5000)"), where="id % 3 != 0")
    found = source.census()
    assert sum(content.rows for content in found.bricks.values()) == len(_keys(source)) == 3333
    assert {ordinal: content.rows for ordinal, content in found.bricks.items()} == source.count(0, 99)
    assert {ordinal: content.hash for ordinal, content in found.bricks.items()} == _hashes(source)
    assert set(found.unassigned.values()) == {0}


def _hashes(source: Source) -> dict[int, int]:
    sums: dict[int, int] = {}
    for entries in _encoded(source):
        for segment in entries.segments:
            ordinal = segment.first.ordinal
            sums[ordinal] = (sums.get(ordinal, 0) + entries.content_hash(segment.start, segment.stop)) % 2**64
    return sums


def test_the_census_is_the_same_from_a_server_and_from_the_embedded_engine(server: Place, embedded: Place) -> None:
    columns, rows = (
        "id UInt32, f Float32, t DateTime",
        "SELECT number * 100, number / 3, number * 1000 FROM numbers(999)",
    )
    one, other = (place.source(place.table(columns, rows)).census() for place in (server, embedded))
    assert one == other
    assert len(one.bricks) == 10


def test_the_census_counts_rows_outside_the_list_by_place_and_looks_at_their_keys_only(place: Place) -> None:
    table = place.table(
        "id Nullable(Int64), v String",
        "VALUES (10000, '1'), (29999, '2')",
        "VALUES (NULL, 'x'), (NULL, 'x'), (-1, 'x'), (9999, 'x'), (30000, 'x'), (40000, 'x')",
    )
    # Of a row outside, the value could not be read as a number.
    source = place.source(
        table, columns={"v": "toUInt8(v)"}, bricks={"class": "number", "first": 10_000, "last": 29_999}
    )
    found = source.census()
    assert {ordinal: content.rows for ordinal, content in found.bricks.items()} == {1: 1, 2: 1}
    assert found.unassigned == {"null": 2, "negative": 1, "before": 1, "beyond": 2}
    assert {ordinal: content.hash for ordinal, content in found.bricks.items()} == _hashes(source)


@pytest.mark.parametrize("name", [*HOSTILE, "place", "ordinal", "rows", "hash", "payload"])
def test_the_census_takes_a_column_of_any_name_as_that_column(name: str, place: Place) -> None:
    table = place.table(f"{sql.quote(name)} Int32, place2 String", "SELECT (number - 1) * 5000, 'v' FROM numbers(4)")
    source = place.source(table, key=name, where=f"{sql.quote(name)} < 7000")
    found = source.census()
    assert {ordinal: content.rows for ordinal, content in found.bricks.items()} == {0: 2}
    assert found.unassigned["negative"] == 1
    assert found.bricks[0].hash == _hashes(source)[0]


def test_the_census_merges_what_a_replacing_table_still_holds_twice(place: Place) -> None:
    rows = ("VALUES (1, 'old')", "VALUES (1, 'new')")
    table = place.table("id UInt32, v String", *rows, engine="ReplacingMergeTree ORDER BY id")
    assert place.source(table).census().bricks[0].rows == 2
    merged = place.source(table, final=True)
    assert merged.census().bricks[0] == (1, _hashes(merged)[0])


def test_the_engine_of_a_table_is_known_unless_it_is_none(place: Place) -> None:
    table = place.table("id UInt32", "VALUES (1)", engine="ReplacingMergeTree ORDER BY id")
    source = place.source(table)
    assert source.engine() == "ReplacingMergeTree"
    assert "is a ReplacingMergeTree read without FINAL" in (source.warning() or "")
    assert place.source(table, final=True).warning() is None
    assert place.source(f"default.{table}").engine() == "ReplacingMergeTree"
    assert place.source("numbers(3)").engine() is None


INTEGERS = [f"{sign}Int{bits}" for bits in (8, 16, 32, 64, 128, 256) for sign in ("", "U")]


@pytest.mark.parametrize("wrapper", ["{}", "Nullable({})", "LowCardinality({})"])
@pytest.mark.parametrize("name", INTEGERS)
def test_a_key_of_any_integer_type_numbers_the_rows(name: str, wrapper: str, embedded: Place) -> None:
    if wrapper.startswith("Low") and int(name.split("t")[-1]) > 64:
        pytest.skip("ClickHouse has no such type")
    low, high = integer_limits(name) or (0, 0)
    first = min(high, 2**64 * 10_000 - 10_005)
    keys = sorted({key for key in (low, -1, 0, 1, 100, 9_999, 10_000, first) if low <= key <= high})
    values = ", ".join(f"('{key}')" for key in keys) + (", (NULL)" if wrapper.startswith("Null") else "")
    embedded.run("SET allow_suspicious_low_cardinality_types = 1")
    table = embedded.table(f"id {wrapper.format(name)}", f"VALUES {values}")
    near = embedded.source(table)
    expected = [key for key in keys if 0 <= key < 1_000_000]
    assert _keys(near) == expected
    assert sum(near.count(0, 99).values()) == len(expected)
    far = embedded.source(table, bricks={"class": "number", "first": first, "last": first})
    ordinal = first // 10_000
    assert first in _keys(far)
    [entries] = _encoded(far)
    assert entries.segments[-1].first.ordinal == ordinal
    assert far.count(ordinal, ordinal) == {ordinal: sum(key // 10_000 == ordinal for key in keys)}
    assert {number: content.hash for number, content in far.census().bricks.items()} == _hashes(far)
    assert far.census().unassigned == {
        "null": int(wrapper.startswith("Null")),
        "negative": sum(key < 0 for key in keys),
        "before": sum(0 <= key < ordinal * 10_000 for key in keys),
        "beyond": sum(key >= ordinal * 10_000 + 10_000 for key in keys),
    }


def test_bricks_beyond_the_type_of_the_key_are_empty(place: Place) -> None:
    source = place.source(place.table("id UInt8", "VALUES (1), (255)"))
    assert list(source.scan(1, 5)) == []
    assert source.count(1, 5) == {}
    assert source.count(0, 5) == {0: 2}
    far = place.source(source.feed.table, bricks={"class": "number", "first": 10_000, "last": 20_000}).census()
    assert far.bricks == {}
    assert far.unassigned == {"null": 0, "negative": 0, "before": 2, "beyond": 0}


def test_an_expression_may_be_the_key(place: Place) -> None:
    table = place.table("id String", "VALUES ('30001'), ('20000'), ('x'), ('-5')")
    source = place.source(table, key="toInt64OrNull(id)", columns={"id": "id"})
    assert [fields[b"id"] for fields in _entries(source)] == [b"20000", b"30001"]
    assert source.count(0, 9) == {2: 1, 3: 1}


@pytest.mark.parametrize("kind", ["String", "Float64", "Nullable(Date)", "Decimal(9, 0)", "LowCardinality(String)"])
def test_a_key_that_is_no_integer_is_refused(kind: str, place: Place) -> None:
    table = place.table(f"id {kind}")
    with pytest.raises(SourceError) as refusal:
        place.source(table).shape()
    _sentence(refusal, "feed 'feed': key 'id' has type ", "expected an integer type", "convert it in the expression")


def test_rows_come_in_one_order_whatever_the_engine_does(place: Place) -> None:
    columns = (
        "id UInt32, f Float64, g Array(Float32), m Map(String, UInt8), n Nullable(String), t Tuple(UInt8, Float32)"
    )
    words = ["NULL", "'x'", "''"]
    rows = [
        f"({n % 3}, {zero}, [{zero}, {n % 2}], map('{'ab'[n % 2]}', 1), {words[n % 3]}, ({n % 2}, {zero}))"
        for n in range(40)
        for zero in ("0.0", "-0.0", "nan")
    ]
    seen = set()
    for seed, settings in enumerate(
        ({"max_threads": 1}, {"max_threads": 4, "max_block_size": 7}, {"max_block_size": 50})
    ):
        shuffled = random.Random(seed).sample(rows, len(rows))
        half = len(rows) // 2
        table = place.table(columns, "VALUES " + ", ".join(shuffled[:half]), "VALUES " + ", ".join(shuffled[half:]))
        for _ in range(2):
            seen.add(_bytes(place.source(table, settings=settings)))
    assert len(seen) == 1


def test_a_table_sorted_by_the_key_is_read_in_order_and_its_text_is_made_after_the_sort(place: Place) -> None:
    table = place.table(
        "id UInt64, f Float64, w Nullable(String)",
        "SELECT number, 1, 'x' FROM numbers(50000)",
        engine="MergeTree ORDER BY id",
    )
    shape = place.source(table).shape()
    within = shape.keys.within(shape.key, 0, 9)
    assert within
    query = sql.scan(shape, within).replace("{first:UInt64}", "0").replace("{last:UInt64}", "99999")
    explained = place.engine.rows(f"EXPLAIN PLAN actions = 1, pretty = 0, compact = 0 {query}", {}, str)
    plan = "\n".join(next(iter(row.values())) for row in explained)
    assert "ReadType: InOrder" in plan
    above, below = plan.split("Sorting", 1)
    assert "concat" in above
    assert "concat" not in below


def _sentence(error: pytest.ExceptionInfo[SourceError], *parts: str) -> None:
    text = str(error.value)
    assert text.startswith("feed 'feed': ")
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"table": "nope"}, ["UNKNOWN_TABLE", "nope", "Check the feed's `table`"]),
        ({"table": "nope.rows"}, ["UNKNOWN_DATABASE", "nope", ADDRESS]),
        ({"columns": {"a": "nope"}}, ["UNKNOWN_IDENTIFIER", "nope", "Check the feed's `key`, `columns`"]),
        ({"key": "nope"}, ["UNKNOWN_IDENTIFIER", "nope", "Check the feed's `key`, `columns`"]),
        ({"where": "nope = 1"}, ["UNKNOWN_IDENTIFIER", "nope", "`where`"]),
        ({"where": "id >"}, ["SYNTAX_ERROR", "Check the SQL expressions"]),
        ({"columns": {"a": "nope(id)"}}, ["UNKNOWN_FUNCTION", "nope", "Check the functions"]),
        ({"settings": {"nope": 1}}, ["UNKNOWN_SETTING", "nope", "Check the feed's `settings`"]),
        ({"table": "file('pyproject.toml', Parquet)"}, ["STRUCTURE: Not a Parquet file (wrong magic bytes"]),
        ({"table": "file('n/o.parquet')"}, ["STAT: Cannot", "n/o.parquet: No such file or directory. Check the path"]),
        ({"table": "file('n/o*.parquet')"}, ["no files with provided path. Check the path or address in the feed's"]),
        ({"table": "file('n/o', CSV, 'id Int8')"}, ["n/o doesn't exist", "Check the path in the feed's `table`"]),
        ({"constants": {"id": "x"}}, ["field 'id' is both a column", "rename the constant"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_feed_is_said_in_one_sentence(
    change: dict[str, Any], parts: list[str], place: Place
) -> None:
    table = place.table("id UInt32", "VALUES (1)")
    with pytest.raises(SourceError) as refusal:
        _encoded(place.source(**{"table": table, **change}))
    assert not isinstance(refusal.value, SourceUnavailableError)
    _sentence(refusal, *parts)


def test_a_relative_path_counts_from_where_the_process_was_started(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1\n2\n")
    program = (
        "from ucs_pipeline.clickhouse.source import EmbeddedEngine\n"
        "print(EmbeddedEngine().rows(\"SELECT count() AS n FROM file('rows.csv')\", {}, str))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "[{'n': 2}]\n"


@pytest.mark.parametrize(
    ("url", "kind", "parts"),
    [
        ("http://tester:{}@127.0.0.1:1/default", SourceUnavailableError, ["refused", f"Check {ADDRESS}"]),
        ("http://tester:{}@nobody.invalid:8123/x", SourceUnavailableError, ["nobody.invalid", f"Check {ADDRESS}"]),
        ("http://tester:{}/x@127.0.0.1:1/default", SourceError, [f"{ADDRESS} is not a ClickHouse URL"]),
        ("http://tester:{}@127.0.0.1:1/default?nope=1", SourceError, [f"{ADDRESS} is not a ClickHouse URL"]),
        ("tester:{}@127.0.0.1:8123", SourceError, [f"{ADDRESS} is not a ClickHouse URL"]),
    ],
)  # fmt: skip
def test_a_server_that_is_not_there_is_named_without_the_password(
    url: str, kind: type[SourceError], parts: list[str]
) -> None:
    password = os.urandom(8).hex()
    with pytest.raises(SourceError) as refusal:
        _encoded(Source(_feed("rows"), HttpEngine(url.format(password))))
    assert type(refusal.value) is kind
    _sentence(refusal, *parts)
    assert password not in "".join(traceback.format_exception(refusal.value))


def test_a_wrong_password_or_database_is_named_without_the_password(clickhouse_http: ClickHouseServer) -> None:
    wrong = os.urandom(8).hex()
    with pytest.raises(SourceError) as refusal:
        _encoded(Source(_feed("rows"), HttpEngine(clickhouse_http.url.replace(PASSWORD, wrong))))
    _sentence(refusal, "AUTHENTICATION_FAILED", f"Check user and password in {ADDRESS}")
    assert wrong not in "".join(traceback.format_exception(refusal.value))
    with pytest.raises(SourceError) as refusal:
        _encoded(Source(_feed("rows"), HttpEngine(clickhouse_http.url.replace("/default", "/nope"))))
    _sentence(refusal, "UNKNOWN_DATABASE", "nope", ADDRESS)


@pytest.fixture
def long_source(clickhouse_http: ClickHouseServer, server: Place) -> Source:
    clickhouse_http.clear_faults()
    table = server.table("id UInt32, w String", "SELECT number, toString(number) FROM numbers(100000)")
    source = server.source(table)
    source.shape()
    return source


@pytest.fixture
def body_bytes(long_source: Source, monkeypatch: pytest.MonkeyPatch) -> int:
    sizes: list[int] = []
    read = _Tail.read

    def counted(body: _Tail, size: int = -1) -> bytes:
        data = read(body, size)
        sizes.append(len(data))
        return data

    with monkeypatch.context() as patch:
        patch.setattr(_Tail, "read", counted)
        _encoded(long_source)
    return sum(sizes)


@pytest.mark.parametrize("cut", ["first byte", "anywhere", "anywhere again", "in the end mark", "last byte"])
def test_a_scan_cut_anywhere_is_never_the_end_of_the_table(
    cut: str, body_bytes: int, long_source: Source, clickhouse_http: ClickHouseServer
) -> None:
    places = {"first byte": 0, "in the end mark": body_bytes - 8, "last byte": body_bytes - 1}
    clickhouse_http.fault(cut_after_bytes=places.get(cut, random.randrange(body_bytes)))
    with pytest.raises(SourceUnavailableError, match=r"^feed 'feed': (the scan ended early|ClickHouse cannot be read)"):
        _encoded(long_source)
    assert sum(entries.count for entries in _encoded(long_source)) == 100_000


def test_a_scan_that_ends_without_its_mark_is_not_complete(
    long_source: Source, clickhouse_http: ClickHouseServer
) -> None:
    for batches in (0, 1, 3):
        clickhouse_http.fault(cut_clean_after_batches=batches)
        with pytest.raises(SourceUnavailableError):
            _encoded(long_source)


@pytest.mark.parametrize("tagged", [0, 1])
def test_an_exception_in_mid_stream_is_passed_on(
    tagged: int, long_source: Source, clickhouse_http: ClickHouseServer
) -> None:
    clickhouse_http.fault(exception_after_batches=2, tagged=tagged)
    with pytest.raises(SourceUnavailableError) as refusal:
        _encoded(long_source)
    _sentence(refusal, "MEMORY_LIMIT_EXCEEDED", "Memory limit (total) exceeded")


@pytest.mark.parametrize("at", [0, 60_000, 99_999])
@pytest.mark.parametrize("setting", ["where", "columns"])
def test_a_query_that_fails_half_way_fails_for_good(setting: str, at: int, place: Place) -> None:
    table = place.table(
        "id UInt32, w String", "SELECT number, 'x' FROM numbers(100000)", engine="MergeTree ORDER BY id"
    )
    failing = {"where": f"throwIf(id = {at}) = 0"} if setting == "where" else {"columns": {"a": f"throwIf(id = {at})"}}
    with pytest.raises(SourceError) as refusal:
        _encoded(place.source(table, **failing))
    # Reading again would not help.
    assert type(refusal.value) is SourceError
    _sentence(refusal, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO")
    # What the failed scan left behind does not get into the next one.
    assert len(_keys(place.source(table))) == 100_000


def test_a_busy_server_is_worth_another_try(long_source: Source, clickhouse_http: ClickHouseServer) -> None:
    clickhouse_http.fault(fail_next=20)
    with pytest.raises(SourceUnavailableError) as refusal:
        _encoded(long_source)
    clickhouse_http.clear_faults()
    _sentence(refusal, "503")
    assert sum(entries.count for entries in _encoded(long_source)) == 100_000


QUOTA = """<clickhouse><profiles><default/></profiles><quotas><default><interval><duration>86400</duration>
<result_rows>30000</result_rows></interval></default></quotas><users><default><password/><networks><ip>::/0</ip></networks>
<profile>default</profile><quota>default</quota></default></users><user_directories><users_xml><path>{path}</path>
</users_xml></user_directories></clickhouse>"""


def test_a_quota_that_is_used_up_is_worth_another_try(tmp_path: Path) -> None:
    path = tmp_path / "server.xml"
    path.write_text(QUOTA.format(path=path))
    with ClickHouseServer(path=f"{tmp_path / 'data'}?config-file={path}") as server:
        source = Source(_feed("numbers(60000)", key="number"), HttpEngine(server.url))
        with pytest.raises(SourceUnavailableError) as refusal:
            _encoded(source)
        _sentence(
            refusal, "QUOTA_EXCEEDED", "Raise the user's quota, or set `stream.timeout_s` above the quota's interval"
        )


def test_a_scan_may_be_left_and_others_run_beside_it(place: Place) -> None:
    table = place.table("id UInt32", "SELECT number FROM numbers(200000)", engine="MergeTree ORDER BY id")
    source = place.source(table)
    scan = source.scan(0, 99)
    next(scan)
    assert source.count(0, 0) == {0: 10_000}
    scan.close()
    assert len(_keys(source)) == 200_000


def test_the_count_leaves_out_bricks_without_rows(place: Place) -> None:
    table = place.table("id Int64", "VALUES (-5), (-20000), (0), (9999), (30000), (30000), (999999), (1000000)")
    assert place.source(table).count(0, 99) == {0: 2, 3: 2, 99: 1}
    assert place.source(table).count(1, 2) == {}


def test_an_https_url_is_spoken_over_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = [
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
    feed = _feed("numbers(3)", key="number")
    with ClickHouseServer(certfile=certificate, keyfile=key) as server:
        assert server.url.startswith("https:")
        trusting = HttpEngine(f"{server.url}?ca_cert={certificate}")
        assert _keys(Source(feed, trusting)) == [0, 1, 2]
        for url in (server.url, f"http{server.url.removeprefix('https')}"):
            with pytest.raises(SourceUnavailableError) as refusal:
                _encoded(Source(feed, HttpEngine(url)))
            _sentence(refusal, f"Check {ADDRESS}")
            assert PASSWORD not in str(refusal.value)


def test_the_environment_says_where_the_table_is(
    monkeypatch: pytest.MonkeyPatch, clickhouse_http: ClickHouseServer, server: Place
) -> None:
    table = server.table("id UInt32", "VALUES (42)")
    monkeypatch.setenv(CLICKHOUSE_URL, clickhouse_http.url)
    assert _keys(open_source(_feed(table))) == [42]
    monkeypatch.setenv(CLICKHOUSE_URL, "")
    with pytest.raises(SourceError, match="UNKNOWN_TABLE"):
        open_source(_feed(table)).shape()


MEMORY = """
import sys
from pathlib import Path
from ucs_pipeline.clickhouse.client import EmbeddedEngine
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.clickhouse.sql.row_payload import integer_limits
from ucs_pipeline.clickhouse.source import Source

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

feed = Feed(name="f", table="numbers(5000000)", key="number", columns={"v": "number % 10"},
                 bricks={"class": "number", "last": 4_999_999}, settings={"max_threads": 2})
rows, start = 0, 0
for entries in encode(b"s", Source(feed, EmbeddedEngine()).scan(0, 499)):
    rows += entries.count
    _ = entries.requests
    start = start or resident()
print(rows, resident() - start)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        env={**os.environ, "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    rows, megabytes = map(int, done.stdout.split())
    assert rows == 5_000_000
    assert megabytes < 200


def test_portions_with_more_rows_than_were_counted_are_all_read(
    embedded: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedEngine, "sorted_rows", 1)
    # Every other brick is empty.
    source = embedded.source(
        embedded.table("id UInt64", "SELECT number * 5000 + intDiv(number, 2) * 10000 FROM numbers(40)")
    )
    monkeypatch.setattr(source, "count", lambda first, last: dict.fromkeys(range(first, min(last, 38) + 1, 2), 1))
    assert _keys(source) == [number * 5_000 + number // 2 * 10_000 for number in range(40)]


@pytest.mark.parametrize("gone", ["5000", "15000", "35000"])
def test_a_scan_of_an_older_state_than_was_counted_is_refused_before_the_next_brick(gone: str, place: Place) -> None:
    table = place.table("id UInt64", "SELECT number * 5000 FROM numbers(8)")

    class Older(Source):
        """What it counts is newer than what it reads."""

        def count(self, first: int, last: int) -> dict[int, int]:
            counts = super().count(first, last)
            place.run(f"DELETE FROM {table} WHERE id = {gone}")
            return counts

    read: list[int] = []
    scan = encode(b"s", Older(_feed(table), place.engine).scan(0, 99))
    with pytest.raises(SourceUnavailableError) as refusal:
        read.extend(int(entries.key(row)) for entries in scan for row in range(entries.count))
    name = f"0.0.0.{int(gone) // 10_000}"
    _sentence(
        refusal, f"brick {name}: ClickHouse counted 2 rows, and the scan after that returned 1", "lagging replica"
    )
    assert not any(key >= (int(gone) // 10_000 + 1) * 10_000 for key in read)


class _Cache(BaseHTTPRequestHandler):
    """Answers a SELECT that it has seen before from memory, as a cache before ClickHouse does."""

    protocol_version = "HTTP/1.1"
    kept: dict[object, tuple[int, list[tuple[str, str]], bytes]]
    seen: list[str | None]
    target: int

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        """Keeps the test output quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bound = (pair for pair in parse_qsl(urlsplit(self.path).query) if pair[0].startswith("param_"))
        asked = (body, *bound)
        if asked not in self.kept:
            with closing(http.client.HTTPConnection("127.0.0.1", self.target)) as server:
                left_out = ("host", "accept-encoding")
                headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
                server.request("POST", self.path, body, headers)
                answer = server.getresponse()
                own = ("transfer-encoding", "content-length", "connection")
                shown = [header for header in answer.getheaders() if header[0].lower() not in own]
                self.kept[asked] = answer.status, shown, answer.read()
        self.seen.append(self.headers.get("Cache-Control"))
        status, shown, data = self.kept[asked]
        self.send_response(status)
        for header in (*shown, ("Content-Length", str(len(data)))):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(data)


def test_a_cache_before_clickhouse_repeats_no_answer(clickhouse_http: ClickHouseServer, server: Place) -> None:
    table = server.table("id UInt64", "SELECT number FROM numbers(6000)")
    handler = type("Cache", (_Cache,), {"kept": {}, "seen": [], "target": clickhouse_http.port})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as cache:
        thread = threading.Thread(target=cache.serve_forever, daemon=True)
        thread.start()
        engine = HttpEngine(clickhouse_http.url.replace(str(clickhouse_http.port), str(cache.server_port)))
        source = Source(_feed(table), engine)
        assert (len(_keys(source)), source.newest_key(0), source.count(0, 0)) == (6_000, 5_999, {0: 6_000})
        server.run(f"INSERT INTO {table} SELECT number + 6000 FROM numbers(2000)")
        assert (len(_keys(source)), source.newest_key(0), source.count(0, 0)) == (8_000, 7_999, {0: 8_000})
        assert source.census().bricks[0].rows == 8_000
        # The driver's own first questions come before.
        assert set(handler.seen[3:]) == {"no-cache, no-store"}  # type: ignore[attr-defined]
        cache.shutdown()
        thread.join()


def test_a_table_that_the_embedded_engine_does_not_have_is_refused_with_where_its_tables_come_from(
    embedded: Place,
) -> None:
    for table in ("nope", "shop.nope"):
        with pytest.raises(SourceError) as refusal:
            embedded.source(table).shape()
        _sentence(refusal, ".ucs/tables/<table>.parquet", ADDRESS)


def test_a_table_with_many_optional_columns_of_long_names_is_read(place: Place) -> None:
    columns = ", ".join(f"{'long' * 25}_{n} Nullable(UInt8)" for n in range(520))
    table = place.table(f"id UInt64, {columns}", "(id) VALUES (1)")
    assert _entries(place.source(table)) == [{b"id": b"1"}]


_KINDS = (
    *("UInt64", "String", "Nullable(String)", "Nullable(Float64)", "DateTime('UTC')", "Nullable(DateTime64(3))"),
    *("LowCardinality(Nullable(String))", "Decimal(18, 4)", "Array(UInt8)", "FixedString(3)", "Float32"),
)


def test_five_thousand_columns_of_any_kind_are_read(place: Place) -> None:
    columns = ", ".join(f"c{n} {_KINDS[n % len(_KINDS)]}" for n in range(5_000))
    values = "(id, c0, c2, c4996, c4999) VALUES (1, 7, NULL, 'last', 1), (1, 7, '', 'last', 2)"
    found = place.read(place.table(f"id UInt64, {columns}", values))
    optional = sum("Nullable" in _KINDS[n % len(_KINDS)] for n in range(5_000))
    # NULL comes last: c2 decides, ahead of c4999.
    assert [len(fields) for fields in found] == [5_001 - optional + given for given in (3, 2)]
    assert [fields[b"c4999"][17:19] for fields in found] == [b"02", b"01"]
    assert all(fields[b"c4996"] == b"last" for fields in found)


def test_columns_are_written_and_ordered_in_groups_as_they_are_all_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(_KINDS))
    kinds = range(len(_KINDS))
    texts = {4: "toDateTime(v4, 'UTC')", 5: "if(v5 = 0, NULL, toDateTime64(v5, 3))", 8: "[v8]", 9: "toString(v9)"}
    texts |= {10: "if(v10 = 0, -0., v10 = 1 ? 0. : nan)", 3: "if(v3 = 0, NULL, if(v3 = 1, -1., nan))"}
    values = ", ".join(
        texts.get(n, f"if(v{n} = 0, NULL, toString(v{n}))" if "Nullable" in _KINDS[n] else f"v{n}") for n in kinds
    )
    # Few values, so that rows differ in their last columns only, and all of them in no order.
    digits = ", ".join(f"cityHash64(number, {n}) % {1 + n % 4} AS v{n}" for n in kinds)
    table = place.table(
        f"id UInt64, {columns}", f"SELECT number % 3, {values} FROM (SELECT *, {digits} FROM numbers(3000))"
    )
    source = place.source(table, constants={"k": "v"})
    whole, census = _bytes(source), source.census()
    for group in (1, 4, len(_KINDS)):
        monkeypatch.setattr(sql, "_GROUP", group)
        assert _bytes(source) == whole
        assert source.census() == census


def test_a_query_that_is_too_long_for_the_user_is_refused_with_what_to_raise(
    embedded: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = embedded.table("id UInt64")
    monkeypatch.setattr(client, "_TEXT_LIMITS", {"max_query_size": 500})
    monkeypatch.setattr(client, "_LONG_QUERY", 500)
    limited = Source(_feed(table), EmbeddedEngine())
    with pytest.raises(SourceError) as refusal:
        limited.shape()
    way_out = "List fewer columns in the feed's `columns`, or let the user change max_query_size"
    _sentence(refusal, "Max query size exceeded", way_out)
    assert "SQL expressions" not in str(refusal.value)
