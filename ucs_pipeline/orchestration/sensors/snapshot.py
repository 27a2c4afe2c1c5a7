"""The state of a feed at one moment, read for its sensor and its schedule."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import dagster as dg

from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.entry_id import START, EntryId
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration._dagster import get_and_update_asset_status_cache_value
from ucs_pipeline.orchestration.materializations import recorded
from ucs_pipeline.orchestration.resources import open_stream, open_table
from ucs_pipeline.orchestration.sensors.any_order import ledger_situation
from ucs_pipeline.orchestration.sensors.next_bricks import FeedSnapshot, first_to_publish
from ucs_pipeline.orchestration.sensors.sealed import Seal, seal
from ucs_pipeline.publishing.backpressure import fullness
from ucs_pipeline.stream.shard_state import refuse_other_sharding

_LOOK_BACK = 100


def situation_of(
    feed: Feed, asset: dg.AssetsDefinition, instance: dg.DagsterInstance, resources: object, *, asked: bool = False
) -> FeedSnapshot:
    """The state of the feed now.

    `asked`: a command or a schedule asks for bricks now. Then text bricks, which are never sealed, count too.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read, or has other shards.
    """
    stream = open_stream(feed, resources)
    state = stream.state()
    if feed.any_order:
        situation = ledger_situation(feed, _names(asset), *_statuses(asset, instance), instance, stream, state)
    else:
        refuse_other_sharding(feed, stream, state)
        situation = FeedSnapshot(*_progress(feed, asset, instance), state, Seal(None))
    start = first_to_publish(feed, situation.missing, situation.recorded, state)
    if situation.busy is not None:
        return situation
    source = open_table(feed, resources)
    if start is None:
        # Hashing all text keys at every tick would cost too much.
        return replace(situation, has_rows_beyond=feed.bricks.kind != "text" and _has_rows_beyond(source))
    newest = source.newest_key(start) if feed.bricks.kind == "number" else None
    found = Seal(None) if asked and feed.bricks.kind == "text" else seal(feed, start, newest, time.time())
    rows: Mapping[int, int] = {}
    if feed.tail != "hold" and isinstance(found, Seal) and found.open == start:
        rows = source.count(start, feed.partitions.end(start))
    return replace(situation, seal=found, open_rows=rows, full=fullness(stream, feed.stream, state))


def _has_rows_beyond(source: Source) -> bool:
    try:
        return source.has_rows_beyond()
    except SourceError:
        # The table of a finished feed may be gone.
        return False


def _progress(
    feed: Feed, asset: dg.AssetsDefinition, instance: dg.DagsterInstance
) -> tuple[int | None, int | None, EntryId]:
    """The first unfinished brick, a brick in progress, and the highest recorded entry."""
    done, busy = _statuses(asset, instance)
    bricks = list(zip(feed.partitions.starts, _names(asset), strict=True))
    first_missing = next((start for start, name in bricks if name not in done), None)
    first_busy = next((start for start, name in bricks if name in busy), None) if busy else None
    # Bricks without rows have no entries; at most a hundred of them in a row are read.
    newest = list(islice((start for start, name in reversed(bricks) if name in done), _LOOK_BACK))
    for some in (newest[:1], newest):
        entries = [report.last_entry for report in recorded(instance, feed, some).values() if report.last_entry]
        if entries:
            return first_missing, first_busy, max(entries)
    return first_missing, first_busy, START


def _names(asset: dg.AssetsDefinition) -> Sequence[str]:
    assert asset.partitions_def
    return asset.partitions_def.get_partition_keys()


def _statuses(asset: dg.AssetsDefinition, instance: dg.DagsterInstance) -> tuple[set[str], set[str]]:
    """Names of the partitions that are done, and of those in queued or running runs."""
    partitions = asset.partitions_def
    assert partitions
    # As `instance.get_status_by_partition`, which takes twice as long with 100,000 bricks.
    cached = get_and_update_asset_status_cache_value(instance, asset.key, partitions)
    if cached is None:
        return set(), set()
    busy = set(cached.deserialize_in_progress_partition_subsets(partitions).get_partition_keys())
    # A finished brick whose latest run failed is read again.
    failed = set(cached.deserialize_failed_partition_subsets(partitions).get_partition_keys())
    done = set(cached.deserialize_materialized_partition_subsets(partitions).get_partition_keys()) - failed - busy
    return done, busy
