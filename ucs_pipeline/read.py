"""One brick read back from its stream, as a table."""

from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, BinaryIO

import redis
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ucs_pipeline.entries import EntryId
from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.feeds import feed_named, start_in
from ucs_pipeline.redis_link import connect_redis, translate
from ucs_pipeline.report import console, full_width, print_table
from ucs_pipeline.stream import OrderedStream, floor, open_stream

if TYPE_CHECKING:
    import pandas as pd

_CELL = 60
_CHUNK = 1000
_LAST_ROW = 2**64 - 1
_NULL = "\\N"
"""How ClickHouse writes NULL into CSV too: an empty field is an empty string."""


def read_brick(feed: BrickFeed | str, brick: str, client: "redis.Redis | None" = None) -> "pd.DataFrame":
    """The entries of a brick that are in the stream now, one row each, in order.

    The index, `entry_id`, is the entries' ids. Each field is a column of text, in the order in which the fields first
    appear; a field that an entry leaves out, which is what becomes of NULL, is `pandas.NA`. Bytes that are not UTF-8
    are kept as surrogate escapes: `value.encode("utf-8", "surrogateescape")` gives them back. A brick without rows
    between the stream's first entry and its top gives an empty table.

    Args:
        feed: a feed, or the name of one of the project's.
        brick: name of a brick, such as `0.0.0.12`.
        client: the Redis to read from; left out: the one that the project writes to.

    Raises:
        UcsError: there is no such feed or brick, or the brick is not published yet, or is no longer in the stream.
        StreamError: the stream cannot be read.
    """
    import pandas as pd

    chosen = feed_named(feed) if isinstance(feed, str) else feed
    start = start_in(chosen, brick)
    stream = open_stream(chosen, client or connect_redis())
    ids: list[str] = []
    columns: dict[str, list[str | None]] = {}
    for entry_id, fields in _entries(stream, start, chosen.numbering.end(start)):
        for name in fields:
            if name not in columns:
                columns[name] = [None] * len(ids)
        for name, values in columns.items():
            values.append(fields.get(name))
        ids.append(entry_id)
    if not ids:
        _refuse_absent(chosen, stream, start)
    index = pd.Index(ids, dtype=object, name="entry_id")
    # Kept as Python objects, in the header too: pandas' Arrow text takes nothing but UTF-8.
    text = pd.StringDtype("python")
    cells = {number: pd.Series(values, index, text) for number, values in enumerate(columns.values())}
    frame = pd.DataFrame(cells, index)
    frame.columns = pd.Index(list(columns), dtype=object)
    return frame


def print_brick(frame: "pd.DataFrame", brick: str, stream: str, most: int) -> None:
    """Prints the first rows of a brick, `most` of them, and how many there are."""
    names = [_shown(name) for name in frame.columns]
    rows = [
        (_shown(entry_id), [_shown(value) if isinstance(value, str) else Text("NULL", "dim") for value in values])
        for entry_id, *values in frame.head(most).astype(object).itertuples(name=None)
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in (Text("entry_id"), *names):
        table.add_column(name)
    for entry_id, values in rows:
        table.add_row(entry_id, *values)
    console.print(Text(f"brick {brick} in stream {stream}"))
    if not console.is_terminal or full_width(table) <= console.width:
        print_table(table)
    else:
        for entry_id, values in rows:
            console.print(entry_id, style="bold")
            for name, value in zip(names, values, strict=True):
                console.print(Text("  ") + name + ": " + value)
    missing = int(frame.index[0].split("-")[1]) - 1 if len(frame) else 0
    trimmed = f"; the {missing:,} before them were trimmed" if missing else ""
    console.print(f"{len(rows):,} of {len(frame):,} rows{trimmed}")


def write_csv(frame: "pd.DataFrame", file: BinaryIO) -> None:
    r"""Writes a brick as CSV with a header, its bytes as they are in the stream; NULL is written as \N."""
    text = TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    frame.to_csv(text, na_rep=_NULL, lineterminator="\n")
    text.flush()
    text.detach()


def _entries(stream: OrderedStream, first: int, last: int) -> Iterator[tuple[str, Mapping[str, str]]]:
    client: Any = stream.client
    start, end = EntryId(first, 0), EntryId(last, _LAST_ROW)
    while start <= end:
        try:
            chunk = client.xrange(stream.name, str(start), str(end), _CHUNK)
        except redis.RedisError as error:
            raise stream.named(translate(error)) from error
        for entry_id, fields in chunk:
            yield _text(entry_id), {_text(name): _text(value) for name, value in fields.items()}
        if len(chunk) < _CHUNK:
            return
        newest = EntryId.parse(chunk[-1][0])
        # A row of the last possible number is nowhere but in a stream that somebody else has written.
        start = newest._replace(row=newest.row + 1) if newest.row < _LAST_ROW else EntryId(newest.ordinal + 1, 0)


def _refuse_absent(feed: BrickFeed, stream: OrderedStream, ordinal: int) -> None:
    state = stream.state()
    brick = f"feed {feed.name!r}: brick {feed.numbering.name(ordinal)}"
    if state.top <= floor(feed) or ordinal > state.top.ordinal:
        there = "has had no entries" if state.top <= floor(feed) else f"ends at {state.top}"
        raise UcsError(f"{brick} is not published yet, or has no rows: stream {stream.name!r} {there}")
    if state.first is None or feed.numbering.end(ordinal) < state.first.ordinal:
        there = f"begins at {state.first}" if state.first else f"is empty and had entries up to {state.top}"
        raise UcsError(
            f"{brick} was trimmed, or adopted without being published: stream {stream.name!r} {there}; read its rows "
            f"from table {feed.table!r}"
        )


def _text(value: bytes | str) -> str:
    # A caller's own client may decode replies itself.
    return value if isinstance(value, str) else value.decode(errors="surrogateescape")


def _shown(value: str) -> Text:
    shown = value if len(value) <= _CELL else value[: _CELL - 1] + "…"
    return Text(shown.encode(errors="surrogateescape").decode(errors="backslashreplace"))
