"""The documentation agrees with the code."""

import doctest
import re
from pathlib import Path

import click
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.cli.main import ucs
from ucs_pipeline_tests import reference
from ucs_pipeline_tests.support.home import PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/celery/README.md")),
    *sorted((PROJECT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    page = (reference.FOLDER / name).read_text()
    assert page == reference.PAGES[name](page), "run `uv run python -m ucs_pipeline_tests.reference`"


def test_python_examples_are_true() -> None:
    failures, tried = doctest.testfile(str(PROJECT / "docs/concepts/numbering.md"), module_relative=False)
    assert tried >= 4
    assert failures == 0


def test_the_readme_s_feed_loads() -> None:
    readme = (PROJECT / "README.md").read_text()
    [feed] = re.findall(r"```yaml\n +type: ucs_pipeline.BrickFeed\n +attributes:\n(.*?)```", readme, re.DOTALL)
    assert BrickFeed.resolve_from_yaml(feed).name == "orders"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_page_that_people_wrote_can_be_read_to_its_end(page: Path) -> None:
    if page.parent.name == "reference":
        return
    text = re.sub(r"<!--.*?-->|\]\([^)]*\)", " ", page.read_text(), flags=re.DOTALL)
    assert sum(1 for word in text.split() if re.search(r"\w", word)) <= 1_500


def test_every_picture_is_on_a_page() -> None:
    shown = {name for page in PAGES for name in re.findall(r"images/([\w.-]+)", page.read_text())}
    assert {path.name for path in (PROJECT / "docs" / "images").iterdir()} == shown


COMMANDS = ucs.list_commands(click.Context(ucs))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_ucs_command_in_the_documentation_exists(page: Path) -> None:
    for command in re.findall(r"uv run ucs (\w+)", page.read_text()):
        assert command in COMMANDS, f"{page.name} names ucs {command}"


def test_every_ucs_command_is_documented() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for command in COMMANDS:
        assert f"ucs {command}" in text, f"no page names ucs {command}"
