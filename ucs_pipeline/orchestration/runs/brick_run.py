"""The run of a feed's asset: publishes its bricks."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress

import dagster as dg

from ucs_pipeline.clickhouse.sql.queries import Shape
from ucs_pipeline.errors import SourceError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration._dagster import BACKFILL_ID_TAG, ROOT_BACKFILL_ID_TAG
from ucs_pipeline.orchestration.materializations import recorded
from ucs_pipeline.orchestration.names import LIVE_TAG, OPEN_BRICK_TAG
from ucs_pipeline.orchestration.resources import open_feed, stream_address, table_address
from ucs_pipeline.orchestration.runs.live import stay
from ucs_pipeline.orchestration.runs.numbering_guard import refuse_renumbered
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.ordered.shard_progress import noted
from ucs_pipeline.publishing.progress_log import Progress
from ucs_pipeline.publishing.run import publish


def publish_bricks(
    context: dg.AssetExecutionContext, feed: Feed, wanted: Sequence[int]
) -> tuple[Iterator[BrickReport], Callable[[], Shape | None]]:
    """Publishes the partitions that begin at `wanted`, consecutive ones.

    Returns a report of each as it is complete, and a function that returns the columns that the feed selects, with
    their current types; None if ClickHouse does not answer.

    Raises:
        UcsError: as `publishing.run.publish`, or the feed's numbering has changed.
    """

    def records(starts: Sequence[int]) -> Mapping[int, BrickReport]:
        return recorded(context.instance, feed, starts)

    def shape() -> Shape | None:
        # Cached if anything was read. If not, a run without work must not fail for it.
        with suppress(SourceError):
            return source.shape()
        return None

    source, stream = open_feed(feed, context.resources)
    at, to = table_address(feed, context.resources), stream_address(feed, context.resources)
    context.log.info(
        f"table {feed.redacted.table} at {at} ({feed.clickhouse}), stream {stream.name} at {to} ({feed.redis})"
    )
    refuse_renumbered(context.instance, feed, stream)
    live = LIVE_TAG in context.run.tags
    watch = Progress(feed, wanted, context.log.info, live=live).watch
    request = _replay_request(context) if feed.any_order else None

    def published(starts: Sequence[int], *, again: bool = False) -> Generator[BrickReport, None, None]:
        return publish(feed, source, stream, starts, records, context.log.warning, watch, request, again=again)

    reports = stay(feed, source, stream, wanted, published, context.log.warning) if live else published(wanted)
    if feed.any_order:
        return reports, shape
    return noted(feed, stream, reports, context.run.tags.get(OPEN_BRICK_TAG)), shape


def _replay_request(context: dg.AssetExecutionContext) -> str | None:
    """The id of a replay request; None if there is none. A relaunched run has the id of the failed one."""
    if not context.op_execution_context.op_config["replay"]:
        return None
    tags, run = context.run.tags, context.run
    return tags.get(ROOT_BACKFILL_ID_TAG) or tags.get(BACKFILL_ID_TAG) or run.root_run_id or run.run_id
