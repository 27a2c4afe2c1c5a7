"""The queries of a feed. Pure: text in, text out."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ucs_pipeline.clickhouse.sql.keys import OUTSIDE, Key, KeySql, Within, key_of
from ucs_pipeline.clickhouse.sql.row_payload import Column, arguments, literal, payload, plain, selected, tie, unwrap
from ucs_pipeline.feed.rules import FIXED_SETTINGS

_OLDEST = ("limit", "offset", "result_overflow_mode", "read_overflow_mode", "use_query_cache", "extremes", "final")
"""Settings of the query for a server's settings: the oldest server has each of them."""

_VALUES = re.compile(
    # Functions, types and joins in the SQL of a feed, or of a view that it reads.
    r"(aggregate_function_|analyzer_compatibility_|any_join_|asterisk_|bool_|cast_|check_conversion_|count_distinct_imp"
    r"|count_matches_|data_type_default_|date_time_|decimal_check_|dynamic_throw_|enable_extended_results_|enable_named_"
    r"|enable_nullable_|enable_time_time64|except_default_|external_table_|formatdatetime_|function_|functions_|geo"
    r"|group_by_use_|h3togeo_|intersect_default_|interval_|join_any_|join_default_|join_use_|json_type_|least_greatest_"
    r"|legacy_column_|multiple_joins_|parsedatetime_|regexp_dict_|session_timezone|single_join_|splitby_|totals_mode"
    r"|transform_null_|type_json_|union_default_|use_client_time_|use_legacy_|use_variant_|variant_throw_|allow_lossy_"
    r"|short_circuit_function_evaluation$|empty_result_for_"
    # How files and other systems are read.
    r"|format_|input_format_|column_names_for_|schema_inference_|use_hive_|use_structure_from_|\w+_ignore_file_|\w+_skip_empty"
    r"|engine_file_empty_|iceberg_snapshot_|iceberg_timestamp_|delta_lake_snapshot_|paimon_target_|mysql_datatypes_"
    # How values are written.
    r"|output_format_(arrow|json|native|decimal|bool)|allow_special_bool_"
    # Which versions of a row count.
    r"|apply_|do_not_merge_across_)\w*"
)

_GROUP = 500
"""Columns per group in SELECT and ORDER BY.

The engine's planning time grows with the square of the columns in one ORDER BY and its SELECT: 5,000 columns took
longer than five minutes.
"""

TREE_SETTINGS: Mapping[str, str | int] = {"allow_experimental_analyzer": 1}
"""ClickHouse settings for `query_tree`: only the newer analyzer has trees, and a profile may have switched it off."""

_QUOTED_TABLE = re.compile(r"`(?:[^`\\]|\\.|``)+`(?:\.`(?:[^`\\]|\\.|``)+`)?", re.DOTALL)


class Shape(NamedTuple):
    """What a feed selects from its table, once the types of its key and columns are known."""

    table: str
    final: bool
    where: str | None
    key: Key
    keys: KeySql
    columns: Sequence[Column]
    constants: Mapping[str, str]
    own: Collection[str] = ()
    """Names of the table's own columns."""


def quote(identifier: str) -> str:
    """An identifier in backticks."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def table_expression(table: str) -> str:
    """`table` or `database.table`, quoted; text in backticks, or a table function, unchanged."""
    if "(" in table or _QUOTED_TABLE.fullmatch(table):
        return table
    return ".".join(quote(part) for part in table.split("."))


def column_expression(text: str, table_columns: Iterable[str]) -> str:
    """A column of exactly this name, quoted, or else the text as an SQL expression."""
    return quote(text) if text in table_columns else _enclosed(text)


def describe_table(table: str) -> str:
    """Query for the table's own columns: `name`, `type`, `default_type`."""
    return f"DESCRIBE TABLE {table_expression(table)}"


def describe_expressions(table: str, expressions: Sequence[str]) -> str:
    """Query for the types of expressions over the table, in order: `name`, `type`."""
    alias = _unused(expressions)
    selection = ", ".join(f"{expression} AS {alias}{i}" for i, expression in enumerate(expressions))
    return f"DESCRIBE TABLE (SELECT {selection} FROM {table_expression(table)})"


def select(table: str, expressions: Iterable[str], where: str | None) -> str:
    """Query for expressions over the rows of the table that a filter takes."""
    condition = f" WHERE {_enclosed(where)}" if where else ""
    return f"SELECT {', '.join(expressions)} FROM {table_expression(table)}{condition}"


