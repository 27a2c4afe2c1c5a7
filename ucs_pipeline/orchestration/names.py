"""The names of a feed's assets in Dagster, and the tags of its runs. Pure."""

import hashlib
import re
from collections.abc import Iterable, Sequence

import dagster as dg

from ucs_pipeline.feed.feed import Feed

FEED_METADATA = "ucs/feed"
"""Asset metadata that shows the feed's settings in the UI, without secrets.

It holds the feed itself only in the process that loaded it.
"""


FEED_TAG = "ucs/feed"
"""Run tag that holds the feed's name; of a run of several feeds, their names."""


OPEN_BRICK_TAG = "ucs/open_brick"
"""Run tag that names a brick whose rows are published while the table may still add to it."""


LIVE_TAG = "ucs/live"
"""Run tag, with the value `yes`, of a run with `tail: live`."""


MAX_RETRIES_TAG = "dagster/max_retries"
"""Dagster's tag of how often it launches a failed run again."""


RANGE_TAGS = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
"""Dagster's tags of the first and the last partition of a run."""


def feed_key(feed: Feed) -> dg.AssetKey:
    """Key of the feed's asset."""
    return dg.AssetKey([*feed.key_prefix, feed.name])


def table_key(feed: Feed) -> dg.AssetKey:
    """Key of the asset that stands for the feed's table: an external one, unless the feed names another."""
    if feed.table_asset is not None:
        return dg.AssetKey.from_user_string(feed.table_asset)
    # Without their secrets, two tables may have the same text.
    table = feed.table if feed.redacted.table == feed.table else f"{feed.redacted.table}_{feed.parent.name}"
    return _external_key(feed.clickhouse, table, ".")


def stream_key(feed: Feed) -> dg.AssetKey:
    """Key of the external asset that stands for the feed's stream."""
    return _external_key(feed.redis, feed.stream_name, ":")


def pool(stream: str) -> str:
    """The concurrency pool of a stream.

    Until 1.12.15 Dagster accepts letters, digits and `_`: other characters are encoded.
    """
    return "redis_stream_" + re.sub(r"[^A-Za-z0-9_]", lambda found: f"_{ord(found[0]):x}_", stream)


def _external_key(server: str, name: str, separator: str) -> dg.AssetKey:
    """A key of its own for each name; a name of words becomes a path of these words."""
    parts = name.split(separator)
    if all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in parts):
        return dg.AssetKey([server, *parts])
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:8]
    return dg.AssetKey([server, f"{re.sub(r'[^A-Za-z0-9_]+', '_', name).strip('_')}_{digest}"])


def feeds_in(specs: Iterable[dg.AssetSpec]) -> list[Feed]:
    """The feeds of assets, by name; of a feed with several streams, its shards."""
    found = [spec.metadata[FEED_METADATA].instance for spec in specs if FEED_METADATA in spec.metadata]
    return sorted(found, key=lambda feed: (feed.parent.name, feed.shard_id or ()))


def range_tags(first: str, last: str) -> dict[str, str]:
    """Dagster's tags of a run over all partitions from the first to the last, by their names."""
    return dict(zip(RANGE_TAGS, (first, last), strict=True))


def run_tags(feed: Feed, first: int, last: int, together: Sequence[str] = ()) -> dict[str, str]:
    """Tags to find runs in the UI: their feeds, and the bricks in the UI's notation.

    `together`: names of all feeds in the run; left out, only this feed.
    """
    names = together or [feed.name]
    bricks = f"{feed.partitions.name(first)}...{feed.partitions.name(last)}"
    # A tag has one value, so each feed has a tag of its own.
    return {FEED_TAG: ", ".join(names), "ucs/bricks": bricks, **{runs_tag(name): "yes" for name in names}}


def runs_tag(name: str) -> str:
    """The run tag, with the value `yes`, that every run of the feed of that name has."""
    return f"ucs.feed/{name}"
