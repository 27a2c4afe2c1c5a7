"""Text class of the numbering standard: any other key, by the md5 of its text. Pure.

The 32 hex digits of the md5 are four groups of eight, and each group gives one digit of the brick: `shard.part.block.
brick`. The standard calls it "the sum of every 8 characters": the sum of the eight digits' values, modulo the base.
Such a sum never exceeds 120, and most are near 60, so that at base 100 or 1,000 most bricks stay empty: there the group
as one 32-bit integer, modulo the base, spreads keys evenly.
"""

import hashlib
from typing import Literal

from ucs_pipeline.bricks.base import Bounds, BrickClass
from ucs_pipeline.errors import BrickError

Digit = Literal["sum", "integer"]

BASES = (10, 100, 1000)
"""The possible bases of a digit."""


class TextBricks(BrickClass):
    """Bricks of keys whose md5 has the same four digits.

    >>> TextBricks().get_brick_name("abc")
    '2.0.2.6'
    >>> TextBricks(digit="integer").get_brick_name("abc")
    '2.0.7.6'
    """

    def __init__(self, base: int = 10, digit: Digit = "sum") -> None:
        """Bricks with digits below `base`, each the sum of eight hex digits, or the eight as one integer.

        Raises:
            BrickError: there is no such base or digit.
        """
        if base not in BASES or digit not in ("sum", "integer"):
            raise BrickError(
                f"base {base} with digit {digit!r} is invalid. Expected base 10, 100 or 1000, and digit sum or integer."
            )
        self.base = base
        self.digit = digit

    def get_brick_name(self, key: str | bytes) -> str:
        """Name of the brick of a key, given as text (its UTF-8 counts) or as bytes."""
        return self.name_of_ordinal(self.ordinal_of_key(key))

    def get_brick_bounds(self, name: str) -> Bounds[int]:
        """Half-open bounds of a brick's ordinal, since its keys are no range.

        They are compared with a table's brick column.
        """
        ordinal = self.ordinal_of_name(name)
        return Bounds(ordinal, ordinal + 1)

    def ordinal_of_key(self, key: str | bytes) -> int:
        """The four digits of a key, read as one number in the base.

        Raises:
            BrickError: the key is neither text nor bytes.
        """
        if not isinstance(key, str | bytes):
            raise BrickError(f"key {key!r} is not text. Text bricks take strings and bytes.")
        md5 = hashlib.md5(key.encode() if isinstance(key, str) else key, usedforsecurity=False).hexdigest()
        ordinal = 0
        for start in range(0, 32, 8):
            group = md5[start : start + 8]
            value = sum(int(digit, 16) for digit in group) if self.digit == "sum" else int(group, 16)
            ordinal = ordinal * self.base + value % self.base
        return ordinal

    def ordinal_of_name(self, name: str) -> int:
        """The four digits of a brick, read as one number in the base."""
        parts = name.split(".") if isinstance(name, str) else []
        ordinal = 0
        for part in parts:
            if not (part.isascii() and part.isdecimal() and str(int(part)) == part and int(part) < self.base):
                parts = []
                break
            ordinal = ordinal * self.base + int(part)
        if len(parts) != 4:
            raise BrickError(
                f"{name!r} is not a brick name. Expected shard.part.block.brick: four numbers from 0 to "
                f"{self.base - 1} without leading zeros, such as 2.0.2.6."
            )
        return ordinal

    def name_of_ordinal(self, ordinal: int) -> str:
        """Name of the brick whose digits make this number."""
        if not 0 <= ordinal < self.base**4:
            raise BrickError(
                f"ordinal {ordinal} is no text brick. At base {self.base} they are 0 to {self.base**4 - 1}."
            )
        rest, brick = divmod(ordinal, self.base)
        rest, block = divmod(rest, self.base)
        shard, part = divmod(rest, self.base)
        return f"{shard}.{part}.{block}.{brick}"

    def ordinals(self, first: int, last: int) -> range:
        """Every number below the base to the power of four is an ordinal."""
        return range(first, last + 1)

    def unit(self, ordinal: int, depth: int) -> int:
        """Ordinal of the first brick of the unit that holds a brick."""
        return ordinal - ordinal % self._size(depth)

    def units(self, first: int, last: int, depth: int) -> range:
        """Ordinals of the first bricks of units."""
        return range(self.unit(first, depth), last + 1, self._size(depth))

    def unit_after(self, start: int, depth: int) -> int:
        """Ordinal of the brick that comes after a unit."""
        return start + self._size(depth)

    def unit_index(self, ordinal: int, depth: int) -> int:
        """Units from 0.0.0.0 on, counted."""
        return ordinal // self._size(depth)

    def _size(self, depth: int) -> int:
        size: int = self.base**depth
        return size

    def bounds_text(self, first: int, last: int) -> str:
        """The digits, such as `2.0.2.6 <= digits of md5 <= 2.0.2.6`."""
        names = f"{self.name_of_ordinal(first)} <= digits of md5 <= {self.name_of_ordinal(last)}"
        return f"{names} (base {self.base}, digit {self.digit})"
