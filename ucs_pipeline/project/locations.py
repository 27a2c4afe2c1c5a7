"""The code locations of the commands and the readers, found as Dagster's own commands find them."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import dagster as dg

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.home import project_home
from ucs_pipeline.orchestration._dagster import (
    CodeLocationOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
    ModuleTarget,
    PackageTarget,
    PyProjectFileTarget,
    PythonFileTarget,
    WorkspaceFileTarget,
    WorkspaceLoadTarget,
    get_loadable_targets,
    repository_def_from_target_def,
)
from ucs_pipeline.orchestration.names import feeds_in
from ucs_pipeline.project.file_errors import error_in

_UNSET = re.compile(r'path root:(\w+):.*?environment variable "(\w+)"', re.DOTALL)


class Chosen(NamedTuple):
    """The user's options for where the definitions are, as for `dagster dev`; if empty, the configuration decides."""

    workspace: Sequence[str] = ()
    python_file: Sequence[str] = ()
    module_name: Sequence[str] = ()
    package_name: Sequence[str] = ()
    working_directory: str | None = None
    attribute: str | None = None


class Location(NamedTuple):
    """One code location, loaded in this process."""

    name: str
    repository: dg.RepositoryDefinition
    feeds: Sequence[Feed]
    """By name; of a feed with several streams, its shards."""

    @contextmanager
    def resources(self, keys: Iterable[str]) -> Iterator[object]:
        """Some resources of the location, as attributes. Others are not set up.

        Raises:
            UcsError: one needs an environment variable that is not set.
        """
        there = self.repository.get_top_level_resources()
        wanted = {key: there[key] for key in sorted(set(keys)) if key in there}
        with ExitStack() as opened:
            try:
                resources = opened.enter_context(dg.build_resources(wanted))
            except dg.DagsterInvalidConfigError as error:
                unset = _UNSET.search(str(error))
                if unset is None:
                    raise
                raise UcsError(
                    f"resource {unset[1]!r} needs environment variable {unset[2]}, which is not set. Set it.",
                    "UCS-RESOURCE",
                ) from None
            yield resources

    @contextmanager
    def each_resource(self, keys: Iterable[str]) -> Iterator[object]:
        """As `resources`; an environment variable that is not set is an error only when its resource is used."""
        with ExitStack() as opened:
            found: dict[str, object] = {}
            for key in sorted(set(keys)):
                try:
                    found[key] = getattr(opened.enter_context(self.resources([key])), key, None)
                except UcsError as error:
                    found[key] = error
            yield _Opened(found)


class _Opened:
    def __init__(self, found: Mapping[str, object]) -> None:
        self._found = found

    def __getattr__(self, key: str) -> object:
        found = self._found.get(key)
        if isinstance(found, UcsError):
            raise found
        return found


_chosen = Chosen()


def choose(chosen: Chosen) -> None:
    """Sets the user's options for `locations`."""
    global _chosen
    _chosen = chosen
    locations.cache_clear()


def origins() -> Sequence[CodeLocationOrigin]:
    """Where the code locations are.

    Raises:
        UcsError: no code location is configured.
    """
    directory, attribute = _chosen.working_directory or str(Path.cwd()), _chosen.attribute
    named = [
        *([WorkspaceFileTarget(list(_chosen.workspace))] if _chosen.workspace else []),
        *(PythonFileTarget(file, attribute, directory, None) for file in _chosen.python_file),
        *(ModuleTarget(module, attribute, directory, None) for module in _chosen.module_name),
        *(PackageTarget(package, attribute, directory, None) for package in _chosen.package_name),
    ]
    found = [origin for target in named or _configured() for origin in target.create_origins()]
    if not found:
        raise UcsError(
            f"There is no code location here: {Path.cwd()} has neither a pyproject.toml with [tool.dagster] or "
            "[tool.dg] nor a workspace.yaml. Change to the project's directory, or name the definitions with -m "
            "MODULE, -f FILE or -w WORKSPACE.",
            "UCS-LOCATION",
        )
    return found


def _configured() -> Sequence[WorkspaceLoadTarget]:
    """What Dagster's commands would load here, or else from Dagster's home."""
    directories = [Path.cwd()]
    with suppress(UcsError):
        directories.append(project_home())
    for directory in directories:
        project, workspace = directory / "pyproject.toml", directory / "workspace.yaml"
        if project.is_file() and PyProjectFileTarget(str(project)).create_origins():
            return [PyProjectFileTarget(str(project))]
        if workspace.is_file():
            return [WorkspaceFileTarget([str(workspace)])]
    return []


@cache
def locations() -> Sequence[Location]:
    """The code locations, loaded once.

    Raises:
        UcsError: none is configured, or one cannot be loaded in this process.
    """
    return [_explained(origin) for origin in origins()]


def _explained(origin: CodeLocationOrigin) -> Location:
    directory = package_of(origin) or Path.cwd()
    try:
        return load(origin)
    except UcsError:
        raise
    except Exception as error:
        mistake = error_in(directory, error, directory)
        if mistake is None:
            raise
    found = mistake.sentence if mistake.place == "." else f"{mistake.place}: {mistake.sentence}"
    # Raised outside the except block, so without a cause: Dagster's errors repeat lines of the files, with secrets.
    raise UcsError(f"code location {origin.location_name!r} cannot be loaded: {found}", mistake.code)


def load(origin: CodeLocationOrigin) -> Location:
    """Loads a code location.

    Raises:
        UcsError: it is served by another process, or its files are invalid.
    """
    target = origin.loadable_target_origin if isinstance(origin, ManagedGrpcPythonEnvCodeLocationOrigin) else None
    if target is None or target.executable_path not in (None, sys.executable):
        raise UcsError(
            f"code location {origin.location_name!r} is served by another process. Run ucs where its code is, and name "
            "it with -m MODULE or -f FILE.",
            "UCS-LOCATION",
        )
    found = get_loadable_targets(
        python_file=target.python_file,
        module_name=target.module_name,
        package_name=target.package_name,
        autoload_defs_module_name=target.autoload_defs_module_name,
        working_directory=_importable(target.working_directory),
        attribute=target.attribute,
        resolve_lazy_defs=True,
    )
    repository = repository_def_from_target_def(found[0].target_definition) if len(found) == 1 else None
    if repository is None:
        raise UcsError(
            f"code location {origin.location_name!r} must have one Definitions object or repository. Name it with "
            "--attribute.",
            "UCS-LOCATION",
        )
    assets = repository.assets_defs_by_key.values()
    return Location(origin.location_name, repository, feeds_in(spec for asset in assets for spec in asset.specs))


def package_of(origin: CodeLocationOrigin) -> Path | None:
    """The directory of the package that a code location is in; None if it is a file, or in another process."""
    if not isinstance(origin, ManagedGrpcPythonEnvCodeLocationOrigin):
        return None
    target = origin.loadable_target_origin
    module = target.module_name or target.package_name or target.autoload_defs_module_name
    if not module:
        return None
    _importable(target.working_directory)
    spec = find_spec(module.partition(".")[0])
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def _importable(directory: str | None) -> str:
    """Adds a location's directory, or else the current one, to Python's import path, as Dagster does."""
    found = directory or str(Path.cwd())
    if found not in sys.path:
        sys.path.insert(0, found)
    return found
