"""Values that do not depend on their row alone, and so must not be in a stream.

A row is read whenever its brick is published, compared or counted, each time with other rows. The value of a window
function, of the clock or of a random function would differ in the next run.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ucs_pipeline.clickhouse.sql import explained
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.errors import SourceError, SourceUnavailableError, counted
from ucs_pipeline.feed.feed import Feed

Row = dict[str, Any]
RowsOf = Callable[[str, Mapping[str, str | int]], list[Row]]
"""Gives the rows of a query, with some ClickHouse settings that no feed changes."""

_CALLED = re.compile(r"\b(\w+)\(")
_STORED = ("DEFAULT", "MATERIALIZED")


def refuse_varying(feed: Feed, rows: RowsOf, described: Sequence[Row], expressions: Sequence[str]) -> None:
    """Refuses values that do not depend on their row alone, as far as the engine reports it.

    Raises:
        SourceError: a function gives such a value.
    """
    mentioned = " ".join([feed.key, feed.where or "", *expressions])
    used = [row for row in described if row["name"] in mentioned]
    own = _calls(rows, sql.select(feed.table, expressions, feed.where))
    for name in sorted(own.windows):
        raise SourceError(
            f"feed {feed.name!r}: {_mentions(feed, used, name)} uses {name} as a window function, whose value "
            "depends on the rows that are read together. Each run reads its own bricks, so the value would differ from "
            "run to run. Calculate it over the whole table in a view and name the view as `table`, or store it.",
            "UCS-VARYING",
        )
    # A view's own window functions see all of its rows, whatever is selected from it.
    ordinary = own.ordinary.union(*(found.ordinary for found in _views(feed, rows, own.tables, expressions)))
    stored = {
        row["name"]: set(_CALLED.findall(row["default_expression"])) for row in used if row["default_type"] in _STORED
    }
    varying = _varying(rows, ordinary.union(*stored.values()))
    for name in sorted(varying & ordinary):
        raise SourceError(
            f"feed {feed.name!r}: {_mentions(feed, used, name)} uses {name}, whose value may differ each time "
            "a row is read. The entries could then not be compared with the table. Store the value in a DEFAULT or "
            "MATERIALIZED column and publish that column, or leave the function out.",
            "UCS-VARYING",
        )
    for column, names in stored.items():
        for name in sorted(varying & names):
            _refuse_unstored(feed, rows, column, name, own.tables)


def _refuse_unstored(feed: Feed, rows: RowsOf, column: str, function: str, tables: Iterable[str]) -> None:
    """Refuses a column that was added to a table: where it is not stored, each query calculates it again."""
    for table in tables:
        parts = sum(row["parts"] for row in if_allowed(rows, sql.unstored(table, column)))
        if parts:
            raise SourceError(
                f"feed {feed.name!r}: column {column!r} is not stored in {counted(parts, 'part')} of table {table}, "
                f"and its default uses {function}, whose value may differ each time a row is read. Store it with ALTER "
                "TABLE ... MATERIALIZE COLUMN, or leave the column out of `columns`.",
                "UCS-VARYING",
            )


def _varying(rows: RowsOf, names: Collection[str]) -> set[str]:
    """Those functions that may give another value for the same row."""
    found = if_allowed(rows, sql.functions(names)) if names else []
    varying = set()
    for row in found:
        known = [value for name, value in row.items() if name.endswith("deterministic")]
        name, own = row["name"], bool(row["own"])
        if explained.varies(name, known[0], own=own) if known else explained.of_the_moment(name):
            varying.add(name.lower())
    return {name for name in names if name.lower() in varying}


def _views(feed: Feed, rows: RowsOf, tables: Collection[str], expressions: Sequence[str]) -> Iterator[explained.Calls]:
    """Calls and tables of the views among a feed's tables, nested views included."""
    waiting, seen = list(tables), set[str]()
    alone = len(waiting) == 1
    while waiting:
        table = waiting.pop()
        if table not in seen:
            seen.add(table)
            for row in if_allowed(rows, sql.view_query(table)):
                query = row["as_select"]
                if alone and not seen - {table}:
                    # The feed's own table: columns that it does not select do not matter.
                    query = sql.select(f"({query})", expressions, feed.where)
                found = _calls(rows, query)
                waiting += found.tables
                yield found


def _calls(rows: RowsOf, query: str) -> explained.Calls:
    return explained.calls(row["explain"] for row in if_allowed(rows, sql.query_tree(query), sql.TREE_SETTINGS))


def if_allowed(rows: RowsOf, query: str, settings: Mapping[str, str | int] = MappingProxyType({})) -> list[Row]:
    """The rows of a query about tables and functions; none if it is refused, as for a user without the right.

    Raises:
        SourceUnavailableError: ClickHouse cannot answer now.
    """
    try:
        return rows(query, settings)
    except SourceUnavailableError:
        raise
    except SourceError:
        return []


def _mentions(feed: Feed, used: Sequence[Row], function: str) -> str:
    """The settings of a feed that call a function."""
    texts = {"its `key`": feed.key, "its `where`": feed.where, "its `bricks.column`": feed.bricks.column}
    texts |= {f"field {field!r}": text for field, text in (feed.columns or {}).items()}
    aliases = (row for row in used if row["default_type"] == "ALIAS")
    texts |= {f"ALIAS column {row['name']!r}": row["default_expression"] for row in aliases}
    word = re.compile(rf"\b{re.escape(function)}\b", re.IGNORECASE)
    return next((place for place, text in texts.items() if text and word.search(text)), "its SQL")
