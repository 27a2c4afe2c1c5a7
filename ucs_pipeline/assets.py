"""A feed as a partitioned asset: one partition per brick, one materialisation as each brick completes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.metadata.metadata_value import ObjectMetadataValue
from dagster._core.storage.tags import BACKFILL_ID_TAG, ROOT_BACKFILL_ID_TAG

from ucs_pipeline.asset_text import columns, description
from ucs_pipeline.errors import OutOfTurnError, SourceUnavailableError, StreamUnavailableError, UcsError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.plan import BrickReport
from ucs_pipeline.record import DATA_VERSION_TAG, data_version, metadata, recorded
from ucs_pipeline.run_queue import queue_again

FEED_METADATA = "ucs/feed"
"""Asset metadata that holds the feed's settings, for people in the UI."""

FEED_OBJECT_METADATA = "ucs/feed_object"
"""Asset metadata that holds the feed itself, secrets and all, in the process that loaded it and nowhere else."""

FEED_TAG = "ucs/feed"
"""Run tag that holds the feed's name."""

OPEN_BRICK_TAG = "ucs/open_brick"
"""Run tag that names a brick whose rows are published, and which is not done: the table may still add to it."""

_RETRIES, _RETRY_SECONDS = 2, 10

_REPLAY = dg.Field(
    bool,
    default_value=False,
    description="Publish bricks that are done once more. Left out, they are left as they are.",
)

CODE_VERSION = "1"
"""Version of what a row looks like in the stream; raised when the encoding changes."""


def table_key(feed: BrickFeed) -> dg.AssetKey:
    """Key of the external asset that stands for the feed's table."""
    # Two tables may look the same without their secrets.
    table = feed.table if feed.shown.table == feed.table else f"{feed.shown.table}_{feed.whole.name}"
    return dg.AssetKey(["clickhouse", re.sub(r"[^A-Za-z0-9_]+", "_", table).strip("_")])


def stream_key(feed: BrickFeed) -> dg.AssetKey:
    """Key of the external asset that stands for the feed's stream."""
    return dg.AssetKey(["redis", re.sub(r"[^A-Za-z0-9_]+", "_", feed.stream_name)])


def brick_asset(feed: BrickFeed) -> dg.AssetsDefinition:
    """The asset of a feed. Building it connects to nothing."""

    @dg.asset(
        name=feed.name,
        description=description(feed, FEED_TAG),
        partitions_def=dg.StaticPartitionsDefinition(feed.numbering.names()),
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
            FEED_METADATA: dg.MetadataValue.json(
                feed.whole.shown.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            ),
            FEED_OBJECT_METADATA: ObjectMetadataValue(feed),
            "stream": feed.stream_name,
            "table": feed.shown.table,
            **columns(feed),
        },
        # No output exists, so that the events below are the only ones: one per brick, as it completes.
        output_required=False,
    )
    def bricks(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
        wanted = _wanted(context, feed)
        # Runs of a backfill come without: Dagster copies no tag from an asset to its runs.
        context.instance.add_run_tags(context.run.run_id, run_tags(feed, wanted[0], wanted[-1]))
        seen = {*_finished_before_retry(context), context.run.tags.get(OPEN_BRICK_TAG)}
        try:
            for report in _move(context, feed, wanted):
                if feed.numbering.name(report.ordinal) not in seen:
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

    return bricks


def _freshness(feed: BrickFeed) -> dg.FreshnessPolicy | None:
    if feed.fresh_within_s is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(seconds=feed.fresh_within_s))


def _move(context: dg.AssetExecutionContext, feed: BrickFeed, wanted: Sequence[int]) -> Iterator[BrickReport]:
    # Heavy imports wait for a run: definitions load in every process.
    from ucs_pipeline.ledger_transfer import ledger_transfer
    from ucs_pipeline.progress import Progress
    from ucs_pipeline.redis_link import connect_redis
    from ucs_pipeline.renumbering import refuse_renumbered
    from ucs_pipeline.shard_note import noted
    from ucs_pipeline.source import open_source
    from ucs_pipeline.stream import open_stream
    from ucs_pipeline.transfer import transfer

    def records(starts: Sequence[int]) -> Mapping[int, BrickReport]:
        return recorded(context.instance, feed, starts)

    source, stream = open_source(feed), open_stream(feed, connect_redis(feed.stream_name))
    refuse_renumbered(context.instance, feed, stream)
    say, watch = context.log.warning, Progress(feed, wanted, context.log.info).watch
    if feed.any_order:
        yield from ledger_transfer(feed, source, stream, wanted, records, say, watch, _replay_request(context))
    else:
        reports = transfer(feed, source, stream, wanted, records, say, watch)
        yield from noted(feed, stream, reports, context.run.tags.get(OPEN_BRICK_TAG))


def _replay_request(context: dg.AssetExecutionContext) -> str | None:
    """Who asks for a replay; None if nobody does. A run that is launched again for one that failed is the same."""
    if not context.op_execution_context.op_config["replay"]:
        return None
    tags, run = context.run.tags, context.run
    return tags.get(ROOT_BACKFILL_ID_TAG) or tags.get(BACKFILL_ID_TAG) or run.root_run_id or run.run_id


def run_tags(feed: BrickFeed, first: int, last: int) -> dict[str, str]:
    """Tags by which runs are found in the UI: the feed, and the bricks as they are launched there."""
    return {FEED_TAG: feed.name, "ucs/bricks": f"{feed.numbering.name(first)}...{feed.numbering.name(last)}"}


def _wanted(context: dg.AssetExecutionContext, feed: BrickFeed) -> Sequence[int]:
    # Read once (each access slices the whole list), and read always: a body that never asks for its partitions
    # would succeed without any when launched without one.
    bricks = feed.numbering
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


def brick_event(feed: BrickFeed, report: BrickReport) -> dg.AssetMaterialization:
    """The event that records a brick as done."""
    upstream = table_key(feed).to_user_string()
    return dg.AssetMaterialization(
        dg.AssetKey(feed.name),
        partition=feed.numbering.name(report.ordinal),
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
