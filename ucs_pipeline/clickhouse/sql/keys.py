"""SQL that numbers rows: which brick a key is in, and which keys a range of bricks has.

One class of SQL per class of keys. Pure.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ucs_pipeline.bricks.number import NumberBricks
from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.bricks.text import TextBricks
from ucs_pipeline.clickhouse.sql.row_payload import Column, integer_limits, literal, selected, text, unwrap

OUTSIDE = ("null", "negative", "before", "beyond")
"""Places of a row outside the brick range: its key is NULL, negative (or before 1970), before the range or after it."""

_IN_ARROW = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")


class Key(NamedTuple):
    """A feed's key: the SQL expression, or a name it was given, and its type."""

    sql: str
    type: str

    @property
    def base(self) -> str:
        """The type without Nullable and LowCardinality."""
        return unwrap(self.type)[0]


class Within(NamedTuple):
    """A condition on rows, and the values of its parameters."""

    condition: str
    parameters: Mapping[str, int]


class KeySql(ABC):
    """SQL about the bricks of one feed. Keys are not NULL unless documented otherwise."""

    def __init__(self, partitions: Partitions) -> None:
        self._numbering = partitions.parent
        self.shard_id = partitions.shard_id

    def assigned(self, key: Key) -> str | None:
        """The condition that a key of some brick is in one of the feed's own shard; None if all are."""
        return f"modulo({self._index(key)}, {self.shard_id.of}) = {self.shard_id.number}" if self.shard_id else None

    @abstractmethod
    def _index(self, key: Key) -> str:
        """The index of a key's partition, which decides its shard."""

    @abstractmethod
    def refusal(self, type_name: str) -> str | None:
        """Why keys of this type cannot be numbered; None if they can."""

    @abstractmethod
    def ordinal(self, key: Key) -> str:
        """The ordinal of a key's brick (UInt64)."""

    def partition(self, key: Key) -> str:
        """The start of a key's partition, or the ordinal of some brick in it (UInt64)."""
        return self.ordinal(key)

    @abstractmethod
    def within(self, key: Key, first: int, last: int) -> Within | None:
        """The condition that a key, which may be NULL, is in the bricks `first` to `last`; None if none can be."""

    @abstractmethod
    def outside(self, key: Key) -> Sequence[str]:
        """Conditions that a key, which may be NULL, is in each of the places `OUTSIDE`, if it is in none before it."""

    def order(self, key: Key, ordinal: str) -> list[str]:  # noqa: ARG002 - for text bricks
        """The ORDER BY that brings bricks in order."""
        return [key.sql]

    def shown(self, key: Key) -> str:
        """The reported form of the key: an integer of up to 64 bits, or text."""
        return key.sql if key.base in _IN_ARROW else text(key.sql, key.type)

    def mentioned(self) -> Sequence[str]:
        """Names of columns that these texts use in addition to the key."""
        return ()


class NumberKeySql(KeySql):
    """Of number bricks."""

    def __init__(self, partitions: Partitions, bricks: NumberBricks) -> None:
        super().__init__(partitions)
        self._width = bricks.width

    def refusal(self, type_name: str) -> str | None:
        """Why keys of this type cannot be numbered; None if they can."""
        if integer_limits(type_name):
            return None
        return (
            "an integer type: number bricks count whole ids; choose an integer column, or convert it in the expression"
        )

    def ordinal(self, key: Key) -> str:
        """The ordinal of a key's brick."""
        return _placed(f"intDiv({key.sql}, {self._width})", self._numbering)

    def partition(self, key: Key) -> str:
        """The start of a key's partition."""
        return _placed(f"intDiv({key.sql}, {self._width})", self._numbering, grouped=True)

    def within(self, key: Key, first: int, last: int) -> Within | None:
        """The condition that a key is in a range of bricks."""
        _, largest = integer_limits(key.type) or (0, 0)
        low, high = self._ids(first, last)
        if low > largest:
            return None
        condition = f"{key.sql} >= {{first:{key.base}}} AND {key.sql} <= {{last:{key.base}}}"
        return Within(condition, {"first": low, "last": min(high, largest)})

    def outside(self, key: Key) -> Sequence[str]:
        """Conditions that a key is in no brick."""
        low, high = self._ids(self._numbering.first, self._numbering.last)
        return (
            f"isNull({key.sql})",
            f"{key.sql} < 0",
            _compared(key, "<", low),
            _compared(key, ">", high),
        )

    def _index(self, key: Key) -> str:
        return f"intDiv({key.sql}, {self._width * _partition_size(self._numbering)})"

    def _ids(self, first: int, last: int) -> tuple[int, int]:
        offset = self._numbering.offset
        return (first - offset) * self._width, (last - offset + 1) * self._width - 1


