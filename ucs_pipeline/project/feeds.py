"""The feeds of the code locations, by name, for the commands and the readers."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.home import project_home

if TYPE_CHECKING:
    from ucs_pipeline.project.locations import Location


def all_feeds() -> list[Feed]:
    """Every feed of the code locations; of a feed with several streams, its shards.

    Raises:
        UcsError: a code location cannot be loaded.
    """
    return [feed for location in _locations() for feed in location.feeds]


def feed_named(name: str) -> Feed:
    """The feed of that name; one with several streams, or one of its shards.

    Raises:
        UcsError: there is none, or there are several.
    """
    feeds: dict[str, Feed] = {}
    for location in _locations():
        own = {feed.parent.name: feed.parent for feed in location.feeds} | {feed.name: feed for feed in location.feeds}
        if name in feeds and name in own:
            raise UcsError(
                f"feed {name!r} is in two code locations. Name one with -m MODULE or -f FILE.", "UCS-NO-FEED"
            )
        feeds |= own
    if name not in feeds:
        known = ", ".join(map(repr, feeds)) or "none"
        raise UcsError(
            f"There is no feed {name!r}. The feeds here are: {known}. Name one of them, or another code location with "
            "-m MODULE or -f FILE.",
            "UCS-NO-FEED",
        )
    return feeds[name]


def location_of(feed: Feed) -> "Location":
    """The code location that has a feed.

    Raises:
        UcsError: there is none.
    """
    for location in _locations():
        if any(feed.parent.name == other.parent.name for other in location.feeds):
            return location
    raise UcsError(
        f"feed {feed.name!r} is in no code location that is loaded. Name its own with -m MODULE or -f FILE.",
        "UCS-NO-FEED",
    )


@contextmanager
def resources_of(feed: Feed, *keys: str) -> Iterator[object]:
    """The resources that a feed names, as attributes; or some of them, by their keys.

    Raises:
        UcsError: the feed is in no code location, or a resource needs an environment variable that is not set.
    """
    with location_of(feed).resources(keys or (feed.clickhouse, feed.redis)) as resources:
        yield resources


def use_project_home() -> None:
    """Makes Dagster use the project's directory unless DAGSTER_HOME is set."""
    os.environ["DAGSTER_HOME"] = str(project_home())
    from dagster import BetaWarning

    # dagster.yaml's rotating log file is a beta setting of Dagster. Every command would warn about it.
    warnings.filterwarnings("ignore", category=BetaWarning)


def _locations() -> "list[Location]":
    # Loads Dagster, which a reader with its own feed and client does not need.
    from ucs_pipeline.project.locations import locations

    return list(locations())
