"""The event log that keeps its connections is Dagster's event log in every other respect."""

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError

from ucs_pipeline.instance.event_log import PooledSqliteEventLogStorage
from ucs_pipeline.instance.pending_events import PendingEvents
from ucs_pipeline_tests.support.home import make_home, python

KEY = dg.AssetKey("bricks")
MATERIALIZED, PLANNED = dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
NAMES = [f"0.0.0.{n}" for n in range(30)]

WRITE_FOR_EVER = """
import itertools, warnings
import dagster as dg
warnings.simplefilter("ignore")
with dg.DagsterInstance.get() as instance:
    for n in itertools.count():
        instance.report_runless_asset_event(dg.AssetMaterialization("bricks", partition=f"0.0.0.{n}"))
"""

RUN_SLOWLY = """
import sys, time, warnings
import dagster as dg
warnings.simplefilter("ignore")
names = [f"0.0.0.{n}" for n in range(2_000)]

@dg.asset(partitions_def=dg.StaticPartitionsDefinition(names), output_required=False)
def bricks(context):
    for name in context.partition_keys:
        with open(sys.argv[1], "a") as moved:
            moved.write(name + "\\n")
        yield dg.AssetMaterialization(context.asset_key, partition=name, tags={"dagster/data_version": name})
        time.sleep(0.001)

tags = {"dagster/asset_partition_range_start": names[0], "dagster/asset_partition_range_end": names[-1]}
with dg.DagsterInstance.get() as instance:
    dg.materialize([bricks], instance=instance, tags=tags)
"""


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(NAMES), output_required=False)
def bricks(context: dg.AssetExecutionContext) -> Any:
    for name in context.partition_keys:
        yield dg.AssetMaterialization(
            context.asset_key,
            partition=name,
            metadata={"rows": 7, "note": "x"},
            tags={"dagster/data_version": f"7-{name}"},
        )


@pytest.fixture
def pooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pooled").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "pooled"))
    return make_home(tmp_path / "pooled")


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return tmp_path / "stock"


def _run(home: Path) -> str:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        tags = {"dagster/asset_partition_range_start": NAMES[0], "dagster/asset_partition_range_end": NAMES[-1]}
        result = dg.materialize([bricks], instance=instance, tags=tags)
        assert result.success
        return result.run_id


