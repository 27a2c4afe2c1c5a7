"""How long to retry when a server cannot answer."""

import time
from collections.abc import Callable

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 5.0


class Backoff:
    """Growing pauses between attempts, until a time without progress is over."""

    def __init__(self, timeout_s: float, log: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._log = log
        self._until: float | None = None
        self._seconds = _FIRST_PAUSE_SECONDS

    def reset(self) -> None:
        """Rows were added: the time starts again at the next failure."""
        self._until = None
        self._seconds = _FIRST_PAUSE_SECONDS

    def wait(self, error: Exception) -> None:
        """Waits, or raises the error when the time is over."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._timeout_s
        left = self._until - now
        if left <= 0:
            raise error
        self._log(f"{error} Retrying for another {left:.0f} s.")
        time.sleep(min(self._seconds, left))
        self._seconds = min(self._seconds * 2, _LONGEST_PAUSE_SECONDS)
