"""One feed's table as ordered Arrow batches."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa

from ucs_pipeline.clickhouse.client import EmbeddedEngine as EmbeddedEngine
from ucs_pipeline.clickhouse.client import Engine, HttpEngine
from ucs_pipeline.clickhouse.errors import ADDRESS
from ucs_pipeline.clickhouse.prefetch import Background
from ucs_pipeline.clickhouse.rules.batches import Counted, check
from ucs_pipeline.clickhouse.rules.no_rows import empty, filtered
from ucs_pipeline.clickhouse.rules.versions import behind, merges, read_twice
from ucs_pipeline.clickhouse.selection import selected
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.clickhouse.sql.keys import OUTSIDE
from ucs_pipeline.clickhouse.sql.row_payload import TEXT_SETTINGS
from ucs_pipeline.entries.transform import Transform
from ucs_pipeline.errors import SourceError, SourceUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.home import EMBEDDED

_SCAN_SETTINGS: Mapping[str, str | int] = {
    **TEXT_SETTINGS,
    # Small blocks keep memory flat and let reading, encoding and sending overlap.
    "max_block_size": 16384,
}
_CENSUS_SETTINGS: Mapping[str, str | int] = {
    # For a row in no brick only the key is calculated: another expression may fail on it.
    "short_circuit_function_evaluation": "force_enable",
}
_NOTHING: Mapping[str, int] = MappingProxyType({})
_MOST_PORTIONS = 20
_AHEAD_ROWS = 100_000
"""How many rows before the end of a portion the next one starts: about what the engine needs for its first rows."""

# Strings in rows are bytes: ClickHouse does not guarantee UTF-8.
_AS_BYTES: Mapping[str, str | int] = {"output_format_arrow_string_as_string": 0}
_AS_TEXT: Mapping[str, str | int] = {"output_format_arrow_string_as_string": 1}


class BrickContent(NamedTuple):
    """What a brick holds in the table."""

    rows: int
    hash: int
    """Sum modulo 2^64 of the xxHash64 of every row's payload; 0 without rows."""


class Tail(NamedTuple):
    """Where a table ends. It changes when rows come that are not before its end."""

    newest: str
    """The newest key, as ClickHouse writes it."""
    rows: int
    """Rows that have it."""


class TableStats(NamedTuple):
    """What the whole table holds."""

    bricks: Mapping[int, BrickContent]
    """Partitions by start; those without rows are left out."""
    unassigned: Mapping[str, int]
    """Rows that are in no brick of the feed, by `ucs_pipeline.clickhouse.sql.keys.OUTSIDE`."""


class ScanWindow(NamedTuple):
    """Bricks that one query reads, and about how many rows they have."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class ClickHouseServer:
    """Where a ClickHouse is."""

    url: str = field(repr=False)
    """As clickhouse-connect reads it, or `embedded`: the engine in this process."""
    name: str = ADDRESS
    """The URL's name in messages: the setting that holds it."""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """ClickHouse settings of every query, unless the feed sets them."""

    def engine(self) -> Engine:
        """What runs its queries. Connects at the first one."""
        return EmbeddedEngine() if self.url == EMBEDDED else HttpEngine(self.url)


