"""A feed's sensor and schedule: what launches its next bricks by itself."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import dagster as dg

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import SourceError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration._dagster import get_and_update_asset_status_cache_value
from ucs_pipeline.orchestration.names import OPEN_BRICK_TAG, run_tags
from ucs_pipeline.orchestration.sensors.next_bricks import Request, Situation, Tries, first_to_publish, next_bricks
from ucs_pipeline.orchestration.sensors.sealed import Seal, seal

if TYPE_CHECKING:
    from ucs_pipeline.clickhouse.source import Source

_LOOK_BACK = 100


def trigger_defs(feed: Feed, asset: dg.AssetsDefinition) -> dg.Definitions:
    """The sensor and the schedule that a feed asks for. Building them connects to nothing."""
    sensors = [_sensor(feed, asset)] if feed.sensor else []
    schedules = [_schedule(feed, asset)] if feed.schedule else []
    return dg.Definitions(sensors=sensors, schedules=schedules)


def _sensor(feed: Feed, asset: dg.AssetsDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{feed.name}_sensor",
        target=dg.AssetSelection.assets(dg.AssetKey(feed.name)),
        minimum_interval_seconds=feed.sensor_interval_s,
        description=f"Publishes the next bricks of {feed.name} as the table seals them"
        + (", and follows its open last brick." if feed.tail == "follow" else "."),
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        found, seen = _next(feed, asset, context, feed.max_bricks_per_run)
        if isinstance(found, str):
            return dg.SensorResult(skip_reason=found)
        assert seen
        tries, now = Tries.parse(context.cursor), time.time()
        if objection := tries.objection(feed, found, seen.at, now):
            return dg.SensorResult(skip_reason=objection)
        return dg.SensorResult(
            run_requests=[_run_request(feed, found)],
            cursor=str(tries.launched(feed, found, seen.at, round(now))),
        )

    return sensor


def _schedule(feed: Feed, asset: dg.AssetsDefinition) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{feed.name}_schedule",
        cron_schedule=str(feed.schedule),
        target=dg.AssetSelection.assets(dg.AssetKey(feed.name)),
        description=f"Publishes the next {feed.schedule_bricks} bricks of {feed.name} at each tick.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        found, _ = _next(feed, asset, context, feed.schedule_bricks)
        return dg.SkipReason(found) if isinstance(found, str) else _run_request(feed, found)

    return schedule


def _run_request(feed: Feed, request: Request) -> dg.RunRequest:
    tags = {
        "dagster/asset_partition_range_start": feed.numbering.name(request.first),
        "dagster/asset_partition_range_end": feed.numbering.name(request.last),
        **run_tags(feed, request.first, request.last),
    }
    if request.open:
        tags[OPEN_BRICK_TAG] = feed.numbering.name(request.last)
    # No run key: it would block these bricks for ever, also after a failure.
    return dg.RunRequest(tags=tags, asset_selection=[dg.AssetKey(feed.name)])


def _next(
    feed: Feed,
    asset: dg.AssetsDefinition,
    context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext,
    most: int,
) -> tuple[Request | str, Situation | None]:
    try:
        seen = _situation(feed, asset, context.instance)
    except UcsError as error:
        context.log.error(str(error))
        return str(error), None
    if feed.bricks.kind == "text" and isinstance(context, dg.ScheduleEvaluationContext):
        # Nothing seals text bricks, and whoever writes a schedule has said when they may go.
        seen = replace(seen, seal=Seal(None))
    return next_bricks(feed, seen, most), seen


def _situation(feed: Feed, asset: dg.AssetsDefinition, instance: dg.DagsterInstance) -> Situation:
    from ucs_pipeline.clickhouse.source import open_source
    from ucs_pipeline.orchestration.sensors.any_order import ledger_situation
    from ucs_pipeline.publishing.backpressure import fullness
    from ucs_pipeline.redis.connection import connect_redis
    from ucs_pipeline.stream.shard_state import refuse_other_dealing
    from ucs_pipeline.stream.stream import open_stream

    stream = open_stream(feed, connect_redis(feed.stream_name))
    state = stream.state()
    if feed.any_order:
        situation = ledger_situation(feed, _names(asset), *_statuses(asset, instance), instance, stream, state)
    else:
        refuse_other_dealing(feed, stream, state)
        situation = Situation(*_progress(feed, asset, instance), state, Seal(None))
    start = first_to_publish(feed, situation.missing, situation.recorded, state)
    if situation.busy is not None:
        return situation
    source = open_source(feed)
    if start is None:
        # The digits of all text keys, at every look, would cost more than they tell.
        return replace(situation, goes_on=feed.bricks.kind != "text" and _goes_on(source))
    newest = source.newest_key(start) if feed.bricks.kind == "number" else None
    found = seal(feed, start, newest, time.time())
    rows: Mapping[int, int] = {}
    if feed.tail == "follow" and isinstance(found, Seal) and found.open == start:
        rows = source.count(start, feed.numbering.end(start))
    return replace(situation, seal=found, open_rows=rows, full=fullness(stream, feed.stream, state))


def _goes_on(source: "Source") -> bool:
    try:
        return source.goes_on()
    except SourceError:
        # Of a feed that is done the table may be gone.
        return False


def _progress(
    feed: Feed, asset: dg.AssetsDefinition, instance: dg.DagsterInstance
) -> tuple[int | None, int | None, EntryId]:
    """The first brick that is not done, a brick in progress, and the highest recorded entry."""
    from ucs_pipeline.entries.entry_id import START
    from ucs_pipeline.orchestration.materializations import recorded

    done, busy = _statuses(asset, instance)
    bricks = list(zip(feed.numbering.starts, _names(asset), strict=True))
    first_missing = next((start for start, name in bricks if name not in done), None)
    first_busy = next((start for start, name in bricks if name in busy), None) if busy else None
    # Bricks without rows have no entries; more than a hundred of them in a row are not looked through.
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
    """Names of the partitions that are done, and of those that a run is about to publish, or publishing."""
    partitions = asset.partitions_def
    assert partitions
    # What `instance.get_status_by_partition` answers from; with a hundred thousand bricks that takes twice as long.
    cached = get_and_update_asset_status_cache_value(instance, asset.key, partitions)
    if cached is None:
        return set(), set()
    busy = set(cached.deserialize_in_progress_partition_subsets(partitions).get_partition_keys())
    # A brick that is done, and that a run failed on since, is looked at once more.
    failed = set(cached.deserialize_failed_partition_subsets(partitions).get_partition_keys())
    done = set(cached.deserialize_materialized_partition_subsets(partitions).get_partition_keys()) - failed - busy
    return done, busy
