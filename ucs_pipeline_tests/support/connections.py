"""Tables and streams where the tests have them: at `UCS_CLICKHOUSE_URL` and `UCS_REDIS_URL`, else embedded.

What the project takes as resources, tests mostly take as they go: these are its functions, with those servers.
"""

import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dagster as dg
import redis

from ucs_pipeline import ClickHouseResource, RedisResource
from ucs_pipeline.clickhouse import source
from ucs_pipeline.clickhouse.source import ClickHouseServer, Source
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations import metrics
from ucs_pipeline.operations.launch import Launched
from ucs_pipeline.operations.publish import Published
from ucs_pipeline.orchestration import build, status
from ucs_pipeline.project import publish as by_name
from ucs_pipeline.reading import brick, reader
from ucs_pipeline.redis import connection
from ucs_pipeline.redis.connection import RedisServer
from ucs_pipeline.stream import stream
from ucs_pipeline.stream.stream import OrderedStream

if TYPE_CHECKING:
    import pandas as pd

CLICKHOUSE_URL, REDIS_URL = "UCS_CLICKHOUSE_URL", "UCS_REDIS_URL"


def resources() -> dict[str, Any]:
    """The resources of the project's own code location."""
    return {
        "clickhouse": ClickHouseResource(url=_url(CLICKHOUSE_URL)),
        "redis": RedisResource(url=_url(REDIS_URL)),
    }


def opened() -> SimpleNamespace:
    """The same, as `resources` of Dagster's contexts has them."""
    urls = {name: os.environ.get(name) or "embedded" for name in (CLICKHOUSE_URL, REDIS_URL)}
    return SimpleNamespace(
        clickhouse=ClickHouseResource(url=urls[CLICKHOUSE_URL]), redis=RedisResource(url=urls[REDIS_URL])
    )


def build_defs(*feeds: Feed) -> dg.Definitions:
    """The definitions of feeds, with those resources and the executor of the project's own code location."""
    own = dg.Definitions(resources=resources(), executor=dg.in_process_executor)
    return dg.Definitions.merge(build.build_defs(*feeds), own)


def open_feed(feed: Feed) -> tuple[Source, OrderedStream]:
    """The table and the stream of a feed."""
    return open_source(feed), open_stream(feed)


def open_source(feed: Feed) -> Source:
    """The table of a feed."""
    return source.open_source(feed, ClickHouseServer(os.environ.get(CLICKHOUSE_URL) or "embedded", CLICKHOUSE_URL))


def open_stream(feed: Feed, client: "redis.Redis | None" = None) -> OrderedStream:
    """The stream of a feed, by a client or on the tests' Redis."""
    return stream.open_stream(feed, client or redis_server())


def connect_redis(name: str) -> "redis.Redis":
    """A client for a stream."""
    return connection.connect_redis(redis_server(), name)


def connect_each(names: Sequence[str]) -> list["redis.Redis"]:
    """Clients for streams."""
    return connection.connect_each(redis_server(), names)


def publish(feed: Feed, *bricks: Any, **more: Any) -> Published:
    """Publishes bricks of a feed in this process."""
    return by_name.publish(feed, *bricks, resources=resources(), **more)


def launch(feed: Feed, *bricks: Any, **more: Any) -> Launched:
    """Hands bricks of a feed to Dagster's daemon."""
    return by_name.launch(feed, *bricks, resources=resources(), **more)


def evaluate_tick(automation: Any, context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext) -> Any:
    """What a sensor or a schedule does. Its resources are closed before the instance."""
    with context:
        return automation.evaluate_tick(context)


def feed_statuses(feeds: Sequence[Feed], instance: dg.DagsterInstance) -> list[status.FeedStatus]:
    """Where feeds are."""
    return status.feed_statuses(feeds, instance, opened())


def feed_figures(feeds: Sequence[Feed], instance: dg.DagsterInstance) -> list[metrics.FeedFigures]:
    """What metrics tell of feeds."""
    return metrics.feed_figures(feeds, instance, opened())


def read_brick(feed: Feed, name: str, client: "redis.Redis | None" = None) -> "pd.DataFrame":
    """The entries of a brick."""
    return brick.read_brick(feed, name, client or redis_server(), open_source)


def read_entries(
    feed: Feed, after: EntryId | str | None = None, client: "redis.Redis | None" = None, **more: Any
) -> Iterator[reader.Entry]:
    """The entries of a feed."""
    return reader.read_entries(feed, after, client or redis_server(), **more)


class Reader(reader.Reader):
    """Reads a feed's entries."""

    def __init__(self, feed: Feed, after: EntryId | str | None = None, client: "redis.Redis | None" = None) -> None:
        super().__init__(feed, after, client or redis_server())


def redis_server() -> RedisServer:
    """The tests' Redis."""
    return RedisServer(os.environ.get(REDIS_URL) or "embedded", REDIS_URL)


def _url(variable: str) -> str:
    return dg.EnvVar(variable) if os.environ.get(variable) else "embedded"
