"""`dg scaffold defs ucs_pipeline.BrickFeed NAME`: a feed to fill in, with every setting explained."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel

from ucs_pipeline.feed.feed import Feed

_WIDTH = 110


class FeedScaffolder(dg.Scaffolder[Any]):
    """Writes a commented `defs.yaml`."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Writes the file into the folder of the request, whose name is the feed's."""
        directory = request.target_path
        name = directory.name
        bricks = {"class": "number", "first": 0, "last": 9_999_999}
        given = {"name": name, "table": name, "key": "id", "bricks": bricks, "stream": {"name": name}}
        directory.mkdir(parents=True, exist_ok=True)
        lines = ["# Settings behind a # have their default.", f"type: {request.type_name}", "", "attributes:"]
        text = "\n".join([*lines, *_settings(Feed, given, "  ")])
        (directory / "defs.yaml").write_text(f"{text}\n")


def _settings(model: type[BaseModel], given: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        mark = f"{indent}# "
        yield from textwrap.wrap(str(field.description), _WIDTH, initial_indent=mark, subsequent_indent=mark)
        if isinstance(field.default, BaseModel):
            yield f"{indent}{name}:"
            yield from _settings(type(field.default), given[name], f"{indent}  ")
        elif name in given:
            yield f"{indent}{name}: {_flow(given[name])}"
        else:
            yield f"{mark}{name}: {json.dumps(field.default)}"


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(part)}" for name, part in value.items()) + "}"
    # A name such as `no` or `2013` is a text in quotes only.
    return str(value) if yaml.safe_load(str(value)) == value else json.dumps(value)
