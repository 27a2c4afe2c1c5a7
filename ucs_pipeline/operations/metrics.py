"""The progress of every feed as Prometheus metrics."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import dagster as dg
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ucs_pipeline.bricks.time import MILLISECONDS
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import code_in
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.names import LIVE_TAG, runs_tag
from ucs_pipeline.orchestration.resources import open_feed
from ucs_pipeline.orchestration.status import FeedStatus, feed_statuses
from ucs_pipeline.stream.ledger import Ledger

UNKNOWN = "unknown"
"""The code of a run that ended without one: its process was killed, or never started."""


class Failure(NamedTuple):
    """The newest failed run of a feed."""

    code: str
    """The code that its message ends with, or else the class of its error, or `UNKNOWN`."""
    time: float


class FeedFigures(NamedTuple):
    """The figures of a feed at one moment."""

    status: FeedStatus
    live: bool | None = None
    """Whether Dagster has a live run of the feed as started; None if the feed has no live runs."""
    failure: Failure | None = None
    next_start: float | None = None
    """Of a time feed: when the first brick that is not done starts."""


def feed_figures(feeds: Sequence[Feed], instance: dg.DagsterInstance, resources: object) -> list[FeedFigures]:
    """The figures of feeds now. Reads no table.

    `resources` has the Redis resources of the feeds as attributes.
    """
    statuses = feed_statuses(feeds, instance, resources)
    return [
        FeedFigures(status, _live(feed, instance), _failure(feed, instance), _next_start(feed, status))
        for feed, status in zip(feeds, statuses, strict=True)
    ]


def prometheus_text(figures: Sequence[FeedFigures]) -> str:
    """The text exposition format, one gauge per figure. A figure that is not known is left out, never 0."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(gauges(figures)))
    return generate_latest(registry).decode()


def gauges(figures: Iterable[FeedFigures]) -> list[GaugeMetricFamily]:
    """One family of gauges per figure."""
    families: dict[str, GaugeMetricFamily] = {}
    for found in figures:
        for name, documentation, value, more in _figures(found):
            labels = {"feed": found.status.feed, "stream": found.status.stream, **more}
            if name not in families:
                families[name] = GaugeMetricFamily(f"ucs_{name}", documentation, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
    return list(families.values())


def rows_behind(feed: Feed, resources: object) -> int:
    """Rows in the bricks of a feed that are in the table and were never in the stream: a query on ClickHouse.

    Raises:
        SourceError: the table cannot be read.
        StreamError: the stream cannot be read.
    """
    source, stream = open_feed(feed, resources)
    bricks = feed.partitions
    first, last = bricks.ordinals[0], bricks.ordinals[-1]
    # Redis before ClickHouse: rows that are published between the two queries must not make the figure negative.
    if feed.any_order:
        published = sum(account.rows for account in Ledger(feed, stream).accounts(bricks.starts).values())
        return max(0, sum(source.count(first, last).values()) - published)
    top = stream.state().top
    if top.ordinal > last:
        return 0
    counts = source.count(max(first, top.ordinal), last)
    return max(0, sum(counts.values()) - min(top.row, counts.get(top.ordinal, 0)))


class _Once(Collector):
    def __init__(self, families: Sequence[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._families


def _live(feed: Feed, instance: dg.DagsterInstance) -> bool | None:
    if feed.tail != "live":
        return None
    tags = {runs_tag(feed.name): "yes", LIVE_TAG: "yes"}
    return instance.get_runs_count(dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.STARTED])) > 0


def _failure(feed: Feed, instance: dg.DagsterInstance) -> Failure | None:
    failed = dg.RunsFilter(tags={runs_tag(feed.name): "yes"}, statuses=[dg.DagsterRunStatus.FAILURE])
    for record in instance.get_run_records(failed, limit=1):
        found = instance.get_records_for_run(
            record.dagster_run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1, ascending=False
        )
        events = [record.event_log_entry.dagster_event for record in found.records]
        return Failure(_code(events[0]) if events and events[0] else UNKNOWN, record.end_time or 0)
    return None


def _code(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    text = data.user_failure_data.description if data.user_failure_data else None
    return code_in(text or "") or (data.error and (data.error.cause or data.error).cls_name) or UNKNOWN


def _next_start(feed: Feed, status: FeedStatus) -> float | None:
    if feed.bricks.kind != "time" or status.next_brick is None:
        return None
    return (feed.partitions.start_named(status.next_brick) - feed.partitions.offset) / MILLISECONDS


def _figures(found: FeedFigures) -> Iterator[tuple[str, str, float, dict[str, str]]]:
    """Name, meaning, value, and labels in addition to those of the feed."""
    status = found.status
    yield "bricks", "Bricks (partitions) of the feed.", status.bricks, {}
    yield "bricks_done", "Bricks that are recorded as done.", status.done, {}
    yield "bricks_failed", "Bricks that were tried and failed since they were last done.", status.failed, {}
    yield "bricks_in_progress", "Bricks in queued or running runs.", status.in_progress, {}
    yield "rows_recorded", "Rows of the bricks that are done.", status.rows, {}
    if found.next_start is not None:
        text = "Time feeds: Unix time at which the first brick that is not done starts."
        yield "next_brick_start_timestamp_seconds", text, found.next_start, {}
    if found.failure:
        text = "Unix time at which the newest failed run of the feed ended, by its code."
        yield "last_failure_timestamp_seconds", text, found.failure.time, {"code": found.failure.code}
    if found.live is not None:
        yield "live_run_up", "1 if Dagster has a live run of the feed as started, 0 if not.", int(found.live), {}
    yield "stream_max_entries", "Entries the stream may hold: stream.max_len of the feed.", status.max_len, {}
    yield "stream_up", "1 if the stream could be read in Redis, 0 if not.", int(status.redis is not None), {}
    if status.redis is None:
        return
    yield "stream_entries", "Entries the stream holds.", status.redis.length, {}
    if status.redis.top is not None and status.order == "strict":
        top = EntryId.parse(status.redis.top)
        yield "stream_top_brick", "First part of the highest entry id ever: the brick's ordinal.", top.ordinal, {}
        yield "stream_top_row", "Second part of the highest entry id ever: the row in that brick.", top.row, {}
    for group in status.redis.groups:
        labels = {"group": group.name}
        yield "group_pending", "Entries delivered to the group's consumers, not acknowledged.", group.pending, labels
        if group.undelivered is not None:
            yield "group_lag", "Entries that the group has not received yet.", group.undelivered, labels
