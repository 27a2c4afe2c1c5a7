"""chDB as the ClickHouse test server's engine: results in ClickHouse's bytes, errors in its words."""

import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import chdb
import pyarrow as pa

_ERROR = re.compile(r"Code: (\d+)\. DB::\w*Exception: .*", re.DOTALL)
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
_RESULT = re.compile(r"\s*\(*\s*(SELECT|WITH|SHOW|DESC|DESCRIBE|EXISTS|EXPLAIN|CHECK)\b", re.IGNORECASE)
_INSERT = re.compile(
    rb"\s*(INSERT\s+INTO\s(?:(?!\bSELECT\b|\bVALUES\b).)*?)\sFORMAT\s+(\w+)[ \t]*\r?\n?", re.IGNORECASE | re.DOTALL
)
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

# From ClickHouse's exceptionCodeToHTTPStatus; every other code is a 500.
_STATUS = {
    **dict.fromkeys((6, 26, 27, 36, 38, 41, 43, 44, 53, 62, 69, 72, 117, 456, 457), 400),
    **dict.fromkeys((192, 193, 516), 403),
    **dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 81, 115), 404),
    48: 501,
    159: 408,
    209: 503,
}


class ServerError(Exception):
    """An error as ClickHouse words it: `Code: 60. DB::Exception: ... (UNKNOWN_TABLE)`."""

    def __init__(self, text: str) -> None:
        found = _ERROR.search(text)
        super().__init__(found[0].strip() if found else f"Code: 1001. DB::Exception: {text} (STD_EXCEPTION)")
        self.code = int(found[1]) if found else 1001
        self.status = _STATUS.get(self.code, 500)


def server_error(code: int, what: str, name: str) -> ServerError:
    """An error of the server's own, worded as ClickHouse words it."""
    return ServerError(f"Code: {code}. DB::Exception: {what}. ({name})")


class Engine:
    """chDB, one handle per query, so that settings and `USE` end with the query that set them."""

    def __init__(self, path: str) -> None:
        # The tables of an in-memory engine live as long as its last handle.
        self._keep = chdb.connect(path)
        self._path = path
        self.version, self.timezone = str(self._keep.query("SELECT version(), timezone()", "TSV")).split()

    @contextmanager
    def session(self, database: str, settings: dict[str, str], read_only: bool) -> Iterator[Any]:
        """A handle with these settings.

        Raises:
            ServerError: what chDB raised inside, in ClickHouse's words.
        """
        connection = chdb.connect(self._path)
        try:
            if database:
                connection.query(f"USE `{database.replace('`', '``')}`")
            for name, value in settings.items():
                if not _SETTING.fullmatch(name):
                    raise server_error(115, f"Unknown setting '{name}'", "UNKNOWN_SETTING")
                connection.query(f"SET {name} = {_quoted(value)}")
            if read_only:
                connection.query("SET readonly = 2")
            yield connection
        except (chdb.ChdbError, RuntimeError) as error:
            raise ServerError(str(error)) from None
        finally:
            connection.close()


def format_of(sql: str, default: str) -> str | None:
    """Format of a query's result; None for a statement without a result."""
    found = _FORMAT.search(sql)
    return (found[1] if found else default) if _RESULT.match(sql) else None


def answer(connection: Any, sql: bytes, output: str, parameters: dict[str, str]) -> bytes:
    """Runs a statement, or an INSERT with its data behind `FORMAT x`, and returns the whole result."""
    insert = _INSERT.match(sql)
    if insert is None or insert.end() == len(sql):
        return bytes(connection.query(sql.decode(), output, params=parameters).bytes())
    with tempfile.NamedTemporaryFile() as data:
        data.write(sql[insert.end() :])
        data.flush()
        connection.query(f"{insert[1].decode()} FROM INFILE {_quoted(data.name)} FORMAT {insert[2].decode()}")
    return b""


def arrow_stream(connection: Any, sql: str, parameters: dict[str, str]) -> Generator[tuple[bool, bytes], None, None]:
    """One Arrow IPC stream, message by message, each with whether it is a record batch.

    chDB gives a stream per block, schema and all; only the first schema is kept. Bytes stay as the engine wrote them.
    """
    schema_sent = False
    with connection.send_query(sql, "ArrowStream", params=parameters) as blocks:
        for block in blocks:
            for message in pa.ipc.MessageReader.open_stream(block.bytes()):
                if message.type != "schema" or not schema_sent:
                    schema_sent = True
                    yield message.type == "record batch", message.serialize().to_pybytes()
    if not schema_sent:
        # chDB's streams leave out the schema of an empty result, which ClickHouse sends.
        empty = connection.query(sql, "ArrowStream", params=parameters).bytes()
        for message in pa.ipc.MessageReader.open_stream(empty):
            yield message.type == "record batch", message.serialize().to_pybytes()
    yield False, _END_OF_STREAM


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
