"""Parses EXPLAIN of a query: its functions and tables, and how it would be read. Pure."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_FUNCTION = re.compile(r"FUNCTION id: \d+, function_name: (\w+), function_type: (\w+)")
_TABLE = re.compile(r"TABLE id: \d+.*, table_name: (.+?)(?:, final: 1)?(?:, sample_size: .*)?$")
_SECTION = 2
_READ = re.compile(r"ReadFromMergeTree \((.+)\)")

# The engine marks these as not deterministic because they read data outside the row that may change, as the table may;
# or because they make several rows of one.
_OF_THE_ROW = re.compile(
    r"arrayJoin|unnest|dict[A-Z]\w*|joinGet\w*|region[A-Z]\w*|currentDatabase|current_database|DATABASE|SCHEMA"
    r"|getSetting\w*"
)

# Engines of 24 do not report which functions are deterministic; these are not.
_OF_THE_MOMENT = re.compile(
    r"now(64|InBlock(64)?)?|today|yesterday|curdate|current_?(date|timestamp)|(local|utc_?)time(stamp)?|uptime|rand\w*"
    r"|generate\w+|fuzzBits|array(Partial)?Shuffle|arrayRandomSample|(initial_?)?query_?id|connection_?id"
    r"|block(Number|Size|SerializedSize)|rowNumberIn(All)?Blocks?|running\w+|neighbor",
    re.IGNORECASE,
)


class Calls(NamedTuple):
    """What a query calls and reads."""

    ordinary: frozenset[str]
    """Functions of one row, in any part of the query."""
    windows: frozenset[str]
    """Functions of several rows whose value is selected or used in a filter, outside subqueries."""
    tables: frozenset[str]
    """`database.table` of the tables after FROM."""


def calls(tree: Iterable[str]) -> Calls:
    """What is in the lines of EXPLAIN QUERY TREE."""
    ordinary, windows, tables = set[str](), set[str](), set[str]()
    section, inner = "", None
    for line in tree:
        text = line.lstrip()
        depth = len(line) - len(text)
        if depth == _SECTION:
            section, inner = text, None
        if inner is None or depth <= inner:
            inner = depth if depth and text.startswith(("QUERY id:", "UNION id:")) else None
        if found := _FUNCTION.match(text):
            if found[2] == "ordinary":
                ordinary.add(found[1])
            elif found[2] == "window" and inner is None and section != "JOIN TREE":
                windows.add(found[1])
        elif (table := _TABLE.match(text)) and section in ("JOIN TREE", "QUERIES"):
            tables.add(table[1])
    return Calls(frozenset(ordinary), frozenset(windows), frozenset(tables))


def of_the_moment(name: str) -> bool:
    """Whether a function gives another value each time, by its name."""
    return _OF_THE_MOMENT.fullmatch(name) is not None


def varies(name: str, deterministic: int | None, *, own: bool) -> bool:
    """Whether a function of one row may give another value for the same row.

    Args:
        name: its name.
        deterministic: the engine's answer: 0 or 1, None if it does not know.
        own: whether it is the engine's own function, and not user-defined.
    """
    return not _OF_THE_ROW.fullmatch(name) and (deterministic == 0 or (deterministic is None and own))


def unmerged(plan: Iterable[str]) -> list[str]:
    """`database.table` of the tables that are read without FINAL, by the lines of EXPLAIN; none if rows are grouped."""
    lines = [line.strip(" │├└─") for line in plan]
    # A query that groups rows handles the versions itself.
    grouped = any(line.startswith(("Aggregating", "LimitBy")) for line in lines)
    return [] if grouped else sorted({table for table, final in _reads(lines) if not final})


def tables(plan: Iterable[str]) -> list[str]:
    """`database.table` of the tables that are read, by the lines of EXPLAIN."""
    return sorted({table for table, _ in _reads(line.strip(" │├└─") for line in plan)})


def buffered(plan: Iterable[str]) -> bool:
    """Whether a Buffer table is read, by the lines of EXPLAIN."""
    return any("buffers of Buffer table" in line for line in plan)


def _reads(lines: Iterable[str]) -> list[tuple[str, bool]]:
    """Tables, and whether with FINAL."""
    found: list[tuple[str, bool]] = []
    for line in lines:
        if read := _READ.match(line):
            found.append((read[1], False))
        elif found and line.startswith("FINAL"):
            found[-1] = found[-1][0], True
    return found
