"""The builder of definitions, for feeds in YAML and Python."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import dagster as dg

from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.orchestration._dagster import disable_dagster_warnings
from ucs_pipeline.orchestration.asset_page import stream_fields, stream_storage, table_storage
from ucs_pipeline.orchestration.assets import brick_asset
from ucs_pipeline.orchestration.checks.definitions import check_defs, checks_name
from ucs_pipeline.orchestration.names import feed_key, feeds_in, stream_key, table_key
from ucs_pipeline.orchestration.sensors.alerts import alert_defs
from ucs_pipeline.orchestration.sensors.feed_sensor import sensor_defs


def build_defs(*feeds: Feed, resources: Mapping[str, object] | None = None, alerts: bool = True) -> dg.Definitions:
    """Definitions of one or more feeds, ready for a code location.

    Args:
        feeds: the feeds.
        resources: their ClickHouseResource and RedisResource, by their keys; left out, other definitions of the code
            location have them.
        alerts: whether to add the alert sensors, which watch all feeds of the code location.

    Raises:
        FeedError: two feeds have one name, or write to one stream, or one has the name of the other's job.
    """
    built = [build_feed(feed, feeds, alerts=alerts) for feed in feeds]
    return dg.Definitions.merge(*built, dg.Definitions(resources=resources or {}))


def build_feed(feed: Feed, together: Sequence[Feed] = (), *, alerts: bool = True) -> dg.Definitions:
    """The definitions of one feed: its assets with those of its table and streams, checks, sensors, schedules.

    Shared definitions, such as their table or the alerts, come with the first feed only: the components of a project
    mark their definitions, and Dagster refuses two that differ.

    Args:
        feed: the feed.
        together: the feeds of the code location, this one among them, if known.
        alerts: whether the sensors that alert come with the first feed.

    Raises:
        FeedError: another feed has its name, or writes to its stream, or one has the name of the other's job.
    """
    others = [stream for other in together for stream in streams_of(other)]
    for clash in conflicts(others):
        raise FeedError(clash.sentence, "UCS-CONFLICT")
    streams = streams_of(feed)
    others = others or list(streams)
    specs: list[dg.AssetSpec] = []
    if feed.table_asset is None:
        same = [other for other in others if other.table_asset is None and table_key(other) == table_key(feed)]
        specs += [_table_spec(feed)] if _is_first(feed, same) else []
    for stream in streams:
        writers = sorted((other for other in others if _place(other) == _place(stream)), key=lambda other: other.name)
        specs += [_stream_spec(writers)] if _is_first(feed, writers) else []
    built = [_build_stream(stream) for stream in streams]
    shared = alert_defs() if alerts and _is_first(feed, others) else dg.Definitions()
    return dg.Definitions.merge(*built, dg.Definitions(assets=specs), shared)


def _is_first(feed: Feed, together: Sequence[Feed]) -> bool:
    return feed.parent.name == min(other.parent.name for other in together)


def _build_stream(feed: Feed) -> dg.Definitions:
    # `backfill_policy` is beta in Dagster. The warning would come for each feed in each process.
    with disable_dagster_warnings():
        asset = brick_asset(feed)
    return dg.Definitions.merge(dg.Definitions(assets=[asset]), check_defs(feed), sensor_defs(feed, asset))


def _table_spec(feed: Feed) -> dg.AssetSpec:
    return dg.AssetSpec(
        table_key(feed),
        description=f"ClickHouse table `{feed.redacted.table}`, read by this project and written by others.",
        kinds={"clickhouse", "table"},
        metadata=table_storage(feed),
    )


def _stream_spec(writers: Sequence[Feed]) -> dg.AssetSpec:
    feed = writers[0]
    return dg.AssetSpec(
        stream_key(feed),
        deps=list(map(feed_key, writers)),
        description=f"Redis stream `{feed.stream_name}`, written by this project and read by others. Assets that are "
        "made from it name its feed in their `deps`: so they wait for it where both are launched together.",
        kinds={"redis", "stream"},
        group_name=feed.group,
        metadata={**stream_storage(feed), **stream_fields(writers)},
    )


def feeds_of(defs: dg.Definitions) -> list[Feed]:
    """The feeds of some definitions, by name; of a feed with several streams, its shards."""
    # Without the asset graph: for conflicting feeds Dagster refuses to build it, with its own message.
    assets = (asset for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition))
    return feeds_in(spec for asset in assets for spec in asset.specs)


class Conflict(NamedTuple):
    """Feeds that exclude each other."""

    sentence: str
    feeds: Sequence[Feed]


def conflicts(feeds: Sequence[Feed]) -> Iterator[Conflict]:
    """The conflicts of some feeds, each with one stream: the same name or the same stream."""
    wholes = [feed.parent for feed in feeds if feed.shard_id and not feed.shard_id.number]
    shared = set(map(_place, feeds)) - {_place(f) for f in feeds if not f.any_order}
    seen: set[frozenset[int]] = set()
    for what, named in (
        ("named", [(f.name, f.name, f) for f in (*wholes, *feeds)]),
        ("writing to stream", [(_place(f), f.stream_name, f) for f in feeds if _place(f) not in shared]),
    ):
        by_name: dict[str | tuple[str, str], list[Feed]] = {}
        for key, _, feed in named:
            by_name.setdefault(key, []).append(feed)
        names = {key: name for key, name, _ in named}
        for key, culprits in by_name.items():
            # Feeds of one name have one stream, and shards of one name.
            together = frozenset(id(feed.parent) for feed in culprits)
            if len(culprits) > 1 and together not in seen:
                seen.add(together)
                yield Conflict(
                    f"{len(culprits)} feeds are {what} {names[key]!r} ({' and '.join(map(_shown, culprits))}). An "
                    "ordered feed needs a name and a stream of its own: rename one.",
                    culprits,
                )
    taken = {feed.name: feed for feed in feeds}
    for feed in feeds:
        if other := taken.get(checks_name(feed)):
            yield Conflict(
                f"feed {other.name!r} has the name of the job that runs the checks of feed {feed.name!r}. Rename one.",
                [other, feed],
            )


def _shown(feed: Feed) -> str:
    return f"shard {feed.shard_id.number} of {feed.parent.name!r}" if feed.shard_id else repr(feed.name)


def _place(feed: Feed) -> tuple[str, str]:
    return feed.redis, feed.stream_name