class Source:
    """One feed's table."""

    def __init__(self, feed: Feed, engine: Engine, server: ClickHouseServer = ClickHouseServer("")) -> None:
        self.feed = feed
        self._engine = engine
        self._server = server
        self._shape: sql.Shape | None = None
        self._pins: sql.Pins | None = None
        self._transform: Any = None

    def scan(self, first: int, last: int) -> Generator[pa.RecordBatch, None, None]:
        """Rows of the bricks with ordinals `first` to `last`, in order; columns as in `sql.queries.scan`.

        Raises:
            SourceError: the query is refused or fails half-way, or a row cannot become an entry.
        """
        # Counted before the scan: a scan with fewer rows reads an older state than the count.
        counts = self.count(first, last)
        portions = deque(self._portions(first, last, counts))
        counted = Counted(self.feed, counts)
        with ExitStack() as started:
            portion = portions.popleft()
            current: Iterator[pa.RecordBatch] = started.enter_context(closing(self._read(portion)))
            while True:
                following, left = None, portion.rows
                for batch in current:
                    counted.add(batch.column("ordinal"))
                    yield batch
                    left -= batch.num_rows
                    if portions and following is None and left < _AHEAD_ROWS:
                        # Its first rows come after it is sorted. By then the current one is sent.
                        following = self._begin(portions, started)
                if portions and following is None:
                    # Fewer rows than counted.
                    following = self._begin(portions, started)
                if following is None:
                    counted.finish()
                    return
                portion, current = following

    def _begin(
        self, portions: "deque[ScanWindow]", started: ExitStack
    ) -> "tuple[ScanWindow, Iterator[pa.RecordBatch]]":
        portion = portions.popleft()
        return portion, iter(started.enter_context(Background(self._read(portion), 1, "ucs-ahead")))

    def _read(self, portion: "ScanWindow") -> Generator[pa.RecordBatch, None, None]:
        shape = self.shape()
        if within := shape.keys.within(shape.key, portion.first, portion.last):
            usual = {**_SCAN_SETTINGS, **self._engine.scan_settings}
            query = self._asked(sql.scan(shape, within, raw=self.feed.transform is not None), usual, _AS_BYTES)
            try:
                with closing(self._engine.batches(query, within.parameters, self.feed.redact)) as batches:
                    for scanned in batches:
                        batch = self._transformed(scanned, shape)
                        check(self.feed, batch, portion.first, portion.last)
                        yield batch
            except SourceError as error:
                raise self._named(error) from error

    def _portions(self, first: int, last: int, counts: Mapping[int, int]) -> Iterator["ScanWindow"]:
        """Ranges of bricks, in order. Each has about as many rows as the engine sorts in memory, or is one brick."""
        start, total = first, 0
        if self._engine.sorted_rows is not None and last > first:
            # If rows are stored in no order, each portion reads the whole table.
            most = max(self._engine.sorted_rows, sum(counts.values()) // _MOST_PORTIONS)
            for ordinal, rows in counts.items():
                if total and total + rows > most:
                    yield ScanWindow(start, ordinal - 1, total)
                    start, total = ordinal, 0
                total += rows
        yield ScanWindow(start, last, total)

    def count(self, first: int, last: int) -> dict[int, int]:
        """Rows per brick of the bricks with ordinals `first` to `last`; bricks without rows are left out.

        Raises:
            SourceError: the query is refused.
        """
        shape = self.shape()
        within = shape.keys.within(shape.key, first, last)
        query = sql.count(shape, within) if within else ""
        rows = self._rows(query, within.parameters) if within else []
        return {row["ordinal"]: row["rows"] for row in rows}

    def newest_key(self, first: int) -> int | None:
        """The largest id of the table from the number brick with ordinal `first` on; None if there is none.

        Raises:
            SourceError: the query is refused.
        """
        shape = self.shape()
        within = shape.keys.within(shape.key, first, first)
        low = {"first": within.parameters["first"]} if within else {}
        rows = self._rows(sql.newest_key(shape), low) if within else []
        return int(next(iter(rows[0].values()))) if rows else None

    def tail(self, first: int, last: int) -> Tail | None:
        """The newest key of the bricks with ordinals `first` to `last`; None if there is none.

        Raises:
            SourceError: the query is refused.
        """
        shape = self.shape()
        within = shape.keys.within(shape.key, first, last)
        found = self._rows(sql.tail(shape, within), within.parameters) if within else []
        return Tail(*found[0].values()) if found else None

    def has_rows_beyond(self) -> bool:
        """Whether the table has a row after the feed's last brick.

        Raises:
            SourceError: the query is refused.
        """
        return bool(self._rows(sql.beyond(self.shape())))

    def remark(self, wanted: Sequence[int]) -> str | None:
        """The message about partitions without any row; None if the table has none at all.

        Raises:
            SourceError: the query is refused.
        """
        shape = self.shape()
        if found := self._rows(sql.sample(shape)):
            return empty(self.feed, wanted, found[0]["sample"])
        return (
            filtered(self.feed, wanted) if shape.where and self._rows(sql.sample(shape._replace(where=None))) else None
        )

    def census(self) -> TableStats:
        """Rows and content of every brick of the feed, and the rows outside, by one aggregate query.

        Raises:
            SourceError: the query is refused.
        """
        found = self._rows(sql.census(self.shape()), usual={**TEXT_SETTINGS, **_CENSUS_SETTINGS})
        bricks: dict[int, BrickContent] = {}
        unassigned = dict.fromkeys(OUTSIDE, 0)
        for row in found:
            if row["place"]:
                unassigned[OUTSIDE[row["place"] - 1]] = row["rows"]
            else:
                start = self.feed.partitions.start(row["ordinal"])
                rows, content = bricks.get(start, BrickContent(0, 0))
                bricks[start] = BrickContent(rows + row["rows"], (content + row["hash"]) % 2**64)
        return TableStats(bricks, unassigned)

    def engine(self) -> str | None:
        """The table's engine, such as `MergeTree`; None if it is no plain table, or the user lacks the right.

        Raises:
            SourceUnavailableError: ClickHouse cannot answer now.
        """
        query = sql.engine(self.feed.table)
        try:
            found = self._rows(query) if query else []
        except SourceUnavailableError:
            raise
        except SourceError:
            return None
        return str(found[0]["engine"]) if found else None

    def warning(self) -> str | None:
        """A warning about the table's engine; None if there is none.

        Raises:
            SourceUnavailableError: ClickHouse cannot answer now.
        """
        engine = self.engine()
        if engine is not None and engine.endswith("MergeTree"):
            return None if self.feed.final or not merges(engine) else read_twice(self.feed, f"is a {engine} read")
        try:
            return behind(self.feed, self.shape(), self._settled_rows)
        except SourceUnavailableError:
            raise
        except SourceError:
            # Reading the table reports errors of the feed.
            return None

    def shape(self) -> sql.Shape:
        """What the feed selects, with the types the table has now.

        Raises:
            SourceError: there is no such table or column, the key is of another class, or a value does not depend on
                its row alone.
        """
        if self._shape is None:
            self._shape = selected(self.feed, self._settled_rows)
        return self._shape

    def _transformed(self, batch: pa.RecordBatch, shape: sql.Shape) -> pa.RecordBatch:
        if self.feed.transform is None:
            return batch
        transform = self._transform = self._transform or Transform(self.feed.transform, self.feed.constants)
        fields = {column.field: f"raw_{n}" for n, column in enumerate(shape.columns)}
        return transform.apply(batch, fields, self.feed.partitions.name(batch.column("ordinal")[0].as_py()))

    def _rows(
        self, query: str, parameters: Mapping[str, int] = _NOTHING, usual: Mapping[str, str | int] = _NOTHING
    ) -> list[dict[str, Any]]:
        return self._run(self._asked(query, usual, _AS_TEXT), parameters)

    def _settled_rows(self, query: str, fixed: Mapping[str, str | int]) -> list[dict[str, Any]]:
        """The rows of a query, with settings that a feed does not change."""
        return self._run(self._asked(query, _NOTHING, {**_AS_TEXT, **fixed}), {})

    def _asked(self, query: str, usual: Mapping[str, str | int], fixed: Mapping[str, str | int]) -> str:
        """A query with fixed settings, and a text that no earlier query had.

        A feed's own settings override `usual`. The unique text keeps a cache from answering.
        """
        if self._pins is None:
            known = self._run(sql.known_settings(), {})
            self._pins = sql.Pins.of((row["name"], bool(row["changed"])) for row in known)
        settings = {
            **self._pins.usual,
            **usual,
            **self._server.settings,
            **self.feed.settings,
            **fixed,
            **self._pins.fixed,
        }
        return f"{query}{sql.settings_clause(settings)} /* {uuid4().hex} */"

    def _run(self, query: str, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
        try:
            return self._engine.rows(query, parameters, self.feed.redact)
        except SourceError as error:
            raise self._named(error) from error

    def _named(self, error: SourceError) -> SourceError:
        return type(error)(f"feed {self.feed.name!r}: {str(error).replace(ADDRESS, self._server.name)}")


def open_source(feed: Feed, server: ClickHouseServer) -> Source:
    """The feed's table on a server. Connects at the first query."""
    return Source(feed, server.engine(), server)
