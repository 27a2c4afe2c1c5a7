"""One builder behind the YAML component and the Python settings object."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import dagster as dg

from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.orchestration.assets import brick_asset
from ucs_pipeline.orchestration.checks.definitions import check_defs, checks_name
from ucs_pipeline.orchestration.names import FEED_METADATA, stream_key, table_key
from ucs_pipeline.orchestration.sensors.alerts import alert_defs
from ucs_pipeline.orchestration.sensors.feed_sensor import sensor_defs


def build_feed(feed: Feed) -> dg.Definitions:
    """Definitions of one feed, without what feeds share; `assemble` adds that."""
    return dg.Definitions.merge(*map(_build_stream, streams_of(feed)))


def _build_stream(feed: Feed) -> dg.Definitions:
    asset = brick_asset(feed)
    return dg.Definitions.merge(dg.Definitions(assets=[asset]), check_defs(feed), sensor_defs(feed, asset))


def build_defs(*feeds: Feed) -> dg.Definitions:
    """Definitions of one or more feeds, ready for a code location.

    Raises:
        FeedError: two feeds have one name, or write to one stream, or one has the name of the other's job.
    """
    streams = _distinct([stream for feed in feeds for stream in streams_of(feed)])
    return assemble(dg.Definitions.merge(*map(_build_stream, streams)))


def assemble(defs: dg.Definitions) -> dg.Definitions:
    """Adds the feeds' tables and streams as external assets, the sensors that alert, and the executor they share.

    Raises:
        FeedError: two feeds write to one stream, or one has the name of the other's job.
    """
    feeds = _distinct(feeds_of(defs))
    # What else is wrong with the definitions, Dagster says here and not at their first use.
    defs.resolve_asset_graph()
    tables = {
        table_key(feed): dg.AssetSpec(
            table_key(feed),
            description=f"ClickHouse table `{feed.redacted.table}`, read by this project and written by others.",
            kinds={"clickhouse", "table"},
        )
        for feed in feeds
    }
    streams = {
        stream_key(feed): dg.AssetSpec(
            stream_key(feed),
            deps=[dg.AssetKey(other.name) for other in feeds if stream_key(other) == stream_key(feed)],
            description=f"Redis stream `{feed.stream_name}`, written by this project and read by others. Assets that "
            "are made from it name its feed in their `deps`: so they wait for it where both are launched together.",
            kinds={"redis", "stream"},
            group_name=feed.group,
        )
        for feed in feeds
    }
    # One process per run: starting a step process costs seconds, and a run has one step.
    shared = dg.Definitions(assets=[*tables.values(), *streams.values()], executor=dg.in_process_executor)
    return dg.Definitions.merge(defs, shared, alert_defs(feeds))


def feeds_of(defs: dg.Definitions) -> list[Feed]:
    """The feeds behind some definitions, by name; where a feed has several streams, its shards."""
    # Not by the asset graph, which Dagster refuses to make of feeds that clash, in words of its own.
    assets = (asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition))
    found = [
        spec.metadata[FEED_METADATA].instance
        for asset in assets
        for spec in asset.specs
        if FEED_METADATA in spec.metadata
    ]
    return sorted(found, key=lambda feed: (feed.parent.name, feed.shard_id or ()))


class Conflict(NamedTuple):
    """What feeds cannot be beside each other."""

    sentence: str
    feeds: Sequence[Feed]


def conflicts(feeds: Sequence[Feed]) -> Iterator[Conflict]:
    """Which of some feeds, each with one stream, have no name and no stream of their own."""
    wholes = [feed.parent for feed in feeds if feed.shard_id and not feed.shard_id.number]
    shared = {f.stream_name for f in feeds} - {f.stream_name for f in feeds if not f.any_order}
    told: set[frozenset[int]] = set()
    for what, named in (
        ("named", [(f.name, f) for f in (*wholes, *feeds)]),
        ("writing to stream", [(f.stream_name, f) for f in feeds if f.stream_name not in shared]),
    ):
        by_name: dict[str, list[Feed]] = {}
        for name, feed in named:
            by_name.setdefault(name, []).append(feed)
        for name, culprits in by_name.items():
            # Feeds of one name have one stream, and shards of one name.
            together = frozenset(id(feed.parent) for feed in culprits)
            if len(culprits) > 1 and together not in told:
                told.add(together)
                yield Conflict(
                    f"{len(culprits)} feeds are {what} {name!r} ({' and '.join(map(_shown, culprits))}): an ordered "
                    "feed needs a name and a stream of its own; rename one",
                    culprits,
                )
    taken = {feed.name: feed for feed in feeds}
    for feed in feeds:
        if other := taken.get(checks_name(feed)):
            yield Conflict(
                f"feed {other.name!r} has the name of the job that runs the checks of feed {feed.name!r}: rename one",
                [other, feed],
            )


def _distinct(feeds: list[Feed]) -> list[Feed]:
    """The same feeds, each with one stream, if each has a name and a stream of its own."""
    for clash in conflicts(feeds):
        raise FeedError(clash.sentence)
    return feeds


def _shown(feed: Feed) -> str:
    return f"shard {feed.shard_id.number} of {feed.parent.name!r}" if feed.shard_id else repr(feed.name)
