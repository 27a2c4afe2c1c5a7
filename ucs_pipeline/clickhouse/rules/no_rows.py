"""Messages about bricks without rows of a table that has some. Pure."""

from collections.abc import Sequence

from ucs_pipeline.bricks.time import MILLISECONDS, PER_SECOND
from ucs_pipeline.entries.display import printable
from ucs_pipeline.feed.feed import Feed


def empty(feed: Feed, wanted: Sequence[int], sample: str | None) -> str:
    """The message about partitions without rows. `sample`: the key of some row of the table, None if it is NULL."""
    bricks = feed.partitions
    key = "a NULL key" if sample is None else f"key {printable(sample)}"
    unit = _fitting_unit(feed, sample)
    advice = (
        f"The key would be in the feed's bricks if keys counted {unit}. Set `bricks.unit: {unit}`, and give the feed "
        "another name and stream, because these bricks are recorded without rows."
        if unit
        else "If you expect rows here, check `key`, `where` and `bricks`."
    )
    return (
        f"feed {feed.name!r}: no row is in {bricks.span(wanted[0], wanted[-1])}, but table {feed.redacted.table!r} has "
        f"rows, such as one with {key}. {advice}"
    )


def filtered(feed: Feed, wanted: Sequence[int]) -> str:
    """The message about partitions without rows if the feed's filter takes no row of its table."""
    return (
        f"feed {feed.name!r}: no row is in {feed.partitions.span(wanted[0], wanted[-1])}: table "
        f"{feed.redacted.table!r} has rows, and the feed's `where` rejects them all. If you expect rows here, check "
        "`where`."
    )


def _fitting_unit(feed: Feed, sample: str | None) -> str | None:
    """Another unit that would put a key outside the brick range into a brick."""
    if feed.bricks.kind != "time" or sample is None or not (sample.isascii() and sample.isdecimal()):
        return None
    bricks = feed.partitions
    first, end = ((ordinal - bricks.offset) // MILLISECONDS for ordinal in (bricks.first, bricks.after(bricks.last)))
    fitting = [unit for unit, per_second in PER_SECOND.items() if first <= int(sample) // per_second < end]
    return None if feed.bricks.unit in fitting else next(iter(fitting), None)
