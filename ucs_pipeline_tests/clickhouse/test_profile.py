"""Settings that a ClickHouse user's profile may carry: what is read is the same with each of them, or is refused."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chdb
import pyarrow as pa
import pyarrow.parquet
import pytest

from ucs_pipeline.clickhouse.client import EmbeddedEngine
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.clickhouse.sql.row_payload import literal
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.rules import FIXED_SETTINGS

TABLES = (
    # Types whose text has several forms, versions of a row, a row that was deleted, columns that SELECT * leaves out.
    "CREATE TABLE profiled (id UInt64, t DateTime, z DateTime64(3, 'Asia/Tokyo'), d Decimal(18, 4), b Bool, v String, "
    "s Nullable(String), l LowCardinality(Nullable(String)), x FixedString(3), a Array(Nullable(Float64)), "
    "k Array(UInt64), m Map(String, DateTime), p Tuple(a Int64, b Nullable(String)), o Tuple(Bool, String), js JSON, "
    "al UInt64 ALIAS id + 1, ma UInt64 MATERIALIZED id + 2) ENGINE = ReplacingMergeTree ORDER BY id",
    "SYSTEM STOP MERGES profiled",
    *(
        "INSERT INTO profiled (id, t, z, d, b, v, s, l, x, a, k, m, p, o, js) SELECT number * 300, 1.6e9 + number, "
        f"1.6e9 + number / 3, number / 8, number % 2, '{version}', if(number % 5 = 0, NULL, 'a/\"b'), "
        "if(number % 3, NULL, 'word'), toString(number), [number / 3, NULL, nan], [9223372036854775808], "
        "map('k/', toDateTime(number)), (number, NULL), (number % 2, 'x'), "
        'format(\'{{"a": {}, "b": [1, 2.5], "c": "2020-01-01 00:00:00"}}\', toString(number)) FROM numbers(40)'
        for version in ("old", "new")
    ),
    "CREATE TABLE profiled_deleted (id UInt64) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO profiled_deleted SELECT number FROM numbers(40)",
    "DELETE FROM profiled_deleted WHERE id = 7",
    # A view with SQL of its own.
    "CREATE VIEW profiled_view AS SELECT l.number AS id, r.v AS v FROM numbers(6) AS l "
    "LEFT JOIN (SELECT number * 2 AS id, 'x' AS v FROM numbers(2)) AS r ON l.number = r.id",
)
EXPRESSIONS = {
    "parsed": "toUnixTimestamp('2020-01-01 00:00:00') + number",
    "hour": "toHour(toDateTime(number * 100000))",
    "kept": "CAST(nullIf(number, 3) AS UInt8) + 1",
    "in_null": "nullIf(number, 3) IN (NULL, 1)",
    "least": "least(nullIf(number, 3), 5)",
    "interval": "toString(INTERVAL 3 DAY)",
    "minutes": "formatDateTime(toDateTime(number), '%M %f %c %e')",
    "json": "toJSONString(map('k', number > 3, 'n', number = 2))",
    "value": "JSON_VALUE('{\"a\": 1}', '$.b')",
    "best": "toDateTime64('2020-01-02T03:04:05Z', 3)",
    "split": "splitByChar(',', 'a,b,c', 2)",
    "shown": "toDateTime64(number, 3, 'UTC')",
}


# With these nothing is read at all, which another query shows; the last ones change queries at random.
_REFUSED = re.compile("force_|allow_simdjson|implicit_transaction|make_distributed_plan|ast_fuzzer_")


def _feeds(file: Path) -> list[Feed]:
    expressions = {
        "table": "numbers(12)",
        "key": "number",
        "columns": EXPRESSIONS,
        "where": "toDateTime(number) >= '1970-01-01 00:00:05'",
    }
    feeds: tuple[dict[str, Any], ...] = (
        {"table": "profiled"},
        {"table": "profiled", "final": True, "columns": {"id": "id", "v": "v"}},
        {"table": "profiled_deleted"},
        {"table": "profiled_view"},
        {"table": f"file('{file}')"},
        expressions,
    )
    bricks = {"class": "number", "last": 9_999}
    return [Feed(name="feed", **{"key": "id", "bricks": bricks, **settings}) for settings in feeds]


class _Profiled(EmbeddedEngine):
    """An engine whose user has a profile."""

    def __init__(self, profile: Mapping[str, str]) -> None:
        super().__init__()
        self._profile = profile

    def connect(self) -> Any:
        connection = chdb.connect(":memory:")
        if self._profile:
            # At once: some of them would change what the next SET does.
            settings = (f"{name} = {literal(value)}" for name, value in self._profile.items())
            connection.query(f"SET {', '.join(settings)}")
        return connection


def _answers(source: Source) -> object:
    """Everything that is asked of a table."""
    requests = b"".join(bytes(entries.requests.rows(0, entries.count)) for entries in encode(b"s", source.scan(0, 0)))
    return (
        requests,
        source.count(0, 0),
        source.newest_key(0),
        source.has_rows_beyond(),
        source.census(),
        source.warning(),
    )


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Feed, object]]]:
    """Feeds over tables of their own, and what is read of them without a profile."""
    keep = chdb.connect(":memory:")
    for query in TABLES:
        keep.query(query)
    file = tmp_path_factory.mktemp("profile") / "rows.parquet"
    moments = pa.array(range(3), pa.timestamp("ms"))
    columns = {"id": pa.array([0, 1, 2], pa.uint64()), "s": ["x", "y", None], "t": moments, "p": [{"a": 1}] * 3}
    pa.parquet.write_table(pa.table(columns), file)
    yield [(feed, _answers(Source(feed, _Profiled({})))) for feed in _feeds(file)]
    for table in ("profiled", "profiled_deleted", "profiled_view"):
        keep.query(f"DROP TABLE {table}")
    keep.close()


def _values(name: str, kind: str, value: str) -> list[str]:
    """Other values of a setting, as far as its type lists them."""
    if kind in ("Bool", "BoolAuto"):
        return [str(1 - int(value))] if value in ("0", "1") else ["0", "1"]
    if kind in ("String", "Map", "Char", "Timezone", "URI"):
        return {"session_timezone": ["Asia/Tokyo"], "compatibility": ["21.8", "23.8", "25.3"]}.get(name, ["x"])
    connection = chdb.connect(":memory:")
    try:
        connection.query(f"SET {name} = 'nonsense'")
    except RuntimeError as error:
        # An enumeration lists its members.
        found = re.search(r"Must be one of \[(.*)\]", str(error))
        members = re.findall(r"'([^']*)'", found[1]) if found else ["0", "1"]
        return [member for member in members if member != value]
    finally:
        connection.close()
    return []


def _profiles() -> list[tuple[str, str]]:
    """Every value of the engine's settings that are pinned, and those settings that are simply on or off."""
    connection = chdb.connect(":memory:")
    query = "SELECT name, type, value FROM system.settings WHERE NOT is_obsolete AND alias_for = ''"
    rows = str(connection.query(query, "TabSeparated")).splitlines()
    connection.close()
    settings = (row.split("\t") for row in rows)
    return [
        (name, value)
        for name, kind, usual in settings
        if name in FIXED_SETTINGS or sql.shapes(name) or name == "compatibility" or kind == "Bool"
        if not _REFUSED.match(name)
        for value in _values(name, kind, usual)
    ]


