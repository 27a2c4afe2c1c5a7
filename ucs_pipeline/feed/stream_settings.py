"""The `stream` of a feed: where its rows go, and what happens when there is no room for them."""

from typing import Literal

from pydantic import Field

from ucs_pipeline.feed.described import Described


class Stream(Described):
    """The Redis stream a feed writes to."""

    name: str | None = Field(
        default=None, min_length=1, description="Key of the stream in Redis; the feed's name if left out."
    )
    order: Literal["strict", "any"] = Field(
        default="strict",
        description="strict: every entry id is <brick>-<row>, so the stream is always a prefix of the table in brick "
        "order. any: bricks go in any order and in parallel, into a stream that others may write to as well; Redis "
        "gives the ids, and a ledger beside the stream says what is in it.",
    )
    id_offset: int = Field(
        default=0,
        ge=0,
        description="Added to the left half of every entry id, so that a feed can go on on a stream that has lower "
        "entries of an old program; those are left alone.",
    )
    max_len: int = Field(
        default=10_000_000,
        ge=1,
        description="Entries the stream may hold. A full stream is handled as `when_full` says.",
    )
    max_bytes: int | None = Field(
        default=None, ge=1, description="Bytes of Redis memory the stream may take, beside `max_len`."
    )
    when_full: Literal["wait", "trim_acknowledged", "trim"] = Field(
        default="wait",
        description="wait: until consumers have trimmed. trim_acknowledged: remove what every consumer group has "
        "acknowledged, then wait. trim: drop the oldest entries, read or not.",
    )
    timeout_s: float = Field(
        default=180.0,
        gt=0,
        description="Seconds without progress after which a publisher that waits for Redis, for room or for ClickHouse "
        "gives up.",
    )
    max_rows_per_second: float | None = Field(
        default=None, gt=0, description="Most rows to publish per second, spread evenly; for replays and back-tests."
    )
    pace: float | None = Field(
        default=None,
        gt=0,
        description="For time bricks: how many times as fast as the clock rows are published, by the times of their "
        "keys, such as 1000; for replays and back-tests.",
    )
    min_replicas: int = Field(
        default=0, ge=0, description="Replicas that must have a brick's entries before it counts as done."
    )
    shards: int = Field(
        default=1,
        ge=1,
        description="Streams to spread the feed over, for more than one Redis core: partitions are dealt in turn to "
        "<stream>.0, <stream>.1 and so on, each an asset of its own. Limits hold for each stream.",
    )
