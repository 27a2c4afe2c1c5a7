"""The files under `ucs_pipeline/defs`, each loaded by itself, so that one that is wrong hides no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dagster as dg

from ucs_pipeline.errors import SourceError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration._dagster import (
    ComponentPath,
    build_filesystem_component_decl_from_context,
    find_defs_or_component_yaml,
)
from ucs_pipeline.orchestration.build import conflicts, feeds_of
from ucs_pipeline.project.file_errors import DEFS, FileError, error_in, shown_path


class LoadResult(NamedTuple):
    """What is in the files."""

    feeds: list[tuple[Path, Feed]]
    """The feeds that load, each with its file; where a feed has several streams, its shards."""
    mistakes: list[FileError]


def load_files() -> LoadResult:
    """Loads each file, and looks at what cannot be beside each other."""
    feeds: list[tuple[Path, Feed]] = []
    mistakes: list[FileError] = []
    files = list(_files(DEFS)) if DEFS.is_dir() else []
    if not files:
        where = shown_path(DEFS)
        return LoadResult([], [FileError(where, f"there is no feed: write one into {where}/<name>/defs.yaml")])
    project = dg.ComponentTree.for_project(DEFS.parent)
    for path, file in files:
        if file.suffix != ".py" and not _has_content(file):
            mistakes.append(FileError(shown_path(file), "the file is empty: expected `type` and `attributes`"))
            continue
        try:
            # What is no feed, such as the resources, is loaded as well: it may be wrong.
            feeds += [(file, feed) for feed in feeds_of(_load(project, path))]
        except Exception as error:
            mistake = error_in(file, error)
            if mistake is None:
                raise
            mistakes.append(mistake)
    origins = {id(feed): file for file, feed in feeds} | {id(feed.parent): file for file, feed in feeds}
    for clash in conflicts([feed for _, feed in feeds]):
        places = dict.fromkeys(shown_path(origins[id(feed)]) for feed in clash.feeds)
        mistakes.append(FileError(" and ".join(places), clash.sentence))
    return LoadResult(feeds, mistakes)


def load() -> dg.Definitions:
    """The definitions of all files under `defs`.

    Raises:
        UcsError: a file is wrong.
    """
    try:
        defs = dg.load_from_defs_folder(path_within_project=DEFS.parent)
        # What is wrong with the definitions as a whole, Dagster says here and not at their first use.
        defs.resolve_asset_graph()
        return defs
    except Exception as error:
        mistakes = explain(error)
        if not mistakes:
            raise
    # Raised out here, it has no cause: Dagster's own errors repeat lines of the files, and with them secrets.
    more = f" (and {len(mistakes) - 1} more: `ucs check` says all)" if len(mistakes) > 1 else ""
    raise UcsError(f"{mistakes[0]}{more}")


def check() -> tuple[list[str], list[FileError]]:
    """Names of the feeds that load, and everything that is wrong.

    Imports the functions that feeds name as their `transform`.

    Raises:
        UcsError: what is wrong is not in a file of feeds.
    """
    feeds, mistakes = load_files()
    wholes = {id(feed.parent): (file, feed.parent) for file, feed in feeds}.values()
    mistakes += [mistake for file, feed in wholes if (mistake := _wrong_transform(file, feed))]
    if not mistakes:
        try:
            dg.Definitions.validate_loadable(load())
        except UcsError:
            raise
        except Exception as error:
            mistake = error_in(DEFS, error)
            if mistake is None:
                raise
            mistakes.append(mistake)
    return sorted(feed.name for _, feed in wholes), mistakes


def explain(error: Exception) -> list[FileError]:
    """What is wrong with the files, if the definitions fail to load with that error; nothing if it is not theirs."""
    mistakes = load_files().mistakes
    if mistakes or isinstance(error, UcsError):
        return mistakes
    mistake = error_in(DEFS, error)
    return [mistake] if mistake else []


def _files(directory: Path) -> Iterator[tuple[Path, Path]]:
    """What Dagster loads as one, and the file that says what it is."""
    if file := find_defs_or_component_yaml(directory):
        yield directory, file
        return
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.suffix == ".py":
            yield path, path
        elif path.is_dir():
            yield from _files(path)


def _has_content(file: Path) -> bool:
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return any(line and not line.startswith("#") for line in lines)


def _load(project: dg.ComponentTree, path: Path) -> dg.Definitions:
    tree = dg.ComponentTree.from_module(project.defs_module, project.project_root)
    context = tree.decl_load_context.for_component_loc(ComponentPath.from_path(path))
    # The tree takes this for all there is in the project.
    tree.state_tracker.set_cache_data(
        ComponentPath.from_path(tree.defs_module_path),
        component_decl=build_filesystem_component_decl_from_context(context),
    )
    return tree.build_defs()


def _wrong_transform(file: Path, feed: Feed) -> FileError | None:
    if feed.transform is None:
        return None
    from ucs_pipeline.entries.transform import Transform

    try:
        Transform(feed.transform, feed.constants)
    except SourceError as error:
        return FileError(shown_path(file), f"feed {feed.name!r}: {error}")
    return None