def _takes(name: str, value: str) -> bool:
    try:
        _Profiled({name: value}).connect().close()
    except RuntimeError:
        return False
    return True


def test_what_is_read_does_not_depend_on_the_profile_of_the_user(feeds: list[tuple[Feed, object]]) -> None:
    """All at once, and by halves where something differs: so that every setting is named that does not hold."""
    wrong: list[str] = []

    def differs(profile: Mapping[str, str]) -> bool:
        try:
            return any(_answers(Source(feed, _Profiled(profile))) != expected for feed, expected in feeds)
        except SourceError as error:
            # A refusal names the feed.
            return len(profile) > 1 or "\n" in str(error)

    def look(profiles: list[tuple[str, str]]) -> None:
        if differs(dict(profiles)):
            if len(profiles) == 1:
                wrong.append(" = ".join(profiles[0]))
                print(wrong[-1], flush=True)
            else:
                look(profiles[: len(profiles) // 2])
                look(profiles[len(profiles) // 2 :])

    rounds: list[dict[str, str]] = []
    for name, value in _profiles():
        if _takes(name, value):
            # Each value of a setting needs a profile of its own.
            free = next((profile for profile in rounds if name not in profile), None)
            if free is None:
                rounds.append(free := {})
            free[name] = value
    assert sum(map(len, rounds)) > 500
    for profile in rounds:
        look(list(profile.items()))
    assert wrong == []
