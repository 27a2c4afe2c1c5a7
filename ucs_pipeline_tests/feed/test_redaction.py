"""What a feed's SQL may hold that nobody but ClickHouse should see, and where it would show."""

import json
import re
import traceback
from typing import Any, cast

import chdb
import dagster as dg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ucs_pipeline import BrickFeed
from ucs_pipeline.errors import FeedError, SourceError
from ucs_pipeline.feed import redaction as masking
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.names import FEED_METADATA, table_key
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.support.tables import source_of

SECRET = "pa55w0rd-zu9"
"""No part of it is in any other text of these tests."""


def _feed(table: str = "numbers(10)", name: str = "orders", **more: Any) -> Feed:
    settings: dict[str, Any] = {"key": "number", "bricks": {"class": "number", "last": 9}, **more}
    return BrickFeed(name=name, table=table, **settings)


@pytest.mark.parametrize(
    "table",
    [
        "flights",
        "shop.orders",
        "`a b`.`it's`",
        "numbers(10)",
        "file('/data/it''s (here).parquet')",
        "file('a.csv', 'CSV', 'a String, b UInt8')",
        "FILE('a.csv', CSVWithNames)",
        "merge('db', '^orders_')",
        "cluster('c', shop.orders)",
        "remote('host', 'db', 'orders')",
        "url('https://example.org/a=b/data_??.csv', 'CSVWithNames', 'id UInt64, n Nullable(String)', 'gzip')",
        "s3('https://bucket/x_{1,2}.parquet', NOSIGN, 'Parquet')",
        "s3(my_collection, filename = 'x.parquet', format = 'Parquet')",
        "iceberg(my_collection)",
        "(SELECT id, toDate('2020-01-01') AS day FROM orders WHERE kind = 'new')",
        "view(SELECT * FROM a, b JOIN c USING id WHERE concat('x', kind) = 'xnew')",
        "generateRandom('id UInt64, kind Enum8(''a'' = 1)')",
    ],
)
def test_a_table_without_secrets_is_shown_as_it_is_and_keeps_its_asset(table: str) -> None:
    feed = _feed(table)
    assert feed.redacted.table == table
    assert feed.redacted == feed
    kind, *parts = table_key(feed).path
    words = re.sub(r"[^A-Za-z0-9_]+", "_", table).strip("_")
    plain = table.split(".") if re.fullmatch(r"[\w.]+", table) else None
    assert kind == "clickhouse"
    assert parts == plain or re.fullmatch(rf"{re.escape(words)}_[0-9a-f]{{8}}", parts[0])