def query_tree(query: str) -> str:
    """Query for the analyzer's tree of a query, as `explained.calls` takes it: `explain`."""
    lines = "match(explain, '^(  )?[A-Z]|^ *(FUNCTION|TABLE|QUERY|UNION) ')"
    return f"SELECT explain FROM (EXPLAIN QUERY TREE {query}\n) WHERE {lines}"


def functions(names: Iterable[str]) -> str:
    """Query for functions of these names, in any case: `name`, `own` (whether the engine's) and one more.

    The third, with a name that ends in `deterministic`, is 0 or 1, and NULL if the engine does not know.
    """
    listed = ", ".join(literal(name.lower()) for name in sorted(names))
    return (
        "SELECT name, origin = 'System' AS own, COLUMNS('deterministic$') FROM system.functions "
        f"WHERE lower(name) IN ({listed})"
    )


def view_query(table: str) -> str:
    """Query for the query of a view, given as `database.table` without quotes: `as_select`; no row if it is none."""
    database, _, name = table.partition(".")
    return (
        f"SELECT as_select FROM system.tables WHERE database = {literal(database)} AND name = {literal(name)} "
        "AND engine = 'View'"
    )


def unstored(table: str, column: str) -> str:
    """Query for how many parts of a table, given as `database.table` without quotes, lack a column: `parts`."""
    database, _, name = table.partition(".")
    of = f"active AND database = {literal(database)} AND table = {literal(name)}"
    return (
        f"SELECT count() AS parts FROM system.parts WHERE {of} AND name NOT IN "
        f"(SELECT name FROM system.parts_columns WHERE {of} AND column = {literal(column)})"
    )


def scan(shape: Shape, within: Within, *, raw: bool = False) -> str:
    """The ordered scan over a range of bricks.

    Columns: `key` (an integer of up to 64 bits, or text), `ordinal` of its brick (UInt64), `arguments`
    (UInt32: how many fields and values the payload holds), `payload` (those fields and values as protocol bytes) and
    `hash` (UInt64: xxHash64 of the payload).
    Rows come in the order of the bricks and of the keys in them, ties broken by every other column, so the order is
    total: rows that still compare equal have the same bytes.
    """
    alias = _alias(shape)
    key, names = shape.key._replace(sql=f"{alias}key"), _names(shape, alias)
    pairs = list(zip(shape.columns, names, strict=True))
    inner = ", ".join([f"{_key(shape)} AS {key.sql}", *_values(shape, names)])
    rows = f"SELECT {inner} FROM {_from(shape)} WHERE {_where(shape, within)}"
    if len(pairs) > _GROUP and not raw:
        rows, fields, written, ties = _grouped(shape, names, alias, rows)
    else:
        fields = arguments(shape.columns, names, shape.constants)
        written = payload(shape.columns, names, shape.constants)
        ties = _ties(shape, shape.columns, names)
    shown, hashed = ("'' AS payload", f"xxHash64({written})") if raw else (f"{written} AS payload", "xxHash64(payload)")
    values = (
        "".join(f", {plain(name, column.type)} AS raw_{n}" for n, (column, name) in enumerate(pairs)) if raw else ""
    )
    return (
        f"SELECT {shape.keys.shown(key)} AS key, {shape.keys.ordinal(key)} AS ordinal, "
        f"{fields} AS arguments, "
        f"{shown}, {hashed} AS hash{values} "
        f"FROM ({rows}) "
        f"ORDER BY {', '.join([*shape.keys.order(key, 'ordinal'), *ties])}"
    )


def count(shape: Shape, within: Within) -> str:
    """Rows per brick over a range of bricks: `ordinal` and `rows`; bricks without rows are left out."""
    key = shape.key._replace(sql=f"{_alias(shape)}key")
    return (
        f"SELECT {shape.keys.ordinal(key)} AS ordinal, count() AS rows "
        f"FROM (SELECT {_key(shape)} AS {key.sql} FROM {_from(shape)} WHERE {_where(shape, within)}) "
        f"GROUP BY ordinal ORDER BY ordinal"
    )


def newest_key(shape: Shape) -> str:
    """The largest id of the table from `{first}` on, as text, whether the feed's filter takes its row or not.

    One column; no row if there is none. An id after a brick seals the brick, even if its row is filtered out.
    """
    bound = f"{shape.key.sql} >= {{first:{shape.key.base}}}"
    newest = f"toString(max({shape.key.sql})) AS {_alias(shape)}newest"
    return f"SELECT {newest} FROM {table_expression(shape.table)} WHERE {bound} HAVING count() > 0"


