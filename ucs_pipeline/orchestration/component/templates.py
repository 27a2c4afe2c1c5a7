"""The `{{ templates }}` of a feed, filled in.

Dagster turns an environment variable that is not set into the text None; here it is an error.
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
    """Settings with the values of their templates.

    Args:
        settings: some settings of a feed.
        scope: names that a template may use.
        read: receives the values of the environment variables that are read.
        path: names of the groups that the settings are in.

    Raises:
        FeedError: a template has no value.
    """
    # A template that reads variables in another way than Dagster's has its own `env`.
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
    # Dagster treats every text as a template of a Python value, which would turn the constant "5" into a number.
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
        # The error of a user's function may contain anything.
        why = f"it raised {type(error).__name__}"
    raise FeedError(f"{named(path)}: a template has no value: {why}.") from None


class _Environment:
    """`env` in a template: as Dagster's, except for variables that are not set."""

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
            # Jinja reads special attributes of any object that it calls.
            raise AttributeError(key)
        return self(key)

    __getitem__ = __call__


class _Unset(StrictUndefined):
    """A variable that is not set: an error, unless the template has another value for it."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        # `{{ env.REGION or 'eu' }}`
        return False
