"""Whatever names and values are, they are data: what goes in comes out, and nothing of it is run anywhere."""

import io
import uuid
from typing import Any

import chdb
import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from ucs_pipeline import BrickFeed
from ucs_pipeline.cli import entry_tables as print_brick
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.entries.display import fields_shown
from ucs_pipeline.feed.redis_keys import fencing_token_key
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, read_brick
from ucs_pipeline_tests.support.tables import source_of

CANARY = "canary"
DATABASE = "hostile"

PIECES = [
    *(
        "'",
        "''",
        "\\'",
        '"',
        "`",
        "``",
        "\\`",
        "\\",
        "\0",
        "\r",
        "\n",
        "\t",
        "\x1b[2J",
        "{",
        "}",
        "{first:UInt64}",
        "%s",
    ),
    *("\r\n*1\r\n$8\r\nFLUSHALL\r\n", "$5\r\nhello\r\n", "\r\nFLUSHALL\r\n", "*0\r\n", "; DROP TABLE canary; --"),
    *("') UNION ALL SELECT 1 --", "`) FROM canary --", "/*", "*/", "--", "#", "$$", "$x$", "\u2018", "\u201c", "NULL"),
    *("<script>alert(1)</script>", "[x](javascript:1)", "![](http://127.0.0.1:1/)", "a.b", "{a}b", "..", ",", " "),
    *("é", "日本", "💣", "\u202e", "\ufeff", "e\u0301", "x" * 300),
]
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=6).map("".join).filter(bool)
values = st.binary(max_size=30) | hostile.map(str.encode)


@pytest.fixture(scope="module")
def clickhouse() -> Any:
    """The engine, with a table that must not be touched."""
    connection = chdb.connect(":memory:")
    # Names in the engine's own database may be those of files.
    connection.query(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    connection.query(f"CREATE TABLE IF NOT EXISTS {CANARY} (id UInt8) ENGINE = Memory")
    return connection


def _literal(value: bytes) -> str:
    return f"unhex('{value.hex()}')"


@settings(max_examples=25, database=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(hostile, min_size=4, max_size=4, unique=True),
    stream=hostile,
    cells=st.tuples(values, values, values),
)
@example(names=["'", "`", "\\", "\r\n*1\r\n$8\r\nFLUSHALL\r\n"], stream="\r\nFLUSHALL\r\n", cells=(b"\0", b"\r\n", b""))
@example(names=["a`b", "c'd", "{", "}"], stream="{}", cells=(b"$3\r\nabc\r\n", b"*1\r\n", b"'"))
def test_names_and_values_of_any_kind_come_out_as_they_went_in(
    names: list[str], stream: str, cells: tuple[bytes, bytes, bytes], clickhouse: Any, redis_server: RedisServer
) -> None:
    table, key, column, constant = names
    # A table is a directory: its name has a limit.
    quoted = f"{sql.quote(DATABASE)}.{sql.quote(uuid.uuid4().hex[:16] + table[:12])}"
    clickhouse.query(f"CREATE TABLE {quoted} ({sql.quote(key)} UInt32, {sql.quote(column)} String) ENGINE = Memory")
    rows = ", ".join(f"({number}, {_literal(cell)})" for number, cell in enumerate(cells))
    clickhouse.query(f"INSERT INTO {quoted} VALUES {rows}")
    client = redis_server.client()
    client.flushall()
    client.set(CANARY, "alive")

    feed = BrickFeed(
        name="feed",
        table=quoted,
        key=key,
        bricks={"class": "number", "last": 9},
        columns={column: column, table: key},
        constants={f"{constant}!": constant},
        stream={"name": stream},
    )
    target = OrderedStream(stream, client)
    [report] = publish(feed, source_of(feed), target, feed.ordinals, lambda _: {}, lambda _: None)
    assert report.published == 3

    fields = {column.encode(): None, table.encode(): None, f"{constant}!".encode(): constant.encode()}
    assert client.xrange(stream) == [
        (b"0-%d" % row, {**fields, column.encode(): cell, table.encode(): b"%d" % (row - 1)})
        for row, cell in enumerate(cells, 1)
    ]
    assert set(client.keys()) == {CANARY.encode(), stream.encode(), fencing_token_key(stream).encode()}
    assert client.get(CANARY) == b"alive"
    assert str(clickhouse.query(f"EXISTS {CANARY}", "TSV")).strip() == "1"
    clickhouse.query(f"DROP TABLE {quoted}")


@settings(max_examples=15, database=None)
@given(text=hostile)
def test_definitions_of_any_names_load(text: str) -> None:
    feed = BrickFeed(
        name="feed",
        table=sql.quote(text),
        key=text,
        bricks={"class": "number", "last": 9},
        columns={text: text},
        constants={f"{text}!": text},
        stream={"name": text},
        description=text,
    )
    assert build_defs(feed).resolve_asset_graph().get_all_asset_keys()


@given(st.binary(max_size=40) | hostile.map(str.encode))
def test_what_is_shown_of_a_row_stays_on_its_line_and_steers_no_terminal(value: bytes) -> None:
    shown = fields_shown({value: value})
    assert all(character.isprintable() for character in shown)


def test_a_brick_on_the_terminal_steers_none(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client: redis.Redis = redis_server.client()
    client.xadd("feed", {"a\x1b[2Jb": "\x1b]0;title\x07\r\n\u202evalue"}, id="0-1")
    feed = BrickFeed(name="feed", table="t", key="id", bricks={"class": "number", "last": 9})
    written = io.StringIO()
    monkeypatch.setattr(print_brick, "console", Console(file=written, force_terminal=True, width=20, color_system=None))
    print_brick.print_brick(read_brick(feed, "0.0.0.0", client), "0.0.0.0", "feed", 5)
    assert "value" in written.getvalue()
    assert not set(written.getvalue()) & {"\x1b", "\x07", "\r", "\u202e"}
