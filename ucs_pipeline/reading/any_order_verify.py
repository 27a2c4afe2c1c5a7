"""Compares an any-order feed's ledger and stream with its table, row by row.

The stream may be written and trimmed meanwhile: rows that are not in the ledger at the start are not compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing

from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.batches import PartitionSlice, partition_slices
from ucs_pipeline.entries.encode import Entries, UnnumberedEntries, encode
from ucs_pipeline.entries.entry_id import State
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.reading.any_order_search import RowFinder, trimmed_rows
from ucs_pipeline.reading.verify import Difference, Verdict
from ucs_pipeline.stream.ledger import LedgerEntry
from ucs_pipeline.stream.stream import RedisStream, given_to_groups

_ROWS = 1_000
"""Rows that are Python objects at the same time."""


def ledger_verify(
    feed: Feed,
    source: Source,
    stream: RedisStream,
    accounts: Mapping[int, LedgerEntry],
    progress: Callable[[int], None] = lambda _: None,
    *,
    held_only: bool = False,
) -> Verdict:
    """Compares the rows of the feed with its entries.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        accounts: entries of its ledger, by start.
        progress: called with the number of rows compared so far.
        held_only: read only the partitions that have entries in the stream, instead of all of the feed's.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read.
    """
    begin = stream.state()
    verdict = Verdict(begin, begin, shared=True)
    starts = [start for start in accounts if held(accounts[start], begin)] if held_only else feed.partitions.starts
    for span in _spans(feed, starts):
        # Before the scan: the embedded engine answers one query at a time.
        trimmed = {
            start: trimmed_rows(feed, source, stream, start, accounts[start], begin)
            for start in span
            if start in accounts
        }
        search: tuple[int, RowFinder] | None = None
        seen = 0
        with closing(source.scan(span[0], feed.partitions.end(span[-1]))) as scan:
            for entries in encode(stream.name.encode(), scan, UnnumberedEntries):
                for rows in partition_slices(entries, feed.partitions):
                    account = accounts.get(rows.partition, LedgerEntry())
                    if search is None or search[0] != rows.partition:
                        gone = trimmed.get(rows.partition, 0)
                        search, seen = (rows.partition, RowFinder(stream, account, begin, gone)), 0
                    there = min(rows.number, account.rows - seen)
                    _compare(stream, entries, rows._replace(stop=rows.start + there), search[1], verdict)
                    verdict.rows += rows.number
                    verdict.unpublished += rows.number - there
                    seen += there
                progress(verdict.rows)
    verdict.end = stream.state()
    return verdict


def held(account: LedgerEntry, state: State) -> bool:
    """Whether entries of a partition may be in the stream."""
    return state.first is not None and account.last is not None and account.last >= state.first


def _spans(feed: Feed, starts: Sequence[int]) -> Iterator[Sequence[int]]:
    """The partitions, consecutive ones together."""
    span: list[int] = []
    for start in sorted(starts):
        if span and feed.partitions.next(span[-1]) != start:
            yield span
            span = []
        span.append(start)
    if span:
        yield span


def _compare(stream: RedisStream, entries: Entries, rows: PartitionSlice, search: RowFinder, verdict: Verdict) -> None:
    for start in range(rows.start, rows.stop, _ROWS):
        for place, row in entries.fields(start, min(start + _ROWS, rows.stop)).items():
            if search.trimmed():
                verdict.trimmed += 1
            elif search.find(row):
                verdict.equal += 1
            elif (state := stream.state()).first is None or state.first > search.reached:
                # It was trimmed during the search.
                verdict.trimmed += 1
            elif state.may_have_been_read(search.reached, given_to_groups(stream)):
                verdict.deleted += 1
            else:
                verdict.missing += 1
                verdict.show(Difference(place, row, None, numbered=False))
