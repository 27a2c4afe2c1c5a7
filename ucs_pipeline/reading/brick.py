"""One brick read back from its stream, as a table."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import redis

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed, start_in
from ucs_pipeline.feed.shards import stream_with
from ucs_pipeline.redis.connection import RedisServer
from ucs_pipeline.stream.stream import OrderedStream, floor, open_stream

if TYPE_CHECKING:
    import pandas as pd

    from ucs_pipeline.clickhouse.source import Source

Table = Callable[[Feed], "Source"]
"""Opens a feed's table."""

Fields = Mapping[bytes, bytes] | Mapping[str, str]
"""Fields of an entry, as a client returns them."""

_LAST_ROW = 2**64 - 1


def read_brick(feed: Feed, brick: str, at: "RedisServer | redis.Redis", table: Table) -> "pd.DataFrame":
    """The entries of a brick that are in the stream, one row each, in order.

    The index, `entry_id`, is the entries' ids. Each field is a column of text, in the order in which the fields first
    appear; a field that an entry leaves out, which means NULL, is `pandas.NA`. Bytes that are not UTF-8 are kept as
    surrogate escapes: `value.encode("utf-8", "surrogateescape")` gives them back. A brick without rows between the
    stream's first entry and its last ID gives an empty table.

    Args:
        feed: a feed.
        brick: name of a brick, such as `0.0.0.12`.
        at: the Redis to read from, or a client of it.
        table: opens the feed's table. It is read for a brick of an any-order feed whose stream has other entries.

    Raises:
        UcsError: there is no such brick, or the brick is not published yet, or is no longer in the stream.
        StreamError: the stream cannot be read.
    """
    start = start_in(feed, brick)
    chosen = stream_with(feed, start)
    stream = open_stream(chosen, at)
    frame = table_of(_found(chosen, stream, start, table))
    if frame.empty and not chosen.any_order:
        _refuse_absent(chosen, stream, start)
    return frame


def table_of(entries: Iterable[tuple[str, Fields]], names: Iterable[bytes] = ()) -> "pd.DataFrame":
    """Entries as a table like that of `read_brick`, with at least the fields `names`, in that order."""
    import pandas as pd

    ids: list[str] = []
    columns: dict[str, list[str | None]] = {_text(name): [] for name in names}
    for entry_id, fields in entries:
        found = {_text(name): _text(value) for name, value in fields.items()}
        for name in found:
            if name not in columns:
                columns[name] = [None] * len(ids)
        for name, values in columns.items():
            values.append(found.get(name))
        ids.append(entry_id)
    index = pd.Index(ids, dtype=object, name="entry_id")
    # Kept as Python objects, in the header too: pandas' Arrow text takes nothing but UTF-8.
    text = pd.StringDtype("python")
    cells = {number: pd.Series(values, index, text) for number, values in enumerate(columns.values())}
    frame = pd.DataFrame(cells, index)
    frame.columns = pd.Index(list(columns), dtype=object)
    return frame


def _found(feed: Feed, stream: OrderedStream, start: int, table: Table) -> Iterator[tuple[str, Fields]]:
    if not feed.any_order:
        yield from _entries(stream, start, feed.partitions.end(start))
        return
    # Reads the table if other clients write to the stream. Importing Arrow takes longer than all the rest.
    from ucs_pipeline.reading.any_order_brick import ledger_entries

    for entry_id, fields in ledger_entries(feed, stream, start, table):
        yield str(entry_id), fields


def _entries(stream: OrderedStream, first: int, last: int) -> Iterator[tuple[str, Fields]]:
    for entry_id, fields in stream.walk(EntryId(first, 0), EntryId(last, _LAST_ROW)):
        yield str(entry_id), fields


def _refuse_absent(feed: Feed, stream: OrderedStream, ordinal: int) -> None:
    state = stream.state()
    brick = f"feed {feed.name!r}: brick {feed.partitions.name(ordinal)}"
    if state.top <= floor(feed) or ordinal > state.top.ordinal:
        there = "has had no entries" if state.top <= floor(feed) else f"ends at {state.top}"
        raise UcsError(
            f"{brick} is not published yet, or has no rows: stream {stream.name!r} {there}. Publish it.",
            "UCS-NOT-IN-STREAM",
        )
    if state.first is None or feed.partitions.end(ordinal) < state.first.ordinal:
        there = f"begins at {state.first}" if state.first else f"is empty and had entries up to {state.top}"
        raise UcsError(
            f"{brick} was trimmed, or adopted without being published: stream {stream.name!r} {there}. Read its rows "
            f"from table {feed.redacted.table!r}.",
            "UCS-NOT-IN-STREAM",
        )


def _texts(fields: "Mapping[Any, bytes | str]") -> Mapping[str, str]:
    return {_text(name): _text(value) for name, value in fields.items()}


def _text(value: bytes | str) -> str:
    # The caller's client may decode replies.
    return value if isinstance(value, str) else value.decode(errors="surrogateescape")