WITH_SECRETS = [
    ("s3('https://b/x.parquet', '{}', '{}')", "s3('https://b/x.parquet', '[HIDDEN]', '[HIDDEN]')"),
    ("S3 ( 'https://b/x' , 'k' , '{}' )", "S3 ( 'https://b/x' , '[HIDDEN]' , '[HIDDEN]' )"),
    ("`s3`('https://b/x', 'k', '{}', 'CSV')", "`s3`('https://b/x', '[HIDDEN]', '[HIDDEN]', 'CSV')"),
    ("s3(c, secret_access_key='{}', format = CSV)", "s3(c, secret_access_key='[HIDDEN]', format = CSV)"),
    ("s3Cluster('c', 'https://b/x', 'k', '{}')", "s3Cluster('c', 'https://b/x', '[HIDDEN]', '[HIDDEN]')"),
    ("icebergS3('https://b/x', 'k', '{}')", "icebergS3('https://b/x', '[HIDDEN]', '[HIDDEN]')"),
    ("deltaLakeCluster('c', 'https://b', 'k', '{}')", "deltaLakeCluster('c', 'https://b', '[HIDDEN]', '[HIDDEN]')"),
    ("mysql('h:3306', 'db', 't', 'root', '{}')", "mysql('h:3306', 'db', 't', 'root', '[HIDDEN]')"),
    ('mysql(h, db, t, root, "{}")', "mysql(h, db, t, root, '[HIDDEN]')"),
    ("mysql('h', 'd', 't', 'u' -- it's\n, '{}')", "mysql('h', 'd', 't', 'u' -- it's\n, '[HIDDEN]')"),
    ("postgresql('h', 'db', 't', 'u', '{}', 'public')", "postgresql('h', 'db', 't', 'u', '[HIDDEN]', '[HIDDEN]')"),
    ("remote('h', shop.orders, 'u', '{}')", "remote('h', shop.orders, 'u', '[HIDDEN]')"),
    (
        "remoteSecure('h', view(SELECT * FROM s3('https://b', 'k', '{}')), 'u')",
        "remoteSecure('h', view(SELECT * FROM s3('https://b', '[HIDDEN]', '[HIDDEN]')), 'u')",
    ),
    ("mongodb('mongodb://u:{}@h/db', 'c', 'id UInt8')", "mongodb('mongodb://[HIDDEN]@h/db', 'c', 'id UInt8')"),
    ("redis('h:6379', 'id', 'id UInt8', 0, '{}')", "redis('h:6379', 'id', 'id UInt8', '[HIDDEN]', '[HIDDEN]')"),
    (
        "azureBlobStorage('AccountName=a;AccountKey={}==;x=y', 'files', '*.csv', 'CSV')",
        "azureBlobStorage('[HIDDEN]', 'files', '*.csv', 'CSV')",
    ),
    ("url('https://u:{}@h/x', CSV)", "url('https://[HIDDEN]@h/x', CSV)"),
    ("url('https://h/x?a=b&token={}', CSV)", "url('https://h/x?[HIDDEN]', CSV)"),
    ("url('https://h', CSV, headers('auth' = '{}'))", "url('https://h', CSV, headers('[HIDDEN]'))"),
    ("odbc('DSN=x;PWD={}', 's', 't')", "odbc('[HIDDEN]', '[HIDDEN]', '[HIDDEN]')"),
    ("executable('read {}', TSV, 'id UInt8')", "executable('[HIDDEN]', TSV, 'id UInt8')"),
    ("newInSomeVersion('{}')", "newInSomeVersion('[HIDDEN]')"),
    ("view(SELECT * FROM a, newInSomeVersion('{}'))", "view(SELECT * FROM a, newInSomeVersion('[HIDDEN]'))"),
    ("(SELECT * FROM (s3('https://b', 'k', $x${}'$x$)))", "(SELECT * FROM (s3('https://b', '[HIDDEN]', '[HIDDEN]')))"),
    ("s3('https://b/x', 'k', concat('', '{}'))", "s3('https://b/x', '[HIDDEN]', concat('[HIDDEN]', '[HIDDEN]'))"),
    # Broken SQL is what ClickHouse repeats in its errors.
    ("s3('https://b/x', 'k', '{}'", "s3('https://b/x', '[HIDDEN]', '[HIDDEN]'"),
    ("s3('https://b/x', 'k', '{}", "s3('https://b/x', '[HIDDEN]', '[HIDDEN]'"),
    ("s3)('https://b/x', 'k', '{}')", "s3)('https://b/x', 'k', '{}')"),
]


@pytest.mark.parametrize(("template", "shown"), WITH_SECRETS[:-1])
def test_a_table_s_secrets_are_not_shown(template: str, shown: str) -> None:
    feed = _feed(template.replace("{}", SECRET))
    assert feed.redacted.table == shown
    assert feed.table == template.replace("{}", SECRET)
    assert SECRET not in feed.redact(f"Syntax error: {feed.table}")
    assert re.search(r"_orders_[0-9a-f]{8}$", table_key(feed).path[1])


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("concat('a', b)", "concat('a', b)"),
        (f"encrypt('aes-256-ofb', t.ssn, '{SECRET}')", "encrypt('aes-256-ofb', t.ssn, '[HIDDEN]')"),
        (f"decrypt('aes-256-ofb', ssn, unhex('{SECRET}'))", "decrypt('aes-256-ofb', ssn, unhex('[HIDDEN]'))"),
        (
            f"id IN (SELECT id FROM postgresql('h', 'd', 't', 'u', '{SECRET}')) AND kind = 'new'",
            "id IN (SELECT id FROM postgresql('h', 'd', 't', 'u', '[HIDDEN]')) AND kind = 'new'",
        ),
        (f"startsWith(link, 'https://u:{SECRET}@h/')", "startsWith(link, 'https://[HIDDEN]@h/')"),
    ],
)
def test_secrets_in_expressions_are_not_shown(sql: str, shown: str) -> None:
    feed = _feed(
        columns={"field": sql}, where=sql, settings={"format_avro_schema_registry_url": f"http://u:{SECRET}@h"}
    )
    assert feed.redacted.columns == {"field": shown}
    assert feed.redacted.where == shown
    assert feed.redacted.settings == {"format_avro_schema_registry_url": "http://[HIDDEN]@h"}


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@example("'")
@example("\\")
@example("/* ' */ $$ ( \" ` --\n\u2018")
def test_sql_without_a_function_that_reaches_out_is_shown_as_it_is(text: str) -> None:
    written = "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    assert masking.shown_table(f"file({written})") == (f"file({written})", frozenset())


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_what_stands_before_it_hides_no_secret(text: str) -> None:
    # Quotes and comments may begin where ClickHouse sees none only if the feed's SQL is broken.
    written = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    shown = masking.shown_table(f"mysql({written}, `d`, {written}, 'u', '{SECRET}')")
    assert SECRET not in shown.text
    assert SECRET in shown.secrets


