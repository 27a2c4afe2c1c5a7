"""The readers of a feed, given as such or by name: the public `Reader`, `read_entries` and `read_brick`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import redis

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.project.feeds import feed_named, resources_of
from ucs_pipeline.reading import brick as by_brick
from ucs_pipeline.reading import reader
from ucs_pipeline.redis.connection import RedisServer

if TYPE_CHECKING:
    import pandas as pd

    from ucs_pipeline.clickhouse.source import Source


class Reader(reader.Reader):
    __doc__ = reader.Reader.__doc__

    def __init__(
        self, feed: Feed | str, after: EntryId | str | None = None, client: "redis.Redis | None" = None
    ) -> None:
        """Begins after an entry; left out, with the first entries in the stream.

        Args:
            feed: a feed with one stream or several, or its name.
            after: id of the last entry that was handled, in any of the streams.
            client: the Redis to read from, with replies that are not decoded; left out: that of the feed's resource.

        Raises:
            UcsError: there is no such feed.
        """
        found = _found(feed)
        super().__init__(found, after, _at(found, client))


def read_entries(
    feed: Feed | str,
    after: EntryId | str | None = None,
    *,
    follow: bool = False,
    poll_s: float = 0.5,
    client: "redis.Redis | None" = None,
) -> Iterator[reader.Entry]:
    """The entries of a feed, given as such or by name; see `reading.reader.read_entries`.

    Raises:
        UcsError: there is no such feed.
    """
    found = _found(feed)
    return reader.read_entries(found, after, _at(found, client), follow=follow, poll_s=poll_s)


def read_brick(feed: Feed | str, brick: str, client: "redis.Redis | None" = None) -> "pd.DataFrame":
    """The entries of a brick of a feed, given as such or by name; see `reading.brick.read_brick`.

    Raises:
        UcsError: there is no such feed.
    """
    found = _found(feed)
    return by_brick.read_brick(found, brick, _at(found, client), _table)


def _found(feed: Feed | str) -> Feed:
    return feed_named(feed) if isinstance(feed, str) else feed


def _at(feed: Feed, client: "redis.Redis | None") -> "RedisServer | redis.Redis":
    if client is not None:
        return client
    # Loads Dagster, which a reader with its own client does not need.
    from ucs_pipeline.orchestration.resources import redis_server

    with resources_of(feed, feed.redis) as resources:
        return redis_server(feed, resources)


def _table(feed: Feed) -> "Source":
    # As above.
    from ucs_pipeline.orchestration.resources import open_table

    with resources_of(feed, feed.clickhouse) as resources:
        return open_table(feed, resources)
