"""The files of definitions, each loaded alone, so that an invalid one hides no other."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import dagster as dg

from ucs_pipeline.errors import SourceError, UcsError, without_code
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration._dagster import CodeLocationOrigin, defs_alone, find_defs_or_component_yaml
from ucs_pipeline.orchestration.build import conflicts, feeds_of
from ucs_pipeline.orchestration.resources import refuse_other_kinds
from ucs_pipeline.project import locations
from ucs_pipeline.project.file_errors import FileError, error_in, shown_path
from ucs_pipeline.project.locations import Location, origins, package_of


class LoadResult(NamedTuple):
    """The contents of the files."""

    feeds: list[tuple[Path, Feed]]
    """The feeds that load, each with its file; of a feed with several streams, its shards."""
    mistakes: list[FileError]


def load_files(folder: Path) -> LoadResult:
    """Loads each file of a `defs` folder, and finds conflicts between feeds."""
    feeds: list[tuple[Path, Feed]] = []
    mistakes: list[FileError] = []
    files = list(_files(folder))
    if not files:
        where = shown_path(folder)
        return LoadResult([], [FileError(where, f"there is no feed. Write one into {where}/<name>/defs.yaml.")])
    project = dg.ComponentTree.from_module(import_module(f"{folder.parent.name}.{folder.name}"), folder.parent.parent)
    for path, file in files:
        if file.suffix != ".py" and not _has_content(file):
            mistakes.append(FileError(shown_path(file), "the file is empty. Expected `type` and `attributes`."))
            continue
        try:
            # Other definitions, such as resources, are loaded as well, to find their errors.
            feeds += [(file, feed) for feed in feeds_of(defs_alone(project, path))]
        except Exception as error:
            mistake = error_in(file, error, folder)
            if mistake is None:
                raise
            mistakes.append(mistake)
    origins = {id(feed): file for file, feed in feeds} | {id(feed.parent): file for file, feed in feeds}
    for clash in conflicts([feed for _, feed in feeds]):
        places = dict.fromkeys(shown_path(origins[id(feed)]) for feed in clash.feeds)
        mistakes.append(FileError(" and ".join(places), clash.sentence, "UCS-CONFLICT"))
    return LoadResult(feeds, mistakes)


def load(folder: Path) -> dg.Definitions:
    """The definitions of all files of a `defs` folder.

    Raises:
        UcsError: a file is invalid.
    """
    try:
        defs = dg.load_from_defs_folder(path_within_project=folder.parent)
        # Dagster validates the definitions as a whole here, and not at their first use.
        defs.resolve_asset_graph()
        return defs
    except Exception as error:
        mistakes = _explain(error, folder)
        if not mistakes:
            raise
    # Raised outside the except block, so without a cause: Dagster's errors repeat lines of the files, with secrets.
    more = f" `ucs check` lists {len(mistakes) - 1} more." if len(mistakes) > 1 else ""
    raise UcsError(without_code(str(mistakes[0])) + more, mistakes[0].code)


def check() -> tuple[list[str], list[FileError]]:
    """Names of the feeds of the code locations, and all of their errors.

    Imports the functions that feeds name as their `transform`.

    Raises:
        UcsError: no code location is configured, or one is in another process.
    """
    names: set[str] = set()
    mistakes: list[FileError] = []
    for origin in origins():
        package = package_of(origin)
        folder = package / "defs" if package else None
        files, wrong = load_files(folder) if folder and any(_files(folder)) else LoadResult([], [])
        places = {feed.parent.name: shown_path(file) for file, feed in files}
        feeds = {feed.parent.name: feed.parent for _, feed in files}
        if not wrong:
            location, wrong = _whole(origin, package or Path.cwd())
            feeds |= {feed.parent.name: feed.parent for feed in location.feeds} if location else {}
        for name, feed in feeds.items():
            if error := _transform_error(feed):
                place = places.get(name, origin.location_name)
                wrong.append(FileError(place, f"feed {feed.name!r}: {error.text}", error.code))
        names |= feeds.keys()
        mistakes += wrong
    if not names and not mistakes:
        mistakes.append(FileError("definitions", "there is no feed. Write one into defs/<name>/defs.yaml."))
    return sorted(names), mistakes


def _whole(origin: CodeLocationOrigin, directory: Path) -> tuple[Location | None, list[FileError]]:
    """A code location whose files are valid one by one, and its errors as a whole."""
    try:
        location = locations.load(origin)
        location.repository.load_all_definitions()
        for feed in location.feeds:
            refuse_other_kinds(feed, location.repository.get_top_level_resources())
        return location, []
    except Exception as error:
        mistake = error_in(directory, error, directory)
        if mistake is None:
            raise
        return None, [mistake if mistake.place != "." else mistake._replace(place=origin.location_name)]


def _explain(error: Exception, folder: Path) -> list[FileError]:
    """The errors of the files if the definitions fail to load with that exception; empty if it has another cause."""
    mistakes = load_files(folder).mistakes
    if mistakes or isinstance(error, UcsError):
        return mistakes
    mistake = error_in(folder, error, folder)
    return [mistake] if mistake else []


def _files(directory: Path) -> Iterator[tuple[Path, Path]]:
    """The paths that Dagster loads as one component, and the file that defines it."""
    if not directory.is_dir():
        return
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


def _transform_error(feed: Feed) -> SourceError | None:
    if feed.transform is None:
        return None
    from ucs_pipeline.entries.transform import Transform

    try:
        Transform(feed.transform, feed.constants)
    except SourceError as error:
        return error
    return None
