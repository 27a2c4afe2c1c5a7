"""Dagster's SQLite event log with its connections kept open.

Dagster's own class makes a new SQLAlchemy engine and a new SQLite connection for every event, which costs more than the
event. This one keeps an engine per database file. Files, tables and queries stay Dagster's: either class
opens what the other has written, and removing the block from dagster.yaml switches back.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, EventLogEntry
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
        self._tables: set[str] = set()
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

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Stores events; materialisations of one asset in one transaction per database instead of one each."""
        if len({(event.run_id, event.dagster_event_type, _asset_of(event)) for event in events}) != 1 or (
            events[0].dagster_event_type is not DagsterEventType.ASSET_MATERIALIZATION
        ):
            super().store_event_batch(events)
            return
        inserts = [self.prepare_insert_event(event) for event in events]
        with self.run_connection(events[0].run_id) as connection:
            for insert in inserts:
                connection.execute(insert)
        with self.index_transaction() as connection:
            keys = [connection.execute(insert).inserted_primary_key for insert in inserts]
            ids = [key[0] for key in keys if key]
            self._store_asset_event_tags(connection, events, ids)
            # The asset's own row is about its latest event only.
            self._store_asset_event(connection, events[-1], ids[-1])
        os.utime(self.path_for_shard(events[0].run_id))

    def has_table(self, table_name: str) -> bool:
        """Whether the index has a table. Asked for each event with tags; the answer never turns into no."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

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


def _asset_of(event: EventLogEntry) -> object:
    return event.dagster_event and event.dagster_event.asset_key


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
