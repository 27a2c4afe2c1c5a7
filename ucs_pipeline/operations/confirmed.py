"""How many rows of a run are in Redis, read from Redis while the run continues."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import accumulate

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.resources import open_feed
from ucs_pipeline.orchestration.sensors.next_bricks import Request
from ucs_pipeline.stream.ledger import Ledger

_SECONDS = 0.1


@contextmanager
def following(
    feed: Feed,
    resources: object,
    request: Request,
    bar: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
    *,
    replay: bool = False,
) -> Iterator[None]:
    """Shows how many rows of the partitions of a run are in Redis while it runs.

    Raises:
        UcsError: the table or the stream cannot be read.
    """
    total, confirmed = _confirmed(feed, resources, request, replay)
    over = threading.Event()
    with bar(f"publishing {feed.partitions.span(request.first, request.last)}", total) as show:

        def update() -> None:
            # During a short outage of Redis, the run waits, and the bar does not move.
            with suppress(UcsError):
                show(confirmed())

        def follow() -> None:
            while not over.wait(_SECONDS):
                update()

        thread = threading.Thread(target=follow, name="ucs-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            update()


def _confirmed(feed: Feed, resources: object, request: Request, replay: bool) -> tuple[int, Callable[[], int]]:
    """Rows of some partitions in the table, and a function that returns how many of them are in Redis."""
    source, stream = open_feed(feed, resources)
    counts = source.count(request.first, feed.partitions.end(request.last))
    total = sum(counts.values())
    if feed.any_order:
        ledger = Ledger(feed, stream)
        wanted = feed.partitions.between(request.first, request.last)
        there = 0 if replay else sum(account.rows for account in ledger.accounts(wanted).values())
        before = ledger.rows() - there
        return total, lambda: min(total, ledger.rows() - before)
    bricks = sorted(counts)
    sums = list(accumulate((counts[brick] for brick in bricks), initial=0))

    def up_to_top() -> int:
        # Not by the stream's length, which consumers shorten as they trim.
        top = stream.state().top
        return sums[bisect_left(bricks, top.ordinal)] + min(top.row, counts.get(top.ordinal, 0))

    return total, up_to_top
