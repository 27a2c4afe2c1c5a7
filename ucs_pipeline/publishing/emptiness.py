"""A run whose bricks have no rows although the table has some: likely an error in the feed, so the run warns of it."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from ucs_pipeline.publishing.brick_results import BrickReport, ConfirmedBatch


class Emptiness:
    """Counts confirmed rows, and adds a remark to the reports of a run without rows."""

    def __init__(self, first: int, remark: Callable[[], str | None], log: Callable[[str], None]) -> None:
        """`first`: start of the first partition of the run; `remark` is called once, if no row has come."""
        self._first = first
        self._remark = remark
        self._log = log
        self._asked = False

    def watch(self, span: ConfirmedBatch) -> None:
        """Rows are in the stream."""
        # Rows before the run's own are compared first.
        self._asked = self._asked or span.transaction.ids[1].ordinal >= self._first

    def remarked(self, reports: Generator[BrickReport, None, None]) -> Generator[BrickReport, None, None]:
        """The same reports."""
        said = None
        with closing(reports):
            for report in reports:
                # Bricks without rows are reported after a later row, or at the end.
                if not self._asked:
                    self._asked = True
                    said = self._remark()
                    if said:
                        self._log(said)
                yield replace(report, remark=said) if said else report
