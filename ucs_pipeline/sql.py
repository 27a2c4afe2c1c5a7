"""The SQL a feed stands for. Pure: text in, text out.

ClickHouse itself writes each row's fields in the form the Redis protocol wants, `$<bytes>\\r\\n<value>\\r\\n`, so a
row reaches Python as one opaque string and is never taken apart again. Every value keeps the text form the
engine gives it, exact for integers of any width; NULL leaves its field out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ucs_pipeline.bricks import BRICK

_KEY = "_ucs_key"

_INTEGER = re.compile(r"(U?)Int(8|16|32|64|128|256)")
_WRAPPER = re.compile(r"(Nullable|LowCardinality|SimpleAggregateFunction)\((?:\w+, )?(.*)\)", re.DOTALL)
_DATETIME64 = re.compile(r"DateTime64\((\d)")
_TEXT = ("String", "FixedString", "Enum8", "Enum16")
_ORDERED = (*_TEXT, "Int", "UInt", "Decimal", "Bool", "Date", "UUID", "IPv4", "IPv6", "Time")
_PRINTED = (*_ORDERED, "Float", "BFloat16", "Interval")


class Column(NamedTuple):
    """A field of an entry: its name in the stream, the SQL that gives its value, and that value's ClickHouse type."""

    field: str
    expression: str
    type: str


class Shape(NamedTuple):
    """What a feed selects from its table, once the types of its key and columns are known."""

    table: str
    final: bool
    where: str | None
    key: str
    key_type: str
    columns: Sequence[Column]
    constants: Mapping[str, str]


def quote(identifier: str) -> str:
    """An identifier in backticks."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(value: str | int | float | bool) -> str:
    """A constant as SQL text."""
    if isinstance(value, str):
        escaped = (
            value.replace("\\", "\\\\")
            .replace("'", "\\'")
            .replace("\r", "\\r")
            .replace("\n", "\\n")
            .replace("\0", "\\0")
        )
        return f"'{escaped}'"
    return str(int(value)) if isinstance(value, bool) else str(value)


def table_expression(table: str) -> str:
    """`table` or `database.table`, quoted; a table function such as `file('rows.parquet')` as it is."""
    return table if "(" in table else ".".join(quote(part) for part in table.split("."))


def column_expression(text: str, table_columns: Mapping[str, str]) -> str:
    """A column of exactly this name, quoted, or else the text as an SQL expression."""
    return quote(text) if text in table_columns else f"({text})"


def describe_table(table: str) -> str:
    """Query for the table's own columns: `name`, `type`."""
    return f"DESCRIBE TABLE {table_expression(table)}"


def describe_expressions(table: str, expressions: Sequence[str]) -> str:
    """Query for the types of expressions over the table, in order: `name`, `type`."""
    selection = ", ".join(f"{expression} AS _ucs_{i}" for i, expression in enumerate(expressions))
    return f"DESCRIBE TABLE (SELECT {selection} FROM {table_expression(table)})"


def unwrap(type_name: str) -> tuple[str, bool]:
    """The type inside Nullable, LowCardinality and SimpleAggregateFunction, and whether a value can be NULL."""
    nullable = False
    while match := _WRAPPER.fullmatch(type_name):
        nullable |= match[1] == "Nullable"
        type_name = match[2]
    return type_name, nullable or type_name.startswith(("Variant", "Dynamic"))


