"""The numbering standard: ids to brick names, brick names to id bounds. Pure functions on exact integers.

Number class of UCS (Universal Calculation Standard): an id is `shard.part.block.brick`, each level the
integer quotient of what the level above left over. No zero padding, no upper bound on the shard.
"""

import re
from typing import NamedTuple

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


class Bounds(NamedTuple):
    """Half-open id range of a brick: `first <= id < end`."""

    first: int
    end: int


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
    start, stop = ordinal_of_name(first), ordinal_of_name(last)
    if stop < start:
        raise BrickError(f"brick range {first}...{last} is reversed: give the earlier brick first ({last}...{first})")
    return [name_of_ordinal(ordinal) for ordinal in range(start, stop + 1)]


def get_brick_bounds(name: str) -> Bounds:
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
            f"{name!r} is not a brick name: expected shard.part.block.brick, four numbers without leading zeros, "
            "the last three from 0 to 999, such as 0.0.1.42"
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


def _integer(value: object, what: str) -> int:
    # bool is an int to Python, but True is nobody's id; a float has already lost digits above 2**53.
    if not isinstance(value, int) or isinstance(value, bool):
        raise BrickError(f"{what} {value!r} is not an integer: bricks number whole, non-negative ids only")
    if value < 0:
        raise BrickError(f"{what} {value} is negative: bricks number ids from 0 up")
    return value
