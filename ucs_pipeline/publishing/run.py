"""One run of a feed: attempts to publish its bricks, each from the stream's current state, until all are published."""

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
"""Returns the records of finished bricks, by ordinal."""


class Transfer(Protocol):
    """One kind of publishing."""

    def attempt(self, done: Mapping[int, BrickReport]) -> Iterable[BrickReport]:
        """Publishes missing rows. Reports of `done` come first, then each brick as it is complete."""

    def about(self, rival: RivalError) -> str:
        """The log message about another publisher."""

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
        records: partitions that were recorded as done.
        log: called with a message each time the run pauses.
        watch: called with rows once they are in the stream.
        request: for an any-order feed, the id of a request to publish finished bricks again; None if there is none.
        again: whether the same run has published before, and given its warnings.

    Raises:
        StreamError: the range would leave a gap, a brick changed after some of it was published, the stream is not
            this feed's, or Redis refuses.
        StreamFullError: the stream stayed full for `stream.timeout_s` seconds.
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
    # The first connection is not retried: if it fails, a setting is likely wrong.
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
                # Reset: if the wait fails, the next attempt determines the other publisher again.
                met, rival = rival, None
                looked_up = records(transfer.wait_for(met))
                done |= {start: record for start, record in looked_up.items() if start not in reported}
            for report in transfer.attempt(done):
                fresh = report is not done.get(report.ordinal)
                if fresh:
                    done[report.ordinal] = replace(report, preview={})
                # A brick that was published again after a loss is reported again; an empty brick is not.
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
