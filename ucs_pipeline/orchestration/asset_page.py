"""What an asset's page in the UI says of its feed. Pure."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import dagster as dg

from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redis_keys import ledger_key


def description(feed: Feed, runs_tag: str) -> str:
    """What the feed's page in the UI says of it.

    Args:
        feed: the feed.
        runs_tag: the run tag, with its value, of the feed's runs.
    """
    bricks = feed.partitions
    first, last = bricks.name(bricks.first), bricks.name(bricks.last)
    constants = ", ".join(f"`{field}`: `{value}`" for field, value in feed.constants.items())
    fields = "Every column of the table is a field of an entry" + (f", beside {constants}." if constants else ".")
    if feed.columns is not None:
        fields = "Its columns are the fields of an entry."
    order = f"any order of its {bricks.unit}s" if feed.any_order else f"the order of `{feed.redacted.key}`"
    return "\n\n".join(
        [
            *([feed.description] if feed.description else []),
            f"Moves table `{feed.redacted.table}` into Redis stream `{feed.stream_name}`, exactly once and in {order}: "
            f"{len(bricks.starts):,} {bricks.unit}s, `{first}` to `{last}`. {fields}",
            *_dealt(feed),
            f"{_where(feed)} [All runs of this feed](../runs?q[0]={quote(f'tag:{runs_tag}', safe='')}).",
        ]
    )


def _dealt(feed: Feed) -> Iterator[str]:
    if feed.shard_id:
        yield (
            f"Shard {feed.shard_id.number} of the {feed.shard_id.of} of feed `{feed.parent.name}`: "
            f"{feed.partitions.unit}s "
            f"are dealt to them in turn. `ucs read {feed.parent.name}` merges their streams into the order of the "
            "table."
        )


def _where(feed: Feed) -> str:
    """How to ask Redis for the entries of a partition."""
    if feed.any_order:
        return (
            f"What is in the stream is in its ledger, `HGETALL {ledger_key(feed.stream_name, feed.name)}`. A "
            f"{feed.partitions.unit}'s entries are between its `first_entry_id` and its `last_entry_id`, among those "
            "of others."
        )
    read, brick = f"`XRANGE {feed.stream_name}", "`<n>` is the number before the dash in"
    if not feed.partitions.depth:
        return f"A brick's entries are {read} <n> <n>`, where {brick} its `first_entry_id`."
    return (
        f"A {feed.partitions.unit}'s entries are {read} <first> <last>`, from its `first_entry_id` to its "
        f"`last_entry_id`; those of one brick in it are {read} <n> <n>`, where {brick} the brick's entry ids."
    )


def settings(feed: Feed) -> str:
    """What is written in the feed's file, without its secrets, as JSON."""
    written = feed.parent.redacted.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return json.dumps(written, ensure_ascii=False)


def columns(feed: Feed) -> dict[str, dg.TableSchema]:
    """The fields of an entry and what is in them, if the feed names them."""
    if feed.redacted.columns is None:
        return {}
    fields = [(field, f"from `{expression}`") for field, expression in feed.redacted.columns.items()]
    fields += [(field, f"the constant `{value}`") for field, value in feed.constants.items()]
    return {
        "dagster/column_schema": dg.TableSchema([dg.TableColumn(field, description=text) for field, text in fields])
    }
