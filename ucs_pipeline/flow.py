"""Lets rows through to Redis as fast as the stream has room and the feed's pace allows."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ucs_pipeline.feed import Stream
from ucs_pipeline.room import Room
from ucs_pipeline.stream import TRANSACTION_ROWS, Transaction

_STEPS_PER_SECOND = 10


class Flow:
    """Stands between the transactions and the publisher."""

    def __init__(self, settings: Stream, room: Room, pause: Callable[[float], None]) -> None:
        """`pause` waits so many seconds, or raises when the publisher ends."""
        self._room = room
        self._pause = pause
        self._pace = settings.max_rows_per_second
        self._due = time.monotonic()
        paced = max(1, int(self._pace / _STEPS_PER_SECOND)) if self._pace else TRANSACTION_ROWS
        self.most_rows = min(TRANSACTION_ROWS, settings.max_len, paced)
        """Rows that a transaction may have."""

    def admit(self, transactions: Iterator[Transaction | None]) -> Iterator[Transaction | None]:
        """The same rows, each when it may go; a `None` before each wait, so that nothing is left half-way.

        Raises:
            StreamFullError: the stream stayed full.
            StreamUnavailableError: Redis cannot be asked whether there is room.
        """
        for transaction in transactions:
            rest = transaction
            if rest is None:
                yield None
            while rest:
                if (seconds := self._seconds_until(rest.rows)) > 0:
                    yield None
                    self._pause(seconds)
                part = self._room.fitting(rest)
                if part != rest:
                    yield None
                    part = self._room.wait_for(rest)
                self._room.sent(part)
                yield part
                rest = replace(rest, start=part.stop) if part.stop < rest.stop else None

    def added(self, transaction: Transaction, length: int) -> None:
        """Rows arrived; the stream has this length now."""
        self._room.added(transaction, length)

    def _seconds_until(self, rows: int) -> float:
        """Seconds until so many rows may go. Time that was not used is not made up for by a burst."""
        if self._pace is None:
            return 0.0
        now = time.monotonic()
        start = max(self._due, now)
        self._due = start + rows / self._pace
        return start - now
