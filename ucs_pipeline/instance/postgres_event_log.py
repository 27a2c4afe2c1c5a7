"""Dagster's PostgreSQL event log with its connection kept open, and the events of bricks written in groups.

Dagster's own class opens a connection for every event, and one more for the asset's tables. Tables and queries stay
Dagster's: either class continues where the other stopped, and the class's name in dagster.yaml switches between them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from dagster import EventLogEntry
from dagster._serdes import ConfigurableClassData
from dagster_postgres import utils
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import create_pg_connection, pg_url_from_config
from sqlalchemy import Connection, Engine, create_engine, func, select

from ucs_pipeline.instance.grouped_events import GroupedEventLog
from ucs_pipeline.instance.pending_events import PendingEvents


class PooledPostgresEventLogStorage(GroupedEventLog, PostgresEventLogStorage):
    """PostgreSQL event log that keeps a connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._pending = PendingEvents(self._write)
        super().__init__(*arguments, **named)
        self._engine.dispose()
        # The server or a firewall may have closed a kept connection: each is tested before use.
        settings = {"isolation_level": "AUTOCOMMIT", "pool_size": 1, "pool_pre_ping": True}
        # dagster-postgres before 0.29 knows passwords only.
        tokens = getattr(self, "_token_provider", None)
        self._engine = (
            utils.create_pg_engine(self.postgres_url, tokens, **settings)
            if tokens
            else create_engine(self.postgres_url, **settings)
        )
        self._follow_forks()

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "PooledPostgresEventLogStorage":
        """Dagster's constructor from dagster.yaml."""
        named: dict[str, Any] = {}
        if config_value.get("auth_provider"):
            named["token_provider"] = utils.get_token_provider_from_config(config_value)
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            **named,
        )

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Replaces Dagster's settings for a web server."""
        self._engine.dispose()
        super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)

    def dispose(self) -> None:
        """Writes pending events, and closes every connection."""
        try:
            self.flush()
        finally:
            super().dispose()
            self._engine.dispose()

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        # A read returns what this process has stored, and events keep their order.
        self._pending.write(keep=True)
        with create_pg_connection(self._engine) as connection:
            yield connection

    def _write(self, events: Sequence[EventLogEntry]) -> None:
        pending = self._rows(events)
        with create_pg_connection(self._engine) as kept:
            connection = kept.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                # Dagster remembers up to which id it has seen an asset's events: a group must not appear after an event
                # of the same asset whose id is higher.
                for asset in sorted({str(row["asset_key"]) for _, row in pending}):
                    connection.execute(select(func.pg_advisory_xact_lock(crc32(b"ucs:" + asset.encode()))))
                self._insert(connection, pending)

    def _kept(self) -> Iterable[Engine]:
        return (self._engine,)
