"""Rules for combinations of a feed's settings. Pure; each message has the value and what to do.

Every rule raises `ValueError` with a message that names the setting.
"""

import re
from collections.abc import Iterable, Mapping

from ucs_pipeline.bricks.partitions import Partitions, ShardId
from ucs_pipeline.bricks.sharding import ShardPartitions
from ucs_pipeline.bricks.time import HOUR, MILLISECONDS
from ucs_pipeline.errors import counted
from ucs_pipeline.feed.redis_keys import has_neighbours
from ucs_pipeline.feed.settings import Bricks, Stream
from ucs_pipeline.feed.yaml_text import named

FIXED_SETTINGS: Mapping[str, str | int] = {
    # A truncated result must be an error: each of these could end one early silently.
    **dict.fromkeys(("limit", "offset", "page"), 0),
    **dict.fromkeys(
        (f"{what}_overflow_mode" for what in ("read", "sort", "result", "timeout", "group_by", "set", "join")), "throw"
    ),
    **dict.fromkeys((f"{what}_overflow_mode" for what in ("distinct", "transfer")), "throw"),
    **dict.fromkeys(("read_overflow_mode_leaf", "timeout_overflow_mode_leaf"), "throw"),
    **dict.fromkeys(("partial_result_on_first_cancel", "discard_query_data", "run_query_in_background"), 0),
    # Settings that leave rows out, or bring them back, contrary to the query.
    **dict.fromkeys(("select", "filter", "order", "sort", "additional_result_filter"), ""),
    **dict.fromkeys(("skip_unavailable_shards", "ignore_cold_parts_seconds", "distributed_group_by_no_merge"), 0),
    **dict.fromkeys(("parallel_replicas_count", "parallel_replica_offset"), 0),
    **dict.fromkeys(("external_storage_max_read_rows", "external_storage_max_read_bytes"), 0),
    "additional_table_filters": "{}",
    "apply_deleted_mask": 1,
    "final": 0,
    # Answers from a cache.
    **dict.fromkeys(("use_query_cache", "query_cache_for_subqueries", "use_cache_for_count_from_files"), 0),
    **dict.fromkeys((f"schema_inference_use_cache_for_{where}" for where in ("file", "s3", "azure", "hdfs", "url")), 0),
    # The columns and rows of an answer.
    **dict.fromkeys((f"describe_{what}" for what in ("compact_output", "include_subcolumns")), 0),
    **dict.fromkeys(("describe_include_virtual_columns", "describe_extend_object_types", "print_pretty_type_names"), 0),
    **dict.fromkeys(("extremes", "aggregate_functions_null_for_empty", "prefer_column_name_to_alias"), 0),
    "output_format_arrow_low_cardinality_as_dictionary": 0,
    "output_format_native_encode_types_in_binary_format": 0,
}
"""ClickHouse settings that keep an answer whole, fresh and in its shape. Neither a profile nor a feed changes them."""

MAX_PARTITIONS = 100_000
"""Dagster's documented ceiling of partitions per asset."""

MAX_ORDINAL = 2**64 - 2
"""The left half of a Redis entry id is an unsigned 64-bit number; the very last one stays free."""

