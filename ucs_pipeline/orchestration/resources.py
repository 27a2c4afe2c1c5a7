"""The servers of a feed's table and stream: Dagster resources, which a feed names by their keys.

The clients are imported where they are used: definitions do not need them.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from pydantic import Field, PrivateAttr

from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redaction import HIDDEN
from ucs_pipeline.feed.rules import check_settings
from ucs_pipeline.home import EMBEDDED
from ucs_pipeline.orchestration._dagster import resource_class

if TYPE_CHECKING:
    import redis
    from clickhouse_connect.driver.client import Client

    from ucs_pipeline.clickhouse.source import ClickHouseServer, Source
    from ucs_pipeline.redis.connection import RedisServer
    from ucs_pipeline.stream.stream import OrderedStream

_Kind = TypeVar("_Kind")
_OPTION = re.compile(r"(?<=[?&])(\w*(?:password|token|secret))=[^&#]*", re.IGNORECASE)
_urls: dict[str, str] = {}
"""The URLs of this process that hold a password, by the text that Dagster has instead."""


class _Server(dg.ConfigurableResource[Any]):
    """A server, by its URL."""

    url: str

    _variable: str | None = PrivateAttr(default=None)

    def __init__(self, **settings: Any) -> None:
        url = settings.get("url")
        if isinstance(url, str) and not isinstance(url, dg.EnvVar):
            settings["url"] = _without_password(url)
        super().__init__(**settings)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Remembers which environment variable holds the URL."""
        field = context.resource_def and context.resource_def.config_field
        written = field.default_value["url"] if field and field.default_provided else None
        self._variable = written["env"] if isinstance(written, dict) else None

    @property
    def address(self) -> str:
        """Where the server is, without scheme, login and options: `host:6379/0`."""
        return self.url.rpartition("@")[2].rpartition("://")[2].partition("?")[0]

    def _name(self, key: str) -> str:
        return self._variable or f"`url` of resource {key!r}"


def _without_password(url: str) -> str:
    """The form of a URL for Dagster, which shows it in the UI, and records it with each run."""
    login, at, place = url.rpartition("@")
    scheme, known, words = login.partition("://")
    # In a text that is no URL, all that may be a login is left out.
    user, colon, _ = words.partition(":") if known else ("", ":", "")
    shown = f"{scheme if known else ''}{known}{user}{colon}{HIDDEN}@{place}" if at and colon else url
    shown = _OPTION.sub(rf"\1={HIDDEN}", shown)
    if shown == url:
        return url
    # Of two URLs that differ only in the password, the second has a longer mark.
    while _urls.setdefault(shown, url) != url:
        shown = shown.replace(HIDDEN, f"{HIDDEN}*")
    return shown


class ClickHouseResource(_Server):
    """A ClickHouse server over HTTP, or the engine in this process."""

    url: str = Field(
        description="https://user:password@host:8443/database, best as EnvVar; or `embedded`: the engine in the "
        "process, over the Parquet files in .ucs/tables of Dagster's home."
    )
    settings: dict[str, Any] = Field(
        default={}, description="ClickHouse settings of every query of the feeds; a feed's own come before them."
    )

    def server(self, key: str = "clickhouse") -> "ClickHouseServer":
        """Where the server is; `key`: the resource's key."""
        from ucs_pipeline.clickhouse.source import ClickHouseServer

        try:
            check_settings(self.settings)
        except ValueError as error:
            raise FeedError(f"resource {key!r}: {error}") from None
        return ClickHouseServer(_urls.get(self.url, self.url), self._name(key), self.settings)

    def client(self) -> "Client":
        """A client of clickhouse-connect, for your own assets."""
        import clickhouse_connect

        url = _urls.get(self.url, self.url)
        if url == EMBEDDED:
            from ucs_pipeline.clickhouse.embedded import embedded_connection

            # The process has one engine: from now on it shows the files of this home as tables.
            embedded_connection().close()
            return clickhouse_connect.get_client(dsn="chdb://memory", settings=self.settings)
        return clickhouse_connect.get_client(dsn=url, secure=url.startswith("https:"), settings=self.settings)


