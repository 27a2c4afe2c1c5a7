"""One run of a feed: attempts at publishing its bricks, each from where the stream is by then, until all are there."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.errors import SourceUnavailableError, StreamFullError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.any_order.transfer import AnyOrderTransfer
from ucs_pipeline.publishing.backoff import Backoff
from ucs_pipeline.publishing.brick_results import BrickReport, ConfirmedBatch
from ucs_pipeline.publishing.emptiness import Emptiness
from ucs_pipeline.publishing.ordered.transfer import OrderedTransfer
from ucs_pipeline.publishing.pipeline import RivalError
from ucs_pipeline.stream.stream import OrderedStream, RedisStream

Records = Callable[[Sequence[int]], Mapping[int, BrickReport]]
"""Looks up what is recorded as done for some bricks, by ordinal."""


class Transfer(Protocol):
    """One kind of publishing."""

    def attempt(self, done: Mapping[int, BrickReport]) -> Iterable[BrickReport]:
        """Publishes what is missing. Reports that are those of `done` come first, then each brick as it is complete."""

    def about(self, rival: RivalError) -> str:
        """What to log of another publisher that is met."""

    def wait_for(self, rival: RivalError) -> Sequence[int]:
        """Waits until the other publisher is done or stalls; starts of partitions that it may have recorded."""


def publish(
    feed: Feed,
    source: Source,
    stream: RedisStream,
    wanted: Sequence[int],
    records: Records,
    log: Callable[[str], None] = lambda _: None,
    watch: Callable[[ConfirmedBatch], None] = lambda _: None,
    request: str | None = None,
    *,
    again: bool = False,
) -> Generator[BrickReport, None, None]:
    """Publishes bricks and yields a report of each one as soon as all its rows are in the stream.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        wanted: starts of the partitions to publish, consecutive.
        records: what was recorded as done before.
        log: takes one sentence each time the run has to pause.
        watch: is told of rows as they are known to be in the stream.
        request: for an any-order feed, who asks for bricks that are done to be published once more; None if nobody.
        again: whether the same run has published before, and has warned of what is odd about the feed.

    Raises:
        StreamError: the range would leave a gap, a brick changed after some of it was published, the stream is not
            this feed's, or Redis refuses.
        StreamFullError: the stream was full and nobody made room for `stream.timeout_s` seconds.
        StreamUnavailableError: Redis took nothing for `stream.timeout_s` seconds.
        SourceError: the table cannot be read.
    """
    backoff = Backoff(feed.stream.timeout_s, log)
    emptiness = Emptiness(wanted[0], lambda: source.remark(wanted), log)

    def moved(span: ConfirmedBatch) -> None:
        if span.length is not None:
            backoff.reset()
        emptiness.watch(span)
        watch(span)

    done = dict(records(wanted))
    # A server that was never there is a wrong setting, not an interruption: the first contact is not retried.
    if not again:
        stream.refuse_eviction()
        for warning in filter(None, (feed.warning, source.warning())):
            log(warning)
    transfer: Transfer
    if feed.any_order:
        transfer = AnyOrderTransfer(feed, source, stream, wanted, emptiness, log, moved, request)
    else:
        assert isinstance(stream, OrderedStream)
        transfer = OrderedTransfer(feed, source, stream, wanted, emptiness, log, moved, records)
    reported: set[int] = set()
    rival: RivalError | None = None
    while True:
        try:
            if rival:
                # Met once: where waiting for it fails, the next attempt finds out anew who writes.
                met, rival = rival, None
                looked_up = records(transfer.wait_for(met))
                done |= {start: record for start, record in looked_up.items() if start not in reported}
            for report in transfer.attempt(done):
                fresh = report is not done.get(report.ordinal)
                if fresh:
                    done[report.ordinal] = replace(report, preview={})
                # Published twice, because Redis lost it in between, is worth a second report; an empty brick is not.
                if (fresh and report.published) or report.ordinal not in reported:
                    reported.add(report.ordinal)
                    yield report
                if fresh:
                    backoff.reset()
            return
        except RivalError as error:
            log(transfer.about(error))
            rival = error
        except StreamFullError:
            raise
        except (StreamUnavailableError, SourceUnavailableError) as error:
            backoff.wait(error)
