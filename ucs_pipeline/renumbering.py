"""A feed that numbers its rows in another way than when it published: noticed before a row moves."""

from contextlib import suppress

import dagster as dg

from ucs_pipeline.errors import BrickError, StreamError
from ucs_pipeline.feed import BrickFeed

_NEWEST = 10


def refuse_renumbered(instance: dg.DagsterInstance, feed: BrickFeed) -> None:
    """Keeps a feed from going on where it numbered its rows in another way.

    The same names and entry ids would stand for other rows, and those between the two be left out or come twice.

    Raises:
        StreamError: a partition that was recorded lately had other bounds.
    """
    for record in instance.fetch_materializations(dg.AssetKey(feed.name), limit=_NEWEST).records:
        event = record.asset_materialization
        written = event and event.metadata.get("bounds")
        if not event or not event.partition or not written:
            continue
        with suppress(BrickError):  # partitions of another level, whose bricks are the same
            bounds = feed.numbering.bounds_text(feed.numbering.start_named(event.partition))
            if written.value != bounds:
                raise StreamError(
                    f"feed {feed.name!r}, brick {event.partition}: recorded as done with {written.value}, but the "
                    f"feed's `bricks` make it {bounds} now: what is published cannot be numbered anew; set `bricks` "
                    "back to what it was, or give the feed another name and another stream"
                )
