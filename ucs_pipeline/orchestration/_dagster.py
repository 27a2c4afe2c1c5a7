"""The names of Dagster that it does not document, in one place. Test each with a new version."""

import logging
from collections.abc import Callable
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset as AssetGraphSubset
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph as BaseAssetGraph
from dagster._core.definitions.metadata.metadata_value import ObjectMetadataValue as ObjectMetadataValue
from dagster._core.definitions.reconstruct import repository_def_from_target_def as repository_def_from_target_def
from dagster._core.definitions.utils import is_valid_name as is_valid_name
from dagster._core.events import StepMaterializationData as StepMaterializationData
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES as BULK_ACTION_TERMINAL_STATUSES
from dagster._core.execution.backfill import BulkActionsFilter as BulkActionsFilter
from dagster._core.execution.backfill import BulkActionStatus as BulkActionStatus
from dagster._core.execution.backfill import PartitionBackfill as PartitionBackfill
from dagster._core.instance.utils import RUNLESS_JOB_NAME as RUNLESS_JOB_NAME
from dagster._core.instance.utils import RUNLESS_RUN_ID as RUNLESS_RUN_ID
from dagster._core.remote_origin import CodeLocationOrigin as CodeLocationOrigin
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin as ManagedGrpcPythonEnvCodeLocationOrigin,
)
from dagster._core.storage.dagster_run import FINISHED_STATUSES as FINISHED_STATUSES
from dagster._core.storage.event_log import SqliteEventLogStorage as SqliteEventLogStorage
from dagster._core.storage.partition_status_cache import (
    get_and_update_asset_status_cache_value as get_and_update_asset_status_cache_value,
)
from dagster._core.storage.tags import BACKFILL_ID_TAG as BACKFILL_ID_TAG
from dagster._core.storage.tags import ROOT_BACKFILL_ID_TAG as ROOT_BACKFILL_ID_TAG
from dagster._core.utils import make_new_backfill_id as make_new_backfill_id
from dagster._core.workspace.load_target import ModuleTarget as ModuleTarget
from dagster._core.workspace.load_target import PackageTarget as PackageTarget
from dagster._core.workspace.load_target import PyProjectFileTarget as PyProjectFileTarget
from dagster._core.workspace.load_target import PythonFileTarget as PythonFileTarget
from dagster._core.workspace.load_target import WorkspaceFileTarget as WorkspaceFileTarget
from dagster._core.workspace.load_target import WorkspaceLoadTarget as WorkspaceLoadTarget
from dagster._grpc.utils import get_loadable_targets as get_loadable_targets
from dagster._time import get_current_timestamp as get_current_timestamp
from dagster._utils.schedules import is_valid_cron_string as is_valid_cron_string
from dagster._utils.warnings import disable_dagster_warnings as disable_dagster_warnings
from dagster.components.core.component_tree import ComponentTreeException as ComponentTreeException
from dagster.components.core.defs_module import ComponentFileModel as ComponentFileModel
from dagster.components.core.defs_module import ComponentPath
from dagster.components.core.defs_module import find_defs_or_component_yaml as find_defs_or_component_yaml
from dagster.components.resolved.context import EnvScope as EnvScope  # type: ignore[attr-defined]
from dagster.components.resolved.errors import ResolutionException as ResolutionException

try:
    from dagster.components.core.decl import build_filesystem_component_decl_from_context as _declare
except ImportError:  # before Dagster 1.13.10
    from dagster.components.core.decl import (  # type: ignore[attr-defined, no-redef]
        build_component_decl_from_context as _declare,
    )


def on_warning(instance: dg.DagsterInstance, run_id: str, say: Callable[[str], None]) -> None:
    """Reports each warning that a run in this process logs, and each retry of a step."""

    def heard(event: dg.EventLogEntry) -> None:
        found = event.dagster_event
        if found is None:
            if event.level == logging.WARNING:
                say(event.user_message)
        elif found.is_step_up_for_retry:
            data = found.step_retry_data
            cause = f"{data.error.cause.message.strip()} " if data.error.cause else ""
            say(f"{cause}Trying again in {data.seconds_to_wait or 0:g} s.")

    instance.add_event_listener(run_id, heard)


def defs_alone(project: dg.ComponentTree, path: Path) -> dg.Definitions:
    """The definitions of one file or folder under a project's `defs`, loaded alone."""
    tree = dg.ComponentTree.from_module(project.defs_module, project.project_root)
    context, place = tree.decl_load_context, ComponentPath.from_path(path)
    named_anew = hasattr(context, "for_component_loc")  # since Dagster 1.13.10
    at = "for_component_loc" if named_anew else "for_component_path"
    tree.state_tracker.set_cache_data(
        ComponentPath.from_path(tree.defs_module_path), component_decl=_declare(getattr(context, at)(place))
    )
    return tree.build_defs() if named_anew else tree.build_defs_at_path(path)


def resource_class(definition: dg.ResourceDefinition | None) -> type | None:
    """The class of a resource with settings; None if a function makes it, since its class is known in a run only."""
    return getattr(definition, "configurable_resource_cls", None)
