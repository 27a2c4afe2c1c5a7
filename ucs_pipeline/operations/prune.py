"""Deletes old runs of feeds. Deleting a run deletes its events, so a run that recorded a brick stays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import dagster as dg
from dagster import DagsterEventType

from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.launch import unfinished_backfills
from ucs_pipeline.orchestration._dagster import (
    FINISHED_STATUSES,
    SqliteEventLogStorage,
)
from ucs_pipeline.orchestration.checks.definitions import check_key, checks_name
from ucs_pipeline.orchestration.checks.finding import CHECKS
from ucs_pipeline.orchestration.names import feed_key

_PAGE = 1000
_BACKFILL_TAG = "dagster/backfill"


@dataclass(frozen=True)
class Pruned:
    """How many of the old runs were deleted, and how many stay."""

    deleted: int
    kept: int
    """Runs that hold the latest record of a brick or of a check, or belong to a running backfill."""


def prune(feeds: Sequence[Feed], instance: dg.DagsterInstance, before: datetime, *, dry_run: bool = False) -> Pruned:
    """Deletes the feeds' runs that ended before some time and hold nothing that is needed.

    Of the others, the output to stdout and stderr is deleted. A dry run only counts.
    """
    found = _ended(feeds, instance, before)
    # Read after the runs were listed: later records come from other runs.
    needed = {run_id for feed in feeds for run_id in _holders(feed, instance)}
    going_on = {backfill.backfill_id for backfill in unfinished_backfills(instance)}
    deleted = 0
    for run_id, backfill in found.items():
        keep = run_id in needed or backfill in going_on
        deleted += not keep
        if not dry_run:
            instance.compute_log_manager.delete_logs(prefix=[run_id])
            if not keep:
                _delete(run_id, instance)
    return Pruned(deleted, len(found) - deleted)


def _ended(feeds: Sequence[Feed], instance: dg.DagsterInstance, before: datetime) -> dict[str, str | None]:
    """The backfill, if any, of each run that ended before some time and was about these feeds alone."""
    keys = {feed_key(feed) for feed in feeds}
    jobs = {checks_name(feed) for feed in feeds}
    wanted = dg.RunsFilter(statuses=FINISHED_STATUSES, updated_before=before)
    found: dict[str, str | None] = {}
    cursor: str | None = None
    while records := instance.get_run_records(wanted, limit=_PAGE, cursor=cursor):
        for run in (record.dagster_run for record in records):
            asked = {*(run.asset_selection or ()), *(key.asset_key for key in run.asset_check_selection or ())}
            if asked <= keys if asked else run.job_name in jobs:
                found[run.run_id] = run.tags.get(_BACKFILL_TAG)
        cursor = records[-1].dagster_run.run_id
    return found


def _holders(feed: Feed, instance: dg.DagsterInstance) -> Iterator[str]:
    """The runs that recorded a brick or a check of the feed, including former bricks."""
    key = feed_key(feed)
    latest = instance.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
    ids = list(latest.values())
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        records = instance.fetch_materializations(dg.AssetRecordsFilter(key, storage_ids=page), limit=len(page)).records
        yield from (record.run_id for record in records)
    checks = [check_key(feed, check) for check in CHECKS]
    for summary in instance.event_log_storage.get_asset_check_summary_records(checks).values():
        if found := summary.last_completed_check_execution_record:
            yield found.run_id


def _delete(run_id: str, instance: dg.DagsterInstance) -> None:
    instance.delete_run(run_id)
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        # Dagster empties the run's own database, and leaves its file: 0.1 MB and more for each run.
        path = Path(storage.path_for_shard(run_id))
        for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            file.unlink(missing_ok=True)
