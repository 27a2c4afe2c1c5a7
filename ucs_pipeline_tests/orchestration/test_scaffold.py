"""A feed written by `dg scaffold defs`."""

import re
import textwrap
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.scaffold.scaffold import NoParams, get_scaffolder

from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.settings import Stream

GIVEN: dict[str, Any] = {
    "name": "orders",
    "table": "orders",
    "key": "id",
    "bricks": {"class": "number", "first": 0, "last": 9_999_999},
    "stream": {"name": "orders"},
}


@pytest.fixture
def text(tmp_path: Path) -> str:
    return _scaffolded(tmp_path, "orders")


def _scaffolded(directory: Path, name: str) -> str:
    scaffolder = get_scaffolder(BrickFeed)
    assert isinstance(scaffolder, dg.Scaffolder)
    request = dg.ScaffoldRequest("ucs_pipeline.BrickFeed", directory / name, "yaml", directory, NoParams())
    scaffolder.scaffold(request)
    return (directory / name / "defs.yaml").read_text()


def test_a_scaffolded_feed_loads_as_it_is(text: str) -> None:
    assert text.startswith("# Settings behind a # have their default.\ntype: ucs_pipeline.BrickFeed\n\nattributes:\n")
    assert _feed(text) == BrickFeed(**GIVEN)


@pytest.mark.parametrize("name", ["no", "On", "null", "y"])
def test_a_name_that_yaml_reads_as_something_else_is_quoted(tmp_path: Path, name: str) -> None:
    feed = _feed(_scaffolded(tmp_path, name))
    assert (feed.name, feed.table, feed.stream.name) == (name, name, name)


def test_it_names_and_explains_every_setting(text: str) -> None:
    names = {*BrickFeed.model_fields, *Stream.model_fields}
    # With the marks of the settings taken away, every setting stands there with its default.
    whole = re.sub(rf"^( +)# ({'|'.join(names)}): ", r"\1\2: ", text, flags=re.MULTILINE)
    assert {line.split(":")[0].strip() for line in whole.splitlines() if not line.lstrip().startswith("#")} >= names
    assert _feed(whole) == BrickFeed(**GIVEN)
    words = re.sub(r"\s+(# )?", " ", text)
    for field in [*BrickFeed.model_fields.values(), *Stream.model_fields.values()]:
        assert str(field.description) in words


def _feed(text: str) -> Feed:
    return BrickFeed.resolve_from_yaml(textwrap.dedent(text.partition("attributes:\n")[2]))
