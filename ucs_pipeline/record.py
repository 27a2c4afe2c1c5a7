"""Dagster's run storage as the record of progress: bricks that are done, and what was written down about them."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from ucs_pipeline.bricks import name_of_ordinal, ordinal_of_name
from ucs_pipeline.entries import EntryId
from ucs_pipeline.plan import BrickReport

_PAGE = 1000
_EXACT_IN_A_BROWSER = 2**53


def metadata(report: BrickReport) -> dict[str, Any]:
    """What is written down about a finished brick. Keys are stable: the UI plots the numeric ones."""
    written: dict[str, Any] = {"rows": report.rows, "published": report.published}
    if report.first_entry and report.last_entry and report.first_key is not None and report.last_key is not None:
        written |= {
            "first_id": _number(report.first_key),
            "last_id": _number(report.last_key),
            "first_entry_id": str(report.first_entry),
            "last_entry_id": str(report.last_entry),
        }
    if report.published:
        written |= {
            "bytes": report.bytes,
            "seconds": round(report.seconds, 6),
            "rows_per_second": round(report.published / max(report.seconds, 1e-6)),
            "stream_length_before": report.length_before,
            "stream_length_after": report.length_after,
        }
    elif report.rows:
        written["note"] = "already in the stream"
    else:
        written["note"] = "the brick has no rows"
    return written


def recorded(instance: dg.DagsterInstance, feed: str, ordinals: Sequence[int]) -> Mapping[int, BrickReport]:
    """What is recorded about those of the bricks that are marked as done, by ordinal."""
    key = dg.AssetKey(feed)
    names = [name_of_ordinal(ordinal) for ordinal in ordinals]
    ids = list(
        instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(names)).values()
    )
    reports: dict[int, BrickReport] = {}
    for start in range(0, len(ids), _PAGE):
        page = ids[start : start + _PAGE]
        found = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=key, storage_ids=page), limit=len(page))
        for record in found.records:
            event = record.asset_materialization
            if event and event.partition:
                report = _report(ordinal_of_name(event.partition), event)
                reports[report.ordinal] = report
    return reports


def _report(ordinal: int, event: dg.AssetMaterialization) -> BrickReport:
    def value(key: str) -> Any:
        found = event.metadata.get(key)
        return None if found is None else found.value

    first, last, first_id, last_id = map(value, ("first_entry_id", "last_entry_id", "first_id", "last_id"))
    return BrickReport(
        ordinal,
        value("rows") or 0,
        None if first_id is None else int(first_id),
        None if last_id is None else int(last_id),
        EntryId.parse(first) if first else None,
        EntryId.parse(last) if last else None,
    )


def _number(key: int) -> int | str:
    # A browser reads numbers as 64-bit floats; a longer key would show wrong digits.
    return key if abs(key) < _EXACT_IN_A_BROWSER else str(key)