class TextKeySql(KeySql):
    """Of text bricks: the md5 of the key's text, as ClickHouse computes it."""

    def __init__(self, partitions: Partitions, bricks: TextBricks, column: str | None) -> None:
        """`column`: a column of the table that holds the brick's number, so that the table's index is used."""
        super().__init__(partitions)
        self._bricks = bricks
        self._column = column

    def refusal(self, type_name: str) -> str | None:
        """Why keys of this type cannot be numbered; None if they can."""
        base, _ = unwrap(type_name)
        if base.startswith(("String", "FixedString", "Enum", "UUID", "IPv")) or integer_limits(type_name):
            return None
        return "text, or a type with one text form (String, FixedString, Enum, UUID, IP address, integer)"

    def ordinal(self, key: Key) -> str:
        """The ordinal of a key's brick."""
        return _placed(self._number(key), self._numbering)

    def partition(self, key: Key) -> str:
        """The start of a key's partition."""
        return _placed(self._number(key), self._numbering, grouped=True)

    def within(self, key: Key, first: int, last: int) -> Within | None:
        """The condition that a key is in a range of bricks."""
        low, high = first - self._numbering.offset, last - self._numbering.offset
        conditions = [f"isNotNull({key.sql})"]
        if (low, high) != (0, self._bricks.base**4 - 1):
            conditions.append(f"{self._number(key)} BETWEEN {low} AND {high}")
        if self._column is not None:
            conditions.insert(0, f"{self._column} BETWEEN {low} AND {high}")
        return Within(" AND ".join(conditions), {})

    def outside(self, key: Key) -> Sequence[str]:
        """Conditions that a key is in no brick."""
        offset, number = self._numbering.offset, self._number(key)
        low, high = self._numbering.first - offset, self._numbering.last - offset
        return (f"isNull({key.sql})", "0", f"{number} < {low}", f"{number} > {high}")

    def order(self, key: Key, ordinal: str) -> list[str]:
        """The brick first."""
        return [ordinal, key.sql]

    def mentioned(self) -> Sequence[str]:
        """Names of columns that these texts use in addition to the key."""
        return () if self._column is None else (self._column,)

    def _index(self, key: Key) -> str:
        return f"intDiv({self._number(key)}, {_partition_size(self._numbering)})"

    def _number(self, key: Key) -> str:
        """SQL for the four digits as one number."""
        name = key.sql if key.base == "String" else f"toString({key.sql})"
        groups = (f"substring(MD5({name}), {start}, 4)" for start in (1, 5, 9, 13))
        base = self._bricks.base
        digits = [f"modulo({self._value(group)}, {base})" for group in groups]
        return f"({' + '.join(f'{digit} * {base**power}' for digit, power in zip(digits, (3, 2, 1, 0), strict=True))})"

    def _value(self, group: str) -> str:
        if self._bricks.digit == "integer":
            return f"reinterpretAsUInt32(reverse({group}))"
        # Eight hex digits as eight four-bit numbers of one integer: added in pairs, and then, by one multiplication,
        # all into its highest byte.
        whole = f"reinterpretAsUInt32({group})"
        pairs = f"bitAnd({whole}, 0x0F0F0F0F) + bitAnd(bitShiftRight({whole}, 4), 0x0F0F0F0F)"
        return f"bitAnd(bitShiftRight(({pairs}) * 0x01010101, 24), 0xFF)"


def key_of(expression: str, type_name: str) -> Key:
    """A key without LowCardinality, which some functions on text do not accept."""
    return Key(selected(Column("", expression, type_name)), type_name)


def _placed(ordinal: str, partitions: Partitions, *, grouped: bool = False) -> str:
    """SQL for an ordinal of the class as one of the feed's stream, or for the start of its partition."""
    size = _partition_size(partitions) if grouped else 1
    start = ordinal if size == 1 else f"intDiv({ordinal}, {size}) * {size}"
    return f"toUInt64({start} + {partitions.offset})" if partitions.offset else f"toUInt64({start})"


def _partition_size(partitions: Partitions) -> int:
    return partitions.bricks.unit_after(0, partitions.depth)


def _compared(key: Key, operator: str, bound: int) -> str:
    """SQL that compares an integer with a number that its type may be too small to hold."""
    largest = (integer_limits(key.type) or (0, 0))[1]
    if bound > largest:
        return str(int(operator == "<"))
    return f"{key.sql} {operator} CAST({literal(str(bound))}, {literal(key.base)})"
