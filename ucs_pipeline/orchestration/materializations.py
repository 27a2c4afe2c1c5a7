"""Dagster's run storage as the record of progress: finished bricks, and their metadata."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dagster as dg

from ucs_pipeline.entries.display import hash_text
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.names import feed_key
from ucs_pipeline.publishing.brick_results import BrickReport, Key

DATA_VERSION_TAG = "dagster/data_version"
"""Tag of an event that holds the version of a brick's content. Dagster keeps an index of it."""

ROWS = "dagster/partition_row_count"
"""Key of the number of rows of a brick. Dagster's own key, so that it is recorded once."""

_ROWS_BEFORE = "rows"
"""The key that older records have for it."""

ADOPTED = "adopted"
"""Note on a brick that was recorded without being published."""

_IN_STREAM = "already in the stream"
PAGE = 1000
"""Partitions in a query by name, at most."""
_LINES = 100
_WIDTH, _BETWEEN = 78, 3
"""Characters that a table may take on a brick's page, and those between two columns."""
_NAME, _VALUE = 24, 48
_EXACT = 100
_VERSION = re.compile(r"(\d+)-([0-9a-f]{16})", re.ASCII)
_EXACT_IN_A_BROWSER = 2**53
_KEY = {"number": "id", "time": "time", "text": "key"}
"""The name of a feed's keys, by class."""


def metadata(feed: Feed, report: BrickReport) -> dict[str, Any]:
    """The metadata of a finished brick. Keys are stable: the UI plots the numeric ones."""
    written: dict[str, Any] = {
        ROWS: report.rows,
        "published": report.published,
        "bounds": feed.partitions.bounds_text(report.ordinal),
    }
    if report.content_hash is not None:
        written["content_hash"] = hash_text(report.content_hash)
    if report.first_entry and report.last_entry and report.first_key is not None and report.last_key is not None:
        written |= {
            f"first_{_KEY[feed.bricks.kind]}": _number(report.first_key),
            f"last_{_KEY[feed.bricks.kind]}": _number(report.last_key),
            "first_entry_id": str(report.first_entry),
            "last_entry_id": str(report.last_entry),
        }
    if report.replay:
        written["replay"] = report.replay
    if report.adopted:
        written["note"] = ADOPTED
        if report.last_entry:
            written["last_entry_id"] = str(report.last_entry)
    elif report.published:
        written |= {
            "bytes": report.bytes,
            "seconds": round(report.seconds, 6),
            "rows_per_second": round(report.published / max(report.seconds, 1e-6)),
            "stream_length_before": report.length_before,
            "stream_length_after": report.length_after,
        }
    elif report.rows:
        written["note"] = _IN_STREAM
    else:
        written["note"] = "the brick has no rows"
        if report.remark:
            written["warning"] = report.remark
    if report.preview:
        written["first_entries"] = _table(feed, report.preview)
    return written


def noted_in_stream(event: dg.AssetMaterialization) -> bool:
    """Whether all rows of the brick were in the stream before the run."""
    return event.metadata.get("note") == dg.TextMetadataValue(_IN_STREAM)


def recorded(instance: dg.DagsterInstance, feed: Feed, starts: Sequence[int]) -> Mapping[int, BrickReport]:
    """The records of those partitions that are marked as done, by start."""
    key = feed_key(feed)
    names = {feed.partitions.name(start): start for start in starts}
    # A database takes a limited number of names in one query.
    asked = set(names) if len(names) <= PAGE else None
    latest = instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION, asked)
    ids = [storage_id for name, storage_id in latest.items() if name in names]
    reports: dict[int, BrickReport] = {}
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        found = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=key, storage_ids=page), limit=len(page))
        for record in found.records:
            event = record.asset_materialization
            # A brick that was reported as done by hand in the UI has no metadata.
            if event and event.partition and not event.metadata.keys().isdisjoint((ROWS, _ROWS_BEFORE)):
                start = names[event.partition]
                reports[start] = _report(feed, start, event)
    return reports


def newest(instance: dg.DagsterInstance, feed: Feed, number: int) -> Iterator[Mapping[int, BrickReport]]:
    """Records by start: the newest first, in pages of so many events."""
    cursor: str | None = None
    seen: set[int] = set()
    while True:
        found = instance.fetch_materializations(feed_key(feed), limit=number, cursor=cursor)
        reports: dict[int, BrickReport] = {}
        for record in found.records:
            event = record.asset_materialization
            if event and event.partition:
                start = feed.partitions.start_named(event.partition)
                if start not in seen:
                    seen.add(start)
                    reports[start] = _report(feed, start, event)
        if reports:
            yield reports
        if not found.has_more:
            return
        cursor = found.cursor


