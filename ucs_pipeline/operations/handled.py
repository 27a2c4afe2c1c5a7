"""How far a previous writer got in a feed's table: its entries in the stream, compared with the rows of the table.

A killed writer leaves an incomplete brick. Publishing continues with the row after it, if the entries prove which one
that is, or if a person states it.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice, zip_longest

from ucs_pipeline.clickhouse.source import BrickContent, Source
from ucs_pipeline.entries.display import fields_shown
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import StreamError, UcsError, counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.stream.stream import OrderedStream, floor

_PAGE = 1_000


def rows_after(
    feed: Feed, last: int, source: Source, stream: OrderedStream, contents: Mapping[int, BrickContent]
) -> int:
    """Rows of the partition after `last` that the previous writer's entries in the stream prove to be handled too.

    Args:
        feed: the feed.
        last: start of the last partition that was handled as a whole.
        source: the feed's table.
        stream: the feed's stream; without entries of a previous writer nothing is compared.
        contents: what each partition holds in the table, by start.

    Raises:
        StreamError: there are more or fewer entries than rows up to there, and they are not such rows.
        SourceError: the table cannot be read.
    """
    state = stream.state()
    if not START < state.top <= floor(feed):
        return 0
    entries, rows = _entries(state), sum(content.rows for start, content in contents.items() if start <= last)
    if entries == rows:
        return 0
    bricks, more = feed.partitions, entries - rows
    found = (
        f"feed {feed.name!r}: stream {stream.name!r} {'has' if state.added is None else 'had'} "
        f"{counted(entries, 'entry')} of the previous writer, and the {bricks.unit}s up to {bricks.name(last)} have "
        f"{counted(rows, 'row')} in the table."
    )
    following = bricks.next(last)
    if following is not None and following in contents and 0 < more < contents[following].rows:
        difference = _first_difference(feed, following, more, source, stream)
        if difference is None:
            return more
        raise StreamError(
            f"{found} The last {more:,} entries are not the first {more:,} rows of {bricks.unit} "
            f"{bricks.name(following)} as this feed writes them: {difference}. If they are these rows in another "
            f"form, adopt with `--rows {more}`; if they are other entries, adopt with `--rows 0`.",
            "UCS-ADOPT",
        )
    raise StreamError(
        f"{found} {_where(feed, entries, contents)}. If the entries do not count the handled rows, because there are "
        "other entries or Redis before 7 has trimmed some, adopt with `--rows N`, the handled rows of the "
        f"{bricks.unit} after the last whole one, or `--rows 0`.",
        "UCS-ADOPT",
    )


def row_after(feed: Feed, last: int, rows: int, source: Source) -> EntryId:
    """Position of the row with number `rows` of the partition after `last`.

    Raises:
        UcsError: that partition has no such row, or ends with it.
        SourceError: the table cannot be read.
    """
    bricks, following = feed.partitions, feed.partitions.next(last)
    if following is None:
        raise UcsError(
            f"feed {feed.name!r}: {bricks.name(last)} is its last {bricks.unit}. Leave `--rows` out.", "UCS-ADOPT"
        )
    counts = source.count(following, bricks.end(following))
    if rows >= (total := sum(counts.values())):
        raise UcsError(
            f"feed {feed.name!r}: {bricks.unit} {bricks.name(following)} has {counted(total, 'row')} in the table, and "
            f"`--rows {rows}` is not less. If the previous writer handled all of them, adopt {bricks.name(following)}.",
            "UCS-ADOPT",
        )
    left = rows
    for brick, number in counts.items():
        if left <= number:
            return EntryId(brick, left)
        left -= number
    raise AssertionError


def _entries(state: State) -> int:
    """Entries that a stream ever had; before Redis 7, which does not count them, those it has now."""
    return state.length if state.added is None else state.added


def _where(feed: Feed, entries: int, contents: Mapping[int, BrickContent]) -> str:
    """The end of a message: which row a number of rows ends at, and what to do."""
    bricks, left, before = feed.partitions, entries, ""
    for start in bricks.starts:
        rows = contents[start].rows if start in contents else 0
        name = bricks.name(start)
        if left == rows:
            return f"So many rows end with {bricks.unit} {name}: if the writer stopped there, adopt {name}"
        if left < rows and not before:
            return f"So many rows end in {bricks.unit} {name}, the first one, before any is whole"
        if left < rows:
            return (
                f"So many rows end with row {left:,} of {bricks.unit} {name}: if the writer stopped there, run `ucs "
                f"adopt {feed.name} {before} --rows {left}`"
            )
        left, before = left - rows, name
    return f"All {bricks.unit}s of the feed together have {counted(entries - left, 'row')}"


def _first_difference(feed: Feed, start: int, rows: int, source: Source, stream: OrderedStream) -> str | None:
    """Where the last entries of the previous writer differ from the first rows of a partition; None if they do not."""
    there, number = _last_entries(stream, floor(feed), rows), 0
    with closing(source.scan(start, feed.partitions.end(start))) as scan:
        for entries in encode(stream.name.encode(), scan):
            for low in range(0, entries.count, _PAGE):
                expected = entries.fields(low, min(low + _PAGE, entries.count, low + rows - number)).values()
                for row, entry in zip_longest(expected, islice(there, len(expected))):
                    number += 1
                    if row != entry:
                        has = "there is no entry" if entry is None else f"the entry has {fields_shown(entry)}"
                        return f"of row {number:,} {has}, and the feed writes {fields_shown(row)}"
                if number == rows:
                    return None
    return f"the table has {counted(number, 'row')} of it"


def _last_entries(stream: OrderedStream, before: EntryId, number: int) -> Iterator[Mapping[bytes, bytes]]:
    """The fields of the last entries before an id, in order."""
    first, end = before, f"({before}"
    while number:
        page = stream.call("XREVRANGE", stream.name, end, "-", "COUNT", str(min(number, _PAGE)))
        if not page:
            break
        first = EntryId.parse(page[-1][0])
        number, end = number - len(page), f"({first}"
    return (fields for entry_id, fields in stream.walk(first, before) if entry_id < before)
