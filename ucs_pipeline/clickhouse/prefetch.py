"""An iterator that runs in a thread of its own, a bounded number of items ahead."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from threading import Condition, Thread
from typing import Generic, TypeVar

from typing_extensions import Self

T = TypeVar("T")

_JOIN_SECONDS = 10


class ClosedError(Exception):
    """The iterator was closed while a thread waited for it."""


class Background(Generic[T]):
    """Runs `items` in a thread, at most `ahead` items before the consumer. Errors arise where the items are used."""

    def __init__(self, items: Generator[T, None, None], ahead: int, name: str) -> None:
        self._items = items
        self._ahead = ahead
        self._ready: deque[T] = deque()
        self._changed = Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
        self.join()

    def __iter__(self) -> Iterator[T]:
        while (item := self.get()) is not None:
            yield item

    def get(self) -> T | None:
        """The next item, or None at the end. Waits for it.

        Raises:
            ClosedError: `close` was called meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended or self._closed)
            return self._take()

    def ready(self) -> bool:
        """Whether `get` would answer at once."""
        with self._changed:
            return bool(self._ready or self._ended or self._closed)

    def pause(self, seconds: float) -> None:
        """Waits.

        Raises:
            ClosedError: `close` was called before the time was over.
        """
        with self._changed:
            if self._changed.wait_for(lambda: self._closed, seconds):
                raise ClosedError

    def close(self) -> None:
        """Stops the thread at its next item and wakes threads that wait. Does not wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Waits for the thread to end; a thread blocked by a dead server ends with the process."""
        self._thread.join(_JOIN_SECONDS)

    def _take(self) -> T | None:
        if self._closed:
            raise ClosedError
        if self._ready:
            item = self._ready.popleft()
            self._changed.notify_all()
            return item
        if self._error is not None:
            raise self._error
        return None

    def _run(self) -> None:
        try:
            with closing(self._items):
                for item in self._items:
                    if not self._hand_over(item):
                        break
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _hand_over(self, item: T) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._ahead)
            if not self._closed:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._closed
