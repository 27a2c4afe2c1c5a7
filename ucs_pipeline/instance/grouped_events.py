"""Dagster's event logs in SQL, with the events of bricks written in groups.

A run's events of bricks wait at most 0.3 s for others to share a transaction. A thread then converts them to rows and
writes them. A process killed meanwhile leaves bricks unrecorded whose rows are in the stream, never the reverse: the
next run compares and records them.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakMethod

from dagster import DagsterEventType, EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorage, SqlEventLogStorageTable
from sqlalchemy import Connection, Engine

from ucs_pipeline.instance.pending_events import PendingEvents
from ucs_pipeline.instance.run_failures import settled

_GROUP = 200
"""Events written in one transaction at most."""

_GROUPED = {DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_MATERIALIZATION_PLANNED}
"""The events that a run has per brick."""

INSERT = SqlEventLogStorageTable.insert()
"""Adds rows to a table of events."""

Pending = tuple[EventLogEntry, Mapping[str, Any]]
"""An event, and its row in the table of events."""

_INSERT_FOR_IDS = INSERT.returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)


class GroupedEventLog(SqlEventLogStorage):
    """Groups of events for any database; the base class before Dagster's own."""

    _pending: PendingEvents
    _group: Connection

    def _follow_forks(self) -> None:
        forked = WeakMethod(self._forked)
        os.register_at_fork(after_in_child=lambda: (method := forked()) and method())

    def _forked(self) -> None:
        # Pending events and connections belong to the parent.
        self._pending.forget()
        for engine in self._kept():
            engine.dispose(close=False)

    def _kept(self) -> Iterable[Engine]:
        """The engines whose connections are kept."""
        raise NotImplementedError

    def store_event(self, event: EventLogEntry) -> None:
        """Stores one event. A run's materialisations and plans of them are written in groups, a moment later."""
        if waits(event):
            if self._pending.add(event) >= _GROUP:
                self.flush()
            return
        if event.dagster_event:
            # Raises if it cannot be written: the step fails, as it would with a single event.
            self.flush()
        super().store_event(event)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Stores events, and returns when they are written."""
        for event in events:
            if _in_groups(event):
                self._pending.add(event)
            else:
                self.store_event(event)
        self.flush()

    def get_logs_for_all_runs_by_log_id(self, *arguments: Any, **named: Any) -> Mapping[int, EventLogEntry]:
        """Events of all runs after one, by id, for the daemon that launches failed runs again."""
        found = super().get_logs_for_all_runs_by_log_id(*arguments, **named)
        return settled(found, self._instance) if self.has_instance else found

    def index_connection(self) -> AbstractContextManager[Connection]:
        """A connection to the tables of all runs. It shares the transaction of a group that is being written."""
        if self._pending.writing:
            return nullcontext(self._group)
        return super().index_connection()  # type: ignore[safe-super]  # Dagster's own class comes next

    def flush(self) -> None:
        """Writes the events that wait for their group. Those that cannot be written are dropped, as one event would be.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: they cannot be written.
        """
        self._pending.write()

    def _rows(self, events: Sequence[EventLogEntry]) -> Sequence[Pending]:
        return [(event, self._event_to_row(event)) for event in events]

    def _insert(self, index: Connection, pending: Sequence[Pending]) -> None:
        """Adds a group to the tables of all runs, within the transaction of a connection."""
        self._group = index
        events, rows = [event for event, _ in pending], [row for _, row in pending]
        ids = index.scalars(_INSERT_FOR_IDS, rows).all()
        self.store_asset_event_tags(events, ids)
        # The asset's row holds its latest event of each kind only.
        latest: dict[object, tuple[EventLogEntry, int]] = {}
        for event, event_id, row in zip(events, ids, rows, strict=True):
            kind = (row["asset_key"], row["dagster_event_type"])
            latest.pop(kind, None)
            latest[kind] = (event, event_id)
        for event, event_id in latest.values():
            self.store_asset_event(event, event_id)


def waits(event: EventLogEntry) -> bool:
    """Whether an event waits for a group: a run's, about a brick."""
    return bool(event.run_id) and _in_groups(event)


def _in_groups(event: EventLogEntry) -> bool:
    found = event.dagster_event
    return found is not None and found.event_type in _GROUPED and found.asset_key is not None
