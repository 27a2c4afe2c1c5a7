"""The feeds of this code location, for the command line."""

import os
import warnings

from ucs_pipeline.bricks import name_of_ordinal, ordinal_of_name
from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.home import project_home


def all_feeds() -> list[BrickFeed]:
    """Every feed of the project, by name."""
    from ucs_pipeline.build import feeds_of
    from ucs_pipeline.definitions import defs

    return feeds_of(defs)


def feed_named(name: str) -> BrickFeed:
    """The feed of that name.

    Raises:
        UcsError: there is none.
    """
    feeds = {feed.name: feed for feed in all_feeds()}
    if name not in feeds:
        raise UcsError(f"there is no feed {name!r}; the project has {', '.join(map(repr, feeds)) or 'none'}")
    return feeds[name]


def ordinal_in(feed: BrickFeed, brick: str) -> int:
    """Ordinal of a brick of the feed.

    Raises:
        BrickError: the name is no brick name.
        UcsError: the feed has no such brick.
    """
    ordinal = ordinal_of_name(brick)
    if ordinal not in feed.ordinals:
        first, last = name_of_ordinal(feed.ordinals[0]), name_of_ordinal(feed.ordinals[-1])
        raise UcsError(f"feed {feed.name!r} has no brick {brick}: its bricks are {first} to {last}")
    return ordinal


def use_project_home() -> None:
    """Makes Dagster use the project's directory unless DAGSTER_HOME says otherwise."""
    os.environ["DAGSTER_HOME"] = str(project_home())
    from dagster import BetaWarning

    # dagster.yaml's rotating log file is a setting Dagster calls beta; saying so on every command helps nobody.
    warnings.filterwarnings("ignore", category=BetaWarning)
