"""The feeds of this code location, for the command line."""

import os
import warnings

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.home import project_home


def all_feeds() -> list[BrickFeed]:
    """Every feed of the project, by name; where a feed has several streams, its shards.

    Raises:
        UcsError: a file under `ucs_pipeline/defs` is wrong.
    """
    from ucs_pipeline.build import feeds_of

    try:
        from ucs_pipeline.definitions import defs
    except Exception as error:
        # What Dagster's loader raises shows a tree of all files, and the sentence somewhere in its causes.
        from ucs_pipeline.feed_files import why

        mistakes = why(error)
        if not mistakes:
            raise
        more = f" (and {len(mistakes) - 1} more: `ucs check` says all)" if len(mistakes) > 1 else ""
        raise UcsError(f"{mistakes[0]}{more}") from error
    return feeds_of(defs)


def feed_named(name: str) -> BrickFeed:
    """The feed of that name; one with several streams, or one of its shards.

    Raises:
        UcsError: there is none.
    """
    found = all_feeds()
    feeds = {feed.whole.name: feed.whole for feed in found} | {feed.name: feed for feed in found}
    if name not in feeds:
        raise UcsError(f"there is no feed {name!r}; the project has {', '.join(map(repr, feeds)) or 'none'}")
    return feeds[name]


def start_in(feed: BrickFeed, brick: str) -> int:
    """Start of a brick (or a coarser partition) of the feed.

    Raises:
        BrickError: the name is no brick name.
        UcsError: the feed has no such brick.
    """
    bricks = feed.numbering
    start = bricks.start_named(brick)
    if start not in bricks:
        first, last = bricks.name(bricks.first), bricks.name(bricks.last)
        raise UcsError(f"feed {feed.name!r} has no brick {brick}: its bricks are {first} to {last}")
    return start


def use_project_home() -> None:
    """Makes Dagster use the project's directory unless DAGSTER_HOME says otherwise."""
    os.environ["DAGSTER_HOME"] = str(project_home())
    from dagster import BetaWarning

    # dagster.yaml's rotating log file is a setting Dagster calls beta; saying so on every command helps nobody.
    warnings.filterwarnings("ignore", category=BetaWarning)