def contents(instance: dg.DagsterInstance, feed: Feed, starts: Sequence[int]) -> Mapping[int, BrickReport]:
    """As `recorded`, for many partitions: reads the data versions only, and leaves the first and last key out.

    If partitions are coarser than bricks, only the newest hundred have their last entry; the others have the first
    possible one.
    """
    key, kind = feed_key(feed), dg.DagsterEventType.ASSET_MATERIALIZATION
    asked = [feed.partitions.name(start) for start in starts] if len(starts) <= PAGE else None
    done = instance.get_latest_storage_id_by_partition(key, kind, None if asked is None else set(asked))
    versions = instance.event_log_storage.get_latest_tags_by_partition(key, kind, [DATA_VERSION_TAG], asked)
    reports: dict[int, BrickReport] = {}
    others: list[int] = []
    for ordinal in starts:
        name = feed.partitions.name(ordinal)
        if name in done:
            match = _VERSION.fullmatch(versions.get(name, {}).get(DATA_VERSION_TAG, ""))
            if match:
                reports[ordinal] = _content(ordinal, int(match[1]), int(match[2], 16))
            else:
                others.append(ordinal)
    if feed.partitions.depth:
        reports = {start: replace(report, last_entry=report.first_entry) for start, report in reports.items()}
        others += list(reports)[-_EXACT:]
    return {**reports, **recorded(instance, feed, others)} if others else reports


def rows_by_brick(instance: dg.DagsterInstance, feed: Feed) -> Mapping[str, int]:
    """Rows recorded for every finished brick of a feed, by name; reads nothing but the data versions."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    found = instance.event_log_storage.get_latest_tags_by_partition(feed_key(feed), kind, [DATA_VERSION_TAG])
    return {name: int(tags[DATA_VERSION_TAG].partition("-")[0]) for name, tags in found.items()}


def _table(feed: Feed, entries: Mapping[EntryId, Mapping[bytes, bytes]]) -> dg.TableMetadataValue:
    """A line for each field, with as many entries side by side as fit into a brick's page, at least one.

    The page truncates wider tables.
    """
    names = list(dict.fromkeys(name for fields in entries.values() for name in fields))[:_LINES]
    columns = {"field": [_shown(name, _NAME) for name in names]}
    free = _WIDTH - _width("field", columns["field"])
    for entry, fields in entries.items():
        # If Redis assigns the ids, entries are named by their positions in the brick.
        title = f"row {entry.row}" if feed.any_order else str(entry)
        column = [_shown(fields.get(name, b""), _VALUE) for name in names]
        free -= _width(title, column)
        if free < 0 and len(columns) > 1:
            break
        columns[title] = column
    lines = zip(*columns.values(), strict=True)
    return dg.MetadataValue.table([dg.TableRecord(dict(zip(columns, line, strict=True))) for line in lines])


def _width(title: str, column: Sequence[str]) -> int:
    return max(map(len, (title, *column))) + _BETWEEN


def _shown(text: bytes, most: int) -> str:
    shown = text[: 4 * most].decode(errors="replace")
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _content(ordinal: int, rows: int, content_hash: int) -> BrickReport:
    first, last = (EntryId(ordinal, 1), EntryId(ordinal, rows)) if rows else (None, None)
    return BrickReport(ordinal, rows, None, None, first, last, content_hash)


def _report(feed: Feed, ordinal: int, event: dg.AssetMaterialization) -> BrickReport:
    def value(key: str) -> Any:
        found = event.metadata.get(key)
        return None if found is None else found.value

    kind = feed.bricks.kind
    names = ("first_entry_id", "last_entry_id", f"first_{_KEY[kind]}", f"last_{_KEY[kind]}")
    first, last, first_key, last_key = map(value, names)
    content = value("content_hash")
    return BrickReport(
        ordinal,
        value(ROWS) or value(_ROWS_BEFORE) or 0,
        int(first_key) if kind == "number" and first_key is not None else first_key,
        int(last_key) if kind == "number" and last_key is not None else last_key,
        EntryId.parse(first) if first else None,
        EntryId.parse(last) if last else None,
        None if content is None else int(content, 16),
        adopted=value("note") == ADOPTED,
        replay=value("replay") or 0,
    )


def data_version(report: BrickReport) -> str:
    """Dagster's version of a brick's content: equal for equal rows."""
    content = report.last_entry if report.content_hash is None else hash_text(report.content_hash)
    return f"{report.rows}-{content}"


def _number(key: Key) -> Key:
    # A browser reads numbers as 64-bit floats, which would change the digits of a longer key.
    return str(key) if isinstance(key, int) and abs(key) >= _EXACT_IN_A_BROWSER else key
