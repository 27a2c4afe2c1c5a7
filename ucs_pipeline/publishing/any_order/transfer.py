"""Moves bricks of an any-order feed from the table to the stream; every interruption resumes where the ledger is."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from ucs_pipeline.bricks.partitions import Numbering
from ucs_pipeline.clickhouse.prefetch import Background
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.batches import cut, partitions
from ucs_pipeline.entries.encode import Entries, UnnumberedEntries, encode
from ucs_pipeline.errors import SourceUnavailableError, StreamFullError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.any_order.plan import Replay, ledger_plan
from ucs_pipeline.publishing.any_order.publisher import LedgerPublisher, MovedError, Part
from ucs_pipeline.publishing.any_order.resume import Resumption
from ucs_pipeline.publishing.backoff import Patience
from ucs_pipeline.publishing.backpressure import Room
from ucs_pipeline.publishing.brick_results import BrickReport, Span, Tally
from ucs_pipeline.publishing.emptiness import Emptiness
from ucs_pipeline.publishing.ordered.transfer import Records, told
from ucs_pipeline.publishing.rate_limit import Flow
from ucs_pipeline.stream.ledger import Account, Ledger, Opening
from ucs_pipeline.stream.stream import RedisStream

_STALL_SECONDS = 2.0
_LOOK_SECONDS = 0.1


def ledger_transfer(
    feed: Feed,
    source: Source,
    stream: RedisStream,
    wanted: Sequence[int],
    records: Records,
    log: Callable[[str], None] = lambda _: None,
    watch: Callable[[Span], None] = lambda _: None,
    request: str | None = None,
) -> Generator[BrickReport, None, None]:
    """Publishes bricks and yields a report of each one as soon as all its rows are in the stream.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        wanted: starts of the partitions to publish, consecutive.
        records: what was recorded as done before.
        log: takes one sentence each time the transfer has to pause.
        watch: is told of rows as they are known to be in the stream.
        request: who asks for bricks that are done to be published once more; None if nobody does.

    Raises:
        StreamError: a brick changed after some of it was published, the stream is an ordered feed's, or Redis refuses.
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
    ledger, replay = Ledger(feed, stream), None if request is None else Replay(request)
    accounts: Mapping[int, Account] = {}
    reported: set[int] = set()
    busy: int | None = None
    while True:
        try:
            if busy is not None:
                unmoved = _wait_for_stall(ledger, busy) == accounts.get(busy)
                busy = None
                if unmoved:
                    raise StreamUnavailableError(f"stream {stream.name!r}: Redis refused rows for a moment")
                done |= {start: record for start, record in records(wanted).items() if start not in reported}
            with LedgerPublisher(feed, stream) as publisher:
                if publisher.lost:
                    log(
                        f"stream {stream.name!r} was deleted, or lost, and its ledger {ledger.key!r} was not: the "
                        "ledger begins anew"
                    )
                accounts = ledger.accounts(wanted)
                plan = ledger_plan(feed, wanted, accounts, done, replay)
                if plan.lost:
                    log(plan.lost)
                for report in plan.known:
                    if report.ordinal not in reported:
                        reported.add(report.ordinal)
                        yield report
                for openings in plan.groups:
                    published = _publish(feed, source, stream, publisher, openings, moved, log)
                    whole = list(openings) == list(wanted)
                    for report in emptiness.remarked(published) if whole else published:
                        done[report.ordinal] = replace(report, preview={})
                        # Published twice, because Redis lost it in between, is worth a second report.
                        if report.published or report.ordinal not in reported:
                            reported.add(report.ordinal)
                            yield report
                        patience.progress()
            if not plan.more:
                return
        except MovedError as error:
            busy = error.start
            name = feed.numbering.name(busy)
            log(f"another publisher is at work on brick {name} of {feed.name!r}; waiting until it is done or stalls")
        except StreamFullError:
            raise
        except (StreamUnavailableError, SourceUnavailableError) as error:
            patience.take(error)


def _publish(
    feed: Feed,
    source: Source,
    stream: RedisStream,
    publisher: LedgerPublisher,
    openings: Mapping[int, Opening],
    moved: Callable[[Span], None],
    log: Callable[[str], None],
) -> Generator[BrickReport, None, None]:
    starts = list(openings)
    publisher.open(openings)
    with Background(_prepared(feed, source, stream, starts), 2, "ucs-read") as chunks:
        room = Room(stream, feed.stream, stream.state().length, chunks.pause, log)
        flow = Flow(feed.stream, room, chunks.pause)
        spans = told(_spans(feed, publisher, openings, chunks, flow), moved)
        tally = Tally(feed.numbering, starts, time.monotonic())
        with Background(tally.reports(spans), 1_000, "ucs-publish") as reports:
            try:
                for report in reports:
                    # What counts rows calls them by their places in the brick; their ids are in the ledger.
                    account = publisher.finished.get(report.ordinal, openings[report.ordinal].account)
                    yield replace(report, replay=account.replay, first_entry=account.first, last_entry=account.last)
            finally:
                chunks.close()


def _prepared(feed: Feed, source: Source, stream: RedisStream, starts: Sequence[int]) -> Generator[Entries, None, None]:
    # Closed here, by the thread that reads: see `transfer`.
    with closing(source.scan(starts[0], feed.numbering.end(starts[-1]))) as scan:
        for entries in encode(stream.name.encode(), scan, UnnumberedEntries):
            # The bytes are made here, in the reading thread, beside the sending one.
            _ = entries.requests
            yield entries


def _spans(
    feed: Feed,
    publisher: LedgerPublisher,
    openings: Mapping[int, Opening],
    chunks: Background[Entries],
    flow: Flow,
) -> Generator[Span, None, None]:
    resumption = Resumption(feed, openings)
    for entries in chunks:
        for rows in partitions(entries, feed.numbering):
            there = rows.start + resumption.there(entries, rows)
            for transaction in cut(entries, rows.start, there):
                yield Span(transaction)
            if there < rows.stop:
                for start in resumption.finished(before=rows.partition):
                    publisher.finish(start)
                parts = _parts(entries, there, chunks, feed.numbering, flow.most_rows)
                for part, length in publisher.publish(flow.admit(parts)):
                    flow.added(part, length)
                    yield Span(part, length)
                return
    for start in resumption.finished():
        publisher.finish(start)


def _parts(
    entries: Entries, start: int, chunks: Background[Entries], numbering: Numbering, most: int
) -> Iterator[Part | None]:
    """The rows from `start` on. Whether a partition ends with the entries shows in those that follow."""
    held: Part | None = None
    following: Entries | None = entries
    while following is not None:
        for rows in partitions(following, numbering, start):
            if held:
                yield held if held.partition == rows.partition else replace(held, end=held.stop)
            end = rows.stop if rows.stop < following.count else None
            *parts, held = (
                Part(following, part.start, part.stop, rows.partition, end)
                for part in cut(following, rows.start, rows.stop, most)
            )
            yield from parts
        if not chunks.ready():
            yield None
        following, start = chunks.get(), 0
    if held:
        yield replace(held, end=held.stop)


def _wait_for_stall(ledger: Ledger, start: int) -> Account | None:
    """Returns what the ledger says of a partition, once that is that it is done, or nothing new for a while."""
    seen, since = ledger.accounts([start]).get(start), time.monotonic()
    while seen is not None and not seen.done and time.monotonic() - since < _STALL_SECONDS:
        time.sleep(_LOOK_SECONDS)
        found = ledger.accounts([start]).get(start)
        if found != seen:
            seen, since = found, time.monotonic()
    return seen
