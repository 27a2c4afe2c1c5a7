"""The numbering standard: ids to brick names, brick names to id bounds. Pure functions on exact integers.

Number class of UCS (Universal Calculation Standard): an id is `shard.part.block.brick`, each level the integer quotient
of the remainder of the level above. No zero padding, no upper bound on the shard. The functions are those of the
standard's bricks, of 10,000 ids; `ucs_pipeline.bricks.time` and `ucs_pipeline.bricks.text` are the other classes, with
the same three functions.
"""

import re
from collections.abc import Sequence

from ucs_pipeline.bricks.base import Bounds as Bounds
from ucs_pipeline.bricks.base import BrickClass
from ucs_pipeline.errors import BrickError

BRICK = 10**4
"""Ids in a brick."""
BLOCK = 10**7
"""Ids in a block: 1,000 bricks."""
PART = 10**10
"""Ids in a part: 1,000 blocks."""
SHARD = 10**13
"""Ids in a shard: 1,000 parts."""

_NAME = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})", re.ASCII)


def get_brick_name(id: int) -> str:  # noqa: A002 - the standard's own parameter name
    """Name of the brick that holds `id`.

    >>> get_brick_name(12_345_678_901_234)
    '1.234.567.890'

    Raises:
        BrickError: `id` is not an integer, or negative.
    """
    return name_of_ordinal(_integer(id, "id") // BRICK)


def get_brick_list(first: str, last: str) -> list[str]:
    """Names of the bricks from `first` to `last`, both included, in order.

    >>> get_brick_list("0.0.0.999", "0.0.1.1")
    ['0.0.0.999', '0.0.1.0', '0.0.1.1']

    Raises:
        BrickError: a name is not a brick, or `last` comes before `first`.
    """
    return NumberBricks().get_brick_list(first, last)


def get_brick_bounds(name: str) -> Bounds[int]:
    """Half-open id bounds of a brick.

    >>> get_brick_bounds("0.0.0.1")
    Bounds(first=10000, end=20000)

    Raises:
        BrickError: `name` is not a brick.
    """
    first = ordinal_of_name(name) * BRICK
    return Bounds(first, first + BRICK)


def ordinal_of_name(name: str) -> int:
    """Position of a brick in brick order: `id // 10_000` of every id in it.

    Raises:
        BrickError: `name` is not a brick.
    """
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise BrickError(
            f"{name!r} is not a brick name. Expected shard.part.block.brick: four numbers without leading zeros, the "
            "last three from 0 to 999, such as 0.0.1.42."
        )
    shard, part, block, brick = map(int, match.groups())
    return ((shard * 1000 + part) * 1000 + block) * 1000 + brick


def name_of_ordinal(ordinal: int) -> str:
    """Name of the brick at a position in brick order.

    Raises:
        BrickError: `ordinal` is not an integer, or negative.
    """
    rest, brick = divmod(_integer(ordinal, "ordinal"), 1000)
    rest, block = divmod(rest, 1000)
    shard, part = divmod(rest, 1000)
    return f"{shard}.{part}.{block}.{brick}"


class NumberBricks(BrickClass):
    """Bricks of `width` consecutive ids."""

    def __init__(self, width: int = BRICK) -> None:
        self.width = width

    def get_brick_name(self, key: int) -> str:
        """Name of the brick that holds an id."""
        return name_of_ordinal(_integer(key, "id") // self.width)

    def get_brick_bounds(self, name: str) -> Bounds[int]:
        """Half-open id bounds of a brick."""
        first = ordinal_of_name(name) * self.width
        return Bounds(first, first + self.width)

    def ordinal_of_name(self, name: str) -> int:
        """Position of a brick in brick order."""
        return ordinal_of_name(name)

    def name_of_ordinal(self, ordinal: int) -> str:
        """Name of the brick at a position in brick order."""
        return name_of_ordinal(ordinal)

    def ordinals(self, first: int, last: int) -> range:
        """Every number is an ordinal."""
        return range(first, last + 1)

    def unit(self, ordinal: int, depth: int) -> int:
        """Ordinal of the first brick of the unit that holds a brick."""
        return ordinal - ordinal % _size(depth)

    def units(self, first: int, last: int, depth: int) -> Sequence[int]:
        """Ordinals of the first bricks of units."""
        return range(self.unit(first, depth), last + 1, _size(depth))

    def unit_after(self, start: int, depth: int) -> int:
        """Ordinal of the brick that comes after a unit."""
        return start + _size(depth)

    def unit_index(self, ordinal: int, depth: int) -> int:
        """Units from 0 on, counted."""
        return ordinal // _size(depth)

    def reported(self, key: int | bytes) -> int:
        """An id. It comes as text if it is too wide for an integer column."""
        return int(key)

    def bounds_text(self, first: int, last: int) -> str:
        """The ids, such as `0 <= id < 10000`."""
        return f"{first * self.width} <= id < {(last + 1) * self.width}"


def _size(depth: int) -> int:
    """Bricks in a unit of a level."""
    size: int = 1000**depth
    return size


def _integer(value: object, what: str) -> int:
    # bool is an int to Python, but no id. A float has lost digits above 2**53.
    if not isinstance(value, int) or isinstance(value, bool):
        raise BrickError(f"{what} {value!r} is not an integer. Number bricks take integers of 0 or more.")
    if value < 0:
        raise BrickError(f"{what} {value} is negative. Number bricks take integers of 0 or more.")
    return value
