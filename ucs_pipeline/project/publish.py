"""Publishes a feed, given as such or by name, for `ucs publish` and `ucs_pipeline.publish`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed, numbered_in, start_in
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.operations import launch as by_daemon
from ucs_pipeline.operations import publish as in_process
from ucs_pipeline.operations.launch import Launched
from ucs_pipeline.operations.publish import Bar, Deployment, Published, Span
from ucs_pipeline.orchestration.build import build_defs
from ucs_pipeline.orchestration.resources import resource_keys
from ucs_pipeline.project.feeds import feed_named, location_of, use_project_home
from ucs_pipeline.project.locations import Location


def publish(
    feed: Feed | str,
    first: str | int | None = None,
    last: str | int | None = None,
    next: int | None = None,  # noqa: A002 - as the option of `ucs publish`
    *,
    replay: bool = False,
    bar: Bar | None = None,
    say: Callable[[str], None] | None = None,
    resources: Mapping[str, object] | None = None,
) -> Published:
    """Publishes bricks of a feed in this process. Dagster records each run like those of the feed's sensor.

    Args:
        feed: a feed, a shard of one, or a name from the code location.
        first: the first brick, by its name or, of number bricks, its number. Left out: the sealed bricks that the
            feed's sensor would publish next.
        last: the last brick; left out, `first` is the only one.
        next: at most so many of the bricks that come next, of each shard.
        replay: for an any-order feed, publishes bricks that are done once more.
        resources: for a feed that is in no code location, its resources by their keys.
        bar: called with a name and a number of rows, shows how many of them are in Redis.
        say: called with a message each time a run waits, or will be tried again.

    Raises:
        StreamUnavailableError: Redis cannot be reached, or the stream stayed full.
        SourceUnavailableError: ClickHouse cannot be reached.
        UcsError: there is no such feed or brick, or a run was refused. A run that failed is recorded in Dagster.
        KeyboardInterrupt: the run was stopped. Rows that are in the stream stay.
    """
    use_project_home()
    found, span = _asked(feed, first, last, next, replay=replay)
    with _deployment(found, resources) as at:
        return in_process.publish(found, at, span, next, replay=replay, bar=bar, say=say)


def launch(
    feed: Feed | str,
    first: str | int | None = None,
    last: str | int | None = None,
    next: int | None = None,  # noqa: A002 - as the option of `ucs publish`
    *,
    replay: bool = False,
    resources: Mapping[str, object] | None = None,
) -> Launched:
    """Launches the bricks that `publish` would publish as a backfill in Dagster's daemon.

    Raises:
        UcsError: there is no such feed or brick, or the next bricks cannot be determined.
    """
    use_project_home()
    found, span = _asked(feed, first, last, next, replay=replay)
    with _deployment(found, resources) as at:
        return by_daemon.launch(found, at, span, next, replay=replay)


@contextmanager
def _deployment(feed: Feed, resources: Mapping[str, object] | None) -> Iterator[Deployment]:
    """Where a feed runs: in its code location or, with given resources, in none."""
    if resources is None:
        location = location_of(feed)
    else:
        alone = build_defs(feed.parent, resources=resources).get_repository_def()
        location = Location(feed.name, alone, streams_of(feed.parent))
    with dg.DagsterInstance.get() as instance, location.resources(resource_keys(feed)) as opened:
        yield Deployment(location.repository, opened, instance)


def _asked(
    feed: Feed | str, first: str | int | None, last: str | int | None, most: int | None, *, replay: bool
) -> tuple[Feed, Span | None]:
    found = feed_named(feed) if isinstance(feed, str) else feed
    if replay and not found.any_order:
        raise UcsError(f"feed {found.name!r}: replay needs `stream.order: any`. Leave replay out.")
    if first is None:
        if replay or last is not None:
            raise UcsError(f"feed {found.name!r}: the first brick is missing. Name it.")
        return found, None
    if most is not None:
        raise UcsError(f"feed {found.name!r}: name bricks, or give a number of next bricks, not both.")
    last = first if last is None else last
    span = _edge(found, str(first), end=False), _edge(found, str(last), end=True)
    if span[0] > span[1]:
        raise UcsError(f"feed {found.name!r}: brick {first} comes after {last}. Name the earlier one first.")
    return found, span


def _edge(feed: Feed, brick: str, *, end: bool) -> int:
    """Start of a partition that begins, or ends, with a brick."""
    bricks, ordinal = feed.partitions, numbered_in(feed, brick)
    if ordinal is None:
        return start_in(feed, brick)
    start = bricks.start(ordinal)
    if ordinal != (bricks.end(start) if end else start):
        raise UcsError(
            f"feed {feed.name!r}: brick {bricks.brick_name(ordinal)} is inside {bricks.unit} {bricks.name(start)}, and "
            f"only whole {bricks.unit}s are published. Name the {bricks.unit}."
        )
    return start
