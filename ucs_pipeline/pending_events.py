"""Events of a run that wait for others to share a transaction with them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Lock, Timer, get_ident
from typing import Any

from dagster import EventLogEntry
from sqlalchemy.exc import SQLAlchemyError

SECONDS = 0.1
"""The longest an event waits."""

Pending = tuple[EventLogEntry, Mapping[str, Any]]
"""An event, and its row in the table of events."""


class PendingEvents:
    """Collects events in order. They are written when `write` is called, and in any case `SECONDS` after the first."""

    def __init__(self, write: Callable[[Sequence[Pending]], None]) -> None:
        self._write = write
        self.forget()

    def forget(self) -> None:
        """Begins anew, in a forked process: what waits is its parent's, and so is the thread that would write it."""
        self._events: list[Pending] = []
        self._timer: Timer | None = None
        self._adding, self._writing = Lock(), Lock()
        self._writer: int | None = None

    def add(self, event: EventLogEntry, row: Mapping[str, Any]) -> int:
        """Adds one event. Returns how many wait."""
        with self._adding:
            self._events.append((event, row))
            if self._timer is None:
                # Not a daemon thread: a process that ends by itself waits for it, so nothing is lost.
                self._timer = Timer(SECONDS, self._in_time)
                self._timer.start()
            return len(self._events)

    def write(self, *, keep: bool = False) -> None:
        """Writes what waits, after what another thread is writing.

        Events that cannot be written are dropped, or wait for the next attempt if they are to be kept: whoever asks for
        something else in the meantime, a log line or a look at the log, may take the error for its own and go on.
        """
        if self._writer == get_ident():  # a look at the log on the way of writing
            return
        with self._writing:
            self._writer = get_ident()
            events = self._take()
            try:
                if events:
                    self._write(events)
            except BaseException:
                if keep:
                    with self._adding:
                        self._events[:0] = events
                raise
            finally:
                self._writer = None

    def _in_time(self) -> None:
        # Nobody would hear of an error here: the step's next event writes these too, and fails if that fails.
        with suppress(SQLAlchemyError, OSError):
            self.write(keep=True)

    def _take(self) -> list[Pending]:
        with self._adding:
            events, self._events = self._events, []
            if self._timer:
                self._timer.cancel()
                self._timer = None
            return events
