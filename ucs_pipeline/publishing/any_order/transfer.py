"""Moves bricks of an any-order feed from the table to the stream, and resumes from the ledger."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.clickhouse.prefetch import Background
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.batches import cut, partition_slices
from ucs_pipeline.entries.encode import Entries, UnnumberedEntries, encode
from ucs_pipeline.errors import StreamUnavailableError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.any_order.plan import Replay, ledger_plan
from ucs_pipeline.publishing.any_order.publisher import LedgerPublisher, MovedError, PartitionBatch
from ucs_pipeline.publishing.any_order.resume import ResumeCheck
from ucs_pipeline.publishing.backpressure import Backpressure
from ucs_pipeline.publishing.brick_results import BrickAggregator, BrickReport, ConfirmedBatch, tap
from ucs_pipeline.publishing.emptiness import Emptiness
from ucs_pipeline.publishing.limits import Limits, limits_of
from ucs_pipeline.publishing.pipeline import RivalError
from ucs_pipeline.publishing.rate_limit import RateLimiter
from ucs_pipeline.stream.ledger import Ledger, LedgerEntry, ResumePoint
from ucs_pipeline.stream.stream import RedisStream

_STALL_SECONDS = 2.0
_LOOK_SECONDS = 0.1


class AnyOrderTransfer:
    """Publishes bricks of an any-order feed; every attempt resumes from the ledger."""

    def __init__(
        self,
        feed: Feed,
        source: Source,
        stream: RedisStream,
        wanted: Sequence[int],
        emptiness: Emptiness,
        log: Callable[[str], None],
        moved: Callable[[ConfirmedBatch], None],
        request: str | None,
    ) -> None:
        """`moved` is called with rows once they are in the stream; see `publishing.run` for the others."""
        self._feed = feed
        self._source = source
        self._stream = stream
        self._wanted = wanted
        self._emptiness = emptiness
        self._log = log
        self._moved = moved
        self._ledger = Ledger(feed, stream)
        self._replay = None if request is None else Replay(request)
        self._accounts: Mapping[int, LedgerEntry] = {}

    def attempt(self, done: Mapping[int, BrickReport]) -> Generator[BrickReport, None, None]:
        """Publishes missing rows, after the bricks that are done.

        Raises:
            MovedError: another publisher works on one of them.
            UcsError: as `publishing.run.publish`.
        """
        more = True
        while more:
            with LedgerPublisher(self._feed, self._stream) as publisher:
                if publisher.lost:
                    self._log(
                        f"stream {self._stream.name!r} was deleted or lost, and its ledger {self._ledger.key!r} was "
                        "not. The ledger starts again from empty, and the run publishes its bricks again."
                    )
                self._accounts = self._ledger.accounts(self._wanted)
                plan = ledger_plan(self._feed, self._wanted, self._accounts, done, self._replay)
                limits = limits_of(self._stream)
                if plan.lost:
                    self._log(plan.lost)
                yield from plan.known
                for openings in plan.groups:
                    published = self._publish(publisher, openings, limits)
                    whole = list(openings) == list(self._wanted)
                    yield from self._emptiness.remarked(published) if whole else published
            more = plan.more

    def about(self, rival: RivalError) -> str:
        """The log message about another publisher."""
        name = self._feed.partitions.name(_start_of(rival))
        return (
            f"feed {self._feed.name!r}: the ledger has other values for brick {name} than this run wrote. Another "
            "publisher is running, or Redis has an older state. Waiting until the brick is published or does not "
            "change."
        )

    def wait_for(self, rival: RivalError) -> Sequence[int]:
        """Waits until the partition is done, or its entry in the ledger stays unchanged for a while.

        Raises:
            StreamUnavailableError: the ledger is unchanged.
        """
        start = _start_of(rival)
        if self._stalled(start) == self._accounts.get(start):
            raise StreamUnavailableError(
                f"stream {self._stream.name!r}: Redis refused rows for a moment. Wait for the next attempt."
            )
        return self._wanted

    def _publish(
        self, publisher: LedgerPublisher, openings: Mapping[int, ResumePoint], limits: Limits
    ) -> Generator[BrickReport, None, None]:
        starts = list(openings)
        publisher.open(openings)
        with Background(self._prepared(openings, limits), 2, "ucs-read") as chunks:
            backpressure = Backpressure(
                self._stream, self._feed.stream, self._stream.state().length, chunks.pause, self._log
            )
            limiter = RateLimiter(self._feed.stream, backpressure, chunks.pause)
            spans = tap(self._spans(publisher, openings, chunks, limiter), self._moved)
            tally = BrickAggregator(self._feed.partitions, starts, time.monotonic())
            with Background(tally.reports(spans), 1_000, "ucs-publish") as reports:
                try:
                    for report in reports:
                        # Counters identify rows by their positions in the brick; their ids are in the ledger.
                        account = publisher.finished.get(report.ordinal, openings[report.ordinal].account)
                        yield replace(report, replay=account.replay, first_entry=account.first, last_entry=account.last)
                finally:
                    chunks.close()

    def _prepared(self, openings: Mapping[int, ResumePoint], limits: Limits) -> Generator[Entries, None, None]:
        starts = list(openings)
        # The rows that are in the stream come first: see `LedgerPlan.groups`.
        there = sum(opening.account.rows for opening in openings.values())
        # Closed here, by the thread that reads: see `OrderedTransfer`.
        with closing(self._source.scan(starts[0], self._feed.partitions.end(starts[-1]))) as scan:
            for entries in encode(self._stream.name.encode(), scan, UnnumberedEntries):
                refused = limits.refused(self._feed, entries, min(there, entries.count))
                stop = refused[0] if refused else entries.count
                if stop:
                    taken = entries if stop == entries.count else entries.head(stop)
                    # The reading thread makes the bytes, in parallel to the sending one.
                    _ = taken.requests
                    yield taken
                if refused:
                    raise refused[1]
                there -= min(there, entries.count)

    def _spans(
        self,
        publisher: LedgerPublisher,
        openings: Mapping[int, ResumePoint],
        chunks: Background[Entries],
        limiter: RateLimiter,
    ) -> Generator[ConfirmedBatch, None, None]:
        resumption = ResumeCheck(self._feed, openings)
        for entries in chunks:
            for rows in partition_slices(entries, self._feed.partitions):
                there = rows.start + resumption.there(entries, rows)
                for transaction in cut(entries, rows.start, there):
                    yield ConfirmedBatch(transaction)
                if there < rows.stop:
                    for start in resumption.finished(before=rows.partition):
                        publisher.finish(start)
                    parts = _parts(entries, there, chunks, self._feed.partitions, limiter.most_rows)
                    for part, length in publisher.publish(limiter.admit(parts)):
                        limiter.settle(part, length)
                        yield ConfirmedBatch(part, length)
                    return
        for start in resumption.finished():
            publisher.finish(start)

    def _stalled(self, start: int) -> LedgerEntry | None:
        """Waits until a partition is done, or unchanged for a while; returns its entry in the ledger."""
        seen, since = self._ledger.accounts([start]).get(start), time.monotonic()
        while seen is not None and not seen.done and time.monotonic() - since < _STALL_SECONDS:
            time.sleep(_LOOK_SECONDS)
            found = self._ledger.accounts([start]).get(start)
            if found != seen:
                seen, since = found, time.monotonic()
        return seen


def _start_of(rival: RivalError) -> int:
    assert isinstance(rival, MovedError)
    return rival.start


def _parts(
    entries: Entries, start: int, chunks: Background[Entries], partitions: Partitions, most: int
) -> Iterator[PartitionBatch | None]:
    """The rows from `start` on. The entries that follow show whether a partition ends."""
    held: PartitionBatch | None = None
    following: Entries | None = entries
    while following is not None:
        for rows in partition_slices(following, partitions, start):
            if held:
                yield held if held.partition == rows.partition else replace(held, end=held.stop)
            end = rows.stop if rows.stop < following.count else None
            *parts, held = (
                PartitionBatch(following, part.start, part.stop, rows.partition, end)
                for part in cut(following, rows.start, rows.stop, most)
            )
            yield from parts
        if not chunks.ready():
            yield None
        try:
            following, start = chunks.get(), 0
        except UcsError:
            # Rows read earlier are sent and confirmed first.
            if held:
                yield held
            yield None
            raise
    if held:
        yield replace(held, end=held.stop)
