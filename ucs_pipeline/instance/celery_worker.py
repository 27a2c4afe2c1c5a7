"""The Celery app of a worker: `celery -A ucs_pipeline.instance.celery_worker worker`.

Broker and result backend are those of the launcher in dagster.yaml. Dagster's own worker command needs a second file
for them, and leaves a copy with passwords in DAGSTER_HOME at each start.
"""

from celery import Celery
from celery.signals import task_postrun, task_prerun
from dagster._core.instance.ref import InstanceRef
from dagster_celery.tasks import create_execute_job_task

from ucs_pipeline.errors import UcsError
from ucs_pipeline.home import project_home
from ucs_pipeline.instance.celery_launcher import Lease, LeasedCeleryRunLauncher

_leases: dict[str, Lease] = {}


def make_app() -> Celery:
    """The launcher's app, with the task that executes a run. Connects to nothing.

    Raises:
        UcsError: dagster.yaml names another launcher.
    """
    home = project_home()
    launcher = InstanceRef.from_dir(str(home)).run_launcher
    if not isinstance(launcher, LeasedCeleryRunLauncher):
        raise UcsError(
            f"run_launcher in {home / 'dagster.yaml'} is {type(launcher).__name__}, expected LeasedCeleryRunLauncher. "
            "Use deploy/celery/dagster.yaml.",
            "UCS-HOME",
        )
    create_execute_job_task(launcher.celery)
    return launcher.celery


app = make_app()


@task_prerun.connect  # type: ignore[untyped-decorator]
def _hold(task_id: str, **_: object) -> None:
    _leases[task_id] = Lease(app, task_id)
    _leases[task_id].hold()


@task_postrun.connect  # type: ignore[untyped-decorator]
def _release(task_id: str, **_: object) -> None:
    _leases.pop(task_id).release()
