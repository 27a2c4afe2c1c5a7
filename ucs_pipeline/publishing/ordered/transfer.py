"""Moves bricks from the table to the stream, and resumes at its last ID. Reading, encoding and sending overlap."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

from ucs_pipeline.bricks.time import TimeBricks
from ucs_pipeline.clickhouse.prefetch import Background
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.batches import Batch, cut
from ucs_pipeline.entries.encode import Entries, encode
from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.backpressure import Backpressure
from ucs_pipeline.publishing.brick_results import BrickAggregator, BrickReport, ConfirmedBatch, tap
from ucs_pipeline.publishing.emptiness import Emptiness
from ucs_pipeline.publishing.limits import Limits, limits_of
from ucs_pipeline.publishing.ordered.comparison import PrefixCheck
from ucs_pipeline.publishing.ordered.plan import Plan, foreign_entry, gap, known, loss, plan, refuse_adopted
from ucs_pipeline.publishing.ordered.publisher import Publisher
from ucs_pipeline.publishing.pipeline import RivalError
from ucs_pipeline.publishing.rate_limit import RateLimiter
from ucs_pipeline.stream.comparer import StreamComparer
from ucs_pipeline.stream.stream import OrderedStream

_STALL_SECONDS = 2.0
_LOOKED_BACK = 10_000


class OrderedTransfer:
    """Publishes bricks of an ordered feed; every attempt resumes at the stream's last ID."""

    def __init__(
        self,
        feed: Feed,
        source: Source,
        stream: OrderedStream,
        wanted: Sequence[int],
        emptiness: Emptiness,
        log: Callable[[str], None],
        moved: Callable[[ConfirmedBatch], None],
        records: Callable[[Sequence[int]], Mapping[int, BrickReport]],
    ) -> None:
        """`moved` is called with rows once they are in the stream; see `publishing.run` for the others."""
        self._feed = feed
        self._source = source
        self._stream = stream
        self._wanted = wanted
        self._emptiness = emptiness
        self._log = log
        self._moved = moved
        self._records = records

    def attempt(self, done: Mapping[int, BrickReport]) -> Generator[BrickReport, None, None]:
        """Publishes missing rows, after the bricks that are done.

        Raises:
            FencedError: another publisher took over.
            UcsError: as `publishing.run.publish`.
        """
        feed, wanted = self._feed, self._wanted
        self._stream.reconnect()
        state = self._stream.state()
        finished = known(feed, wanted, state, done)
        if lost := loss(feed, wanted, state, done):
            self._log(lost)
        yield from finished
        missing = wanted[len(finished) :]
        if not missing:
            if foreign := foreign_entry(feed, state):
                self._log(foreign)
            return
        refuse_adopted(feed, missing, state, done)
        published = self._publish(missing)
        yield from published if finished else self._emptiness.remarked(published)

    def about(self, rival: RivalError) -> str:  # noqa: ARG002 - names the brick for an any-order feed
        """The log message about another publisher."""
        return (
            f"stream {self._stream.name!r} has another publisher's token under its writer key: another run writes to "
            "it, or Redis has an older state. Waiting until the stream's last ID does not change."
        )

    def wait_for(self, rival: RivalError) -> Sequence[int]:  # noqa: ARG002 - concerns one brick for an any-order feed
        """Waits until the stream stops growing. Its new rows are compared, whichever publisher recorded them."""
        top = self._stream.state().top
        while True:
            time.sleep(_STALL_SECONDS)
            top, before = self._stream.state().top, top
            if top == before:
                return ()

    def _publish(self, wanted: Sequence[int]) -> Generator[BrickReport, None, None]:
        feed, stream = self._feed, self._stream
        with Publisher(stream, feed.stream.min_replicas) as publisher, StreamComparer(stream) as comparer:
            state = publisher.state
            bricks = feed.partitions
            top = bricks.start(state.top.ordinal) if state.top.ordinal in bricks else bricks.first
            found = self._records(bricks.between(top, wanted[0])[:_LOOKED_BACK] if top < wanted[0] else [top])
            course = plan(feed, wanted, state, found.get(top), found)
            self._check_top(comparer, course)
            with Background(self._prepared(course, limits_of(stream)), 2, "ucs-read") as chunks:
                backpressure = Backpressure(stream, feed.stream, state.length, chunks.pause, self._log)
                limiter = RateLimiter(feed.stream, backpressure, chunks.pause, _moment(feed))
                spans = tap(self._spans(publisher, comparer, chunks, course, limiter), self._moved)
                tally = BrickAggregator(bricks, wanted, time.monotonic())
                with Background(tally.reports(spans), 1_000, "ucs-publish") as reports:
                    try:
                        yield from reports
                    finally:
                        chunks.close()

    def _check_top(self, comparer: StreamComparer, course: Plan) -> None:
        """Compares the brick of a last ID after the range: only a last ID of this feed proves the rows below it."""
        ordinal = course.top.ordinal
        if not course.top_unknown or ordinal <= course.last:
            return
        course = course._replace(scan_from=ordinal, last=ordinal)
        comparison = PrefixCheck(self._feed, self._stream, comparer, course)
        with closing(self._source.scan(ordinal, ordinal)) as scan:
            for entries in encode(self._stream.name.encode(), scan):
                for transaction in cut(entries, 0, entries.up_to(course.top)):
                    comparison.check(transaction)
        comparison.finish()

    def _prepared(self, course: Plan, limits: Limits) -> Generator[Entries, None, None]:
        # Closed here, by the thread that reads. Without this, an interrupted query keeps running until garbage
        # collection, and chDB hangs when another thread closes it.
        with closing(self._source.scan(course.scan_from, course.last)) as scan:
            for entries in encode(self._stream.name.encode(), scan):
                refused = limits.refused(self._feed, entries, entries.up_to(course.top))
                stop = refused[0] if refused else entries.count
                if stop:
                    taken = entries if stop == entries.count else entries.head(stop)
                    # The reading thread makes the bytes, in parallel to the sending one.
                    _ = taken.requests if taken.id(taken.count - 1) > course.top else taken.views
                    yield taken
                if refused:
                    raise refused[1]

    def _spans(
        self,
        publisher: Publisher,
        comparer: StreamComparer,
        chunks: Background[Entries],
        course: Plan,
        limiter: RateLimiter,
    ) -> Generator[ConfirmedBatch, None, None]:
        comparison = PrefixCheck(self._feed, self._stream, comparer, course)
        for entries in chunks:
            inside = entries.up_to(course.top)
            for transaction in cut(entries, 0, inside):
                comparison.check(transaction)
                yield ConfirmedBatch(transaction)
            if inside < entries.count:
                comparison.finish()
                if entries.id(inside).ordinal < course.wanted_from:
                    raise gap(self._feed, entries.id(inside), course)
                transactions = limiter.admit(_transactions(entries, inside, chunks, limiter.most_rows))
                for transaction, length in publisher.publish(transactions):
                    limiter.settle(transaction, length)
                    yield ConfirmedBatch(transaction, length)
                return
        comparison.finish()


def _moment(feed: Feed) -> Callable[[int | bytes], float]:
    bricks = feed.partitions.bricks
    return partial(bricks.timestamp, unit=feed.bricks.unit) if isinstance(bricks, TimeBricks) else float


def _transactions(entries: Entries, start: int, chunks: Background[Entries], most: int) -> Iterator[Batch | None]:
    yield from cut(entries, start, entries.count, most)
    while True:
        if not chunks.ready():
            yield None
        try:
            following = chunks.get()
        except UcsError:
            # Rows read earlier are in flight: they are confirmed first.
            yield None
            raise
        if following is None:
            return
        yield from cut(following, 0, following.count, most)
