"""The checks of a feed: the result of each. Pure."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ucs_pipeline.entries.display import content_shown, fields_shown, hash_shown, hash_text, ranges
from ucs_pipeline.entries.entry_id import START, EntryId
from ucs_pipeline.errors import counted
from ucs_pipeline.orchestration.checks.any_order import gaps_allowed, ledger_not_behind
from ucs_pipeline.orchestration.checks.finding import (
    ALL_ROWS_ARRIVED,
    NO_GAPS,
    NO_LATE_ROWS,
    NO_UNASSIGNED_ROWS,
    STREAM_NOT_BEHIND,
    CheckResult,
    finished,
)

if TYPE_CHECKING:
    # Checks are declared in every process; their inputs are imported only where they run.
    from ucs_pipeline.orchestration.checks.facts import CheckInputs

_AGAIN = "publish to another `stream.name`, or delete the stream and launch all bricks"
_PLACES = {
    "null": "with a NULL key",
    "negative": "negative",
    "before": "before the first brick",
    "beyond": "beyond the last brick",
}


def findings(facts: "CheckInputs", warning: str | None = None) -> list[CheckResult]:
    """The outcome of every check, in the order of `CHECKS`. `warning`: about the table's engine."""
    return [
        all_rows_arrived(facts),
        gaps_allowed(facts) if facts.feed.any_order else no_gaps(facts),
        replace(no_late_rows(facts), warning=warning),
        no_unassigned_rows(facts),
        not_behind(facts),
    ]


def not_behind(facts: "CheckInputs") -> CheckResult:
    """The outcome of `STREAM_NOT_BEHIND`, which does not need the table."""
    return ledger_not_behind(facts) if facts.feed.any_order else stream_not_behind(facts)


def all_rows_arrived(facts: "CheckInputs") -> CheckResult:
    """Compares the record with the table, and the table with the entries in the stream."""
    feed, verdict = facts.feed, facts.verdict
    offenders: list[tuple[str, str, str, str]] = [
        (
            feed.partitions.name(record.ordinal),
            "table against record",
            content_shown(record.rows, record.content_hash),
            content_shown(*table),
        )
        for record, table in facts.changed
    ]
    offenders += [
        (
            feed.partitions.name(difference.entry.ordinal),
            f"{difference.name} against table",
            fields_shown(difference.expected),
            "not in the stream" if difference.found is None else fields_shown(difference.found),
        )
        for difference in verdict.differences
    ]
    expected = facts.expected_length
    if expected is not None and expected != verdict.end.length:
        offenders.append(("", "stream against record", f"{expected:,} entries", f"{verdict.end.length:,} entries"))
    if verdict.extra:
        offenders += [
            (
                feed.partitions.name(entry.ordinal) if entry.ordinal in feed.partitions else "none",
                f"entry {entry} against table",
                "no row",
                fields_shown(fields),
            )
            for entry, fields in verdict.strays
        ]
        matched, there = verdict.equal + verdict.different, verdict.end.length
        offenders.append(("", "stream against table", f"{matched:,} entries", f"{there:,} entries"))
    rows = sum(record.rows for record in facts.records.values())
    figures = {
        "bricks_recorded": len(facts.records),
        "rows_recorded": rows,
        "rows_in_table": sum(facts.table(ordinal).rows for ordinal in facts.records),
        "bricks_changed": len(facts.changed),
        "entries_in_stream": verdict.end.length,
        "entries_equal": verdict.equal,
        "entries_different": verdict.different,
        "entries_missing": verdict.missing,
        "entries_deleted_by_workers": verdict.deleted,
    }
    sides = f"table {feed.redacted.table!r} and stream {feed.stream_name!r}"
    if not offenders:
        text = (
            f"{finished(facts)} with {counted(rows, 'row')}. All have the same rows in {sides}. Compared: "
            f"{counted(verdict.equal, 'entry')} in the stream."
        )
    else:
        text = (
            f"{finished(facts)} with {counted(rows, 'row')}, and {sides} differ. The table has other rows than "
            f"recorded in {counted(len(facts.changed), 'brick')}. The stream has "
            f"{counted(verdict.different, 'different entry')} and {counted(verdict.extra or 0, 'foreign entry')}, and "
            f"lacks {verdict.missing:,}. Restore the table if it is wrong; if the stream is wrong, {_AGAIN}."
        )
    more = verdict.different + verdict.missing - len(verdict.differences)
    more += max(0, (verdict.extra or 0) - len(verdict.strays))
    return CheckResult(ALL_ROWS_ARRIVED, text, figures, ("brick", "compared", "expected", "found"), offenders, more)


def no_gaps(facts: "CheckInputs") -> CheckResult:
    """Finds bricks that were skipped."""
    bricks, newest, gaps = facts.feed.partitions, max(facts.records, default=-1), facts.gaps
    figures: dict[str, int | str] = {"bricks_recorded": len(facts.records), "bricks_missing": len(gaps)}
    if not facts.records:
        text = f"feed {facts.feed.name!r}: no brick is materialized yet, so there is no gap."
    elif not gaps:
        text = f"{finished(facts)}, up to {bricks.name(newest)}. None is missing."
    else:
        text = (
            f"{finished(facts)}, up to {bricks.name(newest)}, but {len(gaps):,} before it are not. Launch "
            f"{ranges(bricks, gaps)}. Rows that are in the stream already are compared and recorded, not published "
            "again."
        )
    offenders = [(bricks.name(start), facts.table(start).rows) for start in gaps]
    return CheckResult(NO_GAPS, text, figures, ("brick", "rows in the table"), offenders)


