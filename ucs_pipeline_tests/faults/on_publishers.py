"""Faults of publishers: processes that die, stand still or get company. Each returns whether it took place."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ucs_pipeline_tests.faults.orders import Accident
from ucs_pipeline_tests.faults.stage import MAIN, OTHER, Stage
from ucs_pipeline_tests.faults.workers import Worker
from ucs_pipeline_tests.servers.redis_server import RedisServer


def publisher_killed(stage: Stage) -> bool:
    """SIGKILL, and a new process."""
    stage.kill(MAIN)
    stage.nap(0.05)
    stage.publish(MAIN)
    return True


def publisher_frozen(stage: Stage) -> bool:
    """SIGSTOP; another publisher takes over; SIGCONT."""
    if stage.busy(OTHER):
        return False
    with stopped(stage.worker(MAIN)):
        stage.publish(OTHER)
        let_the_other_go_on(stage)
    return True


def two_at_once(stage: Stage) -> bool:
    """A second publisher in parallel to the first."""
    if stage.busy(OTHER):
        return False
    stage.worker(OTHER)
    if not stage.busy(MAIN):
        stage.publish(MAIN)
    stage.publish(OTHER)
    return True


def run_killed(stage: Stage) -> bool:
    """SIGKILL of a Dagster run just before or after it stores an event."""
    return _run_fails(stage, Accident(_some_event(stage), stored=stage.rng.random() < 0.5))


def disk_full(stage: Stage) -> bool:
    """Dagster's files cannot grow any more from one event on."""
    return _run_fails(stage, Accident(_some_event(stage), limit=stage.rng.randint(0, 400_000)))


def let_the_other_go_on(stage: Stage) -> None:
    """Waits until the second publisher got on by some rows; in every second case to its end."""
    share = stage.rng.choice([2.0, stage.rng.random()])
    there = stage.rig.length(stage.stream) or 0
    wanted = there + round(share * (stage.shape.rows - there))
    stage.until(lambda: not stage.busy(OTHER) or stage.at(wanted))


@contextmanager
def stopped(process: Worker | RedisServer) -> Iterator[None]:
    """A process that stands still meanwhile."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def _run_fails(stage: Stage, accident: Accident) -> bool:
    return stage.run_asset(accident).error is not None


def _some_event(stage: Stage) -> int:
    return stage.rng.randint(1, len(stage.shape.starts))
