"""Dagster's SQLite event log with its connections kept open.

Dagster's own class makes a new SQLAlchemy engine and a new SQLite connection for every event, which costs more than the
event. This one keeps an engine per database file. Files, tables and queries stay Dagster's: either class
opens what the other has written, and removing the block from dagster.yaml switches back.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.event import listen
from sqlalchemy.pool import QueuePool

from ucs_pipeline.home import project_home

_OPEN_FILES = 16
"""Databases kept open at once: the index, and the runs a process is busy with."""


class PooledSqliteEventLogStorage(SqliteEventLogStorage):
    """SQLite event log that keeps its connections. `base_dir` is taken from DAGSTER_HOME if it is relative."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: OrderedDict[str, tuple[tuple[int, int], Engine]] = OrderedDict()
        super().__init__(base_dir, inst_data)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "PooledSqliteEventLogStorage":
        """Dagster's constructor from dagster.yaml."""
        return cls(str(project_home() / config_value["base_dir"]), inst_data)

    def store_event(self, event: EventLogEntry) -> None:
        """Stores one event."""
        super().store_event(event)
        # With the connection kept open the write-ahead log grows and this file does not change; the UI's live log of a
        # run watches this file.
        os.utime(self.path_for_shard(event.run_id))

    def dispose(self) -> None:
        """Closes every connection."""
        with self._db_lock:
            while self._engines:
                self._engines.popitem()[1][1].dispose()
        super().dispose()

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            engine = self._engine(shard)
            if shard not in self._initialized_dbs:
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
            # Somebody deleted the database, or put another in its place.
            engine.dispose()
            self._initialized_dbs.discard(shard)
        path.touch()
        engine = create_engine(
            self.conn_string_for_shard(shard),
            poolclass=QueuePool,
            pool_size=1,
            connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
        )
        listen(engine, "connect", _do_not_wait_for_the_disk)
        self._engines[shard] = (_identity(path), engine)
        self._engines.move_to_end(shard)
        if len(self._engines) > _OPEN_FILES:
            self._engines.popitem(last=False)[1][1].dispose()
        return engine


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - on the way of every event
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    # In write-ahead mode this survives any crash of a process; a power cut can take the last events with it, and the
    # bricks they recorded are then compared with the stream and recorded again.
    connection.execute("PRAGMA synchronous=NORMAL")
