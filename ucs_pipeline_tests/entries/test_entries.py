"""Rows of every ClickHouse type, as the entries a consumer reads: real engine, real Redis, expectations in Python."""

import datetime as dt
import ipaddress
import json
import math
import socket
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import count
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ucs_pipeline.clickhouse.embedded import embedded_connection
from ucs_pipeline.clickhouse.source import EmbeddedEngine, Source
from ucs_pipeline.entries import encode as entries_module
from ucs_pipeline.entries.encode import BrickSlice, Entries, encode
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.entries.resp import bulk
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.redis_server import RedisServer

UTC = dt.timezone.utc
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
_numbers = count()


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def engine(_home: None) -> EmbeddedEngine:
    return EmbeddedEngine()


@cache
def _admin() -> Any:
    connection = embedded_connection()
    connection.query("SET flatten_nested = 0, allow_suspicious_low_cardinality_types = 1")
    return connection


@dataclass(frozen=True)
class Kind:
    """A ClickHouse type: values of it, each as SQL, and what a value must read as."""

    type: str
    values: st.SearchStrategy[Any]
    sql: Callable[[Any], str]
    text: Callable[[Any], bytes]
    nullable: bool = True
    exact: bool = True
    """Whether `text` is the bytes themselves; if not, both sides are compared as JSON."""


def _cast(kind: str) -> Callable[[Any], str]:
    return lambda value: f"CAST({_string(str(value).encode())}, {_string(kind.encode())})"


def _string(value: bytes) -> str:
    return f"unhex('{value.hex()}')" if value else "''"


def _plain(value: object) -> bytes:
    return str(value).encode()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _integer(bits: int, signed: bool) -> Kind:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    name = f"{'Int' if signed else 'UInt'}{bits}"
    edges = st.sampled_from([low, high, 0, low + 1, high - 1])
    return Kind(name, edges | st.integers(low, high), _cast(name), _plain)


def _decimal(width: int, digits: int, scale: int) -> Kind:
    def text(value: Decimal) -> bytes:
        whole, _, fraction = f"{value:f}".partition(".")
        return f"{whole}.{fraction}".rstrip("0").rstrip(".").encode() if fraction else whole.encode()

    unscaled = st.sampled_from([0, 1, -1, 10**digits - 1, 1 - 10**digits]) | st.integers(1 - 10**digits, 10**digits - 1)
    values = unscaled.map(lambda n: Decimal((n < 0, tuple(map(int, str(abs(n)))), -scale)))
    return Kind(f"Decimal{width}({scale})", values, lambda v: f"CAST('{v:f}', 'Decimal{width}({scale})')", text)


def _float(bits: Literal[32, 64]) -> Kind:
    code, unsigned = ("<f", "<I") if bits == 32 else ("<d", "<Q")
    precise = np.float32 if bits == 32 else np.float64

    def sql(value: float) -> str:
        [raw] = struct.unpack(unsigned, struct.pack(code, value))
        return f"reinterpret(toUInt{bits}({raw}), 'Float{bits}')"

    # The text is checked by `_same_float`, for there are several ways to write the same shortest digits.
    return Kind(f"Float{bits}", st.floats(width=bits), sql, lambda value: str(precise(value)).encode())


def _same_float(text: bytes, value: bytes) -> bool:
    """Whether two texts are one float with the same digits, the shortest ones."""
    found, wanted = float(text), float(value)
    if math.isnan(wanted) or math.isinf(wanted):
        return text == value
    return math.copysign(1, found) == math.copysign(1, wanted) and (
        Decimal(text.decode()).normalize() == Decimal(value.decode()).normalize()
    )


def _iso(moment: dt.datetime, digits: int = 0, ticks: int = 0) -> bytes:
    fraction = f".{ticks:0{digits}d}" if digits else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}+00:00".encode()


def _datetime(name: str) -> Kind:
    seconds = st.sampled_from([0, 2**32 - 1, 1_698_541_200]) | st.integers(0, 2**32 - 1)
    return Kind(
        name,
        seconds,
        lambda value: f"CAST(toUInt32({value}), {_string(name.encode())})",
        lambda value: _iso(EPOCH + dt.timedelta(seconds=value)),
    )


