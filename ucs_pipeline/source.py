"""The table as ordered Arrow batches: over HTTP from a ClickHouse server, or from the embedded engine.

Both engines answer one question, `batches(sql, parameters)`, and must fail loudly: a scan that ends early is an
error, never the end of the table.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import pyarrow as pa

from ucs_pipeline import sql
from ucs_pipeline.errors import SourceError, SourceUnavailableError
from ucs_pipeline.feed import BrickFeed

URL_VARIABLE = "UCS_CLICKHOUSE_URL"

_SCAN_SETTINGS: Mapping[str, str | int] = {
    # Strings are bytes: ClickHouse does not promise UTF-8 in them.
    "output_format_arrow_string_as_string": 0,
    # Small blocks keep memory flat and let reading, encoding and sending overlap.
    "max_block_size": 16384,
}
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_CODE = re.compile(r"Code: (\d+)\. (?:DB::Exception: )?(.*)", re.DOTALL)
_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)")
_HINTS = {
    "UNKNOWN_TABLE": "check the feed's `table`",
    "UNKNOWN_DATABASE": "check the database in the feed's `table` and in " + URL_VARIABLE,
    "UNKNOWN_IDENTIFIER": "check the feed's `key`, `columns` and `where` against the table's columns",
    "SYNTAX_ERROR": "check the SQL expressions in the feed's `key`, `columns` and `where`",
    "AUTHENTICATION_FAILED": f"check user and password in {URL_VARIABLE}",
    "ACCESS_DENIED": "grant the user SELECT on the table",
    "UNKNOWN_SETTING": "check the feed's `settings`",
}


class Engine(Protocol):
    """Something that runs a query and streams its result."""

    def batches(self, query: str, parameters: Mapping[str, int]) -> Iterator[pa.RecordBatch]:
        """Non-empty batches of the whole result, in order.

        Raises:
            SourceError: the query is refused, or fails half-way.
        """

    def rows(self, query: str, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
        """The whole of a small result.

        Raises:
            SourceError: the query is refused.
        """


class HttpEngine:
    """A ClickHouse server, through clickhouse-connect."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    def batches(self, query: str, parameters: Mapping[str, int]) -> Iterator[pa.RecordBatch]:
        """Non-empty batches of the whole result, in order."""
        from clickhouse_connect.driver.exceptions import ClickHouseError
        from urllib3.exceptions import HTTPError

        try:
            body = _Tail(self._connect().raw_stream(query, parameters=dict(parameters), fmt="ArrowStream"))
            with body, pa.ipc.open_stream(pa.PythonFile(body, mode="r")) as reader:
                for batch in reader:
                    if batch.num_rows:
                        yield batch
            # Arrow takes a body that stops between two messages for a complete one; only the marker proves the end.
            if body.tail != _END_OF_STREAM:
                raise SourceUnavailableError(
                    "the scan ended without its end-of-stream mark: ClickHouse or something between broke it off"
                )
        except HTTPError as error:
            raise SourceUnavailableError(f"the scan was broken off: {_partial(error)}") from error
        except (ClickHouseError, OSError, pa.ArrowException) as error:
            raise _refusal(str(error)) from error

    def rows(self, query: str, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
        """The whole of a small result."""
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            return list(self._connect().query(query, parameters=dict(parameters)).named_results())
        except (ClickHouseError, OSError) as error:
            raise _refusal(str(error)) from error

    def _connect(self) -> Any:
        if self._client is None:
            import clickhouse_connect

            # Scans of one feed may run side by side, which a server-side session forbids. The driver does not look at
            # the scheme, and would send the password in the clear.
            secure = self._url.startswith("https:")
            self._client = clickhouse_connect.get_client(
                dsn=self._url, secure=secure, autogenerate_session_id=False, query_limit=0
            )
        return self._client


class EmbeddedEngine:
    """ClickHouse's engine in this process, over the Parquet files of the project."""

    def __init__(self) -> None:
        self._connection: Any = None

    def batches(self, query: str, parameters: Mapping[str, int]) -> Iterator[pa.RecordBatch]:
        """Non-empty batches of the whole result, in order."""
        try:
            result = self._connect().send_query(query, "Arrow", params=dict(parameters))
            try:
                for chunk in result:
                    # Each chunk is a complete Arrow file of its own.
                    reader = pa.ipc.open_file(pa.py_buffer(chunk.bytes()))
                    for i in range(reader.num_record_batches):
                        batch = reader.get_batch(i)
                        if batch.num_rows:
                            yield batch
            finally:
                result.close()
        except (RuntimeError, pa.ArrowException) as error:
            raise _refusal(str(error)) from error

    def rows(self, query: str, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
        """The whole of a small result."""
        try:
            result = self._connect().query(query, "Arrow", params=dict(parameters)).bytes()
            return pa.ipc.open_file(pa.py_buffer(result)).read_all().to_pylist() if result else []
        except (RuntimeError, pa.ArrowException) as error:
            raise _refusal(str(error)) from error

    def _connect(self) -> Any:
        if self._connection is None:
            from ucs_pipeline.embedded_clickhouse import embedded_connection

            self._connection = embedded_connection()
        return self._connection


class Source:
    """One feed's table."""

    def __init__(self, feed: BrickFeed, engine: Engine) -> None:
        self.feed = feed
        self._engine = engine
        self._shape: sql.Shape | None = None

    def scan(self, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """Rows of the bricks with ordinals `first` to `last`, in order; columns as in `ucs_pipeline.sql.scan`."""
        shape = self.shape()
        if keys := _keys(shape, first, last):
            yield from self._batches(sql.scan(shape), keys)

    def count(self, first: int, last: int) -> dict[int, int]:
        """Rows per brick of the bricks with ordinals `first` to `last`; bricks without rows are left out."""
        shape = self.shape()
        keys = _keys(shape, first, last)
        rows = self._rows(sql.count(shape), keys) if keys else []
        return {row["ordinal"]: row["rows"] for row in rows}

    def shape(self) -> sql.Shape:
        """What the feed selects, with the types the table has now."""
        if self._shape is None:
            self._shape = self._look_up()
        return self._shape

    def _look_up(self) -> sql.Shape:
        feed = self.feed
        own = {row["name"]: row["type"] for row in self._rows(sql.describe_table(feed.table), {})}
        chosen = {column: column for column in own} if feed.columns is None else feed.columns
        clash = sorted(set(chosen) & set(feed.constants))
        if clash:
            raise SourceError(
                f"feed {feed.name!r}: field {clash[0]!r} is both a column of table {feed.table!r} and a constant: "
                "list the columns to publish, or rename the constant"
            )
        expressions = [sql.column_expression(text, own) for text in (feed.key, *chosen.values())]
        types = [row["type"] for row in self._rows(sql.describe_expressions(feed.table, expressions), {})]
        if sql.key_limits(types[0]) is None:
            raise SourceError(
                f"feed {feed.name!r}: key {feed.key!r} has type {types[0]}, expected an integer type: number bricks count "
                "whole ids; choose an integer column, or convert it in the expression"
            )
        columns = [sql.Column(*three) for three in zip(chosen, expressions[1:], types[1:], strict=True)]
        return sql.Shape(feed.table, feed.final, feed.where, expressions[0], types[0], columns, feed.constants)

    def _batches(self, query: str, parameters: Mapping[str, int]) -> Iterator[pa.RecordBatch]:
        text = query + sql.settings_clause({**_SCAN_SETTINGS, **self.feed.settings})
        try:
            yield from self._engine.batches(text, parameters)
        except SourceError as error:
            raise self._named(error) from error

    def _rows(self, query: str, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
        try:
            return self._engine.rows(query + sql.settings_clause(self.feed.settings), parameters)
        except SourceError as error:
            raise self._named(error) from error

    def _named(self, error: SourceError) -> SourceError:
        return type(error)(f"feed {self.feed.name!r}: {error}")


def open_source(feed: BrickFeed) -> Source:
    """The feed's table where `UCS_CLICKHOUSE_URL` says, else in the embedded engine. Connects at the first query."""
    url = os.environ.get(URL_VARIABLE)
    return Source(feed, HttpEngine(url) if url else EmbeddedEngine())


def _keys(shape: sql.Shape, first: int, last: int) -> dict[str, int]:
    """Bounds of the keys of a range of bricks; empty if the key's type is too small to have any."""
    _, largest = sql.key_limits(shape.key_type) or (0, 0)
    low, high = sql.first_key(first), sql.last_key(last)
    return {} if low > largest else {"first": low, "last": min(high, largest)}


class _Tail(io.RawIOBase):
    """A readable body that remembers its last eight bytes."""

    def __init__(self, body: io.IOBase) -> None:
        self._body = body
        self.tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._body.read(size)
        self.tail = (self.tail + data[-8:])[-8:]
        return data

    def close(self) -> None:
        self._body.close()
        super().close()


def _partial(error: Exception) -> str:
    """What a broken-off body ended with: ClickHouse writes its reason there."""
    seen = b"".join(getattr(cause, "partial", b"") for cause in error.args if isinstance(cause, Exception))
    position = seen.find(b"DB::Exception")
    return _first_line(seen[position:].decode(errors="replace")) if position >= 0 else _first_line(str(error))


def _refusal(message: str) -> SourceError:
    match = _CODE.search(message)
    if match is None:
        return SourceUnavailableError(
            f"ClickHouse cannot be read ({_first_line(message)}); check {URL_VARIABLE} and the server"
        )
    names = _NAME.findall(match[2])
    name = names[-1] if names else f"code {match[1]}"
    hint = _HINTS.get(name)
    text = f"ClickHouse refused the query with {name}: {_first_line(match[2])}"
    return SourceError(f"{text}; {hint}" if hint else text)


def _first_line(message: str) -> str:
    line = message.strip().splitlines()[0] if message.strip() else "no message"
    line = re.sub(r"\s*\(?\([A-Z0-9_]+\)\s*(\(version .*)?$", "", line)
    return line[:400].rstrip(". ")
