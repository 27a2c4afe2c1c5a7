"""A feed as a partitioned asset: one partition per brick, one materialisation as each brick completes."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from ucs_pipeline.errors import OutOfTurnError, SourceUnavailableError, StreamUnavailableError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.instance.run_queue import queue_again, running_before
from ucs_pipeline.orchestration._dagster import (
    BaseAssetGraph,
    ObjectMetadataValue,
)
from ucs_pipeline.orchestration.asset_page import description, fields, settings, stream_storage
from ucs_pipeline.orchestration.checks.definitions import after_run
from ucs_pipeline.orchestration.materializations import DATA_VERSION_TAG, data_version, metadata
from ucs_pipeline.orchestration.names import (
    FEED_METADATA,
    OPEN_BRICK_TAG,
    feed_key,
    pool,
    run_tags,
    runs_tag,
    stream_key,
    table_key,
)
from ucs_pipeline.orchestration.resources import resource_keys, table_address
from ucs_pipeline.publishing.brick_results import BrickReport

if TYPE_CHECKING:
    from ucs_pipeline.clickhouse.sql.queries import Shape

_RETRIES, _RETRY_SECONDS = 2, 10
_TURNS, _TURN_SECONDS, _LONGEST_TURN_SECONDS = 200, 5, 60
"""A run waits at most hours for earlier ones of its backfill: one whose process was killed seems to be running."""

_NO_FURTHER_EVENT = {"__source_asset_observation__": True}
"""Metadata of an output for which Dagster records no event of its own. Undocumented, and used here only: without it
each brick of a run would get a second event."""

_REPLAY = dg.Field(
    bool,
    default_value=False,
    description="Publish bricks that are done once more. Left out, they are left as they are.",
)

CODE_VERSION = "1"
"""Version of the encoding of rows."""


def brick_asset(feed: Feed) -> dg.AssetsDefinition:
    """The asset of a feed. Connects to nothing."""

    @dg.asset(
        key=feed_key(feed),
        description=description(feed, f"{runs_tag(feed.name)}=yes"),
        partitions_def=dg.StaticPartitionsDefinition(feed.partitions.names()),
        backfill_policy=dg.BackfillPolicy.multi_run(feed.max_bricks_per_run),
        deps=_upstream(feed),
        # One run at a time per ordered stream: the guarantee does not need it, but two runs would slow each other down.
        pool=None if feed.any_order else pool(feed.stream_name),
        required_resource_keys=resource_keys(feed),
        config_schema={"replay": _REPLAY} if feed.any_order else None,
        # No retry policy: it would also start a cancelled run again.
        kinds={"clickhouse", "redis"},
        group_name=feed.group,
        owners=feed.owners,
        tags=feed.tags,
        freshness_policy=_freshness(feed),
        code_version=CODE_VERSION,
        automation_condition=feed.automation_condition,
        metadata={
            **stream_storage(feed),
            **fields(feed),
            **feed.metadata,
            FEED_METADATA: ObjectMetadataValue(settings(feed), instance=feed),
            "stream": feed.stream_name,
            "table": feed.redacted.table,
        },
        # The output holds no value: downstream assets wait for it, and read the stream.
        dagster_type=cast("dg.DagsterType", dg.Nothing),
    )
    def bricks(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation | dg.Output[None]]:
        # Imports Arrow and the clients, which definitions do without.
        from ucs_pipeline.orchestration.runs.brick_run import publish_bricks

        graph = context.job_def.asset_layer.asset_graph
        refuse_unordered(feed, graph)
        wanted = _wanted(context, feed)
        # Runs of a backfill lack it: Dagster copies no tag from an asset to its runs.
        context.instance.add_run_tags(context.run.run_id, run_tags(feed, wanted[0], wanted[-1], feed_names(graph)))
        seen = {*_finished_before_retry(context), context.run.tags.get(OPEN_BRICK_TAG)}
        left = set(map(feed.partitions.name, wanted)) - seen
        rows, published, read = 0, 0, versions_read(feed, context.instance)
        try:
            reports, shape = publish_bricks(context, feed, wanted)
            for report in reports:
                rows += report.rows
                published += report.published
                name = feed.partitions.name(report.ordinal)
                left.discard(name)
                if name not in seen and not report.open:
                    # Columns take kilobytes. The UI shows those of the latest event, so that one of a run is enough.
                    yield brick_event(feed, report, read, None if left else shape())
        except UcsError as error:
            # The failure is shown with a stack trace; this line is separate in the run's log.
            context.log.error(str(error))
            passing = isinstance(error, StreamUnavailableError | SourceUnavailableError)
            if passing and context.retry_number < _RETRIES:
                pause = _RETRY_SECONDS * 2**context.retry_number
                raise dg.RetryRequested(max_retries=_RETRIES, seconds_to_wait=pause) from error
            if isinstance(error, OutOfTurnError) and (other := _running_before(context, feed, wanted[0])):
                context.log.info(f"run {other} publishes earlier bricks. This run waits for it.")
                pause = min(_TURN_SECONDS * 2**context.retry_number, _LONGEST_TURN_SECONDS)
                raise dg.RetryRequested(max_retries=_TURNS, seconds_to_wait=pause) from error
            if isinstance(error, OutOfTurnError) and queue_again(context.instance, context.run):
                context.log.warning("a run of earlier bricks is launched again, and this run after it")
            raise dg.Failure(str(error), metadata={"code": error.code}) from error
        if feed.table_asset is None:
            span = feed.partitions.span(wanted[0], wanted[-1])
            server = table_address(feed, context.resources)
            yield dg.AssetObservation(
                table_key(feed), metadata={"feed": feed.name, "bricks": span, "rows": rows, "server": server}
            )
        yield from after_run(feed, context.instance, context.resources, published)
        yield dg.Output(None, metadata=_NO_FURTHER_EVENT)

    return bricks


def _freshness(feed: Feed) -> dg.FreshnessPolicy | None:
    if feed.fresh_within_s is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(seconds=feed.fresh_within_s))


def _wanted(context: dg.AssetExecutionContext, feed: Feed) -> Sequence[int]:
    # Read once, since each access slices the whole list. Read always: a body that does not read its partitions would
    # succeed if launched without one.
    bricks = feed.partitions
    keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else []
    if not keys:
        raise dg.Failure(
            f"feed {feed.name!r}: the run names no bricks, or a range whose first brick comes after its last. Choose "
            f"partitions from {bricks.name(bricks.first)} to {bricks.name(bricks.last)}, the earlier one first. "
            "[UCS-RUN]"
        )
    return bricks.between(bricks.start_named(keys[0]), bricks.start_named(keys[-1]))


def _running_before(context: dg.AssetExecutionContext, feed: Feed, first: int) -> str | None:
    """Id of a running run that publishes bricks before `first` for the same backfill."""
    bricks = feed.partitions
    return running_before(context.instance, context.run, lambda name: bricks.start_named(name) < first)


def _finished_before_retry(context: dg.AssetExecutionContext) -> set[str | None]:
    if not context.retry_number:
        return set()
    records = context.instance.get_records_for_run(
        context.run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    ).records
    return {record.partition_key for record in records}


def feed_names(graph: BaseAssetGraph[Any]) -> list[str]:
    """Names of the feeds that are published in a job, or in a part of it."""
    nodes = map(graph.get, graph.executable_asset_keys)
    return sorted(node.metadata[FEED_METADATA].instance.name for node in nodes if FEED_METADATA in node.metadata)


def refuse_unordered(feed: Feed, graph: BaseAssetGraph[Any]) -> None:
    """Refuses a run of the feed with a downstream asset of its stream that does not wait for the feed.

    Dagster orders the assets of a run by their dependencies, but not across an external asset.

    Raises:
        dg.Failure: there is such an asset.
    """
    own, stream, launched = feed_key(feed), stream_key(feed), graph.executable_asset_keys
    parents = {key: graph.get(key).parent_keys for key in launched}

    def waits(key: dg.AssetKey) -> bool:
        return own in parents[key] or any(map(waits, parents[key] & launched))

    for key in sorted(launched):
        if stream in parents[key] and not waits(key):
            raise dg.Failure(
                f"feed {feed.name!r}: asset {key.to_user_string()!r} is launched in the same run and depends on "
                f"{stream.to_user_string()!r} only, for which Dagster does not wait. It may read the stream before "
                f"this run adds its rows. Name the feed in its `deps` ({own.to_user_string()!r}), or launch it by "
                "itself. [UCS-RUN]"
            )


def _upstream(feed: Feed) -> list[dg.AssetKey]:
    return [table_key(feed), *map(dg.AssetKey.from_user_string, feed.deps)]


def versions_read(feed: Feed, instance: dg.DagsterInstance) -> dict[str, str]:
    """Tags with the versions of the upstream assets that a feed reads now.

    Dagster adds them to outputs only; without them, the brick of a hand-made event shows as out of sync.
    """
    tags = {}
    for key in _upstream(feed):
        newest = next(iter(instance.fetch_materializations(key, limit=1).records), None)
        event = newest and newest.asset_materialization
        version = (event.tags or {}).get(DATA_VERSION_TAG) if event else None
        tags[f"dagster/input_data_version/{key.to_user_string()}"] = version or "INITIAL"
        tags[f"dagster/input_event_pointer/{key.to_user_string()}"] = str(newest.storage_id) if newest else "NULL"
    return tags


def brick_event(
    feed: Feed, report: BrickReport, read: Mapping[str, str], shape: "Shape | None" = None
) -> dg.AssetMaterialization:
    """The event that records a brick as done; `read`: see `versions_read`; `shape`: its columns, if it has them."""
    return dg.AssetMaterialization(
        feed_key(feed),
        partition=feed.partitions.name(report.ordinal),
        metadata={**metadata(feed, report), **(fields(feed, shape) if shape else {})},
        tags={"dagster/code_version": CODE_VERSION, DATA_VERSION_TAG: data_version(report), **read},
    )
