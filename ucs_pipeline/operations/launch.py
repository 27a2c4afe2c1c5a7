"""Launches bricks of a feed in Dagster's daemon: a backfill, as the UI makes it for *Materialize...*."""

from collections.abc import Generator
from dataclasses import dataclass

import dagster as dg

from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.operations.publish import Deployment, Span, following_one, replay_config, requests
from ucs_pipeline.orchestration._dagster import (
    BULK_ACTION_TERMINAL_STATUSES,
    AssetGraphSubset,
    BulkActionsFilter,
    BulkActionStatus,
    PartitionBackfill,
    get_current_timestamp,
    make_new_backfill_id,
)
from ucs_pipeline.orchestration.names import feed_key, run_tags
from ucs_pipeline.orchestration.sensors.next_bricks import Request


@dataclass(frozen=True)
class Launched:
    """The backfill."""

    backfills: dict[str, str]
    """The bricks of each backfill, by its id."""
    reason: str | None = None
    """The reason why there is no backfill, or no further one."""


def launch(
    feed: Feed,
    at: Deployment,
    span: Span | None = None,
    most: int | None = None,
    *,
    replay: bool = False,
) -> Launched:
    """Makes a backfill of the bricks that `publish` would publish; of a sharded feed, one for each shard.

    The open brick of a feed that publishes it is left out: a backfill waits until each of its bricks is done.

    Raises:
        UcsError: the next bricks cannot be determined.
    """
    backfills: dict[str, str] = {}
    reasons: list[str] = []
    under_way = [] if span else unfinished_backfills(at.instance)
    for part in streams_of(feed):
        key = feed_key(part)
        if same := next((other for other in under_way if key in (other.asset_selection or ())), None):
            reasons.append(f"feed {part.name!r}: skipped: backfill {same.backfill_id} is running.")
            continue
        found = _sealed(part, requests(part, at, span, most, len(part.partitions.starts)))
        if isinstance(found, str):
            reasons.append(found)
            continue
        first, last = found
        bricks = part.partitions
        names = [bricks.name(start) for start in bricks.between(first, last)]
        partitions = dg.StaticPartitionsDefinition(bricks.names())
        backfill = PartitionBackfill.from_asset_graph_subset(
            backfill_id=make_new_backfill_id(),
            backfill_timestamp=get_current_timestamp(),
            tags=run_tags(part, first, last),
            dynamic_partitions_store=at.instance,
            asset_graph_subset=AssetGraphSubset(  # type: ignore[call-arg]  # its decorator hides its signature
                partitions_subsets_by_asset_key={key: partitions.subset_with_partition_keys(names)},
                non_partitioned_asset_keys=set(),
            ),
            title=None,
            description=None,
            run_config=replay_config(part, at) if replay else None,
        )
        at.instance.add_backfill(backfill)
        backfills[backfill.backfill_id] = bricks.span(first, last)
    return Launched(backfills, " ".join(reasons) or None)


def unfinished_backfills(instance: dg.DagsterInstance) -> list[PartitionBackfill]:
    """The backfills that are requested or running, of any assets."""
    statuses = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    return list(instance.get_backfills(BulkActionsFilter(statuses=statuses)))


def _sealed(feed: Feed, wanted: Generator[Request, None, str | None]) -> Span | str:
    """Starts of the first and the last partition to launch; or the reason why there are none."""
    request = following_one(wanted)
    if not isinstance(request, Request):
        return request or f"feed {feed.name!r}: skipped: no bricks are requested."
    last = feed.partitions.before(request.last) if request.open and request.first < request.last else request.last
    if request.open and request.first == request.last:
        name = feed.partitions.name(request.last)
        return (
            f"feed {feed.name!r}: skipped: brick {name} is not sealed, and a backfill takes sealed bricks. Leave "
            "`--launch` out."
        )
    assert last is not None
    return request.first, feed.partitions.start(last)
