"""Runs as Celery tasks with a lease each: a run whose worker is gone fails within a minute.

Dagster's own launcher asks Celery's result backend for the state of a task. A task whose worker died stays "STARTED"
there. So a worker renews a lease in the result backend while it executes a run, and a started run without a lease
fails. An error does no harm: a worker that was frozen and continues finds that the stream has changed, and adds nothing
twice.
"""

import threading
from contextlib import suppress

from celery import Celery
from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from redis.exceptions import RedisError

LEASE_SECONDS = 30
"""Lifetime of a lease that is not renewed."""

_RENEW_SECONDS = 5


class LeasedCeleryRunLauncher(CeleryRunLauncher):
    """Starts runs as Celery tasks whose workers hold leases. The result backend has to be a Redis."""

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """The state of the worker of a run that has started."""
        found = super().check_run_worker_health(run)
        if found.status in (WorkerStatus.SUCCESS, WorkerStatus.FAILED):
            return found
        # Dagster reads the run again before it fails it, so a run that ends at this moment is not affected.
        if self.celery.backend.client.exists(_key(run.tags[DAGSTER_CELERY_TASK_ID_TAG])):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"its worker has not renewed its lease for {LEASE_SECONDS} s")


class Lease:
    """A worker's lease, renewed by a thread from `hold` until `release`."""

    def __init__(self, app: Celery, task_id: str) -> None:
        self._app = app
        self._key = _key(task_id)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ucs-lease", daemon=True)

    def hold(self) -> None:
        """Takes the lease."""
        self._renew()
        self._thread.start()

    def release(self) -> None:
        """Gives the lease back; if Redis cannot be reached, it runs out."""
        self._over.set()
        self._thread.join()
        with suppress(RedisError):
            self._app.backend.client.delete(self._key)

    def _keep(self) -> None:
        while not self._over.wait(_RENEW_SECONDS):
            self._renew()

    def _renew(self) -> None:
        # A short outage of Redis must not end a run; during a long one, nobody reads leases.
        with suppress(RedisError):
            self._app.backend.client.set(self._key, b"", ex=LEASE_SECONDS)


def _key(task_id: str) -> str:
    return f"ucs-lease-{task_id}"
