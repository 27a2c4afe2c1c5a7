"""Messages about invalid settings of a feed. A value is shown only if it cannot be a secret."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails

from ucs_pipeline.errors import FeedError, without_code
from ucs_pipeline.feed.redaction import hider
from ucs_pipeline.feed.yaml_text import TEMPLATE, named

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
"""Examples of settings with more than one value."""

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
"""The project's terms for what pydantic expects."""

_HARMLESS = re.compile(r"[\w .,*+{}-]{0,40}|[\d:TZ+-]+|[\w+-]+/[\w+-]+")
"""A word or two, a number, a time, a time zone: too short for SQL, an address or a key."""

_SHAPED = {"dict_type", "list_type", "model_type", "model_attributes_type", "string_pattern_mismatch"}


def sentence(settings: Mapping[str, Any], error: ValidationError, model: type[BaseModel]) -> str:
    """All of pydantic's errors about the settings of a feed, which are those of `model`, without secrets."""
    said = words(error.errors(include_url=False), model)
    # A rule may repeat a value of another setting, so secrets are removed from the whole text.
    others = {name: value for name, value in settings.items() if name != "name"}
    own = " ".join(_SHAPES.values())
    unfit = {text for text in texts(others) if not _HARMLESS.fullmatch(text) and text not in own}
    return f"{called(settings.get('name'))}: {hider(unfit | {repr(text)[1:-1] for text in unfit})(said)}"


def called(name: object) -> str:
    """The start of a message about a feed."""
    if isinstance(name, str):
        return f"feed {name!r}"
    return "a feed without a name" if name is None else "a feed whose name is no text"


def texts(value: object) -> Iterator[str]:
    """Every text in some settings, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from texts(name)
            yield from texts(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from texts(part)


def words(problems: Iterable[ErrorDetails], model: type[BaseModel]) -> str:
    """pydantic's errors about settings of `model`, in the project's terms."""
    # A setting that may be of several types has the same problem with each of them.
    found = dict.fromkeys(
        _said(problem, model)
        for problem in problems
        if not (isinstance(problem["input"], str) and TEMPLATE in problem["input"])
    )
    return " ".join(text if text.endswith((".", "?")) else f"{text}." for text in found)


def _said(problem: ErrorDetails, model: type[BaseModel]) -> str:
    where, kind = named(problem["loc"]), problem["type"]
    what = without_code(problem["msg"].removeprefix("Value error, "))
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        nearest = _nearest(problem["loc"], model)
        return f"{where} is not a setting" + (f". Did you mean {nearest}?" if nearest else "")
    expected = _expected(problem)
    if expected is not None:
        what = f"expected {expected}"
        if problem["loc"][-1:] == ("[key]",):
            where, what = str(problem["loc"][0]), f"{what} as a name"
        elif problem["loc"][:1] == ("settings",):
            where = named(problem["loc"][:2])
        if kind in _SHAPED and isinstance(problem["input"], str):
            # A value of another type may be SQL: `columns: decrypt(...)`.
            return f"{where}: {what} (found a text)".removeprefix(": ")
        if kind == "string_type" and isinstance(problem["input"], bool | int | float):
            return f"{where}: {what} (found {shown(problem['input'])}). Quote it"
    elif isinstance(problem["input"], Mapping | BaseModel):
        complete = not where or what.startswith(f"{where}.")
        return what if complete else f"{where}: {what}"
    return f"{where}: {what} (found {shown(problem['input'])})".removeprefix(": ")


def _expected(problem: ErrorDetails) -> str | None:
    """What pydantic expected, in the project's terms; None if the message is the project's own."""
    kind, top = problem["type"], problem["loc"][0] if problem["loc"] else ""
    if kind in _SHAPED:
        return _SHAPES.get(str(top))
    if kind not in _EXPECTED:
        return None
    if top == "settings" and len(problem["loc"]) > 2 and problem["loc"][-1] != "[key]":
        return "text, a number, true or false"
    return _EXPECTED[kind].format(**problem.get("ctx", {}))


def _nearest(path: Sequence[object], model: type[BaseModel]) -> str | None:
    """The setting whose name is most similar to an unknown one."""
    *group, word = map(str, path)
    settings = dict(_settings(model))
    same_group = [name for name, parent in settings.items() if parent == ".".join(group)]
    if close := get_close_matches(word, [name.rsplit(".")[-1] for name in same_group], n=1):
        return ".".join([*group, *close])
    # A valid name in the wrong group.
    return next((name for name in settings if name.rsplit(".")[-1] == word), None)


def _settings(model: type[BaseModel], group: str = "") -> Iterator[tuple[str, str]]:
    """Full names of all settings, each with that of the group it is in."""
    for attribute, field in model.model_fields.items():
        name = ".".join(filter(None, (group, field.alias or attribute)))
        yield name, group
        inner: Any = field.annotation
        # In Python 3.10 `list[str]` is a type, too.
        if get_origin(inner) is None and isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, name)


def mistake(name: object, said: str) -> ValidationError:
    """pydantic's error with the message only."""
    # By default pydantic also shows a part of the feed, with its secrets.
    error = InitErrorDetails(type="value_error", loc=(), input=name, ctx={"error": FeedError(said)})
    return ValidationError.from_exception_data("BrickFeed", [error])


def shown(value: object) -> str:
    """A setting as a message may show it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        # YAML may write it as a word.
        return "true, as YAML reads on and yes" if value else "false, as YAML reads off and no"
    # SQL that is no text, such as a list, may hold secrets as well.
    if isinstance(value, str):
        return repr(value) if _HARMLESS.fullmatch(value) else "a text"
    return repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
