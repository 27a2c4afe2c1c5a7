"""The texts and metadata of a feed's page in the UI. Pure."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg

from ucs_pipeline.clickhouse.sql.row_payload import unwrap
from ucs_pipeline.errors import counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redis_keys import ledger_key
from ucs_pipeline.feed.sql_tokens import columns_named, contents, tree
from ucs_pipeline.orchestration.names import feed_key, table_key

if TYPE_CHECKING:
    from ucs_pipeline.clickhouse.sql.queries import Shape

_SCHEMA, _LINEAGE = "dagster/column_schema", "dagster/column_lineage"
_MOST_FIELDS = 1000
"""Fields that an event describes, at most: they take up to 400 bytes each."""


def description(feed: Feed, runs_tag: str) -> str:
    """The description on the feed's page in the UI.

    Args:
        feed: the feed.
        runs_tag: the run tag, with its value, of the feed's runs.
    """
    bricks = feed.partitions
    first, last = bricks.name(bricks.first), bricks.name(bricks.last)
    constants = ", ".join(f"`{field}`: `{value}`" for field, value in feed.constants.items())
    content = "Every column of the table is a field of an entry" + (f", next to {constants}." if constants else ".")
    if feed.transform is not None:
        content = f"The columns that `{feed.transform}` returns are the fields of an entry."
    elif feed.columns is not None:
        content = "Its columns are the fields of an entry."
    order = f"any order of its {bricks.unit}s" if feed.any_order else f"the order of `{feed.redacted.key}`"
    return "\n\n".join(
        [
            *([feed.description] if feed.description else []),
            f"Moves table `{feed.redacted.table}` of resource `{feed.clickhouse}` into stream `{feed.stream_name}` of "
            f"resource `{feed.redis}`, exactly once and in {order}: "
            f"{counted(len(bricks.starts), bricks.unit)}, `{first}` to `{last}`. {content}",
            *_shard(feed),
            f"{_where(feed)} [All runs of this feed](../runs?q[0]={quote(f'tag:{runs_tag}', safe='')}).",
        ]
    )


def _shard(feed: Feed) -> Iterator[str]:
    if feed.shard_id:
        yield (
            f"Shard {feed.shard_id.number} of the {feed.shard_id.of} of feed `{feed.parent.name}`: "
            f"{feed.partitions.unit}s "
            f"are assigned to them in turn. `ucs read {feed.parent.name}` merges their streams into the order of the "
            "table."
        )


def _where(feed: Feed) -> str:
    """The Redis command that reads the entries of a partition."""
    if feed.any_order:
        return (
            f"The ledger, `HGETALL {ledger_key(feed.stream_name, feed.name)}`, records what is in the stream. A "
            f"{feed.partitions.unit}'s entries are between its `first_entry_id` and its `last_entry_id`, among those "
            "of other clients."
        )
    read, brick = f"`XRANGE {feed.stream_name}", "`<n>` is the number before the dash in"
    if not feed.partitions.depth:
        return f"A brick's entries are {read} <n> <n>`, where {brick} its `first_entry_id`."
    return (
        f"A {feed.partitions.unit}'s entries are {read} <first> <last>`, from its `first_entry_id` to its "
        f"`last_entry_id`; those of one brick in it are {read} <n> <n>`, where {brick} the brick's entry ids."
    )


def settings(feed: Feed) -> str:
    """The settings of the feed's file, without its secrets, as JSON."""
    written = feed.parent.redacted.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return json.dumps(written, ensure_ascii=False)


def table_storage(feed: Feed) -> dict[str, str]:
    """Where the feed's table is: Dagster's standard metadata of an asset.

    None for a table function. The key of the resource stands for the server: definitions connect to nothing.
    """
    table = feed.redacted.table
    quoted = table.startswith("`")
    if "(" in table and not quoted:
        return {}
    parts = [*contents(tree(table))] if quoted else table.split(".")
    return {"dagster/table_name": ".".join(parts), **_storage("clickhouse", feed.clickhouse, parts)}


def stream_storage(feed: Feed) -> dict[str, str]:
    """Where the feed's stream is, as `table_storage`."""
    return _storage("redis", feed.redis, [feed.stream_name])


def _storage(kind: str, server: str, path: Sequence[str]) -> dict[str, str]:
    names = "/".join(quote(name, safe="") for name in path)
    return {"dagster/uri": f"{kind}://{server}/{names}", "dagster/storage_kind": kind}


def fields(feed: Feed, shape: "Shape | None" = None) -> dict[str, dg.TableSchema | dg.TableColumnLineage]:
    """The fields of an entry, and the columns that each is made from: Dagster's standard metadata of a table.

    Args:
        feed: the feed.
        shape: what the feed selects, with the types that the table has now; None in definitions, which connect to
            nothing. Without it there are no types, and no fields of a feed that takes every column.
    """
    schema = _schema(feed, shape)
    # The UI writes the names of columns in lower case if both a definition and an event have them.
    misread = shape is None and any(column.name != column.name.lower() for column in schema)
    if not schema or misread or (shape and len(schema) > _MOST_FIELDS):
        return {}
    return {_SCHEMA: dg.TableSchema(schema), _LINEAGE: dg.TableColumnLineage(_origins(feed, shape))}


def stream_fields(feeds: Sequence[Feed]) -> dict[str, dg.TableSchema | dg.TableColumnLineage]:
    """The fields of the entries in a stream that some feeds write to, each from the feeds that have it.

    None if a feed takes every column of its table: definitions connect to nothing.
    """
    by_feed = {feed_key(feed): _schema(feed, None) for feed in feeds}
    if not all(by_feed.values()):
        return {}
    columns: dict[str, dg.TableColumn] = {}
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for key, schema in by_feed.items():
        for column in schema:
            columns.setdefault(column.name, column)
            deps.setdefault(column.name, []).append(dg.TableColumnDep(key, column.name))
    return {_SCHEMA: dg.TableSchema(list(columns.values())), _LINEAGE: dg.TableColumnLineage(deps)}


def _schema(feed: Feed, shape: "Shape | None") -> list[dg.TableColumn]:
    """The fields of an entry; none if they are not known."""
    if feed.transform is not None or (shape is None and feed.columns is None):
        return []
    texts = feed.redacted.columns or {}
    # The UI shows no type if it is an empty text.
    types = dict.fromkeys(texts, "") if shape is None else {name: feed.redact(kind) for name, _, kind in shape.columns}
    found = [_column(name, kind, f"from `{texts[name]}`" if name in texts else None) for name, kind in types.items()]
    constant = "" if shape is None else "String"
    return found + [_column(name, constant, f"the constant `{value}`") for name, value in feed.constants.items()]


def _column(name: str, kind: str, description: str | None) -> dg.TableColumn:
    # NULL leaves its field out: every entry has the fields that are not nullable.
    constraints = dg.TableColumnConstraints(nullable=unwrap(kind)[1] or not kind)
    return dg.TableColumn(name, kind, description, constraints)


def _origins(feed: Feed, shape: "Shape | None") -> dict[str, list[dg.TableColumnDep]]:
    """Columns of the table that each field is made from; none if its expression is not certain."""
    texts = feed.columns or {column.field: column.field for column in (shape.columns if shape else ())}
    origins: dict[str, list[dg.TableColumnDep]] = {}
    for name, text in texts.items():
        # A single word is always a column.
        own = {text} if shape is None else shape.own
        names = [text] if shape and text in own else columns_named(text, own)
        origins[name] = [dg.TableColumnDep(table_key(feed), column) for column in names]
    return origins | {name: [] for name in feed.constants}
