"""A run whose bricks have no row at all, of a table that has some: likely a mistake in the feed, and said to be one."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

from ucs_pipeline.bricks.time import MILLISECONDS, PER_SECOND
from ucs_pipeline.entries.display import printable
from ucs_pipeline.feed.feed import BrickFeed
from ucs_pipeline.publishing.brick_results import Span
from ucs_pipeline.publishing.ordered.plan import BrickReport


class Emptiness:
    """Watches rows as they arrive, and adds a remark to the reports of a run that has none."""

    def __init__(self, first: int, remark: Callable[[], str | None], log: Callable[[str], None]) -> None:
        """`first`: start of the first partition of the run; `remark` is asked once, if no row has arrived."""
        self._first = first
        self._remark = remark
        self._log = log
        self._asked = False

    def watch(self, span: Span) -> None:
        """Rows are in the stream."""
        # Rows before the run's own are compared on the way to them.
        self._asked = self._asked or span.transaction.ids[1].ordinal >= self._first

    def remarked(self, reports: Generator[BrickReport, None, None]) -> Generator[BrickReport, None, None]:
        """The same reports."""
        said = None
        with closing(reports):
            for report in reports:
                # Bricks without rows are reported once a later row shows that they are, or after the last one.
                if not self._asked:
                    self._asked = True
                    said = self._remark()
                    if said:
                        self._log(said)
                yield replace(report, remark=said) if said else report


def empty(feed: BrickFeed, wanted: Sequence[int], sample: str | None) -> str:
    """What to say of partitions without rows. `sample`: the key of some row of the table, None if it is NULL."""
    bricks = feed.numbering
    key = "a NULL key" if sample is None else f"key {printable(sample)}"
    unit = _fitting_unit(feed, sample)
    advice = (
        f"it would be in the feed's bricks if keys counted {unit}: set `bricks.unit: {unit}`, and give the feed "
        "another name and another stream, since these bricks are recorded as done without rows"
        if unit
        else "if rows were expected here, check `key`, `where` and `bricks`"
    )
    return (
        f"feed {feed.name!r}: no row is in {bricks.span(wanted[0], wanted[-1])}, but table {feed.shown.table!r} has "
        f"rows, such as one with {key}; {advice}"
    )


def _fitting_unit(feed: BrickFeed, sample: str | None) -> str | None:
    """Another unit with which a key that is in no brick of the feed would be in one."""
    if feed.bricks.kind != "time" or sample is None or not (sample.isascii() and sample.isdecimal()):
        return None
    bricks = feed.numbering
    first, end = ((ordinal - bricks.offset) // MILLISECONDS for ordinal in (bricks.first, bricks.after(bricks.last)))
    fitting = [unit for unit, per_second in PER_SECOND.items() if first <= int(sample) // per_second < end]
    return None if feed.bricks.unit in fitting else next(iter(fitting), None)
