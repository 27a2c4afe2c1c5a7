"""Feeds over tables made for one test, on ClickHouse's engine in this process."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import chdb

from ucs_pipeline.cli.demo_data import FLIGHTS, write_data
from ucs_pipeline.clickhouse.source import EmbeddedEngine, Source
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.feed.feed import Feed

_kept: list[Any] = []


class Table:
    """A table with a name of its own, and the feed that reads it."""

    def __init__(self, columns: str, rows: str, order_by: str = "tuple()", engine: str = "MergeTree") -> None:
        """Creates the table; `rows` is what follows INSERT INTO, `columns` the column definitions."""
        self.connection = chdb.connect(":memory:")
        # The engine ends with its last connection, and the tables with it.
        _kept.append(self.connection)
        self.name = f"t_{uuid.uuid4().hex}"
        self.run(f"CREATE TABLE {self.name} ({columns}) ENGINE = {engine} ORDER BY {order_by}")
        self.run(f"INSERT INTO {self.name} {rows}")

    def run(self, query: str) -> str:
        """Runs a query; its result as TSV."""
        return str(self.connection.query(query, "TabSeparated"))

    def feed(self, last: int, **more: Any) -> Feed:
        """A feed over the table, keyed by `id`."""
        settings: dict[str, Any] = {"key": "id", "bricks": {"class": "number", "last": last}, **more}
        return Feed(name="feed", table=self.name, **settings)


class _Engine(EmbeddedEngine):
    # Longer blocks: all rows of a small table in one batch, for tests that take its rows in hand.
    scan_settings: Mapping[str, str | int] = {**EmbeddedEngine.scan_settings, "max_block_size": 16_384}

    def connect(self) -> Any:
        return chdb.connect(":memory:")


def source_of(feed: Feed) -> Source:
    """The feed's table, read through connections of its own."""
    return Source(feed, _Engine())


def numbers(rows: int, step: int = 1) -> Table:
    """Ids from 0 on, `step` apart, each with a word that is NULL for every seventh."""
    return Table(
        "id UInt64, word Nullable(String)",
        f"SELECT number * {step}, if(number % 7 = 0, NULL, concat('w', toString(number))) FROM numbers({rows})",
        order_by="id",
    )


def expected(rows: int, step: int = 1) -> list[tuple[EntryId, dict[bytes, bytes]]]:
    """The expected stream of `numbers`, calculated in Python."""
    found = []
    brick, row = -1, 0
    for number in range(rows):
        key = number * step
        brick, row = (brick, row + 1) if key // 10_000 == brick else (key // 10_000, 1)
        fields = {b"id": b"%d" % key} | ({} if number % 7 == 0 else {b"word": b"w%d" % number})
        found.append((EntryId(brick, row), fields))
    return found


def write_flights(directory: Path) -> Path:
    """Path of `flights.parquet` in `directory`, as `write_data` writes it."""
    return write_data(FLIGHTS, directory)