def _datetime64(digits: int, zone: str = "") -> Kind:
    unit = 10**digits
    low = max(-(2**63), int((dt.datetime(1900, 1, 1, tzinfo=UTC) - EPOCH).total_seconds()) * unit)
    high = min(2**63 - 1, int((dt.datetime(2299, 12, 31, tzinfo=UTC) - EPOCH).total_seconds()) * unit)
    name = f"DateTime64({digits}{zone})"

    def text(value: int) -> bytes:
        return _iso(EPOCH + dt.timedelta(seconds=value // unit), digits, value % unit)

    return Kind(
        name,
        st.sampled_from([low, high, 0, -1, 1 - unit, -unit, unit]) | st.integers(low, high),
        lambda value: f"reinterpret(toInt64({value}), {_string(name.encode())})",
        text,
    )


def _date(name: str, first: dt.date, last: dt.date) -> Kind:
    values = st.sampled_from([first, last]) | st.dates(first, last)
    return Kind(name, values, lambda value: f"to{name}('{value}')", _plain)


# Python's json cannot tell what a duplicate or a dotted JSON key should become; ClickHouse reads dots as paths.
_WORDS = st.text(st.characters(codec="utf-8", exclude_characters="."), max_size=8)
_KEYS = st.text("abcxyz", min_size=1, max_size=4)
_INT32 = st.integers(-(2**31), 2**31 - 1)


def _sql_of(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return _string(value.encode())
    if isinstance(value, list):
        return f"[{', '.join(map(_sql_of, value))}]"
    if isinstance(value, dict):
        return f"map({', '.join(f'{_sql_of(k)}, {_sql_of(v)}' for k, v in value.items())})"
    return str(value)


def _pair(value: Mapping[str, Any]) -> str:
    return f"({value['a']}, {_sql_of(value['b'])})"


def _composite(name: str, values: st.SearchStrategy[Any], sql: Callable[[Any], str] | None = None) -> Kind:
    render = sql or (lambda value: f"CAST({_sql_of(value)}, {_string(name.encode())})")
    return Kind(name, values, render, _json, nullable=False, exact=False)


_TUPLE = st.fixed_dictionaries({"a": _INT32, "b": _WORDS})
# A cast from a text reads numbers, lists and null out of it; behind a letter a text stays one.
_VARIANT = _INT32 | _WORDS.map("w".__add__) | st.lists(_INT32, max_size=3)

KINDS = [
    *(_integer(bits, signed) for bits in (8, 16, 32, 64, 128, 256) for signed in (True, False)),
    _float(32),
    _float(64),
    *(_decimal(*three) for three in ((32, 9, 4), (64, 18, 0), (64, 18, 18), (128, 38, 10), (256, 76, 30))),
    Kind("Bool", st.booleans(), lambda value: str(value).lower(), lambda value: str(value).lower().encode()),
    _date("Date", dt.date(1970, 1, 1), dt.date(2149, 6, 6)),
    _date("Date32", dt.date(1900, 1, 1), dt.date(2299, 12, 31)),
    _datetime("DateTime"),
    _datetime("DateTime('Europe/Berlin')"),
    *(_datetime64(digits) for digits in (0, 3, 6, 9)),
    _datetime64(3, ", 'America/St_Johns'"),
    Kind("String", st.sampled_from([b"", b"None", b"\0\r\n\xff", b"$3\r\n"]) | st.binary(max_size=200), _string, bytes),
    Kind(
        "FixedString(7)",
        st.binary(min_size=7, max_size=7),
        lambda value: f"toFixedString({_string(value)}, 7)",
        bytes,
    ),
    Kind("UUID", st.uuids(), _cast("UUID"), _plain),
    Kind("IPv4", st.ip_addresses(v=4), _cast("IPv4"), _plain),
    Kind(
        "IPv6",
        st.ip_addresses(v=6)
        | st.sampled_from(list(map(ipaddress.IPv6Address, ("::", "::1", "::ffff:1.2.3.4", "1::")))),
        _cast("IPv6"),
        lambda value: socket.inet_ntop(socket.AF_INET6, value.packed).encode(),
    ),
    Kind(
        "Enum8('' = -1, 'a' = 1, 'it\\'s' = 2)",
        st.sampled_from(["", "a", "it's"]),
        lambda v: _string(v.encode()),
        _plain,
    ),
    Kind("Enum16('x' = -300, 'ü' = 300)", st.sampled_from(["x", "ü"]), lambda value: _string(value.encode()), _plain),
    _composite("Array(Nullable(Int32))", st.lists(st.none() | _INT32, max_size=5)),
    _composite("Array(Array(String))", st.lists(st.lists(_WORDS, max_size=3), max_size=3)),
    _composite("Map(String, UInt64)", st.dictionaries(_WORDS, st.integers(0, 2**64 - 1), max_size=4)),
    _composite("Tuple(Int32, String)", st.tuples(_INT32, _WORDS).map(list), lambda v: f"({v[0]}, {_sql_of(v[1])})"),
    _composite("Tuple(a Int32, b String)", _TUPLE, _pair),
    _composite(
        "Nested(a Int32, b String)",
        st.lists(_TUPLE, max_size=3),
        lambda v: f"CAST([{', '.join(map(_pair, v))}], 'Array(Tuple(a Int32, b String))')",
    ),
    _composite(
        "JSON",
        st.dictionaries(
            _KEYS, _INT32 | _WORDS | st.booleans() | st.dictionaries(_KEYS, _INT32, min_size=1), max_size=4
        ),
        lambda v: f"CAST({_string(json.dumps(v).encode())}, 'JSON')",
    ),
    _composite(
        "Variant(Int32, String, Array(Int32))",
        _VARIANT,
        lambda v: f"CAST({_typed(v)}, 'Variant(Int32, String, Array(Int32))')",
    ),
    _composite("Dynamic", _VARIANT, lambda v: f"CAST({_typed(v)}, 'Dynamic')"),
]


def _typed(value: Any) -> str:
    name = "Int32" if isinstance(value, int) else "String" if isinstance(value, str) else "Array(Int32)"
    return f"CAST({_sql_of(value)}, '{name}')"


def _feed(table: str, **more: Any) -> Feed:
    return Feed(
        **{"name": "feed", "table": table, "key": "id", "bricks": {"class": "number", "last": 10**9 - 1}, **more}
    )


def _table(columns: str, rows: Sequence[str] = (), select: str = "") -> str:
    name = f"entries_{next(_numbers)}"
    connection = _admin()
    connection.query(f"CREATE TABLE {name} ({columns}) ENGINE = Memory")
    if select:
        connection.query(f"INSERT INTO {name} {select}")
    elif "Variant" in columns:
        # VALUES would parse a numeric text as a number.
        for row in rows:
            connection.query(f"INSERT INTO {name} SELECT {row}")
    else:
        connection.query(f"INSERT INTO {name} VALUES {', '.join(f'({row})' for row in rows)}")
    return name


def _encoded(engine: EmbeddedEngine, feed: Feed, stream: bytes = b"s") -> list[Entries]:
    return list(encode(stream, Source(feed, engine).scan(0, feed.ordinals[-1])))


def _publish(redis_server: RedisServer, entries: Entries) -> None:
    """Sends the requests as they are; Redis answers with the ids."""
    wanted = b"".join(bulk(str(entries.id(index)).encode()) for index in range(entries.count))
    with socket.create_connection(("127.0.0.1", redis_server.port), timeout=30) as wire:
        wire.sendall(bytes(entries.requests.rows(0, entries.count)))
        answer = b""
        while len(answer) < len(wanted):
            part = wire.recv(1 << 20)
            assert part, answer[:200]
            answer += part
            assert not answer.startswith(b"-"), answer[:200]
    assert answer == wanted


def _read_back(
    redis_server: RedisServer, engine: EmbeddedEngine, feed: Feed
) -> list[tuple[EntryId, dict[bytes, bytes]]]:
    """Publishes a feed's rows and reads them with redis-py, checking views against Redis' own bytes."""
    stream = uuid.uuid4().bytes + b"\r\n"
    client = redis_server.client()
    client.xgroup_create(stream, "g", mkstream=True)
    for entries in _encoded(engine, feed, stream):
        _publish(redis_server, entries)
        first, last = str(entries.id(0)).encode(), str(entries.id(entries.count - 1)).encode()
        assert _raw(redis_server, [b"XRANGE", stream, first, last]) == b"*%d\r\n" % entries.count + bytes(
            entries.views.rows(0, entries.count)
        )
    found = [(EntryId.parse(entry_id), fields) for entry_id, fields in client.xrange(stream)]
    client.delete(stream)
    client.close()
    return found


def _raw(redis_server: RedisServer, command: Sequence[bytes]) -> bytes:
    """Redis' bytes for a command; an ECHO behind it marks their end."""
    mark = uuid.uuid4().hex.encode()
    request = b"".join(
        b"*%d\r\n" % len(parts) + b"".join(bulk(part) for part in parts) for parts in (command, (b"ECHO", mark))
    )
    answer, end = b"", bulk(mark)
    with socket.create_connection(("127.0.0.1", redis_server.port), timeout=30) as wire:
        wire.sendall(request)
        while not answer.endswith(end):
            answer += wire.recv(1 << 20)
    return answer.removesuffix(end)


def _check(kind: Kind, found: bytes, value: Any) -> None:
    wanted = kind.text(value)
    if not kind.exact:
        assert json.loads(found) == json.loads(wanted)
    elif kind.type.startswith("Float"):
        assert _same_float(found, wanted), (found, wanted)
    else:
        assert found == wanted


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)
def test_every_value_of_every_type_is_read_from_the_stream_as_python_expects_it(
    kind: Kind, redis_server: RedisServer, engine: EmbeddedEngine
) -> None:
    @settings(max_examples=5, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(kind.values, st.none() | kind.values), min_size=1, max_size=25))
    def holds(values: list[tuple[Any, Any]]) -> None:
        second = f"Nullable({kind.type})" if kind.nullable else kind.type
        rows = [
            f"{number}, {kind.sql(plain)}, {'NULL' if perhaps is None else kind.sql(perhaps)}"
            if kind.nullable
            else f"{number}, {kind.sql(plain)}, {kind.sql(plain)}"
            for number, (plain, perhaps) in enumerate(values)
        ]
        table = _table(f"id UInt32, plain {kind.type}, perhaps {second}", rows)
        found = _read_back(redis_server, engine, _feed(table))
        _admin().query(f"DROP TABLE {table}")
        assert [entry_id for entry_id, _ in found] == [EntryId(0, n + 1) for n in range(len(values))]
        for (_, fields), (plain, perhaps) in zip(found, values, strict=True):
            _check(kind, fields[b"plain"], plain)
            assert (b"perhaps" in fields) == (not kind.nullable or perhaps is not None)
            if perhaps is not None and kind.nullable:
                _check(kind, fields[b"perhaps"], perhaps)

    holds()


@pytest.mark.parametrize(
    ("kind", "rows", "texts"),
    [
        ("LowCardinality(String)", ["'a'", "''", "'None'"], [b"a", b"", b"None"]),
        ("LowCardinality(Nullable(String))", ["'a'", "NULL", "''"], [b"a", None, b""]),
        ("LowCardinality(FixedString(2))", ["'ab'"], [b"ab"]),
        ("LowCardinality(DateTime('Asia/Tokyo'))", ["toDateTime(0)"], [b"1970-01-01T00:00:00+00:00"]),
        ("LowCardinality(Nullable(UInt8))", ["7", "NULL"], [b"7", None]),
        ("SimpleAggregateFunction(sum, UInt64)", ["5"], [b"5"]),
        ("SimpleAggregateFunction(any, Nullable(String))", ["'a'", "NULL"], [b"a", None]),
        ("SimpleAggregateFunction(anyLast, LowCardinality(Nullable(String)))", ["'a'", "NULL"], [b"a", None]),
        ("SimpleAggregateFunction(groupUniqArrayArray(10), Array(UInt8))", ["[1, 2]"], [b"[1,2]"]),
        ("Variant(String, UInt8)", ["'x'", "NULL", "7::UInt8"], [b'"x"', None, b"7"]),
        ("Dynamic", ["'x'", "NULL"], [b'"x"', None]),
        ("Array(Float64)", ["[nan, inf, -inf, 1.5, -0.0]"], [b'["nan","inf","-inf",1.5,-0]']),
        ("Array(DateTime('Europe/Berlin'))", ["[toDateTime(0)]"], [b'["1970-01-01T00:00:00Z"]']),
        ("Array(UInt64)", ["[18446744073709551615]"], [b"[18446744073709551615]"]),
        ("Array(Decimal(9, 3))", ["[1.5]"], [b"[1.5]"]),
        ("Array(String)", ["['a/b', unhex('ff00')]"], [b'["a/b","\xff\\u0000"]']),
        ("Tuple(`a b` UInt8, c Nullable(UInt8))", ["(1, NULL)"], [b'{"a b":1,"c":null}']),
        ("Time", ["'12:34:56'::Time"], [b"12:34:56"]),
        ("BFloat16", ["1.5"], [b"1.5"]),
        ("Point", ["(1.5, 2)"], [b"[1.5,2]"]),
    ],
)  # fmt: skip
def test_wrapped_and_rare_types_read_as_documented(
    kind: str, rows: list[str], texts: list[bytes | None], redis_server: RedisServer, engine: EmbeddedEngine
) -> None:
    table = _table(f"id UInt32, v {kind}", [f"{number}, {row}" for number, row in enumerate(rows)])
    found = _read_back(redis_server, engine, _feed(table))
    assert [fields.get(b"v") for _, fields in found] == texts


def test_values_of_several_megabytes_arrive_whole(redis_server: RedisServer, engine: EmbeddedEngine) -> None:
    table = _table(
        "id UInt32, v String", select="SELECT number, repeat('\\r\\n$5\\0', 450000 * number) FROM numbers(3)"
    )
    found = _read_back(redis_server, engine, _feed(table, columns={"v": "v"}))
    assert [fields[b"v"] for _, fields in found] == [b"\r\n$5\0" * 450_000 * n for n in range(3)]


def test_null_the_empty_string_and_the_word_none_are_three_things(
    redis_server: RedisServer, engine: EmbeddedEngine
) -> None:
    table = _table("id UInt32, v Nullable(String)", ["0, NULL", "1, ''", "2, 'None'", "3, 'NULL'"])
    found = _read_back(redis_server, engine, _feed(table, columns={"v": "v"}, constants={"c": ""}))
    assert [fields for _, fields in found] == [
        {b"c": b""},
        {b"v": b"", b"c": b""},
        {b"v": b"None", b"c": b""},
        {b"v": b"NULL", b"c": b""},
    ]


def test_a_row_without_any_value_is_refused_by_name(engine: EmbeddedEngine) -> None:
    table = _table("id UInt32, v Nullable(String)", ["10003, 'x'", "20005, NULL", "30000, 'y'"])
    with pytest.raises(SourceError) as refusal:
        _encoded(engine, _feed(table, columns={"v": "v"}))
    text = str(refusal.value)
    assert text.startswith("feed 'feed': brick 0.0.0.2: every field of the row with key 20005 is NULL")
    assert "Add a constant" in text
    assert "`where`" in text
    assert len(_encoded(engine, _feed(table, columns={"v": "v"}, where="v IS NOT NULL"))) == 1


@settings(max_examples=20, database=None, suppress_health_check=list(HealthCheck))
@given(names=st.lists(st.text(max_size=12), min_size=3, max_size=3, unique=True), value=st.text(max_size=30))
def test_field_names_and_constants_may_be_any_text(
    names: list[str], value: str, redis_server: RedisServer, engine: EmbeddedEngine
) -> None:
    plain, perhaps, constant = names
    feed = _feed(
        "numbers(3)", key="number", columns={plain: "number", perhaps: "nullIf(number, 1)"}, constants={constant: value}
    )
    found = _read_back(redis_server, engine, feed)
    fields = [{plain: str(n), perhaps: str(n), constant: value} for n in range(3)]
    del fields[1][perhaps]
    assert [entry for _, entry in found] == [_bytes(entry) for entry in fields]


def _bytes(fields: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in fields.items()}


@pytest.mark.parametrize(
    "name", ["it's", 'a"b', "back\\slash", "cr\r\nlf", "{first:UInt64}", "`tick`", "%s", "\0", "$x$", "日本"]
)
def test_hostile_names_and_constants_are_data(name: str, redis_server: RedisServer, engine: EmbeddedEngine) -> None:
    feed = _feed("numbers(1)", key="number", columns={name: "number"}, constants={f"{name}2": name})
    [(_, fields)] = _read_back(redis_server, engine, feed)
    assert fields == _bytes({name: "0", f"{name}2": name})


def test_thirty_fields_keep_their_order(redis_server: RedisServer, engine: EmbeddedEngine) -> None:
    columns = {f"f{n}": f"if(number = {n}, NULL, number + {n})" for n in range(30)}
    found = _read_back(redis_server, engine, _feed("numbers(5)", key="number", columns=columns))
    for row, (_, fields) in enumerate(found):
        assert list(fields.items()) == [(b"f%d" % n, b"%d" % (row + n)) for n in range(30) if n != row]


def test_constants_alone_make_an_entry(redis_server: RedisServer, engine: EmbeddedEngine) -> None:
    found = _read_back(
        redis_server, engine, _feed("numbers(2)", key="number", columns={}, constants={"a": "1", "b": "2"})
    )
    assert found == [(EntryId(0, row), {b"a": b"1", b"b": b"2"}) for row in (1, 2)]


def test_rows_are_numbered_from_one_in_each_brick_across_batches(engine: EmbeddedEngine) -> None:
    feed = _feed("numbers(35000)", key="number + 5000", settings={"max_block_size": 3000})
    batches = _encoded(engine, feed)
    assert len(batches) > 5
    ids = [entries.id(index) for entries in batches for index in range(entries.count)]
    assert ids == [EntryId(0, n) for n in range(1, 5001)] + [
        EntryId(brick, n) for brick in (1, 2, 3) for n in range(1, 10_001)
    ]
    segments = [segment for entries in batches for segment in entries.segments]
    assert segments[-1].last == EntryId(3, 10_000)
    assert [entries.key(0) for entries in batches][:2] == [5000, 5000 + batches[0].count]


def test_batches_are_cut_by_bytes_and_say_the_same(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    # One long row among short ones: an even cut by rows would not do.
    feed = _feed("numbers(3000)", key="number * 10", columns={"v": "repeat('x', if(number = 7, 50000, 10))"})
    whole = _encoded(engine, feed)
    monkeypatch.setattr(entries_module, "_MAX_BYTES", 10_000)
    parts = _encoded(engine, feed)
    assert len(whole) == 1
    assert all(part.count == 1 or part.size(0, part.count) < 40_000 for part in parts)
    assert [part.count for part in parts][:3] == [7, 1, parts[2].count]
    for kind in ("requests", "views"):
        joined = [b"".join(getattr(part, kind).rows(0, part.count) for part in some) for some in (parts, whole)]
        assert joined[0] == joined[1]
    assert parts[-1].segments[-1].last == whole[-1].segments[-1].last


def _batch(*ordinals: int) -> pa.RecordBatch:
    count_ = len(ordinals)
    return pa.record_batch(
        {
            "key": pa.array(range(count_), pa.uint64()),
            "ordinal": pa.array(ordinals, pa.uint64()),
            "arguments": pa.array([2] * count_, pa.uint32()),
            "payload": pa.array([b"$1\r\na\r\n$1\r\nb\r\n"] * count_, pa.binary()),
            "hash": pa.array([2**63 + 1] * count_, pa.uint64()),
        }
    )


@pytest.mark.parametrize("batches", [[(0, 2, 1)], [(0, 1), (0, 1)], [(2**64 - 1,), (0,)], [(5, 6), (6, 7), (6,)]])
def test_a_scan_out_of_order_is_refused(batches: list[tuple[int, ...]]) -> None:
    with pytest.raises(SourceError, match="are not in the order of the bricks"):
        list(encode(b"s", iter([_batch(*ordinals) for ordinals in batches])))


def test_a_scan_in_order_is_taken() -> None:
    found = list(encode(b"s", iter([_batch(0, 0, 3), _batch(3), _batch(3, 2**64 - 2)])))
    assert [segment for entries in found for segment in entries.segments] == [
        BrickSlice(0, 2, EntryId(0, 1)),
        BrickSlice(2, 3, EntryId(3, 1)),
        BrickSlice(0, 1, EntryId(3, 2)),
        BrickSlice(0, 1, EntryId(3, 3)),
        BrickSlice(1, 2, EntryId(2**64 - 2, 1)),
    ]


def test_content_hashes_are_summed_modulo_two_to_the_64() -> None:
    [entries] = encode(b"s", iter([_batch(0, 0, 0, 1)]))
    assert [entries.content_hash(0, stop) for stop in range(5)] == [0, 2**63 + 1, 2, 2**63 + 3, 4]


@pytest.mark.parametrize(
    ("last", "count"),
    [
        (EntryId(0, 0), 0),
        (EntryId(1, 1), 1),
        (EntryId(1, 2), 2),
        (EntryId(1, 9), 2),
        (EntryId(2, 0), 2),
        (EntryId(3, 1), 3),
        (EntryId(9, 9), 3),
    ],
)
def test_rows_up_to_an_id_are_counted(last: EntryId, count: int) -> None:
    [entries] = encode(b"s", iter([_batch(1, 1, 3)]))
    assert entries.up_to(last) == count


def test_ids_read_as_they_are_written() -> None:
    assert EntryId.parse("12-34") == EntryId.parse(b"12-34") == EntryId(12, 34)
    assert str(EntryId(12, 34)) == "12-34"
    assert EntryId(1, 10_000) < EntryId(2, 1)
