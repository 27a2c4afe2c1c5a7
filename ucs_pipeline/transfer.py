"""Moves bricks from the table to the stream: reading, encoding and sending overlap; every interruption resumes at
the stream's top."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing

import pyarrow as pa

from ucs_pipeline.background import Background
from ucs_pipeline.compare import Comparison
from ucs_pipeline.entries import Entries, EntryId, encode
from ucs_pipeline.errors import SourceUnavailableError, StreamUnavailableError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.plan import BrickReport, Plan, hole, known, plan
from ucs_pipeline.source import Source
from ucs_pipeline.stream import Comparer, FencedError, OrderedStream, Publisher, Transaction, cut
from ucs_pipeline.tally import Span, Tally

Records = Callable[[Sequence[int]], Mapping[int, BrickReport]]
"""Looks up what is recorded as done for some bricks, by ordinal."""

_STALL_SECONDS = 2.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 5.0


def transfer(
    feed: BrickFeed,
    source: Source,
    stream: OrderedStream,
    wanted: range,
    records: Records,
    log: Callable[[str], None] = lambda _: None,
) -> Generator[BrickReport, None, None]:
    """Publishes bricks in order and yields a report of each one as soon as all its rows are in the stream.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        wanted: ordinals of the bricks to publish, consecutive.
        records: what was recorded as done before.
        log: takes one sentence each time the transfer has to pause.

    Raises:
        StreamError: the range would leave a hole, the stream is not this feed's, or Redis refuses.
        StreamUnavailableError: Redis took nothing for `stream.timeout_s` seconds.
        SourceError: the table cannot be read.
    """
    pause = _Pause(feed.stream.timeout_s, log)
    recorded = records(wanted)
    # A server that was never there is a wrong setting, not an interruption: the first contact is not retried.
    stream.state()
    source.shape()
    fenced = False
    while wanted:
        try:
            if fenced:
                _wait_for_stall(stream)
                fenced = False
            state = stream.state()
            for report in known(wanted, state, recorded):
                yield report
                wanted = wanted[1:]
            if not wanted:
                return
            for report in _publish(feed, source, stream, wanted, records, pause.progress):
                yield report
                wanted = wanted[1:]
                pause.progress()
        except FencedError:
            log(f"another publisher of stream {stream.name!r} took over; waiting until it is done or stalls")
            fenced = True
        except (StreamUnavailableError, SourceUnavailableError) as error:
            pause.take(error)


def _publish(
    feed: BrickFeed,
    source: Source,
    stream: OrderedStream,
    wanted: range,
    records: Records,
    progress: Callable[[], None],
) -> Generator[BrickReport, None, None]:
    with Publisher(stream) as publisher, Comparer(stream) as comparer:
        state = publisher.state
        course = plan(feed, wanted, state, records([state.top.ordinal]).get(state.top.ordinal))
        _check_top(feed, source, stream, comparer, course)
        with Background(_prepared(source, stream, course), 2, "ucs-read") as chunks:
            spans = _spans(feed, stream, publisher, comparer, chunks, course, progress)
            with Background(Tally(course, time.monotonic()).reports(spans), 1_000, "ucs-publish") as reports:
                try:
                    yield from reports
                finally:
                    chunks.close()


def _check_top(feed: BrickFeed, source: Source, stream: OrderedStream, comparer: Comparer, course: Plan) -> None:
    """Compares the brick of a top that lies beyond the range: only a top of this feed proves what is below it."""
    ordinal = course.top.ordinal
    if not course.top_unknown or ordinal <= course.last:
        return
    comparison = Comparison(feed, stream, comparer, course._replace(scan_from=ordinal, last=ordinal))
    with closing(_scan(source, ordinal, ordinal)) as scan:
        for entries in encode(stream.name.encode(), scan):
            for transaction in cut(entries, 0, _rows_up_to(entries, course.top)):
                comparison.check(transaction)
    comparison.finish()


def _scan(source: Source, first: int, last: int) -> Generator[pa.RecordBatch, None, None]:
    # To be closed by the thread that reads: left to the garbage collector, a query that was broken off runs on, and
    # chDB hangs when another thread closes it.
    yield from source.scan(first, last)


def _prepared(source: Source, stream: OrderedStream, course: Plan) -> Generator[Entries, None, None]:
    with closing(_scan(source, course.scan_from, course.last)) as scan:
        for entries in encode(stream.name.encode(), scan):
            # The bytes are made here, in the reading thread, beside the sending one.
            if entries.id(entries.count - 1) > course.top:
                _ = entries.requests, entries.replies
            yield entries


def _spans(
    feed: BrickFeed,
    stream: OrderedStream,
    publisher: Publisher,
    comparer: Comparer,
    chunks: Background[Entries],
    course: Plan,
    progress: Callable[[], None],
) -> Generator[Span, None, None]:
    comparison = Comparison(feed, stream, comparer, course)
    for entries in chunks:
        inside = _rows_up_to(entries, course.top)
        for transaction in cut(entries, 0, inside):
            comparison.check(transaction)
            yield Span(transaction)
        if inside < entries.count:
            comparison.finish()
            if entries.id(inside).ordinal < course.wanted_from:
                raise hole(feed, entries.id(inside), course)
            for transaction, length in publisher.publish(_transactions(entries, inside, chunks)):
                progress()
                yield Span(transaction, length)
            return
    comparison.finish()


def _transactions(entries: Entries, start: int, chunks: Background[Entries]) -> Iterator[Transaction | None]:
    yield from cut(entries, start, entries.count)
    while True:
        if not chunks.ready():
            yield None
        following = chunks.get()
        if following is None:
            return
        yield from cut(following, 0, following.count)


def _rows_up_to(entries: Entries, top: EntryId) -> int:
    for segment in entries.segments:
        if segment.last > top:
            below = top.row - segment.first.row + 1 if segment.first.ordinal == top.ordinal else 0
            return segment.start + max(0, below)
    return entries.count


def _wait_for_stall(stream: OrderedStream) -> None:
    top = stream.state().top
    while True:
        time.sleep(_STALL_SECONDS)
        top, before = stream.state().top, top
        if top == before:
            return


class _Pause:
    """Growing pauses between attempts, until they made no progress for too long."""

    def __init__(self, timeout_s: float, log: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._log = log
        self._until: float | None = None
        self._seconds = _FIRST_PAUSE_SECONDS

    def progress(self) -> None:
        """Rows went through: the clock starts again, at the next failure."""
        self._until = None
        self._seconds = _FIRST_PAUSE_SECONDS

    def take(self, error: Exception) -> None:
        """Waits a while, or raises the error when its time is up."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._timeout_s
        left = self._until - now
        if left <= 0:
            raise error
        self._log(f"{error}; trying again for another {left:.0f} s")
        time.sleep(min(self._seconds, left))
        self._seconds = min(self._seconds * 2, _LONGEST_PAUSE_SECONDS)
