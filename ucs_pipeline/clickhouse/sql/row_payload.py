"""The SQL that makes ClickHouse write a row's fields in the Redis protocol: `$<bytes>\\r\\n<value>\\r\\n`.

So a row reaches Python as one opaque string, which is not parsed. Every value keeps the engine's text form, exact for
integers of any width; NULL leaves its field out. Pure: text in, text out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

TEXT_SETTINGS: Mapping[str, str | int] = {
    # The text of values must not depend on the server's version or the user's profile.
    "bool_true_representation": "true",
    "bool_false_representation": "false",
    "output_format_decimal_trailing_zeros": 0,
    # Inside JSON text. Without these, nan reads like NULL and a DateTime has no time zone.
    "date_time_output_format": "iso",
    "output_format_json_quote_denormals": 1,
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_quote_64bit_floats": 0,
    "output_format_json_quote_decimals": 0,
    "output_format_json_escape_forward_slashes": 0,
    "output_format_json_named_tuples_as_objects": 1,
}
"""ClickHouse settings that the text forms rely on."""

_WRAPPER = re.compile(
    r"Nullable\((.*)\)|LowCardinality\((.*)\)|SimpleAggregateFunction\(\w+(?:\([^)]*\))?, (.*)\)", re.DOTALL
)
_INTEGER = re.compile(r"(U?)Int(8|16|32|64|128|256)")
_FIXED = re.compile(r"FixedString\((\d+)\)")
_DATETIME64 = re.compile(r"DateTime64\((\d)")
_ORDERED = (
    *("String", "FixedString", "Enum8", "Enum16", "Int", "UInt", "Decimal"),
    *("Bool", "Date", "UUID", "IPv4", "IPv6", "Time"),
)
_PRINTED = (*_ORDERED, "Float", "BFloat16", "Interval")
_PLAIN = {
    *("Bool", "String", "Float32", "Float64", "Date32"),
    *(f"{u}Int{n}" for u in ("", "U") for n in (8, 16, 32, 64)),
}
_CRLF = "\r\n"


class Column(NamedTuple):
    """A field of an entry: its name in the stream, the SQL that gives its value, and that value's ClickHouse type."""

    field: str
    expression: str
    type: str


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


def unwrap(type_name: str) -> tuple[str, bool]:
    """The type inside Nullable, LowCardinality and SimpleAggregateFunction, and whether a value can be NULL."""
    nullable = False
    while match := _WRAPPER.fullmatch(type_name):
        nullable |= type_name.startswith("Nullable")
        type_name = match[match.lastindex or 0]
    return type_name, nullable or type_name.startswith(("Variant", "Dynamic"))


def integer_limits(type_name: str) -> tuple[int, int] | None:
    """Smallest and largest value of an integer type; None if the type is not an integer."""
    match = _INTEGER.fullmatch(unwrap(type_name)[0])
    if match is None:
        return None
    bits = int(match[2])
    return (0, 2**bits - 1) if match[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def selected(column: Column) -> str:
    """SQL for a column's value, without LowCardinality, which some functions on text do not accept."""
    base, nullable = unwrap(column.type)
    if "LowCardinality(" not in column.type[: column.type.index(base)]:
        return column.expression
    return f"CAST({column.expression}, {literal(f'Nullable({base})' if nullable else base)})"


def tie(name: str, type_name: str) -> str:
    """SQL to order rows by, where two values that compare equal have the same text."""
    # Floats that compare equal may print differently (0 and -0), and composite types may not compare at all.
    base, _ = unwrap(type_name)
    return name if base.startswith(_ORDERED) else text(name, type_name)


def text(name: str, type_name: str) -> str:
    """SQL for the text of a value that is not NULL."""
    return _text(name, type_name)[0]


def plain(name: str, type_name: str) -> str:
    """SQL for a value of a type that Arrow has; its text for other types."""
    base, _ = unwrap(type_name)
    if base in _PLAIN:
        return name
    if base.startswith("DateTime"):
        return name if base.startswith("DateTime64") else f"toDateTime64({name}, 0, 'UTC')"
    return f"toDate32({name})" if base == "Date" else _text(name, type_name)[0]


def arguments(columns: Sequence[Column], names: Sequence[str], constants: Mapping[str, str]) -> str:
    """SQL for how many fields and values a row's payload holds."""
    most = 2 * (len(columns) + len(constants))
    nulls = [f"isNull({name})" for column, name in zip(columns, names, strict=True) if unwrap(column.type)[1]]
    return f"toUInt32({most} - 2 * {_sum(nulls)})" if nulls else f"toUInt32({most})"


def _sum(terms: Sequence[str]) -> str:
    """SQL for a sum, in brackets: halves of halves, since a chain would be as deep as the table is wide."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_sum(terms[:half])} + {_sum(terms[half:])})"


def payload(columns: Sequence[Column], names: Sequence[str], constants: Mapping[str, str]) -> str:
    """SQL for a row's fields and values as protocol bytes, the constants after the columns."""
    parts: list[str] = []
    constant = ""

    def flush() -> None:
        nonlocal constant
        if constant:
            parts.append(literal(constant))
        constant = ""

    for column, name in zip(columns, names, strict=True):
        shown, width = _text(name, column.type)
        lead = f"{_bulk(column.field)}$"
        if unwrap(column.type)[1]:
            flush()
            length = literal(str(width)) if width else f"toString(length({shown}))"
            field = f"concat({literal(lead)}, {length}, {literal(_CRLF)}, {shown}, {literal(_CRLF)})"
            # NULL gives NULL or the text null, depending on function and version: so the value itself is tested.
            parts.append(f"if(isNull({name}), '', assumeNotNull({field}))")
            continue
        if width:
            constant += f"{lead}{width}{_CRLF}"
        else:
            constant += lead
            flush()
            parts.append(f"toString(length({shown}))")
            constant += _CRLF
        flush()
        parts.append(shown)
        constant += _CRLF
    constant += "".join(_bulk(field) + _bulk(value) for field, value in constants.items())
    flush()
    return f"concat({', '.join(parts)})" if len(parts) > 1 else parts[0]


def _text(name: str, type_name: str) -> tuple[str, int | None]:
    """SQL for a value's text and, if all values of the type have the same, its length in bytes."""
    base, _ = unwrap(type_name)
    if base == "String":
        return name, None
    if match := _FIXED.fullmatch(base):
        # Without a cast: String would drop the NUL bytes at the end.
        return name, int(match[1])
    if base.startswith("DateTime64"):
        digits = int(found[1]) if (found := _DATETIME64.match(base)) else 0
        return f"concat(replaceOne(toString({name}, 'UTC'), ' ', 'T'), '+00:00')", 25 + digits + (digits > 0)
    if base.startswith("DateTime"):
        return f"formatDateTime({name}, '%Y-%m-%dT%H:%i:%S+00:00', 'UTC')", 25
    if base.startswith(_PRINTED):
        return f"toString({name})", {"Date": 10, "Date32": 10, "UUID": 36}.get(base)
    return f"toJSONString({name})", None


def _bulk(text: str) -> str:
    return f"${len(text.encode())}{_CRLF}{text}{_CRLF}"
