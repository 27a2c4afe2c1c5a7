"""A feed: the settings of one table and one stream. No I/O happens here.

`BrickFeed`, the Dagster component, extends it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from ucs_pipeline.bricks.partitions import Partitions, ShardId
from ucs_pipeline.errors import BrickError, FeedError, UcsError
from ucs_pipeline.feed import redaction as masking
from ucs_pipeline.feed import rules
from ucs_pipeline.feed.error_messages import sentence
from ucs_pipeline.feed.settings import Bricks, Settings, Stream


class Feed(Settings):
    """Moves a ClickHouse table into a Redis stream, brick by brick, exactly once and in order.

    One feed is one partitioned asset: each brick is a partition, and materialising it puts the brick's rows
    into the stream. Raises `FeedError` on settings that cannot work.
    """

    name: str = Field(
        description="Name of the feed: its asset key, and the name of its stream unless `stream.name` is set."
    )
    table: str = Field(
        min_length=1,
        description="What to read: a table, database.table, or a table function such as file('rows.parquet').",
    )
    key: str = Field(
        min_length=1,
        description="The column or SQL expression that numbers the rows: an integer, a time or a text. Keys may "
        "repeat.",
    )
    bricks: Bricks = Field(
        description="Class of the key and the range of bricks: {class: number, first: 0, last: 336775}, {class: time, "
        "first: 2013-01-01, last: 2013-12-31, zone: Europe/Berlin} or {class: text, base: 10}."
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="Fields of an entry, as stream field: column or SQL expression. Left out: every column under its "
        "own name.",
    )
    constants: dict[str, str] = Field(
        default={}, description="Fields with the same value in every entry, after the columns."
    )
    transform: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="package.module:function that changes rows in Python. It takes rows as a DataFrame and returns a "
        "DataFrame with a row for each, in the same order. Its columns are the fields.",
    )
    where: str | None = Field(
        default=None, min_length=1, description="SQL filter. Rows that it rejects are not part of the feed."
    )
    final: bool = Field(
        default=False, description="Read with FINAL, which merges the versions a ReplacingMergeTree still holds."
    )
    settings: dict[str, str | int | float | bool] = Field(
        default={},
        description="ClickHouse settings for this feed's queries, such as {select_sequential_consistency: 1}.",
    )
    stream: Stream = Field(default=Stream(), description="The Redis stream to write to.")
    clickhouse: str = Field(
        default="clickhouse",
        pattern=r"^[A-Za-z_]\w*$",
        description="Key of the Dagster resource, a ClickHouseResource, with the address of the table.",
    )
    redis: str = Field(
        default="redis",
        pattern=r"^[A-Za-z_]\w*$",
        description="Key of the Dagster resource, a RedisResource, with the address of the stream.",
    )
    max_bricks_per_run: int = Field(
        default=1000,
        ge=1,
        description="Partitions in a run, at most: a backfill is cut into such runs, in brick order. At `level: "
        "brick` a partition is a brick.",
    )
    tail: Literal["hold", "follow", "live"] = Field(
        default="hold",
        description="What the sensor does with the last brick while it is not sealed. hold: nothing. follow: publish "
        "its rows at each tick; the brick is materialized once it is sealed. live: as follow, within a "
        "second, in one long run.",
    )
    poll_s: float = Field(
        default=0.25, ge=0.05, description="For `tail: live`: seconds between two queries of the table's newest key."
    )
    live_max_s: int = Field(
        default=3600,
        ge=1,
        description="For `tail: live`: seconds after which the run ends and the sensor launches the next one. Keep it "
        "below `max_runtime_seconds` of the instance's `run_monitoring`.",
    )
    sensor: bool = Field(
        default=True,
        description="Whether the feed has a sensor that publishes bricks when they are sealed. Switch the sensor on "
        "in the UI.",
    )
    sensor_interval_s: int = Field(default=30, ge=1, description="Seconds between two ticks of the sensor, at least.")
    schedule: str | None = Field(
        default=None,
        description="Cron schedule (UTC) that publishes the next partitions at each tick, such as '*/5 * * * *'. "
        "Switch the schedule on in the UI.",
    )
    schedule_bricks: int = Field(
        default=1,
        ge=1,
        description="Partitions that the schedule publishes at each tick. At `level: brick` a partition is a brick.",
    )
    check_schedule: str | None = Field(
        default=None,
        description="Cron schedule (UTC) for the feed's checks, such as '30 5 * * *'. Switch the schedule on in the "
        "UI.",
    )
    fresh_within_s: int | None = Field(
        default=None,
        ge=60,
        description="Seconds within which the next brick should be materialized. After them Dagster marks the asset "
        "as overdue. Left out: never.",
    )
    deps: list[str] = Field(
        default=[],
        description="Keys of assets that the feed waits for if both are launched together, in addition to its table, "
        "such as raw/orders.",
    )
    table_asset: str | None = Field(
        default=None,
        min_length=1,
        description="Key of the asset that makes the table, such as raw/orders. Left out: the feed has an external "
        "asset for its table.",
    )
    key_prefix: list[str] = Field(
        default=[], description="First parts of the asset's key, before the feed's name, such as [shop, streams]."
    )
    automation_condition: Any = Field(
        default=None,
        exclude=True,
        description="A Dagster AutomationCondition of the asset, such as '{{ dg.AutomationCondition.eager() }}', in "
        "addition to or instead of the feed's sensor and schedule.",
    )
    metadata: dict[str, Any] = Field(
        default={}, exclude=True, description="Metadata of the asset, in addition to the feed's own."
    )
    group: str | None = Field(default=None, description="Asset group in the UI.")
    owners: list[str] = Field(default=[], description="Owners in the UI: e-mail addresses, or team:name.")
    tags: dict[str, str] = Field(
        default={}, description="Tags of the asset, to filter the catalog, such as {domain: sales}."
    )
    description: str | None = Field(default=None, description="Purpose of the feed, shown on the asset page.")

    _from_environment: frozenset[str] = PrivateAttr(default=frozenset())
    """Values that templates have read from the environment. Each may be a secret."""

    @property
    def stream_name(self) -> str:
        """Key of the stream in Redis."""
        return self.stream.name or self.name

    @property
    def parent(self) -> "Feed":
        """The feed that the user wrote; for a shard, the whole feed."""
        return self

    @property
    def shard_id(self) -> ShardId | None:
        """The shard of `parent`; None if it is the feed itself."""
        return None

    @property
    def any_order(self) -> bool:
        """Whether bricks are published in any order, with a ledger."""
        return self.stream.order == "any"

    @property
    def warning(self) -> str | None:
        """A warning about settings that are likely unwanted; None if there is none."""
        bricks = self.bricks
        if bricks.kind != "text" or bricks.digit != "sum" or bricks.base == 10:
            return None
        return (
            f"feed {self.name!r}: the sum of eight hex digits never exceeds 120, so at base {bricks.base} few bricks "
            "get most of the keys. Set `digit: integer`, or base 10."
        )

    @property
    def redacted(self) -> "Feed":
        """The feed without secrets in its SQL, for display. Queries use the feed itself."""
        return self._masked[0]

    @property
    def redact(self) -> Callable[[str], str]:
        """Removes the feed's secrets from a text that may repeat its SQL."""
        return self._masked[1]

    @cached_property
    def _masked(self) -> "tuple[Feed, Callable[[str], str]]":
        secrets: set[str] = set()
        may_be = self.parent._from_environment

        def visible(found: masking.Redacted) -> str:
            secrets.update(found.secrets)
            return found.text

        def expression(sql: str | None) -> str | None:
            return None if sql is None else visible(masking.shown_expression(sql, may_be))

        changed = {
            "table": visible(masking.shown_table(self.table, may_be)),
            "key": expression(self.key),
            "bricks": self.bricks.model_copy(update={"column": expression(self.bricks.column)}),
            "columns": None
            if self.columns is None
            else {field: expression(sql) for field, sql in self.columns.items()},
            "where": expression(self.where),
            "settings": {
                name: visible(masking.shown_address(value, may_be)) if isinstance(value, str) else value
                for name, value in self.settings.items()
            },
        }
        return self.model_copy(update=changed), masking.hider(secrets)

    @property
    def ordinals(self) -> Sequence[int]:
        """Ordinals of the feed's bricks in its stream, in order."""
        return self.partitions.ordinals

    @cached_property
    def partitions(self) -> Partitions:
        """Names and ordinals of the feed's bricks and partitions.

        Raises:
            BrickError: the settings of `bricks` describe none.
        """
        return self.bricks.partitions(self.stream.id_offset)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise FeedError(sentence(settings, error, type(self))) from None

    @model_validator(mode="after")
    def _consistent(self) -> "Feed":
        rules.check_name(self.name)
        try:
            rules.refuse_endless(self.bricks, self.stream.shards)
            partitions = self.partitions
        except BrickError as error:
            raise ValueError(error.text) from None
        rules.check_partitions(partitions, self.stream.shards, self.bricks.last)
        rules.check_order(self.bricks, self.stream, self.stream_name, self.tail)
        if self.tail == "live":
            rules.check_live(self.bricks, self.stream, sensor=self.sensor)
        rules.check_fields(self.columns, self.constants)
        rules.check_settings(self.settings)
        if self.clickhouse == self.redis:
            raise ValueError(f"`clickhouse` and `redis` name one resource, {self.redis!r}. A feed needs one of each.")
        return self


