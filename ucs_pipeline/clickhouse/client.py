"""ClickHouse as something that answers queries with Arrow batches: a server over HTTP, or the engine in this process.

For both, a result that ends early is an error, never the end of the table.
"""

import io
import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from ucs_pipeline.clickhouse.embedded import embedded_connection
from ucs_pipeline.clickhouse.errors import ADDRESS, Redact, _broken_off, _embedded_hints, _refusal
from ucs_pipeline.errors import SourceError

_TEXT_LIMITS: Mapping[str, int] = {
    # A feed's query grows with the columns of its table. ClickHouse applies these limits before it parses the query.
    "max_query_size": 1 << 28,
    "max_ast_elements": 10_000_000,
    "max_expanded_ast_elements": 10_000_000,
}
_LONG_QUERY = 50_000

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# Keeps caches between client and server from reusing an answer.
_NO_CACHE = {"Cache-Control": "no-cache, no-store", "Pragma": "no-cache"}

# The driver logs a connection error before it raises it. Without a handler that is an extra line on stderr.
logging.getLogger("clickhouse_connect").addHandler(logging.NullHandler())


class Engine(Protocol):
    """Something that runs a query and streams its result."""

    scan_settings: Mapping[str, str | int]
    """ClickHouse settings that make a large result faster to sort and to send."""

    @property
    def sorted_rows(self) -> int | None:
        """About how many rows one query should sort; None if any number."""

    def batches(self, query: str, parameters: Mapping[str, int], hide: Redact) -> Generator[pa.RecordBatch, None, None]:
        """Non-empty batches of the whole result, in order.

        Raises:
            SourceError: the query is refused, or fails half-way. ClickHouse's message went through `hide`.
        """

    def rows(self, query: str, parameters: Mapping[str, int], hide: Redact) -> list[dict[str, Any]]:
        """The whole of a small result.

        Raises:
            SourceError: the query is refused. ClickHouse's message went through `hide`.
        """


class HttpEngine:
    """A ClickHouse server, through clickhouse-connect."""

    # Beyond this, a table that is not stored in the order of the key is sorted on disk. Servers from 24.12 on use a
    # share of their memory instead (max_bytes_ratio_before_external_sort).
    scan_settings: Mapping[str, str | int] = {"max_bytes_before_external_sort": 1 << 31}
    sorted_rows = None

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    def batches(self, query: str, parameters: Mapping[str, int], hide: Redact) -> Generator[pa.RecordBatch, None, None]:
        """Non-empty batches of the whole result, in order."""
        from clickhouse_connect.driver.exceptions import ClickHouseError
        from urllib3.exceptions import HTTPError

        body: _Tail | None = None
        try:
            body = _Tail(self._connect().raw_stream(query, dict(parameters), _limits(query), fmt="ArrowStream"))
            with body, pa.ipc.open_stream(pa.PythonFile(body, mode="r")) as reader:
                for batch in reader:
                    if batch.num_rows:
                        yield batch
        except ClickHouseError as error:
            raise _refusal(str(error), hide) from None
        except (HTTPError, OSError, pa.ArrowException) as error:
            raise _broken_off(error, body.tail if body else b"", hide) from None
        # Arrow takes a body that stops between two messages for a complete one; only the mark proves the end.
        if not body.tail.endswith(_END_OF_STREAM):
            raise _broken_off("it ended without its end-of-stream mark", body.tail, hide)

    def rows(self, query: str, parameters: Mapping[str, int], hide: Redact) -> list[dict[str, Any]]:
        """The whole of a small result."""
        from clickhouse_connect.driver.exceptions import ClickHouseError
        from urllib3.exceptions import HTTPError

        try:
            return list(self._connect().query(query, dict(parameters), _limits(query)).named_results())
        except (ClickHouseError, HTTPError, OSError) as error:
            raise _refusal(str(error), hide) from None

    def _connect(self) -> Any:
        if self._client is None:
            import clickhouse_connect

            try:
                parts = urlsplit(self._url)
                if not parts.hostname or parts.port == 0:
                    raise ValueError
                # Scans of one feed may run in parallel, which a server-side session forbids. The driver ignores the
                # scheme, and would send the password unencrypted.
                self._client = clickhouse_connect.get_client(
                    dsn=self._url, secure=parts.scheme == "https", autogenerate_session_id=False, query_limit=0
                )
                self._client.headers.update(_NO_CACHE)
            except (ValueError, TypeError):
                # The cause is left out: it may quote a part of the password.
                raise SourceError(
                    f"{ADDRESS} is not a ClickHouse URL. Expected https://user:password@host:8443/database or "
                    "http://...:8123. Percent-encode all but letters and digits in user and password, and put only "
                    "options of clickhouse-connect after a question mark.",
                    "UCS-URL",
                ) from None
        return self._client


class EmbeddedEngine:
    """ClickHouse's engine in this process, over the Parquet files of the project."""

    scan_settings: Mapping[str, str | int] = {
        # In one process compression saves no network traffic, and costs a third of the scan's time.
        "output_format_arrow_compression_method": "none",
        # Engine and publisher share the process's memory: blocks of a quarter of the usual rows take 100 MB less of it,
        # and no more time.
        "max_block_size": 4096,
        # A brick may have any number of rows; beyond this it is sorted on disk.
        "max_bytes_before_external_sort": 1 << 28,
        "max_bytes_ratio_before_external_sort": 0,
    }
    # The engine does not know the order of a Parquet file, so it sorts; but it skips row groups that a query does not
    # need.
    sorted_rows = 500_000

    def __init__(self) -> None:
        self._idle: list[Any] = []

    def batches(self, query: str, parameters: Mapping[str, int], hide: Redact) -> Generator[pa.RecordBatch, None, None]:
        """Non-empty batches of the whole result, in order."""
        with self._connection(query, hide) as connection:
            result = connection.send_query(query, "Arrow", params=dict(parameters))
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

    def rows(self, query: str, parameters: Mapping[str, int], hide: Redact) -> list[dict[str, Any]]:
        """The whole of a small result."""
        with self._connection(query, hide) as connection:
            result = connection.query(query, "Arrow", params=dict(parameters)).bytes()
            return pa.ipc.open_file(pa.py_buffer(result)).read_all().to_pylist() if result else []

    def connect(self) -> Any:
        """A new handle on the engine, which starts with the first one."""
        return embedded_connection()

    @contextmanager
    def _connection(self, query: str, hide: Redact) -> Iterator[Any]:
        """A handle for one query: streams that are read in parallel need one each."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self.connect()
        try:
            if limits := _limits(query):
                # In the query they would come too late: its text is longer than the default limits allow.
                connection.query("SET " + ", ".join(f"{name} = {value}" for name, value in limits.items()))
            yield connection
        except (RuntimeError, pa.ArrowException) as error:
            # The output of a failed query would precede the first block of the handle's next stream.
            connection.close()
            raise _refusal(str(error), hide, _embedded_hints()) from None
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)


def _limits(query: str) -> dict[str, int] | None:
    """Settings for a query that is long; None leaves the limits as they are, which a user may not be free to change."""
    return dict(_TEXT_LIMITS) if len(query) > _LONG_QUERY else None


class _Tail(io.RawIOBase):
    """A readable body that remembers its last bytes, where ClickHouse writes an error."""

    def __init__(self, body: io.IOBase) -> None:
        self._body = body
        self.tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._body.read(size)
        self.tail = (self.tail + data[-4096:])[-4096:]
        return data

    def close(self) -> None:
        self._body.close()
        super().close()


# The errors below have no cause: a traceback would show it, and ClickHouse's message may repeat the query with secrets
# of the feed's SQL.
