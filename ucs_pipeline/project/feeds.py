"""The feeds of this code location, for the command line."""

import os
import warnings

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import BrickFeed
from ucs_pipeline.home import project_home


def all_feeds() -> list[BrickFeed]:
    """Every feed of the project, by name; where a feed has several streams, its shards.

    Raises:
        UcsError: a file under `ucs_pipeline/defs` is wrong.
    """
    from ucs_pipeline.definitions import defs
    from ucs_pipeline.orchestration.build import feeds_of

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
    return _listed(feed, feed.numbering.start_named(brick), brick)


def last_whole_in(feed: BrickFeed, brick: str) -> int:
    """Start of the partition that ends with a brick, by its name or, of number bricks, by its number such as `299`.

    Raises:
        BrickError: it is no brick.
        UcsError: the feed has no such brick, or no partition that ends with it.
    """
    bricks = feed.numbering
    if feed.bricks.kind != "number" or not (brick.isascii() and brick.isdecimal()):
        return start_in(feed, brick)
    ordinal = int(brick) + bricks.offset
    start = bricks.start(_listed(feed, ordinal, bricks.brick_name(ordinal)))
    if bricks.end(start) != ordinal:
        raise UcsError(
            f"feed {feed.name!r}: brick {bricks.brick_name(ordinal)} is inside {bricks.unit} {bricks.name(start)}, and "
            f"{bricks.unit}s are adopted as a whole: name the {bricks.unit} before it, and with `--rows` the rows of "
            f"{bricks.name(start)} that were handled too"
        )
    return start


def _listed(feed: BrickFeed, ordinal: int, brick: str) -> int:
    bricks = feed.numbering
    if ordinal not in bricks:
        first, last = bricks.name(bricks.first), bricks.name(bricks.last)
        raise UcsError(f"feed {feed.name!r} has no brick {brick}: its bricks are {first} to {last}")
    return ordinal


def use_project_home() -> None:
    """Makes Dagster use the project's directory unless DAGSTER_HOME says otherwise."""
    os.environ["DAGSTER_HOME"] = str(project_home())
    from dagster import BetaWarning

    # dagster.yaml's rotating log file is a setting Dagster calls beta; saying so on every command helps nobody.
    warnings.filterwarnings("ignore", category=BetaWarning)
