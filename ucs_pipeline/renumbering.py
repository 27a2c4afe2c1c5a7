"""A feed that numbers its rows in another way than when it published: noticed before a row moves."""

from collections.abc import Iterator

import dagster as dg

from ucs_pipeline.brick_class import LEVELS, BrickClass
from ucs_pipeline.errors import BrickError, StreamError
from ucs_pipeline.feed import BrickFeed

_PAGE = 10


def refuse_renumbered(instance: dg.DagsterInstance, feed: BrickFeed) -> None:
    """Keeps a feed from going on where it numbered its rows in another way.

    The same names and entry ids would stand for other rows, and those between the two be left out or come twice.

    Raises:
        StreamError: a partition that was recorded lately had other bounds.
    """
    for name, written in _recorded_bounds(instance, feed):
        bounds = _bounds(feed.numbering.bricks, name)
        if written != bounds:
            raise StreamError(
                f"feed {feed.name!r}, brick {name}: recorded as done with {written}, but the feed's `bricks` make it "
                f"{bounds or 'no brick at all'} now: what is published cannot be numbered anew; set `bricks` back to "
                "what it was, or give the feed another name and another stream"
            )


def _recorded_bounds(instance: dg.DagsterInstance, feed: BrickFeed) -> Iterator[tuple[str, object]]:
    """Partitions and their bounds as they were recorded last; those reported by hand have none."""
    cursor, more, found = None, True, False
    while more and not found:
        page = instance.fetch_materializations(dg.AssetKey(feed.name), limit=_PAGE, cursor=cursor)
        for record in page.records:
            event = record.asset_materialization
            written = event and event.metadata.get("bounds")
            if event and event.partition and written:
                found = True
                yield event.partition, written.value
        cursor, more = page.cursor, page.has_more


def _bounds(bricks: BrickClass, name: str) -> str | None:
    """What a partition of any level holds, in this feed's list or not; None if the class has no such name."""
    depth = len(LEVELS) - 1 - name.count(".")
    if not 0 <= depth < len(LEVELS):
        return None
    try:
        first = bricks.unit_of_name(name, depth)
    except BrickError:
        return None
    return bricks.bounds_text(first, bricks.ordinals(first, bricks.unit_after(first, depth) - 1)[-1])
