"""Events of a run that wait for others to share a transaction with them."""

from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread, current_thread, get_ident

from dagster import EventLogEntry

SECONDS = 0.3
"""The longest an event waits."""


class PendingEvents:
    """Collects events in order. They are written when `write` is called, and by a thread within `SECONDS`."""

    def __init__(self, write: Callable[[Sequence[EventLogEntry]], None]) -> None:
        self._write = write
        self.forget()

    def forget(self) -> None:
        """Resets in a forked process: pending events and the thread that writes them belong to the parent."""
        self._events: list[EventLogEntry] = []
        self._thread: Thread | None = None
        self._taken = Event()
        self._adding, self._writing = Lock(), Lock()
        self._writer: int | None = None

    def add(self, event: EventLogEntry) -> int:
        """Adds one event. Returns how many wait."""
        with self._adding:
            self._events.append(event)
            if self._thread is None:
                # Not a daemon thread: a process that ends by itself waits for it, so nothing is lost.
                thread = Thread(target=self._write_in_time, name="ucs-record", daemon=False)
                thread.start()
                self._thread = thread
            return len(self._events)

    @property
    def writing(self) -> bool:
        """Whether the caller is called from `write`."""
        return self._writer == get_ident()

    def write(self, *, keep: bool = False) -> None:
        """Writes pending events, after those that another thread is writing.

        Events that cannot be written are dropped, or stay for the next attempt with `keep`: a caller that only logs or
        reads may swallow the error.
        """
        if self.writing:  # a read of the log from within `write`
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

    def _write_in_time(self) -> None:
        try:
            while self._due():
                self.write(keep=True)
        except Exception:
            # An error here would be lost: the step's next event writes these too, and raises if that fails.
            with self._adding:
                self._thread = None

    def _due(self) -> bool:
        self._taken.wait(SECONDS)
        with self._adding:
            self._taken.clear()
            # An active run has added its next event by now; otherwise the process may be ending.
            if not self._events:
                self._thread = None
            return self._thread is not None

    def _take(self) -> list[EventLogEntry]:
        with self._adding:
            events, self._events = self._events, []
            if self._thread not in (None, current_thread()):
                self._taken.set()
            return events
