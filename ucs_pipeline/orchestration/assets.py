"""A feed as a partitioned asset: one partition per brick, one materialisation as each brick completes."""

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import dagster as dg

from ucs_pipeline.errors import OutOfTurnError, SourceUnavailableError, StreamUnavailableError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.instance.run_queue import queue_again
from ucs_pipeline.orchestration._dagster import (
    BaseAssetGraph,
    ObjectMetadataValue,
)
from ucs_pipeline.orchestration.asset_page import columns, description, settings
from ucs_pipeline.orchestration.checks.definitions import after_run
from ucs_pipeline.orchestration.materializations import DATA_VERSION_TAG, data_version, metadata
from ucs_pipeline.orchestration.names import FEED_METADATA, OPEN_BRICK_TAG, run_tags, runs_tag, stream_key, table_key
from ucs_pipeline.publishing.brick_results import BrickReport

_RETRIES, _RETRY_SECONDS = 2, 10

_NO_FURTHER_EVENT = {"__source_asset_observation__": True}
"""Metadata of an output for which Dagster records no event of its own. Undocumented, and used here only: without it
each brick of a run would get a second event."""

_REPLAY = dg.Field(
    bool,
    default_value=False,
    description="Publish bricks that are done once more. Left out, they are left as they are.",
)

CODE_VERSION = "1"
"""Version of what a row looks like in the stream; raised when the encoding changes."""


def brick_asset(feed: Feed) -> dg.AssetsDefinition:
    """The asset of a feed. Building it connects to nothing."""

    @dg.asset(
        name=feed.name,
        description=description(feed, f"{runs_tag(feed.name)}=yes"),
        partitions_def=dg.StaticPartitionsDefinition(feed.partitions.names()),
        backfill_policy=dg.BackfillPolicy.multi_run(feed.max_bricks_per_run),
        deps=[table_key(feed)],
        # One run at a time per ordered stream: the guarantee does not need it, but two runs would only get in each
        # other's way.
        pool=None if feed.any_order else "redis_stream:" + re.sub(r"\s", "_", feed.stream_name),
        config_schema={"replay": _REPLAY} if feed.any_order else None,
        # No retry policy: with one, Dagster starts a run again that was cancelled.
        kinds={"clickhouse", "redis"},
        group_name=feed.group,
        owners=feed.owners,
        tags=feed.tags,
        freshness_policy=_freshness(feed),
        code_version=CODE_VERSION,
        metadata={
            FEED_METADATA: ObjectMetadataValue(settings(feed), instance=feed),
            "stream": feed.stream_name,
            "table": feed.redacted.table,
            **columns(feed),
        },
        # The output holds no value: what is behind the feed waits for it, and reads the stream.
        dagster_type=cast("dg.DagsterType", dg.Nothing),
    )
    def bricks(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation | dg.Output[None]]:
        # Imports Arrow and the clients, which definitions do without.
        from ucs_pipeline.orchestration.brick_run import publish_bricks

        graph = context.job_def.asset_layer.asset_graph
        refuse_unordered(feed, graph)
        wanted = _wanted(context, feed)
        # Runs of a backfill come without: Dagster copies no tag from an asset to its runs.
        context.instance.add_run_tags(context.run.run_id, run_tags(feed, wanted[0], wanted[-1], feed_names(graph)))
        seen = {*_finished_before_retry(context), context.run.tags.get(OPEN_BRICK_TAG)}
        rows = published = 0
        try:
            for report in publish_bricks(context, feed, wanted):
                rows += report.rows
                published += report.published
                if feed.partitions.name(report.ordinal) not in seen:
                    yield brick_event(feed, report)
        except UcsError as error:
            # The failure itself is shown behind a stack trace; this line stands by itself in the run's log.
            context.log.error(str(error))
            passing = isinstance(error, StreamUnavailableError | SourceUnavailableError)
            if passing and context.retry_number < _RETRIES:
                pause = _RETRY_SECONDS * 2**context.retry_number
                raise dg.RetryRequested(max_retries=_RETRIES, seconds_to_wait=pause) from error
            if isinstance(error, OutOfTurnError) and queue_again(context.instance, context.run):
                context.log.warning("a run of the bricks before these is launched again, and this one after it")
            raise dg.Failure(str(error)) from error
        span = feed.partitions.span(wanted[0], wanted[-1])
        seen_rows = {"rows": rows, "published": published}
        yield dg.AssetObservation(table_key(feed), metadata={"feed": feed.name, "bricks": span, **seen_rows})
        yield from after_run(feed, context.instance)
        yield dg.Output(None, metadata=_NO_FURTHER_EVENT)

    return bricks


def _freshness(feed: Feed) -> dg.FreshnessPolicy | None:
    if feed.fresh_within_s is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(seconds=feed.fresh_within_s))


def _wanted(context: dg.AssetExecutionContext, feed: Feed) -> Sequence[int]:
    # Read once (each access slices the whole list), and read always: a body that never asks for its partitions
    # would succeed without any when launched without one.
    bricks = feed.partitions
    keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else []
    if not keys:
        raise dg.Failure(
            f"feed {feed.name!r}: the run names no bricks, or a range whose first brick comes after its last; "
            f"expected bricks from {bricks.name(bricks.first)} to {bricks.name(bricks.last)}: "
            "choose partitions, the earlier one first"
        )
    return bricks.between(bricks.start_named(keys[0]), bricks.start_named(keys[-1]))


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
    return sorted(node.key.to_user_string() for node in nodes if FEED_METADATA in node.metadata)


def refuse_unordered(feed: Feed, graph: BaseAssetGraph[Any]) -> None:
    """Refuses a run of the feed with an asset that is made from its stream, and that does not wait for the feed.

    Dagster starts the assets of a run in the order of those that are launched: it looks through no external asset.

    Raises:
        dg.Failure: there is such an asset.
    """
    feed_key, stream, launched = dg.AssetKey(feed.name), stream_key(feed), graph.executable_asset_keys
    parents = {key: graph.get(key).parent_keys for key in launched}

    def waits(key: dg.AssetKey) -> bool:
        return feed_key in parents[key] or any(map(waits, parents[key] & launched))

    for key in sorted(launched):
        if stream in parents[key] and not waits(key):
            raise dg.Failure(
                f"feed {feed.name!r}: asset {key.to_user_string()!r} is launched in the same run and depends on "
                f"{stream.to_user_string()!r} only, for which Dagster does not wait: it may have read the stream "
                f"before the rows of this run; name the feed in its `deps` ({feed.name!r}), or launch it by itself"
            )


def brick_event(feed: Feed, report: BrickReport) -> dg.AssetMaterialization:
    """The event that records a brick as done."""
    upstream = table_key(feed).to_user_string()
    return dg.AssetMaterialization(
        dg.AssetKey(feed.name),
        partition=feed.partitions.name(report.ordinal),
        metadata=metadata(feed, report),
        # Dagster adds these to outputs only; a hand-made event has to bring them. Without what it read (a table nobody
        # materialises here, so neither has an event) the brick would show as out of sync.
        tags={
            "dagster/code_version": CODE_VERSION,
            DATA_VERSION_TAG: data_version(report),
            f"dagster/input_data_version/{upstream}": "INITIAL",
            f"dagster/input_event_pointer/{upstream}": "NULL",
        },
    )
