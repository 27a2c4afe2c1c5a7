"""Where a `dagster.yaml` finds its event log."""

from ucs_pipeline.instance.event_log import PooledSqliteEventLogStorage as PooledSqliteEventLogStorage
