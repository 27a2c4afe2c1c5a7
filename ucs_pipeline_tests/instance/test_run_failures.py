"""When Dagster's daemon, which launches failed runs again, hears of a failure: once the run has the status."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, JobFailureData, RunFailureReason
from dagster._core.events.log import EventLogEntry
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon

from ucs_pipeline_tests.instance.test_postgres_event_log import _instance
from ucs_pipeline_tests.servers.postgres_server import PostgresServer
from ucs_pipeline_tests.support.home import make_home

# Dagster's daemon logs this at its first poll.
pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")

STARTED, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE


class Daemon(EventLogConsumerDaemon):
    """Dagster's own, which records the runs it is notified of instead of launching them again."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        super().__init__()
        self.heard: list[tuple[str, dg.DagsterRunStatus]] = []
        self._context: Any = SimpleNamespace(instance=instance)
        self.look()

    @property
    def handle_updated_runs_fns(self) -> Sequence[Callable[..., Iterator[None]]]:
        """What it does with runs whose end it hears of."""

        def hear(_context: object, records: Sequence[dg.RunRecord], _logger: object) -> Iterator[None]:
            self.heard += [(record.dagster_run.run_id, record.dagster_run.status) for record in records]
            yield

        return [hear]

    def look(self) -> None:
        """One of its rounds."""
        for _ in self.run_iteration(self._context):
            pass


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.from_config(str(make_home(tmp_path))) as instance:
        yield instance


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with PostgresServer() as server, _instance(tmp_path, server.url, "pooled") as instance:
        yield instance


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text(json.dumps({"telemetry": {"enabled": False}}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def _run(instance: dg.DagsterInstance) -> str:
    return instance.add_run(dg.DagsterRun(job_name="job", status=STARTED)).run_id


def _failure(run_id: str) -> EventLogEntry:
    data = JobFailureData(error=None, failure_reason=RunFailureReason.RUN_EXCEPTION)
    event = DagsterEvent("PIPELINE_FAILURE", "job", event_specific_data=data)
    made: EventLogEntry = EventLogEntry(None, "debug", "", run_id, time.time(), dagster_event=event)  # type: ignore[no-untyped-call]
    return made


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "stock"])
def test_a_daemon_that_looks_while_a_failure_is_written_down_hears_of_it_once_and_as_one(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance: dg.DagsterInstance = request.getfixturevalue(kind)
    daemon = Daemon(instance)
    first, second = _run(instance), _run(instance)
    instance.handle_new_event(_failure(first))
    set_status = instance.run_storage.handle_run_event

    def look_first(*arguments: Any) -> None:
        daemon.look()
        set_status(*arguments)

    monkeypatch.setattr(instance.run_storage, "handle_run_event", look_first)
    instance.handle_new_event(_failure(second))
    daemon.look()
    daemon.look()
    # Dagster's own log is the reason for all this: once it reports FAILURE here, this can be deleted.
    assert dict(daemon.heard) == {first: FAILURE, second: STARTED if kind == "stock" else FAILURE}
    assert len(daemon.heard) == 2


def test_a_failure_whose_status_never_comes_is_heard_of_in_the_end(
    sqlite: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(sqlite)
    run_id = _run(sqlite)
    sqlite.event_log_storage.store_event(_failure(run_id))
    daemon.look()
    assert daemon.heard == []
    monkeypatch.setattr("ucs_pipeline.instance.run_failures._PATIENCE_SECONDS", -1)
    daemon.look()
    assert daemon.heard == [(run_id, STARTED)]
