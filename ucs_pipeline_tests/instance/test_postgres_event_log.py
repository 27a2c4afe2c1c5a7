"""The event log that keeps its PostgreSQL connection is Dagster's event log in every other respect."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest
from sqlalchemy import Connection, text

from ucs_pipeline.instance.grouped_events import Pending
from ucs_pipeline.instance.postgres_event_log import PooledPostgresEventLogStorage
from ucs_pipeline_tests.instance.test_event_log import KEY, MATERIALIZED, NAMES, _run, _seen
from ucs_pipeline_tests.servers.postgres_server import PostgresServer

CLASSES = {
    "pooled": ("ucs_pipeline.instance.postgres_event_log", "PooledPostgresEventLogStorage"),
    "stock": ("dagster_postgres.event_log", "PostgresEventLogStorage"),
}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def url(postgres: PostgresServer, request: pytest.FixtureRequest) -> str:
    """An empty database."""
    name = f"test_{abs(hash(request.node.name))}"
    with closing(psycopg2.connect(postgres.url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
    return f"{postgres.url.rpartition('/')[0]}/{name}"


def _instance(directory: Path, url: str, kind: str) -> dg.DagsterInstance:
    """An instance whose event log is in PostgreSQL, of Dagster's class or ours."""
    home = directory / kind
    home.mkdir(exist_ok=True)
    blocks = {
        part: {"module": module, "class": name, "config": {"postgres_url": url}}
        for part, module, name in (
            ("event_log_storage", *CLASSES[kind]),
            ("run_storage", "dagster_postgres.run_storage", "PostgresRunStorage"),
            ("schedule_storage", "dagster_postgres.schedule_storage", "PostgresScheduleStorage"),
        )
    }
    (home / "dagster.yaml").write_text(json.dumps({"telemetry": {"enabled": False}, **blocks}))
    return dg.DagsterInstance.from_config(str(home))


def test_either_log_goes_on_where_the_other_stopped_and_answers_alike(tmp_path: Path, url: str) -> None:
    for writer, reader in (("pooled", "stock"), ("stock", "pooled")):
        with _instance(tmp_path, url, writer), _instance(tmp_path, url, reader):
            run_id = _run(tmp_path / writer)
        own, other = _seen(tmp_path / writer, run_id), _seen(tmp_path / reader, run_id)
        assert {own.pop("class"), other.pop("class")} == {CLASSES["pooled"][1], CLASSES["stock"][1]}
        assert own == other
        assert len(own["partitions"]) == 30


def test_a_group_leaves_in_the_tables_what_its_events_would_leave_one_by_one(tmp_path: Path, url: str) -> None:
    with _instance(tmp_path, url, "pooled") as pooled, _instance(tmp_path, url, "stock") as stock:
        events = list(pooled.all_logs(_run(tmp_path / "pooled")))
        found = []
        for instance in (pooled, stock):
            _empty(url)
            for entry in events:
                instance.event_log_storage.store_event(entry)
            instance.all_logs(events[0].run_id)
            found.append(_tables(url))
    assert found[0] == found[1]


def _empty(url: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection:
        connection.cursor().execute("TRUNCATE event_logs, asset_event_tags, asset_keys RESTART IDENTITY CASCADE")


def _tables(url: str) -> dict[str, list[Any]]:
    found = {}
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        for table, columns in (
            ("event_logs", "id, run_id, event, dagster_event_type, step_key, asset_key, partition"),
            ("asset_event_tags", "asset_key, event_id, key, value"),
            ("asset_keys", "asset_key, last_materialization, last_run_id, last_materialization_timestamp"),
        ):
            cursor = connection.cursor()
            cursor.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3")
            found[table] = cursor.fetchall()
    assert all(found.values())
    return found


def test_a_kept_connection_that_is_cut_is_made_anew(tmp_path: Path, url: str) -> None:
    with _instance(tmp_path, url, "pooled") as instance:
        storage = instance.event_log_storage
        assert isinstance(storage, PooledPostgresEventLogStorage)
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="a"))
        kept = _backend(storage)
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="b"))
        assert _backend(storage) == kept
        with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
            connection.cursor().execute("SELECT pg_terminate_backend(%s, 10000)", (kept,))
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition="c"))
        assert instance.get_materialized_partitions(KEY) == {"a", "b", "c"}


def _backend(storage: PooledPostgresEventLogStorage) -> int:
    with storage.index_connection() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_a_forked_process_leaves_its_parent_s_connection_and_events_alone(tmp_path: Path, url: str) -> None:
    with _instance(tmp_path, url, "pooled") as instance:
        run_id = _run(tmp_path / "pooled")
        storage = instance.event_log_storage
        assert isinstance(storage, PooledPostgresEventLogStorage)
        kept = _backend(storage)
        [record] = instance.get_records_for_run(run_id, of_type=MATERIALIZED, limit=1).records
        storage.store_event(record.event_log_entry)  # waits
        child = os.fork()
        if not child:
            alone = False
            try:
                alone = _backend(storage) != kept  # writes what waits first, and there is nothing
            finally:
                os._exit(0 if alone else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(instance.get_records_for_run(run_id, of_type=MATERIALIZED).records) == 31


def test_groups_of_one_asset_appear_in_the_order_of_their_ids(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()
    with _instance(tmp_path, url, "pooled") as slow, _instance(tmp_path, url, "pooled") as fast:
        run_id = _run(tmp_path / "pooled")
        entry = slow.get_records_for_run(run_id, of_type=MATERIALIZED, limit=1).records[0].event_log_entry
        storage, other = slow.event_log_storage, fast.event_log_storage
        assert isinstance(storage, PooledPostgresEventLogStorage)
        assert isinstance(other, PooledPostgresEventLogStorage)
        insert = storage._insert

        def slowly(index: Connection, pending: Sequence[Pending]) -> None:
            insert(index, pending)
            inside.set()
            assert go_on.wait(30)

        monkeypatch.setattr(storage, "_insert", slowly)

        def write(log: PooledPostgresEventLogStorage) -> None:
            log.store_event(entry)
            log.flush()
            done.set()

        first, second = (threading.Thread(target=write, args=(log,)) for log in (storage, other))
        first.start()
        assert inside.wait(30)
        second.start()
        _wait_until_somebody_waits(url)
        assert not done.is_set()
        go_on.set()
        first.join()
        second.join()
        assert len(fast.get_records_for_run(run_id, of_type=MATERIALIZED).records) == len(NAMES) + 2


def _wait_until_somebody_waits(url: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        for _ in range(3_000):
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            if cursor.fetchone()[0]:
                return
            threading.Event().wait(0.01)
    raise AssertionError("the second group did not wait for the first")
