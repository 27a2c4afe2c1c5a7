"""The inputs of a feed's checks: its record, its stream and its table, each read once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import dagster as dg

from ucs_pipeline.clickhouse.source import BrickContent, Source, TableStats
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.checks.overview import overview
from ucs_pipeline.orchestration.materializations import PAGE, contents
from ucs_pipeline.orchestration.names import feed_key
from ucs_pipeline.orchestration.resources import open_feed, open_stream
from ucs_pipeline.orchestration.status import feed_statuses
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.reading.any_order_verify import ledger_verify
from ucs_pipeline.reading.verify import Verdict, verify
from ucs_pipeline.stream.ledger import Ledger, LedgerEntry
from ucs_pipeline.stream.stream import OrderedStream

_NOTHING = BrickContent(0, 0)


@dataclass(frozen=True)
class CheckInputs:
    """The inputs of a feed's checks, collected in the order of the fields."""

    feed: Feed
    records: Mapping[int, BrickReport]
    """Finished bricks by ordinal."""
    verdict: Verdict
    """The comparison of at least the bricks in the stream."""
    census: TableStats
    accounts: Mapping[int, LedgerEntry] | None = None
    """The ledger's entries of an any-order feed, by start."""

    @cached_property
    def changed(self) -> list[tuple[BrickReport, BrickContent]]:
        """Finished bricks whose rows or content differ in the table, with what the table holds, in order."""
        pairs = ((self.records[ordinal], self.table(ordinal)) for ordinal in sorted(self.records))
        return [
            (record, table)
            for record, table in pairs
            if record.rows != table.rows or record.content_hash not in (None, table.hash)
        ]

    @cached_property
    def gaps(self) -> list[int]:
        """Bricks below the newest finished one that are not finished."""
        newest = max(self.records, default=-1)
        return [start for start in self.feed.partitions.starts if start < newest and start not in self.records]

    @cached_property
    def expected_length(self) -> int | None:
        """Entries the stream should hold from its first entry to its last ID.

        None if it holds none, was written during the comparison, is shared, has entries of a previous writer, if
        workers deleted from the middle of it during the comparison, or if partitions are coarser than bricks: the ends
        of a stream are in the middle of one. Bricks without a record count as the table has them: a run may be about to
        record them, or the record was deleted.
        """
        begin, end = self.verdict.begin, self.verdict.end
        if begin.top != end.top or end.first is None or end.others or self.verdict.shared or self.feed.partitions.depth:
            return None
        if begin != end and (self.verdict.deleted or begin.deleted != end.deleted):
            return None
        first, top, total = end.first, end.top, -self.verdict.deleted
        for ordinal in self.records.keys() | self.census.bricks.keys():
            if first.ordinal <= ordinal <= top.ordinal:
                rows = self.records[ordinal].rows if ordinal in self.records else self.table(ordinal).rows
                total += min(rows, top.row) if ordinal == top.ordinal else rows
                total -= min(rows, first.row - 1) if ordinal == first.ordinal else 0
        return total

    def table(self, ordinal: int) -> BrickContent:
        """The table's content of a brick."""
        return self.census.bricks.get(ordinal, _NOTHING)


def collect(
    feed: Feed, source: Source, stream: OrderedStream, instance: dg.DagsterInstance, *, held_only: bool
) -> CheckInputs:
    """The facts of a feed, by one comparison with the stream and one aggregate query.

    This order avoids false alarms while a feed runs: recorded rows are in the stream by then, and rows in the stream
    are in the table by then.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        instance: where its finished bricks are recorded.
        held_only: compare only the bricks the stream still holds, instead of all bricks of the feed.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read.
    """
    records = contents(instance, feed, feed.partitions.starts)
    if feed.any_order:
        accounts = Ledger(feed, stream).accounts(feed.partitions.starts)
        compared = ledger_verify(feed, source, stream, accounts, held_only=held_only)
        return CheckInputs(feed, records, compared, source.census(), accounts)
    verdict = verify(feed, source, stream, held_only=held_only)
    return CheckInputs(feed, records, verdict, source.census())


def examine(
    feed: Feed, instance: dg.DagsterInstance, resources: object
) -> tuple[CheckInputs, str | None, Mapping[str, str]]:
    """The contents of the checks in Dagster: the inputs, a warning about the table's engine, and the overview.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read.
    """
    source, stream = open_feed(feed, resources)
    warning = source.warning()
    facts = collect(feed, source, stream, instance, held_only=True)
    [status] = feed_statuses([feed], instance, resources)
    return facts, warning, overview(status, sum(content.rows for content in facts.census.bricks.values()))


def collect_without_table(feed: Feed, instance: dg.DagsterInstance, resources: object) -> CheckInputs:
    """As `collect`, of the record and the stream's ends only, for `stream_not_behind`.

    Of an ordered feed, the newest records are enough if the stream reaches one of them: then it reaches all before.

    Raises:
        StreamError: the stream cannot be read.
    """
    stream = open_stream(feed, resources)
    if not feed.any_order:
        records = contents(instance, feed, _newest(instance, feed))
        state = stream.state()
        if any(record.last_entry and record.last_entry <= state.top for record in records.values()):
            return CheckInputs(feed, records, Verdict(state, state), TableStats({}, {}))
    records = contents(instance, feed, feed.partitions.starts)
    accounts = Ledger(feed, stream).accounts(feed.partitions.starts) if feed.any_order else None
    state = stream.state()
    return CheckInputs(feed, records, Verdict(state, state), TableStats({}, {}), accounts)


def _newest(instance: dg.DagsterInstance, feed: Feed) -> Sequence[int]:
    """Starts of the last partitions up to the last finished one."""
    done, starts = instance.get_materialized_partitions(feed_key(feed)), feed.partitions.starts
    stop = next((n for n in range(len(starts), 0, -1) if feed.partitions.name(starts[n - 1]) in done), 0)
    return starts[max(0, stop - PAGE) : stop]