def no_late_rows(facts: "CheckInputs") -> CheckResult:
    """Finds finished bricks that grew or changed in the table."""
    bricks, changed = facts.feed.partitions, facts.changed
    late = sum(max(0, table.rows - record.rows) for record, table in changed)
    offenders = [
        (bricks.name(record.ordinal), record.rows, table.rows, hash_shown(record.content_hash), hash_text(table.hash))
        for record, table in changed
    ]
    if not changed:
        text = f"{finished(facts)}. None has changed in table {facts.feed.redacted.table!r} since it was published."
    else:
        text = (
            f"{finished(facts)}, and {len(changed):,} have changed in table {facts.feed.redacted.table!r} since, with "
            f"{counted(late, 'more row')}: {ranges(bricks, [record.ordinal for record, _ in changed])}. The stream has "
            f"the rows as they were. If consumers need the change, {_AGAIN}."
        )
    figures = {"bricks_recorded": len(facts.records), "bricks_changed": len(changed), "rows_late": late}
    columns = ("brick", "rows recorded", "rows in the table", "content recorded", "content in the table")
    return CheckResult(NO_LATE_ROWS, text, figures, columns, offenders)


def no_unassigned_rows(facts: "CheckInputs") -> CheckResult:
    """Finds rows that are in no brick of the feed."""
    feed, counts = facts.feed, facts.census.unassigned
    bricks = feed.parent.partitions
    first, last = bricks.name(bricks.first), bricks.name(bricks.last)
    offenders = [(place, rows) for place, rows in counts.items() if rows]
    inside = sum(content.rows for content in facts.census.bricks.values())
    where = f"in a brick from {first} to {last}"
    if feed.shard_id and feed.shard_id.number:
        text = (
            f"feed {feed.name!r}: its bricks have {counted(inside, 'row')} of table {feed.redacted.table!r}. The same "
            f"check of the first stream shard counts rows in no brick of feed {feed.parent.name!r}."
        )
    elif not offenders:
        others = f", or assigned to another stream shard than {feed.name!r}" if feed.shard_id else ""
        text = (
            f"feed {feed.parent.name!r}: table {feed.redacted.table!r} has {counted(inside, 'row')}, each "
            f"{where}{others}."
        )
    else:
        places = {**_PLACES, "negative": "before 1970"} if feed.bricks.kind == "time" else _PLACES
        found = ", ".join(f"{rows:,} {places[place]}" for place, rows in offenders)
        text = (
            f"feed {feed.name!r}: table {feed.redacted.table!r} has {counted(sum(counts.values()), 'row')} not {where} "
            f"({found}). They are not published. Change the feed's `bricks`, or leave such rows out with `where`."
        )
    figures = {"rows_assigned": inside, **{f"rows_{place}": rows for place, rows in counts.items()}}
    return CheckResult(NO_UNASSIGNED_ROWS, text, figures, ("key", "rows"), offenders)


def stream_not_behind(facts: "CheckInputs") -> CheckResult:
    """Finds recorded entries above the stream's last ID."""
    feed, bricks, top = facts.feed, facts.feed.partitions, facts.verdict.begin.top
    ends = {ordinal: record.last_entry for ordinal, record in facts.records.items() if record.last_entry}
    last = max(ends.values(), default=START)
    lost = sorted(ordinal for ordinal, end in ends.items() if end > top)
    figures: dict[str, int | str] = {"top": str(top), "last_entry_recorded": str(last), "bricks_lost": len(lost)}
    if not lost:
        text = f"feed {feed.name!r}: stream {feed.stream_name!r} reaches {top}. The last recorded entry is {last}."
    else:
        # A brick without a record that has rows above the last ID would block those after it.
        unrecorded = (
            ordinal
            for ordinal, content in facts.census.bricks.items()
            if ordinal not in facts.records and ordinal < lost[0] and EntryId(bricks.end(ordinal), content.rows) > top
        )
        first, newest = bricks.name(min(unrecorded, default=lost[0])), bricks.name(max(facts.records))
        ends_at = "is empty" if top == START else f"ends at {top}"
        text = (
            f"feed {feed.name!r}: stream {feed.stream_name!r} {ends_at}, and the last recorded entry is {last}. "
            f"Redis lost entries of {counted(len(lost), 'brick')}, or the stream was deleted. Launch "
            f"{first}...{newest}, which adds the missing entries."
        )
    offenders = [(bricks.name(ordinal), facts.records[ordinal].rows, str(ends[ordinal])) for ordinal in lost]
    return CheckResult(STREAM_NOT_BEHIND, text, figures, ("brick", "rows recorded", "last entry recorded"), offenders)
