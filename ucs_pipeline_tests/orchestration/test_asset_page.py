"""The widgets of an asset's page in Dagster's UI: rows, storage, columns with their types, and column lineage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.sql_tokens import columns_named
from ucs_pipeline.orchestration.asset_page import stream_storage
from ucs_pipeline.orchestration.names import table_key
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.support.home import python, run_bricks, write_table

SCHEMA, LINEAGE, ROWS = "dagster/column_schema", "dagster/column_lineage", "dagster/partition_row_count"
COLUMNS = {"id": "n", "what": "upper(word)", "both": "concat(word, toString(n))", "it": "arrayMap(x -> x + n, [1])"}
TABLE = dg.AssetKey(["clickhouse", "numbers"])

# As `useLatestEvents` and `useAssetDefinition` of the UI ask, of what its widgets take.
ENTRIES = """
  __typename label
  ... on TextMetadataEntry { text }
  ... on IntMetadataEntry { intValue }
  ... on TableSchemaMetadataEntry { schema { columns { name type description constraints { nullable } } } }
  ... on TableColumnLineageMetadataEntry { lineage { columnName columnDeps { assetKey { path } columnName } } }
"""
PAGE = f"""
query ($key: AssetKeyInput!) {{
  assetNodeOrError(assetKey: $key) {{ ... on AssetNode {{
    kinds storageAddress {{ tableName storageKind }} metadataEntries {{ {ENTRIES} }}
  }} }}
  assetOrError(assetKey: $key) {{ ... on Asset {{
    assetMaterializations(limit: 1) {{ partition metadataEntries {{ {ENTRIES} }} }}
    assetObservations(limit: 1) {{ metadataEntries {{ {ENTRIES} }} }}
  }} }}
}}
"""
FEEDS = """
from ucs_pipeline import BrickFeed
from ucs_pipeline_tests.support.connections import build_defs

bricks = {"class": "number", "last": 59_999}
defs = build_defs(
    BrickFeed(name="numbers", table="numbers", key="n", bricks=bricks, constants={"c": "x"}),
    BrickFeed(name="named", table="numbers", key="n", bricks=bricks, columns={"id": "n"}),
)
"""
RUN = """
import dagster as dg
import feeds
from ucs_pipeline_tests.support.home import run_bricks

with dg.DagsterInstance.get() as instance:
    assert run_bricks(feeds.defs, "numbers", instance, 0, 5).success
