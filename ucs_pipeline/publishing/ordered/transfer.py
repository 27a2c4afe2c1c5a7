"""Moves bricks from the table to the stream: reading, encoding and sending overlap; every interruption resumes at
the stream's top."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from ucs_pipeline.bricks.time import TimeBricks
from ucs_pipeline.clickhouse.prefetch import Background
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.batches import Transaction, cut
from ucs_pipeline.entries.encode import Entries, encode
from ucs_pipeline.entries.entry_id import State
from ucs_pipeline.errors import SourceUnavailableError, StreamFullError, StreamUnavailableError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.backoff import Patience
from ucs_pipeline.publishing.backpressure import Room
from ucs_pipeline.publishing.brick_results import BrickReport, Span, Tally
from ucs_pipeline.publishing.emptiness import Emptiness
from ucs_pipeline.publishing.limits import Limits, limits_of
from ucs_pipeline.publishing.ordered.comparison import Comparison
from ucs_pipeline.publishing.ordered.plan import Plan, hole, known, loss, plan, refuse_adopted, stray
from ucs_pipeline.publishing.ordered.publisher import FencedError, Publisher
from ucs_pipeline.publishing.rate_limit import Flow
from ucs_pipeline.stream.comparer import Comparer
from ucs_pipeline.stream.stream import OrderedStream

Records = Callable[[Sequence[int]], Mapping[int, BrickReport]]
"""Looks up what is recorded as done for some bricks, by ordinal."""

_STALL_SECONDS = 2.0
_LOOKED_BACK = 10_000


def transfer(
    feed: Feed,
    source: Source,
    stream: OrderedStream,
    wanted: Sequence[int],
    records: Records,
    log: Callable[[str], None] = lambda _: None,
    watch: Callable[[Span], None] = lambda _: None,
) -> Generator[BrickReport, None, None]:
    """Publishes bricks in order and yields a report of each one as soon as all its rows are in the stream.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        wanted: starts of the partitions to publish, consecutive.
        records: what was recorded as done before.
        log: takes one sentence each time the transfer has to pause.
        watch: is told of rows as they are known to be in the stream.

    Raises:
        StreamError: the range would leave a hole, the stream is not this feed's, or Redis refuses.
        StreamFullError: the stream was full and nobody made room for `stream.timeout_s` seconds.
        StreamUnavailableError: Redis took nothing for `stream.timeout_s` seconds.
        SourceError: the table cannot be read.
    """
    patience = Patience(feed.stream.timeout_s, log)
    emptiness = Emptiness(wanted[0], lambda: source.remark(wanted), log)

    def moved(span: Span) -> None:
        if span.length is not None:
            patience.progress()
        emptiness.watch(span)
        watch(span)

    done = dict(records(wanted))
    # A server that was never there is a wrong setting, not an interruption: the first contact is not retried.
    stream.refuse_eviction()
    for warning in filter(None, (feed.warning, source.warning())):
        log(warning)
    reported: set[int] = set()
    fenced = False
    while True:
        try:
            if fenced:
                _wait_for_stall(stream)
                fenced = False
            stream.reconnect()
            state = stream.state()
            finished = known(feed, wanted, state, done)
            if lost := loss(feed, wanted, state, done):
                log(lost)
            for report in finished:
                if report.ordinal not in reported:
                    reported.add(report.ordinal)
                    yield report
            if len(finished) == len(wanted):
                if foreign := stray(feed, state):
                    log(foreign)
                return
            refuse_adopted(feed, wanted[len(finished) :], state, done)
            published = _publish(feed, source, stream, wanted[len(finished) :], records, moved, log)
            for report in published if finished else emptiness.remarked(published):
                done[report.ordinal] = replace(report, preview={})
                # Published twice, because Redis lost it in between, is worth a second report; an empty brick is not.
                if report.published or report.ordinal not in reported:
                    reported.add(report.ordinal)
                    yield report
                patience.progress()
            return
        except FencedError:
            log(
                f"stream {stream.name!r} has another publisher's token under its writer key: another run writes to it, "
                "or Redis has an older state (a failover, a copy); waiting until the stream's last ID stands still"
            )
            fenced = True
        except StreamFullError:
            raise
        except (StreamUnavailableError, SourceUnavailableError) as error:
            patience.take(error)


def _publish(
    feed: Feed,
    source: Source,
    stream: OrderedStream,
    wanted: Sequence[int],
    records: Records,
    moved: Callable[[Span], None],
    log: Callable[[str], None],
) -> Generator[BrickReport, None, None]:
    with Publisher(stream, feed.stream.min_replicas) as publisher, Comparer(stream) as comparer:
        state = publisher.state
        bricks = feed.numbering
        top = bricks.start(state.top.ordinal) if state.top.ordinal in bricks else bricks.first
        found = records(bricks.between(top, wanted[0])[:_LOOKED_BACK] if top < wanted[0] else [top])
        course = plan(feed, wanted, state, found.get(top), found)
        _check_top(feed, source, stream, comparer, course, state)
        limits = limits_of(stream)
        with Background(_prepared(feed, source, stream, course, limits), 2, "ucs-read") as chunks:
            room = Room(stream, feed.stream, state.length, chunks.pause, log)
            flow = Flow(feed.stream, room, chunks.pause, _moment(feed))
            spans = told(_spans(feed, stream, publisher, comparer, chunks, course, flow), moved)
            with Background(Tally(bricks, wanted, time.monotonic()).reports(spans), 1_000, "ucs-publish") as reports:
                try:
                    yield from reports
                finally:
                    chunks.close()


def _moment(feed: Feed) -> Callable[[int | bytes], float]:
    bricks = feed.numbering.bricks
    return partial(bricks.moment, unit=feed.bricks.unit) if isinstance(bricks, TimeBricks) else float


def _check_top(
    feed: Feed, source: Source, stream: OrderedStream, comparer: Comparer, course: Plan, state: State
) -> None:
    """Compares the brick of a top that lies beyond the range: only a top of this feed proves what is below it."""
    ordinal = course.top.ordinal
    if not course.top_unknown or ordinal <= course.last:
        return
    comparison = Comparison(feed, stream, comparer, course._replace(scan_from=ordinal, last=ordinal), state)
    with closing(source.scan(ordinal, ordinal)) as scan:
        for entries in encode(stream.name.encode(), scan):
            for transaction in cut(entries, 0, entries.up_to(course.top)):
                comparison.check(transaction)
    comparison.finish()


def _prepared(
    feed: Feed, source: Source, stream: OrderedStream, course: Plan, limits: Limits
) -> Generator[Entries, None, None]:
    # Closed here, by the thread that reads: left to the garbage collector, a query that was broken off runs on, and
    # chDB hangs when another thread closes it.
    with closing(source.scan(course.scan_from, course.last)) as scan:
        for entries in encode(stream.name.encode(), scan):
            refused = limits.refused(feed, entries, entries.up_to(course.top))
            stop = refused[0] if refused else entries.count
            if stop:
                taken = entries if stop == entries.count else entries.head(stop)
                # The bytes are made here, in the reading thread, beside the sending one.
                _ = taken.requests if taken.id(taken.count - 1) > course.top else taken.views
                yield taken
            if refused:
                raise refused[1]


def _spans(
    feed: Feed,
    stream: OrderedStream,
    publisher: Publisher,
    comparer: Comparer,
    chunks: Background[Entries],
    course: Plan,
    flow: Flow,
) -> Generator[Span, None, None]:
    comparison = Comparison(feed, stream, comparer, course, publisher.state)
    for entries in chunks:
        inside = entries.up_to(course.top)
        for transaction in cut(entries, 0, inside):
            comparison.check(transaction)
            yield Span(transaction)
        if inside < entries.count:
            comparison.finish()
            if entries.id(inside).ordinal < course.wanted_from:
                raise hole(feed, entries.id(inside), course)
            transactions = flow.admit(_transactions(entries, inside, chunks, flow.most_rows))
            for transaction, length in publisher.publish(transactions):
                flow.added(transaction, length)
                yield Span(transaction, length)
            return
    comparison.finish()


def told(spans: Iterator[Span], moved: Callable[[Span], None]) -> Iterator[Span]:
    """The same spans, each told to somebody as it passes."""
    for span in spans:
        moved(span)
        yield span


def _transactions(entries: Entries, start: int, chunks: Background[Entries], most: int) -> Iterator[Transaction | None]:
    yield from cut(entries, start, entries.count, most)
    while True:
        if not chunks.ready():
            yield None
        try:
            following = chunks.get()
        except UcsError:
            # What was read before is under way: it is confirmed first.
            yield None
            raise
        if following is None:
            return
        yield from cut(following, 0, following.count, most)


def _wait_for_stall(stream: OrderedStream) -> None:
    top = stream.state().top
    while True:
        time.sleep(_STALL_SECONDS)
        top, before = stream.state().top, top
        if top == before:
            return
