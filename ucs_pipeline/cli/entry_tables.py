"""Entries read back from their streams, on the terminal or as CSV."""

from io import TextIOWrapper
from itertools import islice, takewhile
from typing import TYPE_CHECKING, BinaryIO

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ucs_pipeline.cli.output import console, full_width, print_table
from ucs_pipeline.entries.display import printable
from ucs_pipeline.entries.entry_id import START, EntryId
from ucs_pipeline.errors import counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.project.readers import read_entries
from ucs_pipeline.reading.brick import table_of

if TYPE_CHECKING:
    import pandas as pd

_CELL = 60
_CHUNK = 1000
_NULL = "\\N"
"""ClickHouse's NULL in CSV: an empty field is an empty string."""


def print_brick(frame: "pd.DataFrame", brick: str, stream: str, most: int, start: int | None = None) -> None:
    """Prints the first rows of a partition, at most `most`, and how many are gone.

    `start`: ordinal of its first brick, if entry ids are positions in the table; None if not.
    """
    shown = _print(f"brick {brick} in stream {stream}", frame.head(most))
    gone = "" if start is None or frame.empty else _gone(start, EntryId.parse(frame.index[0]))
    console.print(f"{shown:,} of {counted(len(frame), 'row')}{gone}")


def _gone(start: int, first: EntryId) -> str:
    """How many rows before the first entry are gone."""
    if first.ordinal == start:
        return f"; {counted(first.row - 1, 'row')} before them trimmed" if first.row > 1 else ""
    # A coarser partition: ids do not show how many rows its earlier bricks had.
    if first.row > 1:
        return f"; all before entry {first} were trimmed"
    return f"; those before entry {first} were trimmed, if its bricks before that one had any"


def print_entries(feed: Feed, most: int) -> None:
    """Prints the first entries of a feed, in the order of `read_entries`."""
    streams = [part.stream_name for part in streams_of(feed)]
    title = f"stream {streams[0]}" if len(streams) == 1 else f"streams {streams[0]} to {streams[-1]}"
    shown = _print(title, table_of((str(entry_id), fields) for entry_id, fields in islice(read_entries(feed), most)))
    console.print(f"the first {counted(shown, 'row')}")


def _print(title: str, frame: "pd.DataFrame") -> int:
    names = [_shown(name) for name in frame.columns]
    rows = [
        (_shown(entry_id), [_shown(value) if isinstance(value, str) else Text("NULL", "dim") for value in values])
        for entry_id, *values in frame.astype(object).itertuples(name=None)
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in (Text("entry_id"), *names):
        table.add_column(name)
    for entry_id, values in rows:
        table.add_row(entry_id, *values)
    console.print(Text(title))
    if not console.is_terminal or full_width(table) <= console.width:
        print_table(table)
    else:
        for entry_id, values in rows:
            console.print(entry_id, style="bold")
            for name, value in zip(names, values, strict=True):
                console.print(Text("  ") + name + ": " + value)
    return len(rows)


def write_entries(feed: Feed, file: BinaryIO) -> None:
    r"""Writes the entries of a feed as `write_csv` does, in the order of `read_entries`; memory does not grow.

    They are read twice: the header needs the fields of all entries.
    """
    names: dict[bytes, None] = {}
    last = START
    for entry in read_entries(feed):
        last = entry.id
        names |= dict.fromkeys(entry.fields)
    entries = takewhile(lambda entry: entry.id <= last, read_entries(feed))
    begun = False
    while (some := [(str(entry_id), fields) for entry_id, fields in islice(entries, _CHUNK)]) or not begun:
        write_csv(table_of(some, names), file, header=not begun)
        begun = True


def write_csv(frame: "pd.DataFrame", file: BinaryIO, *, header: bool = True) -> None:
    r"""Writes entries as CSV, their bytes as they are in the stream; NULL is written as \N."""
    text = TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    frame.to_csv(text, na_rep=_NULL, lineterminator="\n", header=header)
    text.flush()
    text.detach()


def _shown(value: str) -> Text:
    shown = value if len(value) <= _CELL else value[: _CELL - 1] + "…"
    return Text(printable(shown.encode(errors="surrogateescape").decode(errors="backslashreplace")))