"""


def _feed(name: str = "numbers", **more: object) -> Feed:
    settings: dict[str, object] = {"table": "numbers", "key": "n", "bricks": {"class": "number", "last": 59_999}}
    return BrickFeed(name=name, **{**settings, **more})


def _write_numbers(home: Path) -> None:
    ids = range(25_000)
    write_table(home, "numbers", {"n": pa.array(ids), "word": pa.array([f"w{n}" for n in ids])})


@pytest.fixture
def home(home: Path) -> Path:
    _write_numbers(home)
    return home


def _events(instance: dg.DagsterInstance, feed: str = "numbers") -> list[dg.AssetMaterialization]:
    records = instance.fetch_materializations(dg.AssetKey(feed), limit=1000, ascending=True).records
    return [record.asset_materialization for record in records if record.asset_materialization]


def _defined(defs: dg.Definitions, *key: str) -> Mapping[str, Any]:
    return defs.resolve_asset_graph().get(dg.AssetKey(list(key))).metadata


def _columns(schema: Any) -> list[tuple[str, str, str | None, bool]]:
    return [(it.name, it.type, it.description, it.constraints.nullable) for it in schema.columns]


def _origins(lineage: Any) -> dict[str, list[str]]:
    return {
        name: sorted(f"{dep.asset_key.to_user_string()}.{dep.column_name}" for dep in deps)
        for name, deps in lineage.deps_by_column.items()
    }


def test_a_run_records_the_columns_once_with_their_types_and_origins(instance: dg.DagsterInstance) -> None:
    defs = build_defs(_feed(columns=COLUMNS, constants={"c": "x"}))
    assert run_bricks(defs, "numbers", instance, 0, 5).success
    *others, last = _events(instance)
    assert [event.metadata[ROWS].value for event in (*others, last)] == [10_000, 10_000, 5_000, 0, 0, 0]
    assert not any({SCHEMA, LINEAGE} & event.metadata.keys() for event in others)
    assert _columns(last.metadata[SCHEMA].value) == [
        ("id", "Nullable(Int64)", "from `n`", True),
        ("what", "Nullable(String)", "from `upper(word)`", True),
        ("both", "Nullable(String)", "from `concat(word, toString(n))`", True),
        ("it", "Array(Nullable(Int64))", "from `arrayMap(x -> x + n, [1])`", False),
        ("c", "String", "the constant `x`", False),
    ]
    word, n = "clickhouse/numbers.word", "clickhouse/numbers.n"
    assert _origins(last.metadata[LINEAGE].value) == {"id": [n], "what": [word], "both": [n, word], "it": [], "c": []}


def test_a_feed_of_every_column_has_them_in_its_event_and_not_in_its_definition(instance: dg.DagsterInstance) -> None:
    defs = build_defs(_feed())
    assert {SCHEMA, LINEAGE} & {*_defined(defs, "numbers"), *_defined(defs, "redis", "numbers")} == set()
    assert run_bricks(defs, "numbers", instance, 0, 1).success
    last = _events(instance)[-1]
    assert [column[:3] for column in _columns(last.metadata[SCHEMA].value)] == [
        ("n", "Nullable(Int64)", None),
        ("word", "Nullable(String)", None),
    ]
    assert _origins(last.metadata[LINEAGE].value) == {
        "n": ["clickhouse/numbers.n"],
        "word": ["clickhouse/numbers.word"],
    }
    # Nothing is read here, and the latest event has them all the same.
    assert run_bricks(defs, "numbers", instance, 0, 0).success
    again = _events(instance)[-1]
    assert again.metadata["note"].value == "already in the stream"
    assert again.metadata[SCHEMA] == last.metadata[SCHEMA]


def test_the_last_event_of_a_run_has_the_columns_whichever_brick_it_is_of(instance: dg.DagsterInstance) -> None:
    defs = build_defs(_feed(stream={"order": "any"}))
    assert run_bricks(defs, "numbers", instance, 1, 1).success
    assert run_bricks(defs, "numbers", instance, 0, 2).success
    events = _events(instance)[1:]
    assert [SCHEMA in event.metadata for event in events] == [False, False, True]


def test_columns_of_a_transform_are_not_made_up() -> None:
    transform = "ucs_pipeline_tests.support.transforms:same"
    defs = build_defs(_feed(columns={"id": "n"}, transform=transform))
    described = defs.get_assets_def("numbers").descriptions_by_key[dg.AssetKey("numbers")]
    assert f"The columns that `{transform}` returns are the fields of an entry." in described
    assert {SCHEMA, LINEAGE} & {*_defined(defs, "numbers"), *_defined(defs, "redis", "numbers")} == set()


def test_definitions_say_what_can_be_known_without_a_connection() -> None:
    defs = build_defs(_feed(columns=COLUMNS, constants={"c": "x"}))
    feed, stream = _defined(defs, "numbers"), _defined(defs, "redis", "numbers")
    # An empty type is not shown.
    assert {column[1] for column in _columns(feed[SCHEMA])} == {""}
    assert _origins(feed[LINEAGE]) == {"id": ["clickhouse/numbers.n"], "what": [], "both": [], "it": [], "c": []}
    assert _columns(stream[SCHEMA]) == _columns(feed[SCHEMA])
    assert _origins(stream[LINEAGE]) == {name: [f"numbers.{name}"] for name in (*COLUMNS, "c")}


def test_a_field_in_upper_case_keeps_its_name_in_the_ui(instance: dg.DagsterInstance) -> None:
    # Where a definition and an event both have columns, the UI writes their names in lower case.
    defs = build_defs(_feed(columns={"dayOfWeek": "n"}))
    assert SCHEMA not in _defined(defs, "numbers")
    assert SCHEMA in _defined(defs, "redis", "numbers")
    assert run_bricks(defs, "numbers", instance, 0, 0).success
    assert [column[0] for column in _columns(_events(instance)[-1].metadata[SCHEMA].value)] == ["dayOfWeek"]


def test_a_stream_of_several_feeds_has_the_fields_of_all() -> None:
    shared = {"name": "shared", "order": "any"}
    one, other = _feed("one", columns={"a": "n"}, stream=shared), _feed("other", columns={"a": "n"}, stream=shared)
    lineage = _defined(build_defs(one, other), "redis", "shared")[LINEAGE]
    assert _origins(lineage) == {"a": ["one.a", "other.a"]}
    # A part of them would seem complete.
    unknown = _feed("unknown", stream=shared)
    assert LINEAGE not in _defined(build_defs(one, unknown), "redis", "shared")


@pytest.mark.parametrize(
    ("table", "name", "uri"),
    [
        ("trips", "trips", "clickhouse://clickhouse/trips"),
        ("city.trips", "city.trips", "clickhouse://clickhouse/city/trips"),
        ("`my city`.`trips (2013)`", "my city.trips (2013)", "clickhouse://clickhouse/my%20city/trips%20%282013%29"),
        ("file('trips.parquet')", None, None),
        ("mysql('db:3306', 'city', 'trips', 'me', 'secret')", None, None),
    ],
)
def test_a_table_says_where_it_is(table: str, name: str | None, uri: str | None) -> None:
    feed = _feed(table=table)
    metadata = _defined(build_defs(feed), *table_key(feed).path)
    assert metadata.get("dagster/table_name") == name
    assert metadata.get("dagster/uri") == uri
    assert metadata.get("dagster/storage_kind") == (None if name is None else "clickhouse")


def test_a_storage_names_its_server_where_it_is_known() -> None:
    feed = _feed(table="city.trips", stream={"name": "to:trips"})
    assert stream_storage(feed)["dagster/uri"] == "redis://redis/to%3Atrips"


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("a", ["a"]),
        ("`a`", ["a"]),
        ("upper(b) || 'a' || toString(a + 1.5)", ["b", "a"]),
        ("if(a IS NULL, 1, 2)", []),
        ("if(isNull(a) and not b, null, a * 2)", ["a", "b"]),
        ("a -- b", ["a"]),
        # A cast, an alias, the argument of a lambda, a member, a unit, a part of a time: words that are no columns.
        ("CAST(a AS b)", []),
        ("a::String", []),
        ("arrayMap(a -> a + 1, b)", []),
        ("a.b", []),
        ("a.1", []),
        ("a + INTERVAL 1 DAY", []),
        ("extract(b FROM a)", []),
        ("a '2013-01-01'", []),
        # Columns that are not named, and queries of their own.
        ("tuple(*)", []),
        ("cityHash64(a, COLUMNS('b'))", []),
        ("(SELECT a)", []),
        ("{a:String}", []),
        ("count()", []),
    ],
)
def test_columns_are_told_from_an_expression_only_where_it_has_no_other_words(sql: str, columns: list[str]) -> None:
    assert columns_named(sql, ["a", "b"]) == columns


def test_the_columns_of_a_run_take_a_few_hundred_bytes_each(instance: dg.DagsterInstance) -> None:
    names = [f"column_{n:02}" for n in range(20)]
    defs = build_defs(_feed(columns=dict.fromkeys(names, "word")))
    assert run_bricks(defs, "numbers", instance, 0, 1).success
    small, large = (len(dg.serialize_value(event)) for event in _events(instance))
    assert 20 * 300 < large - small < 20 * 450


def test_the_ui_is_told_of_rows_storage_columns_and_lineage(tmp_path: Path, redis_server: RedisServer) -> None:
    _write_numbers(tmp_path)
    with Cockpit(tmp_path, redis_server.url, FEEDS) as cockpit:
        text = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{RUN}"
        ran = python(text, tmp_path, UCS_REDIS_URL=redis_server.url)
        assert ran.wait() == 0, (tmp_path / "process.log").read_text()
        feed = _page(cockpit, "numbers")
        table = _page(cockpit, "clickhouse", "numbers")
        stream = _page(cockpit, "redis", "numbers")
        named = _page(cockpit, "redis", "named")
    latest = feed["materialization"]
    assert latest[ROWS]["intValue"] == 0
    assert [(it["name"], it["type"]) for it in latest[SCHEMA]["schema"]["columns"]] == [
        ("n", "Nullable(Int64)"),
        ("word", "Nullable(String)"),
        ("c", "String"),
    ]
    deps = {it["columnName"]: it["columnDeps"] for it in latest[LINEAGE]["lineage"]}
    assert deps["word"] == [{"assetKey": {"path": ["clickhouse", "numbers"]}, "columnName": "word"}]
    assert feed["definition"]["dagster/uri"]["text"] == "redis://redis/numbers"
    assert table["storageAddress"] == {"tableName": "numbers", "storageKind": "clickhouse"}
    assert table["definition"]["dagster/uri"]["text"] == "clickhouse://clickhouse/numbers"
    # What stores an asset is not a kind more.
    assert sorted(table["kinds"]) == ["clickhouse", "table"]
    assert stream["storageAddress"] is None
    assert stream["observation"]["dagster/row_count"]["intValue"] == 25_000
    assert named["definition"][LINEAGE]["lineage"] == [
        {"columnName": "id", "columnDeps": [{"assetKey": {"path": ["named"]}, "columnName": "id"}]}
    ]


def _page(cockpit: Cockpit, *path: str) -> dict[str, Any]:
    answer = cockpit.ask(PAGE, key={"path": list(path)})
    node, asset = answer["assetNodeOrError"], answer["assetOrError"]

    def latest(events: list[Mapping[str, Any]]) -> dict[str, Any]:
        return _by_label(events[0]["metadataEntries"]) if events else {}

    return {
        **node,
        "definition": _by_label(node["metadataEntries"]),
        "materialization": latest(asset["assetMaterializations"]),
        "observation": latest(asset["assetObservations"]),
    }


def _by_label(entries: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {entry["label"]: entry for entry in entries}
