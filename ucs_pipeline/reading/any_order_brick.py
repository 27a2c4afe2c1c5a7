"""One brick of an any-order feed, read back from its stream."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.reading.any_order_search import RowFinder, rows_of, trimmed_rows
from ucs_pipeline.stream.ledger import Ledger, LedgerEntry
from ucs_pipeline.stream.stream import RedisStream


def ledger_entries(
    feed: Feed, stream: RedisStream, start: int, table: Callable[[Feed], Source]
) -> Iterator[tuple[EntryId, Mapping[bytes, bytes]]]:
    """The entries of a partition that are in the stream, in order; of a replayed one those of the last replay.

    They are between its first and last id in the ledger. If there are more entries than rows, or the first ones were
    trimmed, entries of other clients may be between them, and a comparison with the table finds the feed's.

    Raises:
        UcsError: the partition is not published yet, or no longer in the stream.
        StreamError: the stream cannot be read.
        SourceError: the table cannot be read.
    """
    account = Ledger(feed, stream).accounts([start]).get(start)
    brick, state = f"feed {feed.name!r}: brick {feed.partitions.name(start)}", stream.state()
    if account is None or account.first is None or account.last is None:
        raise UcsError(
            f"{brick} is not published yet, or has no rows: the ledger of stream {stream.name!r} does not list it. "
            "Publish it.",
            "UCS-NOT-IN-STREAM",
        )
    if state.first is None or account.last < state.first:
        there = f"begins at {state.first}" if state.first else "is empty"
        raise UcsError(
            f"{brick} was trimmed: stream {stream.name!r} {there}, and its last entry was {account.last}. Read its "
            f"rows from table {feed.redacted.table!r}.",
            "UCS-NOT-IN-STREAM",
        )
    number = 0
    for number, _ in enumerate(stream.walk(account.first, account.last), 1):
        if number > account.rows:
            break
    alone = number == account.rows and state.first <= account.first
    yield from stream.walk(account.first, account.last) if alone else _own(feed, table(feed), stream, start, account)


def _own(
    feed: Feed, source: Source, stream: RedisStream, start: int, account: LedgerEntry
) -> Iterator[tuple[EntryId, Mapping[bytes, bytes]]]:
    state = stream.state()
    search = RowFinder(stream, account, state, trimmed_rows(feed, source, stream, start, account, state))
    with closing(rows_of(feed, source, start)) as pages:
        for rows in pages:
            for row in rows:
                if not search.trimmed() and (entry_id := search.find(row)):
                    yield entry_id, row
