"""Logs a run's progress from time to time. A line per brick would cost as much as the brick."""

import time
from collections.abc import Callable, Sequence

from ucs_pipeline.errors import counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.brick_results import ConfirmedBatch

SECONDS = 20.0
"""Time between two lines, at least."""


class Progress:
    """Counts confirmed rows, also inside a partition, which may take hours at a coarser level."""

    def __init__(
        self,
        feed: Feed,
        wanted: Sequence[int],
        log: Callable[[str], None],
        seconds: float = SECONDS,
        *,
        live: bool = False,
    ) -> None:
        """`wanted`: starts of the partitions of the run, consecutive.

        `log` is called with a message. `live`: rows come when the table gets them, so their rate does not predict the
        run's end.
        """
        self._feed = feed
        self._wanted = wanted
        self._log = log
        self._seconds = seconds
        self._live = live
        self._started = self._said = time.monotonic()
        self._published = 0

    def watch(self, span: ConfirmedBatch) -> None:
        """Rows are in the stream."""
        if span.length is not None:
            self._published += span.transaction.rows
        now = time.monotonic()
        if now - self._said > self._seconds:
            self._said = now
            self._log(self._sentence(span.transaction.ids[1].ordinal, now - self._started))

    def _sentence(self, ordinal: int, seconds: float) -> str:
        bricks, unit = self._feed.partitions, self._feed.partitions.unit
        start = max(bricks.start(ordinal), self._wanted[0])
        name = bricks.name(start) if unit == "brick" else f"{bricks.name(start)}, at brick {bricks.brick_name(ordinal)}"
        if self._live:
            return f"{unit} {name}: {counted(self._published, 'row')} added by this run"
        # Bricks before the run's own are compared first; their number of rows is not known, but small.
        done = max(0, ordinal - self._wanted[0]) / (bricks.end(self._wanted[-1]) - self._wanted[0] + 1)
        left = f", about {seconds / done * (1 - done):,.0f} s left" if done else ""
        return (
            f"{unit} {self._wanted.index(start) + 1:,} of {len(self._wanted):,} ({name}), "
            f"{self._published / seconds:,.0f} rows/s{left}"
        )
