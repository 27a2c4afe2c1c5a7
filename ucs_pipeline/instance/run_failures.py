"""Failures of runs that Dagster is still recording.

Dagster stores the event of a failure first, then the run's status, then whether the run is launched again. Its daemon
polls for failures every five seconds. A run that it reads between the first two counts as not failed permanently: the
run is not launched again, and its backfill never ends.
"""

import time
from collections.abc import Mapping

from dagster import DagsterInstance, EventLogEntry, RunsFilter

_PATIENCE_SECONDS = 60
"""How long a status may take. After that its writer has died, and the run monitor reports the failure again."""


def settled(events: Mapping[int, EventLogEntry], instance: DagsterInstance) -> Mapping[int, EventLogEntry]:
    """Events by rising id, up to the first failure whose run has not got its status yet."""
    failed = {event.run_id for event in events.values() if _is_failure(event)}
    if not failed:
        return events
    runs = instance.get_runs(RunsFilter(run_ids=list(failed)))
    waited_for = {run.run_id for run in runs if not run.is_finished}
    since = time.time() - _PATIENCE_SECONDS
    found = {}
    for event_id, event in events.items():
        if event.run_id in waited_for and _is_failure(event) and event.timestamp > since:
            break
        found[event_id] = event
    return found


def _is_failure(event: EventLogEntry) -> bool:
    return event.dagster_event is not None and event.dagster_event.is_run_failure