def key_limits(type_name: str) -> tuple[int, int] | None:
    """Smallest and largest value of an integer type; None if the type is not an integer."""
    match = _INTEGER.fullmatch(unwrap(type_name)[0])
    if match is None:
        return None
    bits = int(match[2])
    return (0, 2**bits - 1) if match[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def first_key(ordinal: int) -> int:
    """Smallest key of a brick."""
    return ordinal * BRICK


def last_key(ordinal: int) -> int:
    """Largest key of a brick."""
    return ordinal * BRICK + BRICK - 1


def scan(shape: Shape) -> str:
    """The ordered scan over the keys `{first}` to `{last}`, both included, both bound as parameters.

    Columns: `key` (an integer of up to 64 bits, wider ones as text), `ordinal` of its brick (UInt64), `arguments`
    (UInt32: how many fields and values the payload holds) and `payload` (those fields and values as protocol bytes). Rows come in key order, ties broken by every other column, so the
    order is total: rows that still compare equal have the same bytes.
    """
    key_type, key_nullable = unwrap(shape.key_type)
    key = f"assumeNotNull({shape.key})" if key_nullable else shape.key
    names = [f"_ucs_{i}" for i in range(len(shape.columns))]
    pairs = list(zip(shape.columns, names, strict=True))
    inner = ", ".join([f"{key} AS {_KEY}", *(f"{_unlowered(column)} AS {name}" for column, name in pairs)])
    ties = [_tie(name, column.type) for column, name in pairs if column.expression != shape.key]
    # Wider keys have no Arrow integer, and only the first and last of a brick are ever looked at.
    shown = (
        _KEY
        if key_type in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
        else f"toString({_KEY})"
    )
    return (
        f"SELECT {shown} AS key, toUInt64(intDiv({_KEY}, {BRICK})) AS ordinal, "
        f"{_arguments(shape, names)} AS arguments, {_payload(shape, names)} AS payload "
        f"FROM (SELECT {inner} FROM {_from(shape)} WHERE {_where(shape)}) "
        f"ORDER BY {', '.join([_KEY, *ties])}"
    )


def count(shape: Shape) -> str:
    """Rows per brick over the keys `{first}` to `{last}`: `ordinal` and `rows`; bricks without rows are left out."""
    return (
        f"SELECT toUInt64(assumeNotNull(intDiv({shape.key}, {BRICK}))) AS ordinal, count() AS rows "
        f"FROM {_from(shape)} WHERE {_where(shape)} GROUP BY ordinal ORDER BY ordinal"
    )


def settings_clause(settings: Mapping[str, str | int | float | bool]) -> str:
    """The trailing SETTINGS clause; empty if there are none."""
    if not settings:
        return ""
    return " SETTINGS " + ", ".join(f"{name} = {literal(value)}" for name, value in settings.items())


def _from(shape: Shape) -> str:
    return table_expression(shape.table) + (" FINAL" if shape.final else "")


def _where(shape: Shape) -> str:
    key_type, _ = unwrap(shape.key_type)
    bounds = f"{shape.key} >= {{first:{key_type}}} AND {shape.key} <= {{last:{key_type}}}"
    return f"{bounds} AND ({shape.where})" if shape.where else bounds


def _unlowered(column: Column) -> str:
    if not column.type.startswith("LowCardinality("):
        return column.expression
    return f"CAST({column.expression}, {literal(column.type.removeprefix('LowCardinality(')[:-1])})"


def _tie(name: str, type_name: str) -> str:
    # Floats that compare equal may print differently (0 and -0), and composite types may not compare at all.
    base, _ = unwrap(type_name)
    return name if base.startswith(_ORDERED) else _text(name, type_name)[0]


def _text(name: str, type_name: str) -> tuple[str, int | None]:
    """SQL for a value's text and, where every value of the type has the same, its length in bytes."""
    base, nullable = unwrap(type_name)
    if base == "String":
        return name, None
    if base.startswith("FixedString"):
        return f"CAST({name}, '{'Nullable(String)' if nullable else 'String'}')", None
    if base.startswith("DateTime64"):
        match = _DATETIME64.match(base)
        digits = int(match[1]) if match else 0
        return f"concat(replaceOne(toString({name}, 'UTC'), ' ', 'T'), '+00:00')", 25 + digits + (digits > 0)
    if base.startswith("DateTime"):
        return f"formatDateTime({name}, '%Y-%m-%dT%H:%i:%S+00:00', 'UTC')", 25
    if base.startswith(_PRINTED):
        return f"toString({name})", {"Date": 10, "Date32": 10, "UUID": 36}.get(base)
    return f"toJSONString({name})", None


def _arguments(shape: Shape, names: Sequence[str]) -> str:
    most = 2 * (len(shape.columns) + len(shape.constants))
    nulls = [f"isNull({name})" for column, name in zip(shape.columns, names, strict=True) if unwrap(column.type)[1]]
    return f"toUInt32({most} - 2 * ({' + '.join(nulls)}))" if nulls else f"toUInt32({most})"


def _payload(shape: Shape, names: Sequence[str]) -> str:
    parts: list[str] = []
    constant = ""

    def flush() -> None:
        nonlocal constant
        if constant:
            parts.append(literal(constant))
        constant = ""

    for column, name in zip(shape.columns, names, strict=True):
        _, nullable = unwrap(column.type)
        text, width = _text(name, column.type)
        lead = f"{_bulk(column.field)}$"
        if nullable:
            flush()
            length = literal(str(width)) if width else f"toString(length({text}))"
            parts.append(f"ifNull(concat({literal(lead)}, {length}, {literal(_CRLF)}, {text}, {literal(_CRLF)}), '')")
            continue
        if width:
            constant += f"{lead}{width}{_CRLF}"
        else:
            constant += lead
            flush()
            parts.append(f"toString(length({text}))")
            constant += _CRLF
        flush()
        parts.append(text)
        constant += _CRLF
    constant += "".join(_bulk(field) + _bulk(value) for field, value in shape.constants.items())
    flush()
    return f"concat({', '.join(parts)})" if len(parts) > 1 else parts[0]


_CRLF = "\r\n"


def _bulk(text: str) -> str:
    return f"${len(text.encode())}{_CRLF}{text}{_CRLF}"