@pytest.mark.parametrize(
    "settings",
    [
        {"table": f"mysql('127.0.0.1:1', 'd', 't', 'u', '{SECRET}')"},
        {"table": f"mysql('127.0.0.1:1', 'd', 't', 'u', '{SECRET}'"},
        {"table": f"mysql('127.0.0.1:1' x, 'd', 't', 'u', '{SECRET}"},
        {"table": f"mysql(x y, '127.0.0.1:1', 'd', '{'t' * 109}', 'u', '{SECRET}')"},
        {"table": f"nosuch('{SECRET}')"},
        {"table": f"url('http://u:{SECRET}@127.0.0.1:1/', CSV)", "settings": {"http_max_tries": 1}},
        {"table": f"s3('http://127.0.0.1:1/b/x?token={SECRET}', CSV)"},
        {"table": "numbers(9)", "columns": {"a": f"encrypt('nosuch', toString(number), '{SECRET}')"}},
        {"table": "numbers(9)", "columns": {"a": f"encrypt('aes-128-ecb', number, '{SECRET}"}},
        {"table": "numbers(9)", "where": f"number IN (SELECT 1 FROM mysql('127.0.0.1:1', 'd', 't', 'u', '{SECRET}'))"},
    ],
    ids=range(10),
)
def test_clickhouse_s_errors_are_told_without_secrets(settings: dict[str, Any]) -> None:
    feed = _feed(**settings)
    with pytest.raises(SourceError) as refusal:
        list(source_of(feed).scan(0, 0))
    text = "".join(traceback.format_exception(refusal.value))
    assert text.count("Error: feed 'orders'") == 1
    assert not _part_of(SECRET, text)


def test_an_echo_that_breaks_off_in_a_secret_hides_what_there_is_of_it() -> None:
    for gap in range(124, 138, 2):
        table = f"mysql(x y, '{'t' * gap}', 'd', 't', 'u', '{SECRET}')"
        with pytest.raises(RuntimeError) as said:
            chdb.query(f"SELECT * FROM {table}")
        assert not _part_of(SECRET, _feed(table).redact(str(said.value)))


def _part_of(secret: str, text: str) -> bool:
    return any(secret[start : start + 5] in text for start in range(len(secret) - 4))


def test_a_secret_of_a_few_letters_is_hidden_where_it_is_a_literal() -> None:
    assert masking.hider({"pw"})("'pw' in a powder") == "'[HIDDEN]' in a powder"


def _told(part: object) -> str:
    return dg.serialize_value(cast("Any", part)) if isinstance(part, dg.MetadataValue) else str(part)


def test_definitions_hold_no_secret_but_in_the_feed_itself() -> None:
    feed = _feed(
        f"mysql('h', 'd', 't', 'u', '{SECRET}')",
        key=f"intHash64(concat(id, decrypt('aes-256-ofb', x, '{SECRET}')))",
        columns={"a": f"encrypt('aes-256-ofb', a, '{SECRET}')"},
        where=f"id IN (SELECT id FROM s3('https://b', 'k', '{SECRET}'))",
    )
    defs = build_defs(feed)
    specs = defs.resolve_all_asset_specs()
    # What another process receives: only the text of the feed object.
    told = [
        (spec.key, spec.description, spec.deps, {name: _told(part) for name, part in spec.metadata.items()})
        for spec in specs
    ]
    assert "mysql('h', 'd', 't', 'u', '[HIDDEN]')" in str(told)
    assert SECRET not in str(told)
    [of_itself] = (spec.metadata[FEED_METADATA] for spec in specs if FEED_METADATA in spec.metadata)
    assert json.loads(of_itself.value)["table"] == "mysql('h', 'd', 't', 'u', '[HIDDEN]')"


def test_tables_that_look_the_same_without_their_secrets_are_two() -> None:
    one, other = (_feed(f"url('https://h/x?token={token}', CSV)", name) for name, token in (("a", "1"), ("b", "2")))
    assert one.redacted.table == other.redacted.table
    assert table_key(one) != table_key(other)


def test_a_feed_that_cannot_be_is_refused_without_its_sql() -> None:
    settings = {"name": "orders", "key": "id", "bricks": {"class": "number", "last": 9}, "nope": 1}
    text = json.dumps({**settings, "table": f"s3('https://b', 'k', '{SECRET}')"})
    for wrong in (text, text.replace('"s3', '["s3').replace(')"', ')"]')):
        with pytest.raises(FeedError) as refusal:
            BrickFeed.resolve_from_yaml(wrong)
        assert "nope is not a setting" in str(refusal.value)
        with pytest.raises(ValueError, match="nope") as shown:
            BrickFeed.model().model_validate_json(wrong)
        assert not _part_of(SECRET, "".join(traceback.format_exception(refusal.value)) + str(shown.value))
