"""The message about a file of definitions, from the error that loading it raised."""

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ucs_pipeline.errors import FeedError, UcsError
from ucs_pipeline.feed.error_messages import words
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redaction import HIDDEN
from ucs_pipeline.orchestration._dagster import ComponentFileModel, ComponentTreeException, ResolutionException

_PACKAGE = Path(__file__).parent.parent

_REPEATED = re.compile(r"(anchor|alias|tag|handle) (['\"]).*\2")
"""Where a message of the YAML parser repeats the file, possibly an unquoted password."""


_MISSING = re.compile(r"resource with key '(\w+)' required by op '(\w+)' was not provided")


class FileError(NamedTuple):
    """An error in a file."""

    place: str
    """The file, with its line where that is known."""
    sentence: str
    code: str = "UCS-DEFINITIONS"

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence} [{self.code}]"


def error_in(path: Path, error: BaseException, files: Path) -> FileError | None:
    """The error in a path, from the exception that loading it raised; None if the path is not the cause.

    `files`: the directory of the files to check.
    """
    for cause in _chain(error):
        if isinstance(cause, ComponentTreeException):
            # The component loader's wrapper, which shows a tree of all files.
            continue
        place, found = _python_line(cause, files), _explained(cause)
        if place:
            text = f"{type(cause).__name__}: {_first_line(cause)}."
            return FileError(place, found.text, found.code) if found else FileError(place, text)
        if found:
            return FileError(_yaml_line(cause) or shown_path(path), found.text, found.code)
    return None


def shown_path(path: Path, line: int | None = None) -> str:
    """A file's path relative to the current directory."""
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{shown}:{line}" if line else str(shown)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _explained(error: BaseException) -> UcsError | None:
    if isinstance(error, UcsError):
        return error
    if isinstance(error, yaml.MarkedYAMLError):
        problem = _REPEATED.sub(rf"\1 '{HIDDEN}'", str(error.problem))
        return UcsError(
            f"invalid YAML: {problem}. Check the indentation and the quotes of this line and the line above.",
            "UCS-DEFINITIONS",
        )
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False)
        own = [wrong for problem in problems if isinstance(wrong := problem.get("ctx", {}).get("error"), UcsError)]
        if own:
            return FeedError(" ".join(wrong.text for wrong in own), own[0].code)
        placed = [_without_position(problem) for problem in problems]
        outside = any(problem["loc"][0] in Feed.model_fields for problem in placed if problem["loc"])
        way_out = " Indent the feed's settings below `attributes`." if outside else ""
        return UcsError(words(placed, ComponentFileModel) + way_out, "UCS-DEFINITIONS")
    if isinstance(error, ResolutionException):
        # Shows a part of the file with a mark below, then the message.
        found = re.search(r"\^ (.+)", str(error))
        return UcsError(f"a template has no value: {found[1] if found else _first_line(error)}.", "UCS-DEFINITIONS")
    if missing := _MISSING.search(str(error)):
        return UcsError(
            f"resource {missing[1]!r} of feed {missing[2]!r} is missing. Add it to the definitions, in a file of the "
            "`defs` folder, or name another one in the feed.",
            "UCS-RESOURCE",
        )
    return UcsError(f"{_first_line(error)}.", "UCS-DEFINITIONS") if isinstance(error, dg.DagsterError) else None


def _without_position(problem: ErrorDetails) -> ErrorDetails:
    # Dagster adds " at <file>:<line>" to pydantic's location.
    path = str(problem["loc"][0]).rpartition(" at ")[0]
    return {**problem, "loc": tuple(path.split(".")) if path else ()}


def _first_line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _yaml_line(error: BaseException) -> str | None:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return shown_path(Path(error.problem_mark.name), error.problem_mark.line + 1)
    return None


def _python_line(error: BaseException, files: Path) -> str | None:
    """The line of Python in the user's files that an error comes from; of several, the innermost."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    own = [(path, line) for name, line in places if _is_own(path := Path(name), files)]
    return shown_path(*own[-1]) if own else None


def _is_own(file: Path, files: Path) -> bool:
    # This package and a virtual environment may be in the project's directory.
    others = "site-packages" in file.parts or (
        file.is_relative_to(_PACKAGE) and not file.is_relative_to(_PACKAGE / "defs")
    )
    return file.is_relative_to(files) and not others
