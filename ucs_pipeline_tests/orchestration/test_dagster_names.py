"""What this project relies on in Dagster and Dagster does not document: each fails by its name when it moves."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest

import ucs_pipeline
from ucs_pipeline.orchestration import _dagster
from ucs_pipeline.orchestration.assets import _NO_FURTHER_EVENT
from ucs_pipeline.orchestration.names import pool

PACKAGE = Path(ucs_pipeline.__file__).parent
KEY = dg.AssetKey("rows")
NOTHING = cast("dg.DagsterType", dg.Nothing)
RANGE = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]), dagster_type=NOTHING)
def rows(context: dg.AssetExecutionContext) -> Iterator[Any]:
    for key in context.partition_keys:
        yield dg.AssetMaterialization(KEY, partition=key)
    yield dg.Output(None, metadata=_NO_FURTHER_EVENT)


@dg.asset(deps=[rows])
def behind() -> None: ...


def _undocumented() -> Iterator[str]:
    """Names that are imported from Dagster's private modules; of a name that has moved, all its places in one."""
    for path in (PACKAGE / "orchestration" / "_dagster.py", *sorted((PACKAGE / "instance").glob("*.py"))):
        tree = ast.parse(path.read_text())
        moved = [node for node in tree.body if isinstance(node, ast.Try)]
        for node in [*tree.body, *moved]:
            imports = [part for part in ast.walk(node) if isinstance(part, ast.ImportFrom)]
            names = [f"{part.module}.{name.name}" for part in imports for name in part.names]
            private = [name for name in names if re.match(r"dagster(\._|\.components\.|_)", name)]
            if isinstance(node, ast.Try):
                yield "|".join(private)
            else:
                yield from private


@pytest.mark.parametrize("name", sorted(set(_undocumented())))
def test_the_name_is_there(name: str) -> None:
    def found(place: str) -> bool:
        module, _, attribute = place.rpartition(".")
        return hasattr(import_module(module), attribute)

    assert any(map(found, name.split("|"))), f"{name} has moved"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("_core.storage.tags.BACKFILL_ID_TAG", "dagster/backfill"),
        ("_core.storage.tags.ROOT_BACKFILL_ID_TAG", "dagster/root_backfill_id"),
        ("_core.storage.tags.WILL_RETRY_TAG", "dagster/will_retry"),
        ("_core.storage.tags.RETRY_ON_ASSET_OR_OP_FAILURE_TAG", "dagster/retry_on_asset_or_op_failure"),
        ("_core.storage.tags.ASSET_PARTITION_RANGE_START_TAG", "dagster/asset_partition_range_start"),
        ("_core.storage.tags.ASSET_PARTITION_RANGE_END_TAG", "dagster/asset_partition_range_end"),
        ("_core.storage.tags.PARTITION_NAME_TAG", "dagster/partition"),
        ("_core.definitions.data_version.CODE_VERSION_TAG", "dagster/code_version"),
        ("_core.definitions.data_version.DATA_VERSION_TAG", "dagster/data_version"),
        ("_core.definitions.data_version.INPUT_DATA_VERSION_TAG_PREFIX", "dagster/input_data_version"),
        ("_core.definitions.data_version.INPUT_EVENT_POINTER_TAG_PREFIX", "dagster/input_event_pointer"),
        ("_core.instance.utils.RUNLESS_RUN_ID", ""),
        ("_core.instance.utils.RUNLESS_JOB_NAME", ""),
    ],
)
def test_the_word_is_the_same(place: str, expected: str) -> None:
    module, _, name = place.rpartition(".")
    assert getattr(import_module(f"dagster.{module}"), name) == expected


@pytest.mark.parametrize(
    ("owner", "methods"),
    [
        ("SqlEventLogStorage", "_event_to_row store_asset_event store_asset_event_tags index_connection has_table"),
        ("SqliteEventLogStorage", "_connect _initdb path_for_shard conn_string_for_shard optimize_for_webserver"),
    ],
)
def test_the_method_of_an_event_log_is_there(owner: str, methods: str) -> None:
    class_ = getattr(import_module("dagster._core.storage.event_log"), owner)
    assert [name for name in methods.split() if not hasattr(class_, name)] == []


def test_source_asset_observation_metadata_adds_no_event_and_lets_what_is_behind_run(
    instance: dg.DagsterInstance,
) -> None:
    defs = dg.Definitions([rows, behind], jobs=[dg.define_asset_job("all", [rows, behind])])
    done = defs.resolve_job_def("all").execute_in_process(instance=instance, tags=RANGE)
    assert done.success
    events = done.get_asset_materialization_events()
    assert [(event.asset_key, event.partition) for event in events if event.asset_key == KEY] == [
        (KEY, key) for key in "abc"
    ]
    assert [event.asset_key for event in events if event.asset_key != KEY] == [dg.AssetKey("behind")]


def test_get_and_update_asset_status_cache_value_knows_a_new_materialization(instance: dg.DagsterInstance) -> None:
    partitions = rows.partitions_def
    assert partitions is not None
    for expected in (["a"], ["a", "c"]):
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=expected[-1]))
        found = _dagster.get_and_update_asset_status_cache_value(instance, KEY, partitions)
        assert found is not None
        assert sorted(found.deserialize_materialized_partition_subsets(partitions).get_partition_keys()) == expected


def test_object_metadata_value_holds_an_object_in_its_process_only() -> None:
    from dagster import deserialize_value, serialize_value

    held = _dagster.ObjectMetadataValue("shown", instance=rows)
    assert held.instance is rows
    stored = deserialize_value(serialize_value(held), _dagster.ObjectMetadataValue)
    assert (stored.class_name, stored.instance) == ("shown", None)


def test_is_valid_name_refuses_what_dagster_reserves() -> None:
    assert [name for name in ("rows", "config", "context", "in") if _dagster.is_valid_name(name)] == ["rows"]


def test_is_valid_cron_string_knows_a_schedule() -> None:
    assert [text for text in ("30 5 * * *", "soon") if _dagster.is_valid_cron_string(text)] == ["30 5 * * *"]


def test_terminal_statuses_are_those_of_backfills_and_runs_that_ended() -> None:
    status = _dagster.BulkActionStatus
    assert {status.REQUESTED, status.CANCELING}.isdisjoint(_dagster.BULK_ACTION_TERMINAL_STATUSES)
    assert {status.COMPLETED_SUCCESS, status.COMPLETED_FAILED, status.CANCELED} <= {
        *_dagster.BULK_ACTION_TERMINAL_STATUSES
    }
    assert set(_dagster.FINISHED_STATUSES) == {
        dg.DagsterRunStatus.SUCCESS,
        dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.CANCELED,
    }


@pytest.mark.parametrize("stream", ["flights", "rows.0", "{tenant}:orders", "заказы"])
def test_dagster_takes_the_pool_of_any_stream(stream: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_]+", pool(stream))

    @dg.asset(pool=pool(stream))
    def pooled() -> None: ...

    assert pooled.op.pool == pool(stream)


def test_streams_of_other_names_have_other_pools() -> None:
    names = ["flights", "rows.0", "rows.1", "rows-0", "rows_0", "a:b", "заказы", "поезда"]
    assert len(set(map(pool, names))) == len(names)
