"""A run whose bricks have no row at all, of a table that has some: likely a mistake in the feed, and said to be one."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from ucs_pipeline.publishing.brick_results import BrickReport, ConfirmedBatch


class Emptiness:
    """Watches rows as they arrive, and adds a remark to the reports of a run that has none."""

    def __init__(self, first: int, remark: Callable[[], str | None], log: Callable[[str], None]) -> None:
        """`first`: start of the first partition of the run; `remark` is asked once, if no row has arrived."""
        self._first = first
        self._remark = remark
        self._log = log
        self._asked = False

    def watch(self, span: ConfirmedBatch) -> None:
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