class RedisResource(_Server):
    """A Redis server, one behind Sentinels, or a cluster."""

    url: str = Field(
        description="redis://user:password@host:6379/0, rediss://..., unix:///path, redis+sentinel://... or "
        "redis+cluster://..., best as EnvVar; or `embedded`: a redis-server of Dagster's home, with its data in .ucs."
    )

    def server(self, key: str = "redis") -> "RedisServer":
        """Where the server is; `key`: the resource's key."""
        from ucs_pipeline.redis.connection import RedisServer

        return RedisServer(_urls.get(self.url, self.url), self._name(key))

    def client(self, stream: str = "") -> "redis.Redis":
        """A client of redis-py, for your own assets; `stream`: its key, in a cluster."""
        from ucs_pipeline.redis.connection import connect_redis

        return connect_redis(self.server(), stream)


def open_feed(feed: Feed, resources: object) -> "tuple[Source, OrderedStream]":
    """The table and the stream of a feed.

    Args:
        feed: the feed, with one stream.
        resources: has the feed's resources as attributes, as `resources` of Dagster's contexts has.

    Raises:
        FeedError: there is no such resource, it is of another kind, or the feed has several streams.
        StreamError: the URL of the Redis is invalid.
    """
    return open_table(feed, resources), open_stream(feed, resources)


def open_table(feed: Feed, resources: object) -> "Source":
    """The table of a feed; as `open_feed`."""
    from ucs_pipeline.clickhouse.source import open_source

    return open_source(feed, clickhouse_server(feed, resources))


def open_stream(feed: Feed, resources: object) -> "OrderedStream":
    """The stream of a feed; as `open_feed`."""
    from ucs_pipeline.stream import stream

    return stream.open_stream(feed, redis_server(feed, resources))


def clickhouse_server(feed: Feed, resources: object) -> "ClickHouseServer":
    """Where the table of a feed is; as `open_feed`."""
    return _resource(feed, resources, "clickhouse", ClickHouseResource).server(feed.clickhouse)


def redis_server(feed: Feed, resources: object) -> "RedisServer":
    """Where the stream of a feed is; as `open_feed`."""
    return _resource(feed, resources, "redis", RedisResource).server(feed.redis)


def table_address(feed: Feed, resources: object) -> str:
    """The address of a feed's table, for display; as `open_feed`."""
    return _resource(feed, resources, "clickhouse", ClickHouseResource).address


def stream_address(feed: Feed, resources: object) -> str:
    """The address of a feed's stream, for display; as `open_feed`."""
    return _resource(feed, resources, "redis", RedisResource).address


def resource_keys(feed: Feed) -> set[str]:
    """Keys of the resources that a feed needs."""
    return {feed.clickhouse, feed.redis}


def _resource(feed: Feed, resources: object, setting: str, kind: type[_Kind]) -> _Kind:
    found = getattr(resources, getattr(feed, setting), None)
    if isinstance(found, kind):
        return found
    raise _refused(feed, setting, kind, f"is a {type(found).__name__}" if found is not None else "is missing")


def refuse_other_kinds(feed: Feed, definitions: Mapping[str, dg.ResourceDefinition]) -> None:
    """Refuses resources of another kind than a feed needs, before any of them is set up.

    Raises:
        FeedError: there is one.
    """
    for setting, key, kind in (
        ("clickhouse", feed.clickhouse, ClickHouseResource),
        ("redis", feed.redis, RedisResource),
    ):
        found = resource_class(definitions.get(key))
        if found is not None and not issubclass(found, kind):
            raise _refused(feed, setting, kind, f"is a {found.__name__}")


def _refused(feed: Feed, setting: str, kind: type, found: str) -> FeedError:
    return FeedError(
        f"feed {feed.name!r}: resource {getattr(feed, setting)!r} {found}, expected a {kind.__name__}. Add it to the "
        f"resources of the definitions, or name another one in the feed's `{setting}`.",
        "UCS-RESOURCE",
    )
