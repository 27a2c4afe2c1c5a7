"""Where every feed is, as Prometheus reads it."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.orchestration.status import FeedStatus


def prometheus_text(statuses: Sequence[FeedStatus]) -> str:
    """The text exposition format, one gauge per figure. A figure that cannot be told is left out, never 0."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Statuses(statuses))
    return generate_latest(registry).decode()


class _Statuses(Collector):
    def __init__(self, statuses: Sequence[FeedStatus]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for status in self._statuses:
            for name, documentation, value, group in _figures(status):
                labels = {"feed": status.feed, "stream": status.stream, **group}
                if name not in families:
                    families[name] = GaugeMetricFamily(f"ucs_{name}", documentation, labels=list(labels))
                families[name].add_metric(list(labels.values()), value)
        return families.values()


def _figures(status: FeedStatus) -> Iterator[tuple[str, str, float, dict[str, str]]]:
    """Name, meaning, value and labels beside those of the feed."""
    yield "bricks", "Bricks (partitions) of the feed.", status.bricks, {}
    yield "bricks_done", "Bricks that are recorded as done.", status.done, {}
    yield "bricks_failed", "Bricks that were tried and failed since they were last done.", status.failed, {}
    yield "bricks_in_progress", "Bricks that a run is about to publish, or publishing.", status.in_progress, {}
    yield "rows_recorded", "Rows of the bricks that are done.", status.rows, {}
    yield "stream_max_entries", "Entries the stream may hold: stream.max_len of the feed.", status.max_len, {}
    yield "stream_up", "1 if the stream could be looked at in Redis, 0 if not.", int(status.redis is not None), {}
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
            yield "group_lag", "Entries that the group has not been given yet.", group.undelivered, labels
