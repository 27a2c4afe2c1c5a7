"""Old runs go, and not one brick's record goes with them: on Dagster's event log, on the project's, on PostgreSQL."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from ucs_pipeline.cli.main import ucs
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.prune import Pruned, prune
from ucs_pipeline.orchestration.materializations import recorded
from ucs_pipeline_tests.servers.postgres_server import PostgresServer
from ucs_pipeline_tests.support.home import PROJECT, make_home, run_bricks

KEY = dg.AssetKey("numbers")
FEED = Feed(name="numbers", table="numbers", key="n", bricks={"class": "number", "last": 49_999})


def _storage(file: str) -> str:
    """Where a configuration of the project has its records."""
    found = yaml.safe_load((PROJECT / file).read_text())
    kept = {name: value for name, value in found.items() if name.endswith("storage") or name == "telemetry"}
    return str(yaml.safe_dump(kept))


STORAGES = {
    "dagster": "telemetry: {enabled: false}\n",
    "pooled": _storage("dagster.yaml"),
    "postgresql": _storage("deploy/celery/dagster.yaml"),
}


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(params=STORAGES)
def stored(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance on each of the storages."""
    if request.param == "postgresql":
        monkeypatch.setenv("UCS_POSTGRES_URL", request.getfixturevalue("postgres_url"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(STORAGES[request.param])
    with dg.DagsterInstance.get() as instance:
        yield instance
        instance.wipe()


# As a feed's asset and checks, without its table and stream.
@dg.asset(partitions_def=dg.StaticPartitionsDefinition(FEED.partitions.names()), output_required=False)
def numbers(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
    print("words for the standard output")
    for name in context.partition_keys:
        yield dg.AssetMaterialization(context.asset_key, partition=name, metadata={"rows": 7})
        if name == "0.0.0.4":
            raise dg.Failure("here it ends")


# Where the checks of a feed are: on the asset of its stream.
@dg.asset_check(asset=dg.AssetKey(["redis", "numbers"]))
def no_gaps() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


JOBS = dg.Definitions(
    [numbers],
    asset_checks=[no_gaps],
    jobs=[dg.define_asset_job("numbers_checks", dg.AssetSelection.checks(no_gaps))],
    executor=dg.in_process_executor,
)


def _run(instance: dg.DagsterInstance, first: int, last: int) -> str:
    return run_bricks(JOBS, "numbers", instance, first, last).run_id


def _check(instance: dg.DagsterInstance) -> str:
    return JOBS.resolve_job_def("numbers_checks").execute_in_process(instance=instance).run_id


def _soon() -> datetime:
    return datetime.now(tz=timezone.utc) + timedelta(minutes=1)


def _left(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs()}


def test_runs_go_that_no_brick_and_no_check_is_recorded_by(stored: dg.DagsterInstance, tmp_path: Path) -> None:
    first = _run(stored, 0, 1)
    superseded = _run(stored, 2, 2)
    again = _run(stored, 1, 2)
    old_check, last_check = _check(stored), _check(stored)
    failed = _run(stored, 4, 4)
    record = recorded(stored, FEED, FEED.ordinals)
    assert record.keys() == {0, 1, 2, 4}
    assert prune([FEED], stored, _soon(), dry_run=True) == Pruned(deleted=2, kept=4)
    assert _left(stored) == {first, superseded, again, failed, old_check, last_check}
    assert list((tmp_path / "storage").rglob("*.out"))

    assert prune([FEED], stored, _soon()) == Pruned(deleted=2, kept=4)
    # The run that failed had recorded a brick before.
    assert _left(stored) == {first, again, last_check, failed}
    assert recorded(stored, FEED, FEED.ordinals) == record
    assert stored.get_materialized_partitions(KEY) == {"0.0.0.0", "0.0.0.1", "0.0.0.2", "0.0.0.4"}
    gone = (superseded, old_check)
    assert [path for path in tmp_path.rglob("*") if any(run_id in path.name for run_id in gone)] == []
    assert not list((tmp_path / "storage").rglob("*.out"))
    assert stored.all_logs(first)
    assert prune([FEED], stored, _soon()) == Pruned(deleted=0, kept=4)


def test_deleting_a_run_deletes_the_record_of_its_bricks(stored: dg.DagsterInstance) -> None:
    # Why there is `prune`: this is what Dagster's own button does.
    run_id = _run(stored, 0, 1)
    assert len(recorded(stored, FEED, FEED.ordinals)) == 2
    stored.delete_run(run_id)
    assert stored.get_materialized_partitions(KEY) == set()
    assert recorded(stored, FEED, FEED.ordinals) == {}


def test_younger_runs_and_those_at_work_stay(instance: dg.DagsterInstance) -> None:
    job = JOBS.resolve_implicit_global_asset_job_def()
    selection = frozenset([KEY])
    working = instance.create_run_for_job(job, asset_selection=selection, status=dg.DagsterRunStatus.STARTED)
    failed = instance.create_run_for_job(job, asset_selection=selection)
    instance.report_run_failed(failed)
    assert prune([FEED], instance, datetime.now(tz=timezone.utc) - timedelta(minutes=1)) == Pruned(0, 0)
    assert prune([FEED], instance, _soon()) == Pruned(1, 0)
    assert _left(instance) == {working.run_id}


def test_runs_of_other_assets_and_of_unfinished_backfills_stay(instance: dg.DagsterInstance) -> None:
    @dg.asset
    def other() -> None: ...

    defs = dg.Definitions.merge(JOBS, dg.Definitions(assets=[other]))
    job = defs.resolve_implicit_global_asset_job_def()

    def failed(*names: str, **tags: Any) -> str:
        keys = frozenset(map(dg.AssetKey, names))
        run = instance.create_run_for_job(job, asset_selection=keys, tags=tags)
        instance.report_run_failed(run)
        return run.run_id

    theirs, both = failed("other"), failed("numbers", "other")
    for name, status in (("going", BulkActionStatus.REQUESTED), ("ended", BulkActionStatus.COMPLETED_FAILED)):
        instance.add_backfill(
            PartitionBackfill(name, status, from_failure=False, tags={}, backfill_timestamp=time.time())
        )
    going = failed("numbers", **{"dagster/backfill": "going"})
    failed("numbers", **{"dagster/backfill": "ended"})
    assert prune([FEED], instance, _soon()) == Pruned(deleted=1, kept=1)
    assert _left(instance) == {theirs, both, going}


def test_the_command_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(make_home(tmp_path)))
    done = CliRunner().invoke(ucs, ["prune", "--days", "7", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("would delete 0 runs that ended before 20")
    assert done.stdout.endswith(" UTC; kept 0 with records of bricks or checks\n")
