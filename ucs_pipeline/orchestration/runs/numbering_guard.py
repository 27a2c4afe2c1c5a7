"""Detects a feed whose numbering has changed since it published, before a row is sent."""

from collections.abc import Iterator, Sequence

import dagster as dg

from ucs_pipeline.bricks.base import LEVELS, BrickClass
from ucs_pipeline.bricks.time import TimeBricks, zone_database
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import BrickError, StreamError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.names import feed_key
from ucs_pipeline.stream.stream import RedisStream

_PAGE = 10


def refuse_renumbered(instance: dg.DagsterInstance, feed: Feed, stream: RedisStream) -> None:
    """Refuses to publish if the numbering has changed.

    The same names and entry ids would stand for other rows, and some rows would be missing or come twice.

    Raises:
        StreamError: a partition that was recorded lately had other bounds, or ids that another `id_offset` gave it.
    """
    newest = True
    for event in _recorded(instance, feed):
        name, written = event.partition or "", event.metadata["bounds"].value
        ordinals = _ordinals(feed.partitions.bricks, name)
        bounds = feed.partitions.bricks.bounds_text(ordinals[0], ordinals[-1]) if ordinals else None
        if written != bounds or not ordinals:
            raise StreamError(
                f"feed {feed.name!r}: brick {name} was recorded as {written}, and the feed's `bricks` now make it "
                f"{bounds or 'no brick'}. Published rows cannot be renumbered. {_way_out(feed)}.",
                "UCS-NUMBERING",
            )
        last = event.metadata.get("last_entry_id")
        if last and newest and not feed.any_order:
            newest = False
            _refuse_shifted(feed, stream, name, ordinals, EntryId.parse(str(last.value)))


def _way_out(feed: Feed) -> str:
    bricks = feed.partitions.bricks
    if not isinstance(bricks, TimeBricks) or bricks.zone.key == "UTC":
        return "Set `bricks` back, or give the feed another name and another stream"
    return (
        f"Set `bricks` back. If nobody changed it, the time zone database has other rules for {bricks.zone.key} "
        f"({zone_database(bricks.zone.key)}): run the feed with the database that it was published with (`pip install "
        "tzdata==<its release>`, and PYTHONTZPATH set to an empty text), or continue with a new feed of another name "
        "and stream, whose `bricks.first` comes after the published bricks"
    )


def _refuse_shifted(feed: Feed, stream: RedisStream, name: str, ordinals: Sequence[int], last: EntryId) -> None:
    """Refuses another `id_offset` on the stream that has the partition's last entry, or entries after it."""
    offset = feed.stream.id_offset
    lowered, raised = last.ordinal > ordinals[-1] + offset, last.ordinal < ordinals[0] + offset
    if not lowered and not raised:
        return
    top = stream.state().top
    # With a higher one the feed may be on another stream, whose old entries may have any ids.
    if top == last or (lowered and top > last) or stream.entries(last, last):
        raise StreamError(
            f"feed {feed.name!r}: brick {name} was recorded up to entry {last} of stream {stream.name!r}, whose last "
            f"ID is {top}. With `stream.id_offset: {offset}` its entries begin at {ordinals[0] + offset}-1. Set the "
            "offset back, or give the feed another stream.",
            "UCS-NUMBERING",
        )


def _recorded(instance: dg.DagsterInstance, feed: Feed) -> Iterator[dg.AssetMaterialization]:
    """Some of the partitions that were recorded last; those reported by hand have no bounds and are left out."""
    cursor, more, found = None, True, False
    while more and not found:
        page = instance.fetch_materializations(feed_key(feed), limit=_PAGE, cursor=cursor)
        for record in page.records:
            event = record.asset_materialization
            if event and event.partition and event.metadata.get("bounds"):
                found = True
                yield event
        cursor, more = page.cursor, page.has_more


def _ordinals(bricks: BrickClass, name: str) -> Sequence[int] | None:
    """Bricks of a partition of any level, also outside the feed's brick range; None if the class has no such name."""
    depth = len(LEVELS) - 1 - name.count(".")
    if not 0 <= depth < len(LEVELS):
        return None
    try:
        first = bricks.unit_of_name(name, depth)
    except BrickError:
        return None
    return bricks.ordinals(first, bricks.unit_after(first, depth) - 1)
