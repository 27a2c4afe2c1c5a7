"""A run with `tail: live`: publishes rows as the table gets them, and reports partitions as they are sealed."""

import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol

from ucs_pipeline.clickhouse.source import Source, Tail
from ucs_pipeline.entries.entry_id import START
from ucs_pipeline.errors import SourceUnavailableError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.rules import MAX_ORDINAL
from ucs_pipeline.orchestration.sensors.sealed import seal
from ucs_pipeline.publishing.backoff import Backoff
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.stream.stream import RedisStream


class Publish(Protocol):
    """Publishes the table's rows of some partitions, as `publishing.run.publish`, and reports each."""

    def __call__(self, starts: Sequence[int], *, again: bool) -> Generator[BrickReport, None, None]:
        """`again`: whether it was called before."""


def stay(
    feed: Feed, source: Source, stream: RedisStream, wanted: Sequence[int], publish: Publish, log: Callable[[str], None]
) -> Generator[BrickReport, None, None]:
    """Publishes partitions until all are sealed, or for `live_max_s` seconds.

    Each pass publishes the table's new rows, and compares the rows of the open partition that are in the stream: a
    partition that has changed, or has a new row before its last one, is refused. Between passes it reads only the
    table's newest key and the stream's last ID, and keeps only the counts of the open partition in memory.

    Args:
        feed: the feed.
        source: its table.
        stream: its stream.
        wanted: starts of the partitions, consecutive.
        publish: publishes some of them.
        log: called with a message each time the run pauses.

    Yields a report of each partition as it is sealed, and at the end of the open one.

    Raises:
        UcsError: as `publishing.run.publish`.
    """
    ends, backoff = time.monotonic() + feed.live_max_s, Backoff(feed.stream.timeout_s, log)
    done, top, again = 0, START, False
    seen: tuple[Tail | None, int | None] | None = None
    begun: BrickReport | None = None
    while done < len(wanted) and time.monotonic() < ends:
        start = wanted[done]
        try:
            (tail, open_), lost = _open_partition(feed, source, start), stream.state().top < top
        except (SourceUnavailableError, StreamUnavailableError) as error:
            backoff.wait(error)
            continue
        backoff.reset()
        if not lost and ((tail, open_) == seen or (tail is None and open_ == start)):
            time.sleep(feed.poll_s)
            continue
        # Rows of the run's partitions that Redis lost are published again.
        first, top, begun = (0, START, None) if lost else (done, top, begun)
        stop = len(wanted) if open_ is None else bisect_right(wanted, open_)
        with closing(publish(wanted[first:stop], again=again)) as reports:
            for found in reports:
                report = _with(begun, found)
                top = max(top, report.last_entry or top)
                if open_ is not None and report.ordinal >= open_:
                    begun = report
                elif found.published or report.ordinal >= start:
                    done = max(done, wanted.index(report.ordinal) + 1)
                    yield report
                if time.monotonic() >= ends:
                    break
        seen, again = (tail, open_), True
        time.sleep(feed.poll_s)
    if begun and done < len(wanted) and begun.ordinal == wanted[done]:
        yield replace(begun, open=True)


def _open_partition(feed: Feed, source: Source, start: int) -> tuple[Tail | None, int | None]:
    """The table's end, and the first partition from `start` on that can still grow; None if there is none."""
    if feed.bricks.kind == "number":
        # An id after the last brick seals it.
        tail = source.tail(start, MAX_ORDINAL)
        return tail, _open(feed, start, int(tail.newest) if tail else None)
    open_ = _open(feed, start, None)
    # Rows of later hours wait until the open one has settled.
    return source.tail(start, feed.partitions.last if open_ is None else feed.partitions.end(open_)), open_


def _open(feed: Feed, start: int, newest: int | None) -> int | None:
    found = seal(feed, start, newest, time.time())
    if isinstance(found, str):
        return start
    return None if found.open is None else max(start, found.open)


def _with(before: BrickReport | None, report: BrickReport) -> BrickReport:
    """The report of a partition, including the rows of earlier passes of the run."""
    if before is None or before.ordinal != report.ordinal or not before.published:
        return report
    return replace(
        report,
        published=before.published + report.published,
        bytes=before.bytes + report.bytes,
        seconds=before.seconds + report.seconds,
        length_before=before.length_before,
        length_after=before.length_after if report.length_after is None else report.length_after,
    )
