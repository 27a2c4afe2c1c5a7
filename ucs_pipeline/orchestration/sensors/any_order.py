"""Which bricks of an any-order feed may be launched next: those that are not finished, or that Redis lost."""

from collections.abc import Collection, Sequence

import dagster as dg

from ucs_pipeline.entries.entry_id import START, State
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.materializations import newest
from ucs_pipeline.orchestration.sensors.next_bricks import FeedSnapshot
from ucs_pipeline.orchestration.sensors.sealed import Seal
from ucs_pipeline.publishing.any_order.plan import is_lost
from ucs_pipeline.stream.ledger import Ledger
from ucs_pipeline.stream.stream import RedisStream

_LOOK_BACK = 100


def ledger_situation(
    feed: Feed,
    names: Sequence[str],
    done: Collection[str],
    busy: Collection[str],
    instance: dg.DagsterInstance,
    stream: RedisStream,
    state: State,
) -> FeedSnapshot:
    """The snapshot before the table is read.

    Args:
        feed: the feed.
        names: its partitions.
        done: those of them that are recorded as done.
        busy: those that a run is about to publish, or publishing.
        instance: where they are recorded.
        stream: the feed's stream.
        state: the stream now.
    """
    ledger = Ledger(feed, stream)
    lost = {feed.partitions.name(start) for start in _lost(feed, instance, ledger)} if done else set()
    stretch: list[int] = []
    busy_start: int | None = None
    ended = False
    for start, name in zip(feed.partitions.starts, names, strict=True):
        if name in busy and busy_start is None:
            busy_start = start
        if name in done and name not in lost:
            ended = bool(stretch)
        elif not ended:
            stretch.append(start)
    first = stretch[0] if stretch else None
    return FeedSnapshot(first, busy_start, START, state, Seal(None), stretch=stretch, rows=ledger.rows())


def _lost(feed: Feed, instance: dg.DagsterInstance, ledger: Ledger) -> set[int]:
    """Partitions that are recorded as done, and have fewer rows in the ledger.

    Redis loses the latest writes, so the search goes from the newest record back to the first one that is not lost.
    """
    lost: set[int] = set()
    for page in newest(instance, feed, _LOOK_BACK):
        accounts = ledger.accounts(list(page))
        lost |= {start for start, record in page.items() if is_lost(record, accounts.get(start))}
        if any(record.rows and start not in lost for start, record in page.items()):
            break
    return lost
