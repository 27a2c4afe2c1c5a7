"""The default ClickHouse: the real engine inside this process (chDB), on the Parquet files of the project."""

import atexit
import ctypes
import importlib.util
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ucs_pipeline.clickhouse.errors import ADDRESS, first_line
from ucs_pipeline.errors import SourceError
from ucs_pipeline.home import data_dir

if TYPE_CHECKING:
    from chdb.state.sqlitelike import Connection

_GLOBS = frozenset("*?{}")

_lock = threading.Lock()
_anchor: "Connection | None" = None
_views: dict[str, tuple[Path, int, int]] = {}


def embedded_connection() -> "Connection":
    """A handle on this process's engine, which shows each `.ucs/tables/<name>.parquet` as the table `<name>`.

    Handles share one engine, tables included, and may be used by different threads at once; one handle serves one
    query at a time. The first call starts the engine (about one second, 300 MB). Files that appeared, changed or
    went away since the last call are picked up.

    Raises:
        SourceError: chDB is not installed, or a file is not Parquet or lies on a path that ClickHouse would expand.
    """
    global _anchor
    if importlib.util.find_spec("chdb") is None:
        raise SourceError(
            f"The embedded ClickHouse engine (chdb) is not installed. Name a server in {ADDRESS}, or install the "
            "engine with `pip install 'ucs-pipeline[embedded]'`.",
            "UCS-EMBEDDED",
        )
    with _lock, _signals_untouched():
        if _anchor is None:
            # The engine and its views end with its last handle; this one stays.
            _anchor = _connect()
            # If it ended while Python shuts down, the engine would print an error.
            atexit.register(_anchor.close)
        _show_files(_anchor)
        return _connect()


def tables_dir() -> Path:
    """Directory of the Parquet files that the embedded engine shows as tables."""
    directory = data_dir() / "tables"
    directory.mkdir(exist_ok=True)
    return directory


def _connect() -> "Connection":
    import chdb

    connection: Connection = chdb.connect(":memory:")
    return connection


def _show_files(connection: "Connection") -> None:
    files = {path.stem: path for path in sorted(tables_dir().glob("*.parquet")) if path.is_file()}
    for name in _views.keys() - files.keys():
        connection.query(f"DROP VIEW IF EXISTS {_identifier(name)}")
        del _views[name]
    for name, path in files.items():
        status = path.stat()
        seen = (path, status.st_mtime_ns, status.st_size)
        if _views.get(name) == seen:
            continue
        if _GLOBS & set(str(path)):
            raise SourceError(
                f"The path {path} has one of * ? {{ }}, which ClickHouse expands in file names. Rename it, or move "
                "the project to a directory without these characters.",
                "UCS-EMBEDDED",
            )
        try:
            connection.query(
                f"CREATE OR REPLACE VIEW {_identifier(name)} AS SELECT * FROM file({_string(str(path))}, Parquet)"
            )
        except RuntimeError as error:
            reason = first_line(str(error))
            raise SourceError(
                f"{path} cannot be read as Parquet ({reason}). Write it again, or take it out of {path.parent}.",
                "UCS-EMBEDDED",
            ) from error
        _views[name] = seen


def _identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def _string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def _signals_untouched() -> Iterator[None]:
    """Undo what starting chDB does to signals.

    It blocks SIGPIPE in the importing thread, which child processes inherit, and catches SIGTSTP, so that Ctrl-Z prints
    a stack trace instead of stopping the process. It does not change SIGINT and SIGTERM.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # Python's own signal() works in the main thread only, and the engine may start in another.
    stop = libc.signal(signal.SIGTSTP, None)
    libc.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        libc.signal(signal.SIGTSTP, stop)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
