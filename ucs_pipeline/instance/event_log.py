"""Dagster's SQLite event log with its connections kept open, and the events of bricks written in groups.

Dagster's own class makes a new SQLAlchemy engine and a new SQLite connection for every event, and a transaction in each
of two files, which costs more than the event. This one keeps an engine per database file, and writes in groups. Files,
tables and queries stay Dagster's: either class opens what the other has written, and removing the block from
dagster.yaml switches back.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, ClassVar

from dagster import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.event import listen
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool, QueuePool

from ucs_pipeline.home import project_home
from ucs_pipeline.instance.grouped_events import INSERT, GroupedEventLog, waits
from ucs_pipeline.instance.pending_events import PendingEvents

_BUSY_SECONDS = 30
"""How long to wait for a process that is writing: Dagster's own limit since 1.13. Earlier versions used SQLite's 5."""

_OPEN_FILES = 16
"""Databases kept open at once: the index, and the runs a process is busy with."""


class PooledSqliteEventLogStorage(GroupedEventLog, SqliteEventLogStorage):
    """SQLite event log that keeps its connections. `base_dir` is taken from DAGSTER_HOME if it is relative."""

    _new_file: ClassVar[bytes | None] = None
    """The file of a run without events, as the Dagster of this process makes it."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: OrderedDict[str, tuple[tuple[int, int], Engine]] = OrderedDict()
        self._tables: set[str] = set()
        self._pending = PendingEvents(self._write)
        # Events show rows and settings, so only the owner may read them, whatever the umask.
        Path(base_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(base_dir, inst_data)
        self._follow_forks()

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "PooledSqliteEventLogStorage":
        """Dagster's constructor from dagster.yaml."""
        return cls(str(project_home() / config_value["base_dir"]), inst_data)

    def store_event(self, event: EventLogEntry) -> None:
        """Stores one event. A run's materialisations and plans of them are written in groups, a moment later."""
        super().store_event(event)
        if not waits(event):
            self._touch(event.run_id)

    def has_table(self, table_name: str) -> bool:
        """Whether the index has a table. Called for each event with tags. A table never disappears."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def dispose(self) -> None:
        """Writes pending events, and closes every connection."""
        try:
            self.flush()
        finally:
            with self._db_lock:
                while self._engines:
                    self._engines.popitem()[1][1].dispose()
            # Waits for the file watcher, which may need the lock.
            super().dispose()

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        # A read returns what this process has stored, and events keep their order.
        self._pending.write(keep=True)
        with self._db_lock, self._transaction(shard) as connection:
            yield connection

    def _write(self, events: Sequence[EventLogEntry]) -> None:
        pending = self._rows(events)
        runs: dict[str, list[Mapping[str, Any]]] = {}
        for _, row in pending:
            runs.setdefault(row["run_id"], []).append(row)
        # The index is committed last, as in Dagster's class; if it is locked, the runs' files stay unchanged.
        with self._db_lock, self._transaction(INDEX_SHARD_NAME) as index:
            self._insert(index, pending)
            for run_id, own in runs.items():
                with self._transaction(run_id) as connection:
                    connection.execute(INSERT, own)
        for run_id in runs:
            self._touch(run_id)

    def _forked(self) -> None:
        # A thread of the parent may hold Dagster's lock, which is never released here.
        self._db_lock = Lock()
        super()._forked()

    def _kept(self) -> Iterable[Engine]:
        return [engine for _, engine in self._engines.values()]

    def _touch(self, run_id: str) -> None:
        # With the connection kept open the write-ahead log grows and this file does not change; the UI's live log of a
        # run watches this file.
        with suppress(FileNotFoundError):  # the run was deleted meanwhile
            os.utime(self.path_for_shard(run_id))

    def _copy_new_file(self, path: Path) -> None:
        """Makes the file of a run from a copy: Dagster needs 0.13 s of CPU to make its tables, for each run again."""
        with TemporaryDirectory(prefix="ucs-", dir=path.parent) as directory:
            copy = Path(directory) / "new"
            if PooledSqliteEventLogStorage._new_file is None:
                engine = create_engine(f"sqlite:///{copy}", poolclass=NullPool)
                self._initdb(engine)
                PooledSqliteEventLogStorage._new_file = copy.read_bytes()
            else:
                copy.write_bytes(PooledSqliteEventLogStorage._new_file)
            # Another process may have been faster, or the disk have no links: then Dagster makes what is missing.
            with suppress(OSError):
                path.hardlink_to(copy)

    @contextmanager
    def _transaction(self, shard: str) -> Iterator[Connection]:
        engine = self._engine(shard)
        if shard not in self._initialized_dbs:
            if not _has_version(engine):
                self._initdb(engine)
            self._initialized_dbs.add(shard)
        with engine.connect() as connection, connection.begin():
            yield connection

    def _engine(self, shard: str) -> Engine:
        path = Path(self.path_for_shard(shard))
        if shard in self._engines:
            file, engine = self._engines[shard]
            if file == _identity(path):
                self._engines.move_to_end(shard)
                return engine
            # The database was deleted or replaced.
            engine.dispose()
            self._initialized_dbs.discard(shard)
        if shard != INDEX_SHARD_NAME and not path.exists():
            self._copy_new_file(path)
        path.touch()
        engine = create_engine(
            self.conn_string_for_shard(shard),
            poolclass=QueuePool,
            pool_size=1,
            connect_args={"timeout": _BUSY_SECONDS},
        )
        listen(engine, "connect", _do_not_wait_for_the_disk)
        self._engines[shard] = (_identity(path), engine)
        self._engines.move_to_end(shard)
        if len(self._engines) > _OPEN_FILES:
            self._engines.popitem(last=False)[1][1].dispose()
        return engine


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - called for every event
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _has_version(engine: Engine) -> bool:
    """Whether Dagster has made the tables: their version comes last.

    Dagster compares the version with its newest one, loads 60 modules for that (0.05 s a file) and does nothing more.
    """
    with engine.connect() as connection, suppress(OperationalError):
        return bool(connection.execute(text("SELECT count(*) FROM alembic_version")).scalar())
    return False


def _do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    # In write-ahead mode this survives any crash of a process; a power cut can take the last events with it, and the
    # bricks they recorded are then compared with the stream and recorded again.
    connection.execute("PRAGMA synchronous=NORMAL")
