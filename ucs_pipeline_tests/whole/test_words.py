"""The project's texts use its terms: pages, docstrings, comments and messages have none of the banned turns."""

from pathlib import Path

import pytest

from ucs_pipeline_tests.support.home import PROJECT
from ucs_pipeline_tests.support.words import banned, written
from ucs_pipeline_tests.whole.test_docs import PAGES

_SOURCES = sorted(
    path for folder in ("ucs_pipeline", "ucs_pipeline_tests", "benchmarks") for path in (PROJECT / folder).rglob("*.py")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_page_has_none_of_the_banned_turns(page: Path) -> None:
    assert banned(page.read_text()) == []


@pytest.mark.parametrize("folder", ["ucs_pipeline", "ucs_pipeline_tests", "benchmarks"])
def test_code_has_none_of_the_banned_turns(folder: str) -> None:
    """In the package also its messages; tests and benchmarks hold texts of others."""
    found = {
        f"{path.relative_to(PROJECT)}:{line}": turns
        for path in _SOURCES
        if path.relative_to(PROJECT).parts[0] == folder
        for line, text in written(path, strings=folder == "ucs_pipeline")
        if (turns := banned(text))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "It goes\n    on.",
        "By which it is.",
        "It says so.",
        "A look at the log",
        "beside it",
        "id b'7'",
        "in one sentence",
    ],
)
def test_a_banned_turn_is_found(text: str) -> None:
    assert banned(text)


def test_code_and_links_are_no_turns() -> None:
    assert banned("Set `go on`, see [this](x/green.md), in [green]color[/].\n\n    say: called with a line") == []
