"""What the three classes of the numbering standard have in common. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from typing_extensions import NamedTuple

from ucs_pipeline.errors import BrickError

LEVELS = ("brick", "block", "part", "shard")
"""The levels of the standard, from the smallest unit to the largest."""

T = TypeVar("T")


class Bounds(NamedTuple, Generic[T]):
    """Half-open range of a brick: `first <= key < end`."""

    first: T
    end: T


class BrickClass(ABC):
    """One class of keys: names of its bricks, and their order.

    Every brick has an ordinal, a number that rises with the order of the bricks. A unit is a brick, block, part or
    shard; `depth` is the index of its level in `LEVELS`. It is named by the leading parts of its bricks' names.
    """

    @abstractmethod
    def get_brick_name(self, key: Any) -> str:
        """Name of the brick that holds a key.

        Raises:
            BrickError: the class has no such key.
        """

    @abstractmethod
    def get_brick_bounds(self, name: str) -> Bounds[Any]:
        """Half-open bounds of a brick.

        Raises:
            BrickError: `name` is not a brick.
        """

    def get_brick_list(self, first: str, last: str) -> list[str]:
        """Names of the bricks from `first` to `last`, both included, in order.

        Raises:
            BrickError: a name is not a brick, or `last` comes before `first`.
        """
        start, stop = self.ordinal_of_name(first), self.ordinal_of_name(last)
        if stop < start:
            raise BrickError(
                f"brick range {first}...{last} is reversed. Give the earlier brick first: {last}...{first}."
            )
        return [self.name_of_ordinal(ordinal) for ordinal in self.ordinals(start, stop)]

    @abstractmethod
    def ordinal_of_name(self, name: str) -> int:
        """Ordinal of a brick.

        Raises:
            BrickError: `name` is not a brick.
        """

    @abstractmethod
    def name_of_ordinal(self, ordinal: int) -> str:
        """Name of the brick with an ordinal.

        Raises:
            BrickError: there is none.
        """

    @abstractmethod
    def ordinals(self, first: int, last: int) -> Sequence[int]:
        """Ordinals from that of a brick up to `last`, which need not be one."""

    @abstractmethod
    def unit(self, ordinal: int, depth: int) -> int:
        """Ordinal of the first brick of the unit that holds a brick."""

    @abstractmethod
    def units(self, first: int, last: int, depth: int) -> Sequence[int]:
        """Ordinals of the first bricks of the units from the one that holds `first` to the one that holds `last`."""

    @abstractmethod
    def unit_after(self, start: int, depth: int) -> int:
        """Ordinal of the brick that comes after a unit, given that of the unit's first brick."""

    @abstractmethod
    def unit_index(self, ordinal: int, depth: int) -> int:
        """A number of the unit that holds a brick, the same in every list: it rises by one from a unit to the next.

        At a change of clocks it may rise by two, or not at all, from an hour to the next.
        """

    @abstractmethod
    def bounds_text(self, first: int, last: int) -> str:
        """What is in the bricks from one ordinal to another, for people.

        It is recorded with each brick and compared later (`numbering_guard`), so its wording must not change.
        """

    def reported(self, key: int | bytes) -> int | str:
        """The form in which a key from the table is recorded."""
        return key if isinstance(key, int) else key.decode(errors="replace")

    def unit_name(self, ordinal: int, depth: int) -> str:
        """Name of the unit that holds a brick."""
        name = self.name_of_ordinal(ordinal)
        return name.rsplit(".", depth)[0] if depth else name

    def unit_of_name(self, name: str, depth: int) -> int:
        """Ordinal of the first brick of a unit.

        Raises:
            BrickError: `name` is no unit of this level.
        """
        try:
            return self.unit(self.ordinal_of_name(name + ".0" * depth), depth)
        except BrickError:
            if not depth:
                raise
            raise self.no_unit(name, depth) from None

    @staticmethod
    def no_unit(name: object, depth: int) -> BrickError:
        """The refusal of a name that is no unit of a level."""
        form = ".".join(LEVELS[: depth - 1 if depth else None : -1])
        return BrickError(
            f"{name!r} is not a {LEVELS[depth]} name. Expected {form}, the first parts of a brick's name."
        )
