"""The `{{ templates }}` of a feed, filled in.

Dagster makes the word None of an environment variable that is not set; here it is an error.
"""

import os
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.nativetypes import NativeEnvironment

from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.yaml_text import TEMPLATE, named
from ucs_pipeline.orchestration._dagster import EnvScope

_JINJA = NativeEnvironment(undefined=StrictUndefined)


def filled_in(
    settings: Mapping[str, Any], scope: Mapping[str, Any], read: set[str], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Settings with what their templates stand for.

    Args:
        settings: some settings of a feed.
        scope: what a template may name.
        read: takes the values of the environment variables that are read.
        path: names of the groups that the settings are in.

    Raises:
        FeedError: a template stands for nothing.
    """
    # A template that calls for its variables in another way than Dagster's brings its own.
    own = {**scope, "env": _Environment(read)} if isinstance(scope.get("env"), EnvScope) else scope
    for name in settings:
        if isinstance(name, str) and TEMPLATE in name:
            raise FeedError(f"{named(path)}: a template cannot stand for a name. Write the name.")
    return {name: _filled_in(value, own, read, (*path, str(name))) for name, value in settings.items()}


def _filled_in(value: Any, scope: Mapping[str, Any], read: set[str], path: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return filled_in(value, scope, read, path)
    if isinstance(value, list):
        return [_filled_in(part, scope, read, path) for part in value]
    # Dagster takes every text for a template of a Python value, by which the constant "5" would become a number.
    return _rendered(value, scope, path) if isinstance(value, str) and TEMPLATE in value else value


def _rendered(text: str, scope: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    try:
        template = _JINJA.from_string(text)
        pieces = list(template.root_render_func(template.new_context(dict(scope))))
        if len(pieces) == 1 and not isinstance(pieces[0], Undefined):
            return pieces[0]
        if None in pieces:
            raise TemplateError("a part of the text is None")
        return "".join(map(str, pieces))
    except TemplateError as error:
        why = str(error)
    except Exception as error:
        # What a function that somebody wrote says may be anything.
        why = f"it raised {type(error).__name__}"
    raise FeedError(f"{named(path)}: a template has no value: {why}.") from None


class _Environment:
    """What `env` is in a template: as Dagster's, but for variables that are not set."""

    def __init__(self, read: set[str]) -> None:
        self._read = read

    def __call__(self, key: str, default: Any = ...) -> Any:
        value = os.environ.get(key)
        if value is not None:
            self._read.add(value)
            return value
        if default is not ...:
            return default
        return _Unset(
            f"environment variable {key} is not set. Set it, or give a default, such as {{{{ env('{key}', 'value') }}}}"
        )

    def __getattr__(self, key: str) -> Any:
        if key.startswith("jinja"):
            # Jinja asks any object whether it is to be called in a way of its own.
            raise AttributeError(key)
        return self(key)

    __getitem__ = __call__


class _Unset(StrictUndefined):
    """Stands for a variable that is not set: an error, but where the template has another value for it."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        # `{{ env.REGION or 'eu' }}`
        return False
