"""What the settings of a feed must be beside each other. Pure; each rule says what was found and what to do."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.definitions.utils import is_valid_name
from dagster._utils.schedules import is_valid_cron_string

from ucs_pipeline.bricks.partitions import Share
from ucs_pipeline.bricks.sharding import Dealt
from ucs_pipeline.bricks.time import HOUR, MILLISECONDS
from ucs_pipeline.errors import BrickError
from ucs_pipeline.feed.redis_keys import has_neighbours
from ucs_pipeline.feed.yaml_text import named

FIXED_SETTINGS: Mapping[str, str | int] = {
    # A result that is cut off must be an error: each of these could end one early without a word.
    **dict.fromkeys(("limit", "offset", "page"), 0),
    **dict.fromkeys(
        (f"{what}_overflow_mode" for what in ("read", "sort", "result", "timeout", "group_by", "set", "join")), "throw"
    ),
    **dict.fromkeys((f"{what}_overflow_mode" for what in ("distinct", "transfer")), "throw"),
    **dict.fromkeys(("read_overflow_mode_leaf", "timeout_overflow_mode_leaf"), "throw"),
    **dict.fromkeys(("partial_result_on_first_cancel", "discard_query_data", "run_query_in_background"), 0),
    # Rows that are left out, or come back, although the query does not say so.
    **dict.fromkeys(("select", "filter", "order", "sort", "additional_result_filter"), ""),
    **dict.fromkeys(("skip_unavailable_shards", "ignore_cold_parts_seconds", "distributed_group_by_no_merge"), 0),
    **dict.fromkeys(("parallel_replicas_count", "parallel_replica_offset"), 0),
    **dict.fromkeys(("external_storage_max_read_rows", "external_storage_max_read_bytes"), 0),
    "additional_table_filters": "{}",
    "apply_deleted_mask": 1,
    "final": 0,
    # Answers that may be older than the question.
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

if TYPE_CHECKING:
    from ucs_pipeline.feed.feed import BrickFeed

MAX_PARTITIONS = 100_000
"""Dagster's documented ceiling of partitions per asset."""

MAX_ORDINAL = 2**64 - 2
"""The left half of a Redis entry id is an unsigned 64-bit number; the very last one is left as room above."""

