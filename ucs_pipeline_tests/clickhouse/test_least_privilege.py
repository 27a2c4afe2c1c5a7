"""The ClickHouse user of docs/concepts/security.md reads a feed and may do no more, on ClickHouse's access control."""

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from ucs_pipeline.clickhouse.client import HttpEngine
from ucs_pipeline.clickhouse.errors import Redact
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.support.home import PROJECT

# The engine in process knows one user, which these files make a lesser one.
CONFIGURATION = """
<clickhouse>
  <profiles><default><readonly>{readonly}</readonly></default></profiles>
  <quotas><default></default></quotas>
  <users><default>
    <password></password><networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>
    <grants>{grants}</grants>
  </default></users>
  <user_directories><users_xml><path>{path}</path></users_xml></user_directories>
</clickhouse>
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two tables, made by a user that may do everything."""
    directory = tmp_path_factory.mktemp("least") / "data"
    with ClickHouseServer(path=str(directory)) as server:
        client = clickhouse_connect.get_client(dsn=server.url)
        for query in (
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (id UInt64, customer Nullable(String), card String) ENGINE MergeTree ORDER BY id",
            "INSERT INTO shop.orders SELECT number, toString(number), 'x' FROM numbers(20000)",
            "CREATE TABLE shop.other (id UInt64) ENGINE = MergeTree ORDER BY id",
        ):
            client.command(query)
        client.close()
    return directory


@contextmanager
def _user(data: Path, readonly: int, *grants: str) -> Iterator[str]:
    """URL of a server whose user has no other rights than these."""
    path = data.parent / "server.xml"
    written = "".join(f"<query>{grant}</query>" for grant in grants)
    path.write_text(CONFIGURATION.format(readonly=readonly, grants=written, path=path))
    with ClickHouseServer(path=f"{data}?config-file={path}") as server:
        yield server.url.replace("/default", "/shop")


def _feed(table: str, **columns: str) -> Feed:
    return Feed(
        name="orders", table=table, key="id", bricks={"class": "number", "last": 19_999}, columns=columns or None
    )


class _Asking(HttpEngine):
    """A server that remembers the queries it was asked."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.queries: list[str] = []

    def batches(self, query: str, parameters: Mapping[str, int], hide: Redact) -> Generator[pa.RecordBatch, None, None]:
        self.queries.append(query)
        return super().batches(query, parameters, hide)

    def rows(self, query: str, parameters: Mapping[str, int], hide: Redact) -> list[dict[str, Any]]:
        self.queries.append(query)
        return super().rows(query, parameters, hide)


def _everything(feed: Feed, engine: HttpEngine) -> list[object]:
    """What every query of a feed gives."""
    source = Source(feed, engine)
    asked: tuple[Callable[[], object], ...] = (
        lambda: sum(batch.num_rows for batch in source.scan(0, 1)),
        lambda: source.count(0, 1),
        lambda: source.newest_key(0),
        source.has_rows_beyond,
        lambda: {start: content.rows for start, content in source.census().bricks.items()},
        source.engine,
    )
    return [ask() for ask in asked]


def test_the_documented_user_reads_the_columns_of_a_feed_and_may_do_nothing_else(data: Path) -> None:
    page = (PROJECT / "docs" / "concepts" / "security.md").read_text()
    grants = re.findall(r"^(GRANT .* ON shop\.orders) TO publisher;$", page, re.MULTILINE)
    assert len(grants) == 2
    with _user(data, 2, *grants) as url:
        feed = _feed("shop.orders", customer="customer", number="id")
        bricks = {0: 10_000, 1: 10_000}
        assert _everything(feed, HttpEngine(url)) == [20_000, bricks, 19_999, False, bricks, "MergeTree"]
        for other in (_feed("shop.other"), _feed("shop.orders"), _feed("file('/etc/passwd', LineAsString)", a="line")):
            with pytest.raises(SourceError, match=r"ACCESS_DENIED.*Grant the user SELECT on the table"):
                _everything(other, HttpEngine(url))
        client = clickhouse_connect.get_client(dsn=url)
        for query in (
            "INSERT INTO shop.orders VALUES (1, 'a', 'b')",
            "DROP TABLE shop.orders",
            "ALTER TABLE shop.orders DELETE WHERE 1",
            "CREATE TABLE shop.made (id UInt8) ENGINE = Memory",
            "SELECT card FROM shop.orders LIMIT 1",
        ):
            with pytest.raises(DatabaseError, match=r"Not enough privileges|readonly mode"):
                client.command(query)
        client.close()


def test_the_settings_that_queries_need_are_documented(data: Path) -> None:
    page = (PROJECT / "docs" / "concepts" / "security.md").read_text()
    [listed] = re.findall(r"<!-- settings -->\n(.*?)<!-- /settings -->", page, re.DOTALL)
    with _user(data, 2, "GRANT SELECT ON shop.orders") as url:
        asked = _Asking(url)
        _everything(_feed("shop.orders"), asked)
    # Settings that the profile changes are reset too; which ones depends on the profile.
    setting = re.compile(r"(\w+) = (?!DEFAULT)")
    sent = {name for query in asked.queries for name in setting.findall(query.partition(" SETTINGS ")[2])}
    assert set(re.findall(r"`(\w+)`", listed)) == sent


def test_a_profile_that_forbids_settings_is_named(data: Path) -> None:
    with _user(data, 1, "GRANT SELECT ON shop.orders") as url, pytest.raises(SourceError) as refusal:
        _everything(_feed("shop.orders"), HttpEngine(url))
    assert "READONLY" in str(refusal.value)
    assert "Set readonly to 0 or 2 in the user's profile" in str(refusal.value)