def _seen(home: Path, run_id: str) -> dict[str, Any]:
    """What the UI asks for, without what differs from run to run."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        records = instance.fetch_materializations(KEY, limit=100).records
        return {
            "class": type(instance.event_log_storage).__name__,
            "events": [(r.partition_key, r.storage_id, r.asset_materialization) for r in records],
            "partitions": instance.get_materialized_partitions(KEY),
            "log": [entry.dagster_event_type for entry in instance.all_logs(run_id)],
            "status": instance.get_status_by_partition(KEY, NAMES, dg.StaticPartitionsDefinition(NAMES)),
            "planned": instance.get_latest_storage_id_by_partition(
                KEY, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
            ),
            "versions": instance.event_log_storage.get_latest_tags_by_partition(
                KEY, dg.DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
            ),
            "assets": [record.asset_entry for record in instance.get_asset_records([KEY])],
            "stats": instance.get_run_stats(run_id).materializations,
            "steps": [step.status for step in instance.get_run_step_stats(run_id)],
            "latest": instance.get_latest_storage_id_by_partition(KEY, dg.DagsterEventType.ASSET_MATERIALIZATION),
        }


def test_either_log_opens_what_the_other_has_written_and_answers_alike(pooled: Path, stock: Path) -> None:
    for writer, reader in ((pooled, stock), (stock, pooled)):
        run_id = _run(writer)
        own = _seen(writer, run_id)
        shutil.rmtree(reader / "history", ignore_errors=True)
        shutil.copytree(writer / "history", reader / "history")
        other = _seen(reader, run_id)
        assert {own.pop("class"), other.pop("class")} == {"PooledSqliteEventLogStorage", "SqliteEventLogStorage"}
        assert own == other
        assert len(own["partitions"]) == 30
        _run(reader)  # continues in the other's files


def test_connections_are_kept_and_end_with_the_instance(pooled: Path) -> None:
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        storage = instance.event_log_storage
        assert isinstance(storage, PooledSqliteEventLogStorage)
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="a"))
        kept = dict(storage._engines)
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="b"))
        assert dict(storage._engines) == kept
    assert not storage._engines


def test_files_that_are_made_are_opened_without_dagster_s_migrations(
    pooled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(pooled)
    opened = PooledSqliteEventLogStorage(str(pooled / "history" / "runs"))
    monkeypatch.setattr(ScriptDirectory, "from_config", None)
    assert opened.get_materialized_partitions(KEY) == set(NAMES)
    assert len(opened.get_records_for_run(run, of_type=MATERIALIZED).records) == len(NAMES)
    opened.dispose()


@pytest.mark.parametrize("links", [True, False])
def test_the_file_of_a_run_is_as_dagster_makes_it(
    pooled: Path, stock: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: Path) -> None:
        raise PermissionError

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)

    def tables(home: Path) -> list[Any]:
        with closing(sqlite3.connect(home / "history" / "runs" / f"{_run(home)}.db")) as file:
            schema = file.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
            return [schema, *map(list, map(file.execute, ("SELECT * FROM alembic_version", "PRAGMA journal_mode")))]

    assert tables(pooled) == tables(pooled) == tables(stock)


def test_a_log_deleted_underneath_starts_anew(pooled: Path) -> None:
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="a"))
        for file in (pooled / "history" / "runs").glob("index.db*"):
            file.unlink()
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="b"))
        assert instance.get_materialized_partitions(KEY) == {"b"}


def test_the_live_log_of_a_run_hears_of_new_events(pooled: Path) -> None:
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        run_id = _run(pooled)
        file = pooled / "history" / "runs" / f"{run_id}.db"
        os.utime(file, (0, 0))
        [entry, *_] = instance.all_logs(run_id)
        instance.store_event(entry)
        assert file.stat().st_mtime > 0


def test_a_forked_process_leaves_its_parent_s_events_alone(pooled: Path) -> None:
    run_id = _run(pooled)
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        [record] = instance.get_records_for_run(run_id, of_type=MATERIALIZED, limit=1).records
        storage = instance.event_log_storage
        assert isinstance(storage, PooledSqliteEventLogStorage)
        storage.store_event(record.event_log_entry)  # waits
        with storage._db_lock:  # as if a thread were writing
            child = os.fork()
            if not child:
                signal.alarm(20)
                storage._pending._write = lambda _events: os._exit(1)
                storage.flush()
                os._exit(0 if len(storage.get_materialized_partitions(KEY)) == len(NAMES) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(instance.get_records_for_run(run_id, of_type=MATERIALIZED).records) == 31


def test_threads_may_write_at_once(pooled: Path) -> None:
    with dg.DagsterInstance.from_config(str(pooled)) as instance:

        def write(thread: int) -> None:
            for n in range(20):
                instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=f"{thread}-{n}"))

        threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(instance.get_materialized_partitions(KEY)) == 80


def test_a_killed_writer_leaves_every_event_it_had_written_and_others_go_on(pooled: Path) -> None:
    writers = [python(WRITE_FOR_EVER, pooled) for _ in range(2)]
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        while len(seen := instance.get_materialized_partitions(KEY)) < 20:
            assert all(writer.poll() is None for writer in writers), (pooled / "process.log").read_text()
            time.sleep(0.05)
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert seen <= instance.get_materialized_partitions(KEY)
        before = len(instance.get_materialized_partitions(KEY))
        while len(instance.get_materialized_partitions(KEY)) < before + 20:
            assert writers[1].poll() is None, (pooled / "process.log").read_text()
            time.sleep(0.05)
        writers[1].kill()
        writers[1].wait()


def test_a_group_leaves_in_the_tables_what_its_events_would_leave_one_by_one(pooled: Path, stock: Path) -> None:
    run_id = _run(pooled)
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        events = list(instance.all_logs(run_id))
    kinds = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED}
    assert sum(entry.dagster_event_type in kinds for entry in events) == 60
    found = []
    for home in (pooled, stock):
        shutil.rmtree(home / "history", ignore_errors=True)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            for entry in events:
                instance.event_log_storage.store_event(entry)
        found.append(_tables(home / "history" / "runs", run_id))
    assert found[0] == found[1]


def _tables(directory: Path, run_id: str) -> dict[str, list[Any]]:
    found = {}
    for file, table in ((run_id, "event_logs"), ("index", "event_logs"), ("index", "asset_event_tags")):
        with closing(sqlite3.connect(directory / f"{file}.db")) as connection:
            found[f"{file}.{table}"] = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()
    columns = "asset_key, last_materialization, last_run_id, last_materialization_timestamp"
    with closing(sqlite3.connect(directory / "index.db")) as connection:
        found["assets"] = connection.execute(f"SELECT {columns} FROM asset_keys").fetchall()
    assert all(found.values())
    return found


def test_an_event_that_nothing_follows_is_written_and_the_live_log_of_another_process_hears_of_it(pooled: Path) -> None:
    run_id = _run(pooled)
    with (
        dg.DagsterInstance.from_config(str(pooled)) as writer,
        dg.DagsterInstance.from_config(str(pooled)) as reader,
    ):
        [entry] = writer.get_records_for_run(run_id, of_type=MATERIALIZED, limit=1).records
        cursor = writer.get_records_for_run(run_id).cursor
        heard = threading.Event()
        reader.watch_event_logs(run_id, cursor, lambda *_: heard.set())
        writer.event_log_storage.store_event(entry.event_log_entry)
        assert heard.wait(30)
        assert len(reader.get_records_for_run(run_id, of_type=MATERIALIZED).records) == 31


def test_a_process_reads_its_own_events_at_once(pooled: Path) -> None:
    run_id = _run(pooled)
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        [record] = instance.get_records_for_run(run_id, of_type=MATERIALIZED, limit=1).records
        for n in range(5):
            instance.event_log_storage.store_event(record.event_log_entry)
            assert len(instance.get_records_for_run(run_id, of_type=MATERIALIZED).records) == 31 + n


def test_a_killed_run_has_recorded_no_brick_it_had_not_moved_and_lacks_the_last_moment_at_most(
    pooled: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.touch()
    run = python(f"import sys; sys.argv[1:] = [{str(moved)!r}]\n{RUN_SLOWLY}", pooled)
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        while len(seen := instance.get_materialized_partitions(KEY)) < 100:
            assert run.poll() is None, (pooled / "process.log").read_text()
            time.sleep(0.01)
        run.kill()
        run.wait()
        names = moved.read_text().split()
        recorded = instance.get_materialized_partitions(KEY)
        assert seen <= recorded
        assert recorded == set(names[: len(recorded)])
        [killed] = instance.get_runs()
        own = instance.get_records_for_run(killed.run_id, of_type=MATERIALIZED).records
        assert {record.partition_key for record in own} >= recorded
        assert len(instance.get_records_for_run(killed.run_id, of_type=PLANNED).records) == 2_000
    _run(pooled)  # others continue


def test_events_that_could_not_be_written_in_time_are_written_with_the_next(pooled: Path) -> None:
    run_id = _run(pooled)
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        [record] = instance.get_records_for_run(run_id, of_type=MATERIALIZED, limit=1).records
    tried, broken, written = threading.Event(), threading.Event(), list[int]()

    def write(events: Sequence[object]) -> None:
        tried.set()
        if broken.is_set():
            raise OperationalError("INSERT", {}, Exception("database is locked"))
        written.append(len(events))

    pending = PendingEvents(write)
    broken.set()
    pending.add(record.event_log_entry)
    assert tried.wait(30)
    with pytest.raises(OperationalError, match="database is locked"):
        pending.write()  # somebody hears of this one: as with one event, it is not tried again
    tried.clear()
    pending.add(record.event_log_entry)
    assert tried.wait(30)
    broken.clear()
    pending.add(record.event_log_entry)
    pending.write()
    assert sum(written) == 2


def test_groups_are_written_while_events_come_and_by_nobody_once_they_do_not(pooled: Path) -> None:
    run_id = _run(pooled)
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        [record] = instance.get_records_for_run(run_id, of_type=MATERIALIZED, limit=1).records
    groups, added = list[int](), 0
    pending = PendingEvents(lambda events: groups.append(len(events)))
    deadline = time.monotonic() + 30
    while len(groups) < 3 and time.monotonic() < deadline:
        pending.add(record.event_log_entry)
        added += 1
        time.sleep(0.001)
    assert len(groups) >= 3
    # A thread that waits forever would keep the process from ending.
    for thread in threading.enumerate():
        if thread.name == "ucs-record":
            thread.join(30)
            assert not thread.is_alive()
    assert sum(groups) == added


def test_an_event_whose_group_failed_under_a_log_line_is_written_all_the_same(
    pooled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dagster swallows what goes wrong in a log call: nobody would hear that a brick was not recorded.
    @dg.op(out=dg.Out(dg.Nothing))
    def publish(context: dg.OpExecutionContext) -> Iterator[dg.AssetMaterialization]:
        storage = context.instance.event_log_storage
        assert isinstance(storage, PooledSqliteEventLogStorage)
        pending = storage._pending
        write = pending._write

        def locked(_events: object) -> None:
            monkeypatch.setattr(pending, "_write", write)
            raise OperationalError("INSERT", {}, Exception("database is locked"))

        yield dg.AssetMaterialization(KEY, partition="a")
        monkeypatch.setattr(pending, "_write", locked)
        context.log.info("a pause, as a publisher says it")
        yield dg.AssetMaterialization(KEY, partition="b")

    @dg.job
    def once() -> None:
        publish()

    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        assert once.execute_in_process(instance=instance).success
        assert instance.get_materialized_partitions(KEY) == {"a", "b"}


def test_a_batch_is_stored_as_if_each_event_came_alone(pooled: Path, stock: Path) -> None:
    run_id = _run(pooled)
    with dg.DagsterInstance.from_config(str(pooled)) as instance:
        written = list(instance.all_logs(run_id))
    events = [entry for entry in written if entry.dagster_event_type is dg.DagsterEventType.ASSET_MATERIALIZATION]
    seen = []
    for home in (pooled, stock):
        shutil.rmtree(home / "history", ignore_errors=True)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            storage = instance.event_log_storage
            for batch in (events[:20], events[20:], [events[0], written[0]], []):
                storage.store_event_batch(batch)
            [asset] = instance.get_asset_records([KEY])
            kind, tag = dg.DagsterEventType.ASSET_MATERIALIZATION, "dagster/data_version"
            tags = storage.get_latest_tags_by_partition(KEY, kind, [tag])
        assert len(tags) == 30
        shown = _seen(home, run_id)
        del shown["class"], shown["assets"]
        seen.append((asset.asset_entry.last_materialization, tags, shown))
    assert seen[0] == seen[1]
