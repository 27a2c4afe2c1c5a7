"""What a feed selects, with the types that its table has now."""

from collections.abc import Collection

from ucs_pipeline.bricks.number import NumberBricks
from ucs_pipeline.bricks.text import TextBricks
from ucs_pipeline.bricks.time import TimeBricks
from ucs_pipeline.clickhouse.rules.varying import RowsOf, refuse_varying
from ucs_pipeline.clickhouse.sql import queries as sql
from ucs_pipeline.clickhouse.sql.keys import Key, KeySql, NumberKeySql, TextKeySql
from ucs_pipeline.clickhouse.sql.row_payload import Column
from ucs_pipeline.clickhouse.sql.time_keys import TimeKeySql
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed.feed import Feed


def selected(feed: Feed, rows: RowsOf) -> sql.Shape:
    """The key and the fields of a feed. `rows` gives the rows of a query.

    Raises:
        SourceError: there is no such table or column, the key is of another class, or a value does not depend on its
            row alone.
    """
    described = rows(sql.describe_table(feed.table), {})
    # An EPHEMERAL column exists in INSERT only.
    own = [row["name"] for row in described if row["default_type"] != "EPHEMERAL"]
    # Those that SELECT * gives.
    stored = [row["name"] for row in described if row["default_type"] not in ("EPHEMERAL", "ALIAS", "MATERIALIZED")]
    chosen = {column: column for column in stored} if feed.columns is None else feed.columns
    clash = sorted(set(chosen) & set(feed.constants))
    if clash:
        raise SourceError(
            f"feed {feed.name!r}: field {clash[0]!r} is both a column of table {feed.redacted.table!r} and a "
            "constant. List the columns to publish, or rename the constant."
        )
    expressions = [sql.column_expression(text, own) for text in (feed.key, *chosen.values())]
    types = [row["type"] for row in rows(sql.describe_expressions(feed.table, expressions), {})]
    keys = _key_sql(feed, own)
    if expected := keys.refusal(types[0]):
        raise SourceError(f"feed {feed.name!r}: key {feed.redacted.key!r} has type {types[0]}, expected {expected}.")
    refuse_varying(feed, rows, described, [*expressions, *keys.mentioned()])
    columns = [Column(*three) for three in zip(chosen, expressions[1:], types[1:], strict=True)]
    key = Key(expressions[0], types[0])
    return sql.Shape(feed.table, feed.final, feed.where, key, keys, columns, feed.constants, own)


def _key_sql(feed: Feed, table_columns: Collection[str]) -> KeySql:
    bricks = feed.partitions.bricks
    if isinstance(bricks, NumberBricks):
        return NumberKeySql(feed.partitions, bricks)
    if isinstance(bricks, TimeBricks):
        return TimeKeySql(feed.partitions, bricks, feed.bricks.unit)
    assert isinstance(bricks, TextBricks)
    column = feed.bricks.column
    return TextKeySql(feed.partitions, bricks, None if column is None else sql.column_expression(column, table_columns))
