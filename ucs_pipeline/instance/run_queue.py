"""Dagster's queue of runs, with the limit of a stream set before the stream's first run starts.

Dagster's own class gives a pool its limit when it first reads a run of it from the queue, and applies it from the next
poll on: the chunks of a feed's first backfill would all start at once, and all but the first be refused.

A run whose process died is launched again at the end of the queue, behind the next chunks of its backfill, which are
refused meanwhile: `queue_again` sends them to the end, too. If Dagster's own class starts several chunks at once, later
ones wait for earlier ones: `running_before`.
"""

from collections.abc import Callable

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext

_BACKFILL_TAG = "dagster/backfill"
_RANGE_TAG, _PARTITION_TAG = "dagster/asset_partition_range_start", "dagster/partition"
_RETRIED_TAG = "dagster/will_retry"
_RETRY_TAG = "dagster/retry_on_asset_or_op_failure"


class StreamRunCoordinator(QueuedRunCoordinator):
    """Queue of runs that gives a pool its limit when the first run of it comes in."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Queues a run."""
        needed = context.dagster_run.run_op_concurrency
        storage = self._instance.event_log_storage
        if needed and self._instance.global_op_concurrency_default_limit:
            for pool in (needed.all_pools or set()) - storage.get_concurrency_keys():
                storage.initialize_concurrency_limit_to_default(pool)
        return super().submit_run(context)


def running_before(instance: DagsterInstance, run: DagsterRun, before: Callable[[str], bool]) -> str | None:
    """Id of a running run of the same backfill whose first partition is `before`; None if there is none.

    A queued one does not count: it may wait for this run to end.
    """
    backfill = run.tags.get(_BACKFILL_TAG)
    if backfill is None:
        return None
    started = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]
    for other in instance.get_runs(RunsFilter(statuses=started, tags={_BACKFILL_TAG: backfill})):
        first = other.tags.get(_RANGE_TAG) or other.tags.get(_PARTITION_TAG)
        if other.asset_selection == run.asset_selection and first and before(first):
            return other.run_id
    return None


def queue_again(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Has Dagster launch a refused run again if an earlier one of the same backfill is launched again.

    It costs the run one of its `run_retries`. Returns whether it is.
    """
    backfill = run.tags.get(_BACKFILL_TAG)
    if backfill is None:
        return False
    before = RunsFilter(job_name=run.job_name, tags={_BACKFILL_TAG: backfill, _RETRIED_TAG: "true"})
    asked = run.asset_selection
    if not any(other.asset_selection == asked for other in instance.get_runs(before)):
        return False
    instance.add_run_tags(run.run_id, {_RETRY_TAG: "true"})
    return True
