"""Dagster's queue of runs, which knows the limit of a stream before it takes the stream's first runs out.

Dagster's own class gives a pool its limit when it first finds a run of it in the queue, and applies it from the next
look on: the chunks of a feed's first backfill would all start at once, and those after the first one be refused.
"""

from dagster import DagsterRun
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext


class StreamRunCoordinator(QueuedRunCoordinator):
    """Queue of runs that gives a pool its limit when the first run of it comes in."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Puts a run into the queue."""
        needed = context.dagster_run.run_op_concurrency
        storage = self._instance.event_log_storage
        if needed and self._instance.global_op_concurrency_default_limit:
            for pool in (needed.all_pools or set()) - storage.get_concurrency_keys():
                storage.initialize_concurrency_limit_to_default(pool)
        return super().submit_run(context)
