"""The text of a feed's file: values that YAML misreads.

YAML keeps the last of two values under one key, and reads `0100` as 64. Such a feed is refused.
"""

import re
from collections.abc import Iterator, Sequence

import yaml  # type: ignore[import-untyped]

from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.redaction import HIDDEN

TEMPLATE = "{{"
"""The start of a Dagster template."""

_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?")
_NAME = re.compile(r"[\w -]{1,40}")
_ANOTHER_BASE = {"x": "16", "b": "2", ":": "60, as minutes and seconds"}


def refuse_misread(text: str, line: int | None = None) -> None:
    """Refuses YAML whose values differ from its text.

    Args:
        text: the file, which is YAML.
        line: the first line of its document, if only that is checked.

    Raises:
        FeedError: a setting is written twice, or YAML reads a number as another one.
    """
    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        if document is not None and line in (None, document.start_mark.line + 1):
            mistakes = list(dict.fromkeys(_misread(document, ())))
            if mistakes:
                raise FeedError(" ".join(mistakes))


def _misread(node: yaml.Node, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _misread(part, path)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            inner = (*path, name)
            if isinstance(key, yaml.ScalarNode) and name in lines:
                yield f"{_setting(inner)} is written twice, in lines {lines[name]} and {line}. Keep one of them."
            lines[name] = line
            yield from _misread(key, inner)
            yield from _misread(value, inner)
    elif node.tag in (_INTEGER, _FLOAT) and node.style is None and (wrong := _number(node, path)):
        yield f"{_setting(path)} (line {node.start_mark.line + 1}): {wrong}"


def _number(node: yaml.Node, path: tuple[str, ...]) -> str | None:
    """The message about a number. The number is left out: it may be a secret that was meant as text."""
    text = node.value
    if not _DECIMAL.fullmatch(text):
        if node.tag == _FLOAT and ":" not in text:
            return "expected a number."
        base = next((base for sign, base in _ANOTHER_BASE.items() if sign in text.lower()), "8, for its leading zero")
        return f"YAML reads the number in base {base}. Write it in base 10 or, if it is text, quote it."
    if node.tag == _FLOAT and _inner(path)[:1] == ("settings",) and str(float(text.replace("_", ""))) != text:
        return "YAML reads a number and does not keep all its digits. Quote it."
    return None


def _setting(path: tuple[str, ...]) -> str:
    return named(_inner(path) or path)


def _inner(path: tuple[str, ...]) -> tuple[str, ...]:
    return path[1:] if path[:1] == ("attributes",) else path


def named(path: Sequence[object]) -> str:
    """The full name of a setting; a part that is more than a word, possibly misplaced SQL, is left out."""
    return ".".join(part if _NAME.fullmatch(part) or part == "[key]" else HIDDEN for part in map(str, path))
