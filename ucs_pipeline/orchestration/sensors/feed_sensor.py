"""A feed's sensor and schedule, which launch its next bricks."""

import time

import dagster as dg

from ucs_pipeline.errors import UcsError, without_code
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.names import LIVE_TAG, MAX_RETRIES_TAG, OPEN_BRICK_TAG, feed_key, range_tags, run_tags
from ucs_pipeline.orchestration.resources import resource_keys
from ucs_pipeline.orchestration.sensors.next_bricks import FeedSnapshot, LaunchBackoff, Request, next_bricks


def sensor_defs(feed: Feed, asset: dg.AssetsDefinition) -> dg.Definitions:
    """The sensor and the schedule of a feed. Connects to nothing."""
    sensors = [_sensor(feed, asset)] if feed.sensor else []
    schedules = [_schedule(feed, asset)] if feed.schedule else []
    return dg.Definitions(sensors=sensors, schedules=schedules)


def _sensor(feed: Feed, asset: dg.AssetsDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{feed.name}_sensor",
        target=dg.AssetSelection.assets(feed_key(feed)),
        minimum_interval_seconds=feed.sensor_interval_s,
        required_resource_keys=resource_keys(feed),
        description=f"Publishes the next bricks of {feed.name} when they are sealed"
        + {"hold": ".", "follow": ", and the rows of the open last brick.", "live": ", in one long run."}[feed.tail],
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        found, seen = _next(feed, asset, context, feed.max_bricks_per_run)
        if isinstance(found, str):
            return dg.SensorResult(skip_reason=_checked_again(found, f"in {feed.sensor_interval_s} s"))
        assert seen
        tries, now = LaunchBackoff.parse(context.cursor), time.time()
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
        target=dg.AssetSelection.assets(feed_key(feed)),
        required_resource_keys=resource_keys(feed),
        description=f"Publishes the next {feed.schedule_bricks} {feed.bricks.level}s of {feed.name} at each tick.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        found, _ = _next(feed, asset, context, feed.schedule_bricks)
        if isinstance(found, str):
            return dg.SkipReason(_checked_again(found, "at the next tick of the schedule"))
        return _run_request(feed, found)

    return schedule


def _checked_again(reason: str, when: str) -> str:
    """A skip reason with the time of the next check; its code stays at the end."""
    text = without_code(reason)
    return f"{text} Next check {when}.{reason[len(text) :]}"


def request_tags(feed: Feed, request: Request) -> dict[str, str]:
    """The tags of a run over some partitions: for Dagster, and for searches in the UI."""
    tags = {
        **range_tags(feed.partitions.name(request.first), feed.partitions.name(request.last)),
        **run_tags(feed, request.first, request.last),
    }
    if request.open:
        tags[OPEN_BRICK_TAG] = feed.partitions.name(request.last)
    if request.live:
        # The sensor starts the next one. A retry by Dagster would wait in the queue behind it, for an hour.
        tags |= {LIVE_TAG: "yes", MAX_RETRIES_TAG: "0"}
    return tags


def _run_request(feed: Feed, request: Request) -> dg.RunRequest:
    # No run key: it would block these bricks permanently, also after a failure.
    return dg.RunRequest(tags=request_tags(feed, request), asset_selection=[feed_key(feed)])


def _next(
    feed: Feed,
    asset: dg.AssetsDefinition,
    context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext,
    most: int,
) -> tuple[Request | str, FeedSnapshot | None]:
    # A schedule itself decides when bricks are published.
    asked = isinstance(context, dg.ScheduleEvaluationContext)
    try:
        # Imports Arrow and the clients, which definitions do not need.
        from ucs_pipeline.orchestration.sensors.snapshot import situation_of

        seen = situation_of(feed, asset, context.instance, context.resources, asked=asked)
    except UcsError as error:
        context.log.error(str(error))
        return f"skipped: {error}", None
    return next_bricks(feed, seen, most, live=feed.tail == "live" and not asked), seen