_MOST_HOURS = {"brick": 1, "block": 24, "part": 31 * 24, "shard": 366 * 24}
"""Hours in what a partition of a time feed is, at most."""
_LAST_YEAR = 253370764800
"""When the year 9999 begins, which has no end that Python can name."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check(feed: "BrickFeed") -> None:
    """Refuses settings that are right by themselves and cannot work together.

    Raises:
        ValueError: what is wrong, in a sentence that names the setting.
    """
    if not _NAME.fullmatch(feed.name):
        raise ValueError("name must be letters, digits and underscores, starting with a letter")
    # The assets of shards have names with a number, none of which is reserved.
    if feed.stream.shards == 1 and not is_valid_name(feed.name):
        raise ValueError(f"name {feed.name!r} is reserved by Dagster: choose another (stream.name may be {feed.name})")
    _check_partitions(feed)
    if feed.any_order:
        _check_any_order(feed)
    if feed.stream.pace is not None and feed.bricks.kind != "time":
        raise ValueError(
            f"stream.pace goes by the times of keys, and bricks.class is {feed.bricks.kind}: set "
            "`stream.max_rows_per_second` instead"
        )
    _check_fields(feed)
    _check_what_dagster_shows(feed)
    for setting in feed.settings:
        if not _SETTING.fullmatch(setting):
            raise ValueError(f"settings: {named([setting])} is not the name of a ClickHouse setting")
        if setting in FIXED_SETTINGS:
            raise ValueError(
                f"settings: {setting} is fixed, since it could cut a result short or change its columns: use `where`, "
                "`final` or `columns` instead"
            )


def _check_partitions(feed: "BrickFeed") -> None:
    try:
        _refuse_endless(feed)
        numbering = feed.numbering
    except BrickError as error:
        raise ValueError(str(error)) from None
    if numbering.last > MAX_ORDINAL:
        raise ValueError(
            f"bricks.last ({feed.bricks.last}) is beyond what an entry id can carry: its brick has the number "
            f"{numbering.last}, and the largest is {MAX_ORDINAL}"
        )
    shards, partitions = feed.stream.shards, len(numbering.starts)
    if 1 < shards <= partitions:
        sizes = [len(Dealt(numbering, Share(number, shards)).starts) for number in range(shards)]
    else:
        sizes = [partitions, *[0] * (shards > 1)]
    if not min(sizes):
        raise ValueError(
            f"stream.shards ({shards}) is more than the feed's {partitions:,} "
            f"{numbering.unit}s go round: one shard would have none; choose fewer, or a finer `level`"
        )
    if max(sizes) > MAX_PARTITIONS:
        raise _too_many(f"{partitions:,} {numbering.unit}s")


def _refuse_endless(feed: "BrickFeed") -> None:
    """Refuses a list that is too long at a glance: to make that of thousands of years takes up to minutes."""
    if feed.bricks.kind != "time":
        return
    first, last = feed.bricks.ends()
    # As few as they may be: the longest months and years, and clocks that change.
    units = (last - first) // (_MOST_HOURS[feed.bricks.level] * HOUR * MILLISECONDS)
    if units * 0.99 > MAX_PARTITIONS * feed.stream.shards:
        raise _too_many(f"about {units:,} {feed.bricks.level}s")
    if last >= _LAST_YEAR * MILLISECONDS:
        raise ValueError(f"bricks.last ({feed.bricks.last}) is too late: the last hour is 9998-12-31T23")


def _too_many(partitions: str) -> ValueError:
    return ValueError(
        f"bricks.first to bricks.last make {partitions}, and Dagster carries at most {MAX_PARTITIONS:,} partitions per "
        "asset: choose a coarser `level`, more `stream.shards`, or split the range over several feeds"
    )


def _check_any_order(feed: "BrickFeed") -> None:
    for setting, given, reason in (
        ("id_offset", feed.stream.id_offset, "Redis gives the ids"),
        ("pace", feed.stream.pace, "bricks go in any order, and the clock does not: set max_rows_per_second"),
    ):
        if given:
            raise ValueError(f"stream.{setting} is for `order: strict`, and stream.order is any: {reason}")
    if feed.stream.shards > 1:
        raise ValueError(
            "stream.shards is for `order: strict`, and stream.order is any: bricks of any order go into one stream "
            "in parallel as it is; leave `shards` out"
        )
    if feed.tail == "follow":
        raise ValueError(
            "tail: follow is for `order: strict`, and stream.order is any: a brick is published when it can no "
            "longer change; set `tail: hold`"
        )
    if not has_neighbours(feed.stream_name):
        raise ValueError(
            f"stream.name {feed.stream_name!r} has a brace that is no hash tag, by which no ledger can be in its "
            "cluster slot: leave the brace out"
        )


def _check_fields(feed: "BrickFeed") -> None:
    if feed.columns is not None and not feed.columns and not feed.constants:
        raise ValueError("columns is empty and there are no constants: an entry needs at least one field")
    twice = sorted(set(feed.columns or ()) & set(feed.constants))
    if twice:
        raise ValueError(f"field {twice[0]!r} is both in columns and in constants: name it once")


def _check_what_dagster_shows(feed: "BrickFeed") -> None:
    for setting, cron in (("schedule", feed.schedule), ("check_schedule", feed.check_schedule)):
        if cron is not None and not is_valid_cron_string(cron):
            raise ValueError(
                f"{setting} {cron!r} is not a cron schedule: give minute, hour, day of the month, month and day of "
                "the week, such as '30 5 * * *'"
            )
    try:
        dg.AssetSpec(feed.name, group_name=feed.group, owners=feed.owners, tags=feed.tags)
    except dg.DagsterInvalidDefinitionError as error:
        raise ValueError(f"group, owners or tags: {error}") from None
