"""What ends when a `with` block does."""

from abc import ABC, abstractmethod
from types import TracebackType

from typing_extensions import Self


class Closed(ABC):
    """Is closed at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Ends it, however far it came."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Started(Closed):
    """Is started by a `with` block, and closed even if it did not start."""

    @abstractmethod
    def start(self) -> Self:
        """Starts it, and returns once it answers."""

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise
