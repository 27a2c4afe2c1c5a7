"""Tables that hold several versions of a row until they merge them, also if a view or another table reads them."""

import re
from collections.abc import Collection

from ucs_pipeline.clickhouse.rules.varying import RowsOf, if_allowed
from ucs_pipeline.clickhouse.sql import explained
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.feed.feed import Feed

_MERGING = re.compile(
    r"(Replicated|Shared)?(Replacing|(Versioned)?Collapsing|Summing|Aggregating|Coalescing|Graphite)MergeTree"
)
_DISTRIBUTED = re.compile(r"Distributed\('(?:[^'\\]|\\.)*', '((?:[^'\\]|\\.)*)', '((?:[^'\\]|\\.)*)'")
_IN_VIEW = "write FINAL into the query of the view"


def merges(engine: str) -> bool:
    """Whether tables of an engine hold several versions of a row."""
    return bool(_MERGING.fullmatch(engine))


def read_twice(feed: Feed, what: str, advice: str = "set `final: true`") -> str:
    """The warning about such a table. `what`: what it is."""
    return (
        f"feed {feed.name!r}: table {feed.redacted.table!r} {what} without FINAL: its rows may be merged or replaced "
        f"after they were published. {advice[0].upper()}{advice[1:]}, or publish bricks only when they no longer "
        "change."
    )


def behind(feed: Feed, shape: sql.Shape, rows: RowsOf) -> str | None:
    """The warning about such tables behind the feed's, which has another engine; None if there are none.

    Raises:
        SourceUnavailableError: ClickHouse cannot answer now.
    """
    plan = _lines(rows, sql.plan(shape, final=feed.final))
    tables = {*explained.unmerged(plan), *(() if feed.final else _remote(feed, rows))}
    if found := _merging(rows, tables):
        helps = not feed.final and not _merging(rows, explained.unmerged(_lines(rows, sql.plan(shape, final=True))))
        return read_twice(feed, f"reads {found}", "set `final: true`" if helps else _IN_VIEW)
    if feed.final and explained.buffered(plan) and _merging(rows, explained.tables(plan)):
        return (
            f"feed {feed.name!r}: table {feed.redacted.table!r} is a Buffer. Rows in the buffer are read in addition "
            "to their versions in its table, in spite of FINAL. Read the table behind it instead."
        )
    return None


def _lines(rows: RowsOf, query: str) -> list[str]:
    return [row["explain"] for row in if_allowed(rows, query)]


def _remote(feed: Feed, rows: RowsOf) -> list[str]:
    """The table that a Distributed table stands for, if this server has one of its name."""
    query = sql.engine(feed.table)
    found = (_DISTRIBUTED.match(row["engine_full"]) for row in if_allowed(rows, query)) if query else ()
    return [f"{match[1]}.{match[2]}" for match in found if match]


def _merging(rows: RowsOf, tables: Collection[str]) -> str:
    """Text that names the tables that hold several versions of a row; empty if none does."""
    found = if_allowed(rows, sql.engines(sorted(tables))) if tables else []
    return " and ".join(f"{row['full']}, a {row['engine']}," for row in found if merges(row["engine"]))