def start_in(feed: Feed, brick: str) -> int:
    """Start of a brick (or a coarser partition) of the feed.

    Raises:
        BrickError: the name is no brick name.
        UcsError: the feed has no such brick.
    """
    return _listed(feed, feed.partitions.start_named(brick), brick)


def last_whole_in(feed: Feed, brick: str) -> int:
    """Start of the partition that ends with a brick, by its name or, of number bricks, by its number such as `299`.

    Raises:
        BrickError: it is no brick.
        UcsError: the feed has no such brick, or no partition that ends with it.
    """
    bricks, ordinal = feed.partitions, numbered_in(feed, brick)
    if ordinal is None:
        return start_in(feed, brick)
    start = bricks.start(ordinal)
    if bricks.end(start) != ordinal:
        raise UcsError(
            f"feed {feed.name!r}: brick {bricks.brick_name(ordinal)} is inside {bricks.unit} {bricks.name(start)}, and "
            f"only whole {bricks.unit}s are adopted. Name the {bricks.unit} before it, and give the handled rows of "
            f"{bricks.name(start)} with `--rows`.",
            "UCS-ADOPT",
        )
    return start


def numbered_in(feed: Feed, brick: str) -> int | None:
    """Ordinal of a number brick of the feed by its plain number, such as `299`; None if the text is a name.

    Raises:
        UcsError: the feed has no such brick.
    """
    bricks = feed.partitions
    # A UCS shard's name is one number.
    if feed.bricks.kind != "number" or bricks.unit == "shard" or not (brick.isascii() and brick.isdecimal()):
        return None
    ordinal = int(brick) + bricks.offset
    return _listed(feed, ordinal, bricks.brick_name(ordinal))


def _listed(feed: Feed, ordinal: int, brick: str) -> int:
    bricks = feed.partitions
    if ordinal not in bricks:
        first, last = bricks.name(bricks.first), bricks.name(bricks.last)
        raise UcsError(f"feed {feed.name!r} has no brick {brick}. Its bricks are {first} to {last}.", "UCS-BRICK-NAME")
    return ordinal