def tail(shape: Shape, within: Within) -> str:
    """The newest key in a range, as text, and how many rows have it: `newest` and `rows`; no row if there is none.

    Whether the feed's filter takes these rows or not: it reads nothing but the key.
    """
    key, table, alias = shape.key.sql, table_expression(shape.table), _alias(shape)
    newest = f"SELECT max({key}) FROM {table} WHERE {within.condition}"
    return (
        f"SELECT toString({key}) AS {alias}newest, count() AS {alias}rows FROM {table} "
        f"WHERE {within.condition} AND {key} = ({newest}) GROUP BY {alias}newest"
    )


def beyond(shape: Shape) -> str:
    """A row, if the table has one of the feed's after its last brick."""
    key = shape.key._replace(sql=f"{_alias(shape)}key")
    test = shape.keys.outside(key)[OUTSIDE.index("beyond")]
    where = f" WHERE {_enclosed(shape.where)}" if shape.where else ""
    inner = f"SELECT {key_of(*shape.key).sql} AS {key.sql} FROM {_from(shape)}{where}"
    return f"SELECT 1 AS there FROM ({inner}) WHERE {test} LIMIT 1"


def sample(shape: Shape) -> str:
    """The key of some row of the feed's, as text: `sample`, NULL if the key is; no row if there is none."""
    where = f" WHERE {_enclosed(shape.where)}" if shape.where else ""
    return f"SELECT toString({key_of(*shape.key).sql}) AS sample FROM {_from(shape)}{where} LIMIT 1"


def census(shape: Shape) -> str:
    """What the whole table holds, in one pass: the feed's bricks, and rows in none of them.

    Columns: `place` (UInt8: 0 for a brick of the list, else one more than the place's index in `OUTSIDE`), `ordinal` of
    a brick in its partition (UInt64; 0 outside), `rows` (UInt64) and `hash` (UInt64: sum modulo 2^64 of the `hash` that
    `scan` gives each row; 0 outside).
    """
    alias = _alias(shape)
    key, names = shape.key._replace(sql=f"{alias}key"), _names(shape, alias)
    inner = ", ".join([f"{key_of(*shape.key).sql} AS {key.sql}", *_values(shape, names)])
    where = f" WHERE {_enclosed(shape.where)}" if shape.where else ""
    own = _own(shape, key)
    tests = ", ".join(f"{test}, {number}" for number, test in enumerate(shape.keys.outside(key), 1))
    sure = key._replace(sql=f"assumeNotNull({key.sql})")
    return (
        f"SELECT toUInt8(multiIf({tests}, 0)) AS place, "
        f"if(place = 0, {shape.keys.partition(sure)}, 0) AS ordinal, count() AS rows, "
        f"sumWithOverflow(if(place = 0, xxHash64({payload(shape.columns, names, shape.constants)}), 0)) AS hash "
        f"FROM (SELECT {inner} FROM {_from(shape)}{where}){own} GROUP BY place, ordinal"
    )


def engine(table: str) -> str | None:
    """Query for the engine of a table: `engine` and `engine_full`. None if the table is not given by its plain name."""
    *database, name = table.split(".")
    if "(" in table or "`" in table or len(database) > 1:
        return None
    where = literal(database[0]) if database else "currentDatabase()"
    return f"SELECT engine, engine_full FROM system.tables WHERE database = {where} AND name = {literal(name)}"


def engines(tables: Iterable[str]) -> str:
    """Query for the engines of tables, given as `database.table` without quotes: `full` and `engine`."""
    pairs = (table.partition(".") for table in tables)
    listed = " OR ".join(f"database = {literal(first)} AND name = {literal(last)}" for first, _, last in pairs)
    return f"SELECT concat(database, '.', name) AS full, engine FROM system.tables WHERE {listed}"


def plan(shape: Shape, *, final: bool) -> str:
    """Query for how the engine would read the key of every row: `explain`."""
    read = f"SELECT {shape.key.sql} FROM {table_expression(shape.table)}{' FINAL' if final else ''}"
    return f"SELECT explain FROM (EXPLAIN actions = 1 {read})"


def known_settings() -> str:
    """Query for the settings that a server knows of those that are fixed, and for those that the profile changed.

    Columns: `name`, `changed`.
    """
    names = ", ".join(literal(name) for name in FIXED_SETTINGS)
    query = f"SELECT name, changed FROM system.settings WHERE changed OR name IN ({names})"
    oldest = {name: FIXED_SETTINGS[name] for name in _OLDEST}
    return query + settings_clause({**oldest, "output_format_arrow_string_as_string": 1})


