"""The feeds of this code location, for the command line."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.home import project_home

if TYPE_CHECKING:
    import dagster as dg

LOCATION = "ucs_pipeline.definitions"
"""The code location's module. It stands above this room, as any other would, and is loaded by its name."""


_UNSET = re.compile(r'path root:(\w+):.*?environment variable "(\w+)"', re.DOTALL)


def all_feeds() -> list[Feed]:
    """Every feed of the project, by name; where a feed has several streams, its shards.

    Raises:
        UcsError: a file under `ucs_pipeline/defs` is wrong.
    """
    # Loads Dagster, which a reader that is given its feed does without.
    from ucs_pipeline.orchestration.build import feeds_of

    return feeds_of(location())


def location() -> "dg.Definitions":
    """The definitions of the project's code location.

    Raises:
        UcsError: a file under `ucs_pipeline/defs` is wrong.
    """
    defs: dg.Definitions = import_module(LOCATION).defs
    return defs


def feed_named(name: str) -> Feed:
    """The feed of that name; one with several streams, or one of its shards.

    Raises:
        UcsError: there is none.
    """
    found = all_feeds()
    feeds = {feed.parent.name: feed.parent for feed in found} | {feed.name: feed for feed in found}
    if name not in feeds:
        raise UcsError(f"there is no feed {name!r}; the project has {', '.join(map(repr, feeds)) or 'none'}")
    return feeds[name]


@contextmanager
def resources_of(feeds: Sequence[Feed]) -> Iterator[object]:
    """The resources that feeds name, as attributes, where the code location has them.

    Raises:
        UcsError: one needs an environment variable that is not set.
    """
    import dagster as dg

    from ucs_pipeline.orchestration.resources import resource_keys

    there = location().resources or {}
    wanted = {key: there[key] for feed in feeds for key in resource_keys(feed) if key in there}
    with ExitStack() as opened:
        try:
            resources = opened.enter_context(dg.build_resources(wanted))
        except dg.DagsterInvalidConfigError as error:
            unset = _UNSET.search(str(error))
            if unset is None:
                raise
            raise UcsError(f"resource {unset[1]!r}: environment variable {unset[2]} is not set: set it") from None
        yield resources


def use_project_home() -> None:
    """Makes Dagster use the project's directory unless DAGSTER_HOME says otherwise."""
    os.environ["DAGSTER_HOME"] = str(project_home())
    from dagster import BetaWarning

    # dagster.yaml's rotating log file is a setting Dagster calls beta; saying so on every command helps nobody.
    warnings.filterwarnings("ignore", category=BetaWarning)
