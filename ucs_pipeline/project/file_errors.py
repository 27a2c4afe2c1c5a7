"""What is wrong with a file of definitions, in one sentence, from the error that loading it raised."""

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.error_messages import words
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redaction import HIDDEN
from ucs_pipeline.orchestration._dagster import ComponentFileModel, ComponentTreeException, ResolutionException

_PACKAGE = Path(__file__).parent.parent

_REPEATED = re.compile(r"(anchor|alias|tag|handle) (['\"]).*\2")
"""Where a sentence of the YAML parser repeats the file, which may be a password that nobody quoted."""


class FileError(NamedTuple):
    """Something to put right."""

    place: str
    """The file, with its line where that is known."""
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}"


def error_in(path: Path, error: BaseException, files: Path) -> FileError | None:
    """What the error that loading a path raised says about it; None if it is no mistake of whoever wrote that.

    `files`: the directory of the files that may be wrong.
    """
    for cause in _chain(error):
        if isinstance(cause, ComponentTreeException):
            # The component loader's wrapper, which shows a tree of all files.
            continue
        place, sentence = _python_line(cause, files), _sentence(cause)
        if place:
            return FileError(place, sentence or f"{type(cause).__name__}: {_first_line(cause)}")
        if sentence:
            return FileError(_yaml_line(cause) or shown_path(path), sentence)
    return None


def shown_path(path: Path, line: int | None = None) -> str:
    """A file as it is called in the current directory."""
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{shown}:{line}" if line else str(shown)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, UcsError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError):
        problem = _REPEATED.sub(rf"\1 '{HIDDEN}'", str(error.problem))
        return f"this is no YAML: {problem}; look at the indentation and the quotes here and in the line above"
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False)
        own = [str(wrong) for problem in problems if isinstance(wrong := problem.get("ctx", {}).get("error"), UcsError)]
        said = [_without_position(problem) for problem in problems]
        outside = any(problem["loc"][0] in Feed.model_fields for problem in said if problem["loc"])
        way_out = ": indent the feed's settings below `attributes`" if outside else ""
        return "; ".join(own) or words(said, ComponentFileModel) + way_out
    if isinstance(error, ResolutionException):
        # Shows a part of the file with a mark below, and the sentence after it.
        found = re.search(r"\^ (.+)", str(error))
        return f"a template cannot be filled in: {found[1] if found else _first_line(error)}"
    return _first_line(error) if isinstance(error, dg.DagsterError) else None


def _without_position(problem: ErrorDetails) -> ErrorDetails:
    # Dagster adds " at <file>:<line>" to what pydantic says is the place.
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
    """The line of Python in the user's files that an error comes from; of several, the last one that was called."""
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
