"""What is wrong with a feed's settings, in one sentence; what they hold is shown only where it cannot be a secret."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails

from ucs_pipeline.errors import FeedError

TEMPLATE = "{{"
"""What a Dagster template, which stands for a value, begins with."""

_SHAPES = {
    "": "`type: ucs_pipeline.BrickFeed` and `attributes`",
    "attributes": "settings, such as {name: orders}",
    "bricks": "settings, such as {class: number, last: 336775}",
    "stream": "settings, such as {name: events}",
    "columns": "field: column pairs, such as {id: id}",
    "constants": "field: text pairs, such as {function_type: worker}",
    "settings": "setting: value pairs, such as {max_threads: 2}",
    "tags": "tag: text pairs, such as {domain: sales}",
    "owners": "a list, such as [team:data]",
    "transform": "package.module:function",
}
"""What a setting that is more than one number or text looks like."""

_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "string_too_short": "text of at least {min_length} character",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number greater than or equal to {ge:g}",
    "literal_error": "{expected}",
}
"""The project's words for what pydantic expects."""

_SHAPED = {"dict_type", "list_type", "model_type", "model_attributes_type", "string_pattern_mismatch"}


def sentence(name: object, error: ValidationError, model: type[BaseModel]) -> str:
    """All that pydantic found wrong with the feed of that name, whose settings are those of `model`."""
    feed = "a feed without a name" if name is None else f"feed {name!r}"
    return f"{feed}: {words(error.errors(include_url=False), model)}"


def words(problems: Iterable[ErrorDetails], model: type[BaseModel]) -> str:
    """What pydantic says about settings that are those of `model`, in words of this project."""
    # A setting that may be of several types has a problem with each of them, which say the same.
    return "; ".join(
        dict.fromkeys(
            _said(problem, model)
            for problem in problems
            if not (isinstance(problem["input"], str) and TEMPLATE in problem["input"])
        )
    )


def _said(problem: ErrorDetails, model: type[BaseModel]) -> str:
    where, what, kind = (
        ".".join(map(str, problem["loc"])),
        problem["msg"].removeprefix("Value error, "),
        problem["type"],
    )
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        nearest = _nearest(problem["loc"], model)
        return f"{where} is not a setting" + (f": did you mean {nearest}?" if nearest else "")
    expected = _expected(problem)
    if expected is not None:
        what = f"expected {expected}"
        if problem["loc"][-1:] == ("[key]",):
            where, what = str(problem["loc"][0]), f"{what} as a name"
        elif problem["loc"][:1] == ("settings",):
            where = ".".join(map(str, problem["loc"][:2]))
    elif isinstance(problem["input"], Mapping | BaseModel):
        named = not where or what.startswith(f"{where}.")
        return what if named else f"{where}: {what}"
    return f"{where}: {what} (found {shown(problem['input'])})".removeprefix(": ")


def _expected(problem: ErrorDetails) -> str | None:
    """What pydantic expected, in the project's words; None where the message is the project's own already."""
    kind, top = problem["type"], problem["loc"][0] if problem["loc"] else ""
    if kind in _SHAPED:
        return _SHAPES.get(str(top))
    if kind not in _EXPECTED:
        return None
    if top == "settings" and len(problem["loc"]) > 2 and problem["loc"][-1] != "[key]":
        return "text, a number, true or false"
    return _EXPECTED[kind].format(**problem.get("ctx", {}))


def _nearest(path: Sequence[object], model: type[BaseModel]) -> str | None:
    """The setting that was likely meant by one that does not exist."""
    *group, word = map(str, path)
    settings = dict(_settings(model))
    beside = [name for name, parent in settings.items() if parent == ".".join(group)]
    if close := get_close_matches(word, [name.rsplit(".")[-1] for name in beside], n=1):
        return ".".join([*group, *close])
    # Right by itself, in the wrong place.
    return next((name for name in settings if name.rsplit(".")[-1] == word), None)


def _settings(model: type[BaseModel], group: str = "") -> Iterator[tuple[str, str]]:
    """Full names of all settings, each with that of the group it is in."""
    for attribute, field in model.model_fields.items():
        name = ".".join(filter(None, (group, field.alias or attribute)))
        yield name, group
        inner: Any = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, name)


def mistake(name: object, said: str) -> ValidationError:
    """What pydantic raises, with nothing but the sentence."""
    # Left to itself, pydantic would show a part of the whole feed beside the sentence, and secrets in it.
    error = InitErrorDetails(type="value_error", loc=(), input=name, ctx={"error": FeedError(said)})
    return ValidationError.from_exception_data("BrickFeed", [error])


def shown(value: object) -> str:
    """A setting as a sentence may show it."""
    # The SQL of a feed that is no text, such as a list of it, may hold secrets as well.
    return repr(value) if value is None or isinstance(value, str | int | float | bool) else f"a {type(value).__name__}"