_MOST_HOURS = {"brick": 1, "block": 24, "part": 31 * 24, "shard": 366 * 24}
"""Most hours in a partition of a time feed, by level."""
_LAST_YEAR = 253370764800
"""The start of the year 9999, whose end Python cannot represent."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check_name(name: str) -> None:
    """Dagster and Redis both take the name."""
    if not _NAME.fullmatch(name):
        raise ValueError("name is invalid. Use letters, digits and underscores, beginning with a letter.")


def check_settings(settings: Iterable[str]) -> None:
    """The ClickHouse settings are names, and none of those that decide which rows and columns an answer has."""
    for setting in settings:
        if not _SETTING.fullmatch(setting):
            raise ValueError(f"settings: {named([setting])} is not the name of a ClickHouse setting.")
        if setting in FIXED_SETTINGS:
            raise ValueError(
                f"settings: {setting} is fixed, because it could cut a result short or change its columns. Use "
                "`where`, `final` or `columns` instead."
            )


def check_partitions(partitions: Partitions, shards: int, last: object) -> None:
    """Entry ids can carry the bricks, Dagster the partitions, and every shard has some. `last`: as it is written."""
    if partitions.last > MAX_ORDINAL:
        raise ValueError(
            f"bricks.last ({last}) is too large for an entry ID. Its brick has the number {partitions.last}, and the "
            f"largest is {MAX_ORDINAL}."
        )
    count = len(partitions.starts)
    if 1 < shards <= count:
        sizes = [len(ShardPartitions(partitions, ShardId(number, shards)).starts) for number in range(shards)]
    else:
        sizes = [count, *[0] * (shards > 1)]
    if not min(sizes):
        raise ValueError(
            f"stream.shards is {shards}, and the feed has {counted(count, partitions.unit)}: a stream shard would have "
            "none. Choose fewer shards, or a finer `level`."
        )
    if max(sizes) > MAX_PARTITIONS:
        raise _too_many(f"{count:,} {partitions.unit}s")


def refuse_endless(bricks: Bricks, shards: int) -> None:
    """Refuses a brick range that is clearly too long: listing thousands of years takes up to minutes."""
    if bricks.kind != "time":
        return
    first, last = bricks.ends()
    # A lower bound: the longest months and years, and clocks that change.
    units = (last - first) // (_MOST_HOURS[bricks.level] * HOUR * MILLISECONDS)
    if units * 0.99 > MAX_PARTITIONS * shards:
        raise _too_many(f"about {units:,} {bricks.level}s")
    if last >= _LAST_YEAR * MILLISECONDS:
        raise ValueError(f"bricks.last ({bricks.last}) is too late. The last hour is 9998-12-31T23.")


def _too_many(partitions: str) -> ValueError:
    return ValueError(
        f"bricks.first to bricks.last make {partitions}, and Dagster supports {MAX_PARTITIONS:,} partitions an asset. "
        "Choose a coarser `level`, more `stream.shards`, or several feeds."
    )


def check_order(bricks: Bricks, stream: Stream, stream_name: str, tail: str) -> None:
    """The settings fit the feed's order and class."""
    if stream.order == "any":
        _check_any_order(stream, stream_name, tail)
    if stream.pace is not None and bricks.kind != "time":
        raise ValueError(
            f"stream.pace needs keys that are times, and bricks.class is {bricks.kind}. Set "
            "`stream.max_rows_per_second` instead."
        )


def check_live(bricks: Bricks, stream: Stream, *, sensor: bool) -> None:
    """`tail: live` is possible: a newer row has a larger key, and a sensor launches the next run."""
    if bricks.kind == "text":
        raise ValueError(
            "tail: live needs keys that rise, and bricks.class is text: a new row may belong to any brick. Set `tail: "
            "hold` and a `schedule`."
        )
    if stream.shards > 1:
        raise ValueError(f"tail: live needs one stream, and stream.shards is {stream.shards}. Set `tail: follow`.")
    if stream.pace is not None:
        raise ValueError(
            "tail: live publishes rows as they arrive, and stream.pace by the times of their keys. Leave one of them "
            "out."
        )
    if not sensor:
        raise ValueError("tail: live needs the feed's sensor, which launches its run. Set `sensor: true`.")


def _check_any_order(stream: Stream, stream_name: str, tail: str) -> None:
    for setting, given, reason in (
        ("id_offset", stream.id_offset, "Leave it out: Redis gives the IDs."),
        ("pace", stream.pace, "Set `stream.max_rows_per_second` instead."),
    ):
        if given:
            raise ValueError(f"stream.{setting} needs `order: strict`, and stream.order is any. {reason}")
    if stream.shards > 1:
        raise ValueError(
            "stream.shards needs `order: strict`, and stream.order is any. Leave `shards` out: any-order bricks are "
            "published in parallel to one stream."
        )
    if tail != "hold":
        raise ValueError(
            f"tail: {tail} needs `order: strict`, and stream.order is any: only sealed bricks are published. Set "
            "`tail: hold`."
        )
    if not has_neighbours(stream_name):
        raise ValueError(
            f"stream.name {stream_name!r} has a brace that is no hash tag, so its ledger cannot have the same cluster "
            "slot. Leave the brace out."
        )


def check_fields(columns: Mapping[str, str] | None, constants: Mapping[str, str]) -> None:
    """An entry has fields, each of them once."""
    if columns is not None and not columns and not constants:
        raise ValueError("columns is empty and there are no constants. An entry needs at least one field.")
    twice = sorted(set(columns or ()) & set(constants))
    if twice:
        raise ValueError(f"field {twice[0]!r} is both in columns and in constants. Name it once.")
