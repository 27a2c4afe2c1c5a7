"""Passes rows to Redis as fast as the stream's free capacity and the feed's pace allow."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace

from ucs_pipeline.entries.batches import TRANSACTION_ROWS, Batch
from ucs_pipeline.feed.settings import Stream
from ucs_pipeline.publishing.backpressure import Backpressure, T

_STEPS_PER_SECOND = 10
_LATE_SECONDS = 1.0


class RateLimiter:
    """Stands between the transactions and the publisher."""

    def __init__(
        self,
        settings: Stream,
        backpressure: Backpressure,
        pause: Callable[[float], None],
        moment: Callable[[int | bytes], float] = float,
    ) -> None:
        """`pause` waits for some seconds, or raises when the publisher ends; `moment` gives a key's time in seconds."""
        self._backpressure = backpressure
        self._pause = pause
        self._pace = settings.max_rows_per_second
        self._due = time.monotonic()
        self._times_real_time = settings.pace
        self._moment = moment
        self._clock: tuple[float, float] | None = None
        paced = max(1, int(self._pace / _STEPS_PER_SECOND)) if self._pace else TRANSACTION_ROWS
        self.most_rows = min(TRANSACTION_ROWS, settings.max_len, paced)
        """Rows that a transaction may have."""

    def admit(self, transactions: Iterator[T | None]) -> Iterator[T | None]:
        """The same rows, each when it may go; a `None` before each wait, so that transactions in flight are confirmed.

        Raises:
            StreamFullError: the stream stayed full.
            StreamUnavailableError: Redis does not answer.
        """
        for transaction in transactions:
            rest = transaction
            if rest is None:
                yield None
            while rest:
                due, seconds = self._on_time(rest)
                if (seconds := max(seconds, self._seconds_until(due.rows))) > 0:
                    yield None
                    self._pause(seconds)
                part = self._backpressure.fitting(due)
                if part != due:
                    yield None
                    part = self._backpressure.wait_for(due)
                self._backpressure.reserve(part)
                yield part
                rest = replace(rest, start=part.stop) if part.stop < rest.stop else None

    def settle(self, transaction: Batch, length: int) -> None:
        """Rows were added; the stream has this length now."""
        self._backpressure.settle(transaction, length)

    def _on_time(self, transaction: T) -> tuple[T, float]:
        """The leading rows that are due at about the same time, and the seconds until then."""
        if self._times_real_time is None:
            return transaction, 0.0

        def moment(row: int) -> float:
            return self._moment(transaction.entries.key(row))

        now, first = time.monotonic(), moment(transaction.start)
        began, at = self._clock or (first, now)
        seconds = at + (first - began) / self._times_real_time - now
        if self._clock is None or seconds < -_LATE_SECONDS:
            # A wait for a full stream shifts the schedule, so no burst follows.
            self._clock, seconds = (first, now), 0.0
        rows = range(transaction.start, transaction.stop)
        together = bisect_right(rows, first + self._times_real_time / _STEPS_PER_SECOND, key=moment)
        return replace(transaction, stop=transaction.start + together), seconds

    def _seconds_until(self, rows: int) -> float:
        """Seconds until so many rows may be sent. Unused time does not allow a burst."""
        if self._pace is None:
            return 0.0
        now = time.monotonic()
        start = max(self._due, now)
        self._due = start + rows / self._pace
        return start - now
