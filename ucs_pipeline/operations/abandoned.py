"""Runs whose process was killed before it could record their end: found by a lock that ends with the process.

Dagster would show them as running until something else ends them, and the feed's sensor and `ucs publish` would wait.
"""

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from ucs_pipeline.home import data_dir


@contextmanager
def marked_running() -> Iterator[str]:
    """The id of a new run, marked as running while this process lives."""
    run_id = str(uuid.uuid4())
    mark = _marks() / run_id
    with mark.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield run_id
        mark.unlink(missing_ok=True)


def end_abandoned(instance: dg.DagsterInstance) -> None:
    """Records the runs of killed processes in this home as failed."""
    for mark in _marks().iterdir():
        try:
            with mark.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                run = instance.get_run_by_id(mark.name)
                if run and not run.is_finished:
                    instance.report_run_failed(run, "The process that ran it was killed.")
                mark.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            # It is alive, or it ended meanwhile.
            continue


def _marks() -> Path:
    directory = data_dir() / "runs"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
