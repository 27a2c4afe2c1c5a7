"""Which bricks can no longer change. Pure."""

from bisect import bisect_right
from datetime import datetime
from typing import NamedTuple

from ucs_pipeline.bricks.number import NumberBricks
from ucs_pipeline.bricks.time import MILLISECONDS, TimeBricks
from ucs_pipeline.feed.feed import Feed


class Seal(NamedTuple):
    """Where the partitions that can still change begin."""

    open: int | None
    """Start of the first one; None if there is none."""
    waits_for: str = ""
    """What seals it, as a message."""


def seal(feed: Feed, start: int, newest_id: int | None, now: float) -> Seal | str:
    """Which partitions from `start` on can still change; or the reason why that is not known.

    Args:
        feed: the feed.
        start: a partition.
        newest_id: for number bricks: the largest id of the table from there on, None if there is none.
        now: seconds since 1970.
    """
    bricks = feed.partitions.bricks
    if isinstance(bricks, NumberBricks):
        return _by_growth(feed, bricks, start, newest_id)
    if isinstance(bricks, TimeBricks):
        return _by_clock(feed, bricks, now)
    return (
        f"feed {feed.name!r}: skipped: nothing seals text bricks, because a new row may belong to any of them. Launch "
        "a backfill, or set `schedule`."
    )


def _by_growth(feed: Feed, bricks: NumberBricks, start: int, newest_id: int | None) -> Seal | str:
    partitions = feed.partitions
    if newest_id is None:
        first = (start - partitions.offset) * bricks.width
        return (
            f"feed {feed.name!r}: skipped: brick {partitions.name(start)} is next, and the table has no id of "
            f"{first:,} or more."
        )
    # The brick of the newest id can still grow; those before it cannot.
    newest = newest_id // bricks.width + partitions.offset
    open_ = partitions.reaching(newest)
    if open_ is None:
        return Seal(None)
    needed = (partitions.end(open_) - partitions.offset + 1) * bricks.width
    return Seal(open_, f"The newest id is {newest_id:,}; an id of {needed:,} or more seals it.")


def _by_clock(feed: Feed, bricks: TimeBricks, now: float) -> Seal:
    partitions = feed.partitions
    settled = int((now - feed.bricks.settle_s) * MILLISECONDS) + partitions.offset
    # A partition is sealed when the hour after it has begun, and the settling time is over.
    open_: int | None = partitions.starts[max(0, bisect_right(partitions.starts, settled) - 1)]
    if open_ is not None and partitions.after(partitions.end(open_)) <= settled:
        open_ = partitions.next(open_)
    if open_ is None:
        return Seal(None)
    end = partitions.after(partitions.end(open_)) - partitions.offset
    ends = datetime.fromtimestamp(end // MILLISECONDS, bricks.zone).isoformat()
    return Seal(open_, f"It ends at {ends} and is sealed {feed.bricks.settle_s:g} s later.")