def shapes(setting: str) -> bool:
    """Whether a setting changes the values of an answer, so that a user's profile must not set it."""
    return _VALUES.fullmatch(setting) is not None


class Pins(NamedTuple):
    """Settings that keep the profile of the ClickHouse user out of an answer."""

    usual: Mapping[str, None]
    """Settings that a feed may set: back to the server's default."""
    fixed: Mapping[str, str | int]
    """Settings that a feed may not set."""

    @classmethod
    def of(cls, settings: Iterable[tuple[str, bool]]) -> "Pins":
        """From the rows of `known_settings`: a server refuses a setting that it does not know."""
        known = dict(settings)
        usual = (name for name, changed in known.items() if changed and shapes(name))
        return cls(dict.fromkeys(usual), {name: FIXED_SETTINGS[name] for name in FIXED_SETTINGS if name in known})


def settings_clause(settings: Mapping[str, str | int | float | bool | None]) -> str:
    """The trailing SETTINGS clause; empty if there are none. None stands for the server's default."""
    if not settings:
        return ""
    values = {name: "DEFAULT" if value is None else literal(value) for name, value in settings.items()}
    return " SETTINGS " + ", ".join(f"{name} = {value}" for name, value in values.items())


def _alias(shape: Shape) -> str:
    texts = [shape.key.sql, shape.where or "", *shape.keys.mentioned()]
    return _unused([*texts, *(column.expression for column in shape.columns)])


def _names(shape: Shape, alias: str) -> list[str]:
    return [f"{alias}{i}" for i in range(len(shape.columns))]


def _values(shape: Shape, names: Sequence[str]) -> list[str]:
    return [f"{selected(column)} AS {name}" for column, name in zip(shape.columns, names, strict=True)]


def _ties(shape: Shape, columns: Sequence[Column], names: Sequence[str]) -> list[str]:
    """The ORDER BY for rows with the same key."""
    pairs = zip(columns, names, strict=True)
    return [tie(name, column.type) for column, name in pairs if column.expression != shape.key.sql]


def _grouped(shape: Shape, names: Sequence[str], alias: str, rows: str) -> tuple[str, str, str, list[str]]:
    """A query for the rows with their columns in groups; from these the arguments, the payload and the ties.

    A tuple is ordered by its elements in turn.
    """
    made, counts, texts, ties = list[str](), list[str](), list[str](), list[str]()
    for start in range(0, len(names), _GROUP):
        columns, own = shape.columns[start : start + _GROUP], names[start : start + _GROUP]
        constants = shape.constants if start + _GROUP >= len(names) else {}
        parts = [(counts, "arguments", arguments(columns, own, constants))]
        parts += [(texts, "payload", payload(columns, own, constants))]
        if tied := _ties(shape, columns, own):
            parts += [(ties, "ties", f"tuple({', '.join(tied)})")]
        for place, word, expression in parts:
            place.append(f"{alias}{word}{start}")
            made.append(f"{expression} AS {place[-1]}")
    query = f"SELECT {alias}key, {', '.join(made)} FROM ({rows})"
    return query, f"toUInt32({' + '.join(counts)})", f"concat({', '.join(texts)})", ties


def _unused(texts: Sequence[str]) -> str:
    """Prefix of names that none of the texts contains: ClickHouse would take an alias for a column of that name."""
    start = "_ucs_"
    while any(start in text for text in texts):
        start += "_"
    return start


def _enclosed(text: str) -> str:
    # The line break ends a comment that the text may end with.
    return f"({text}\n)"


def _key(shape: Shape) -> str:
    return f"assumeNotNull({shape.key.sql})" if unwrap(shape.key.type)[1] else shape.key.sql


def _from(shape: Shape) -> str:
    return table_expression(shape.table) + (" FINAL" if shape.final else "")


def _where(shape: Shape, within: Within) -> str:
    assigned = shape.keys.assigned(key_of(*shape.key))
    conditions = [
        within.condition,
        *([assigned] if assigned else []),
        *([_enclosed(shape.where)] if shape.where else []),
    ]
    return " AND ".join(conditions)


def _own(shape: Shape, key: Key) -> str:
    """The rows that a census of one shard counts: its own bricks and, in the first shard, rows in no brick."""
    assigned = shape.keys.assigned(key._replace(sql=f"assumeNotNull({key.sql})"))
    if assigned is None or shape.keys.shard_id is None:
        return ""
    return f" WHERE if(place = 0, {assigned}, {int(shape.keys.shard_id.number == 0)})"
