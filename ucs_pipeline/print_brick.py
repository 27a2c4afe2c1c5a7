"""One brick, read back from its stream, on the terminal or as CSV."""

from io import TextIOWrapper
from typing import TYPE_CHECKING, BinaryIO

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ucs_pipeline.report import console, full_width, print_table

if TYPE_CHECKING:
    import pandas as pd

_CELL = 60
_NULL = "\\N"
"""How ClickHouse writes NULL into CSV too: an empty field is an empty string."""


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


def _shown(value: str) -> Text:
    shown = value if len(value) <= _CELL else value[: _CELL - 1] + "…"
    return Text(shown.encode(errors="surrogateescape").decode(errors="backslashreplace"))
