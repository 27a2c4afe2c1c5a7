"""Which bricks of a request are in the stream, and where publishing starts. Pure decisions on known facts."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ucs_pipeline.entries.display import bricks_are, fields_shown
from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import OutOfTurnError, StreamError, counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.stream.stream import floor


class Plan(NamedTuple):
    """Where one pass over the table starts, and what it compares."""

    top: EntryId
    """Rows up to here are in the stream; a pass compares them with the table instead of adding them."""
    scan_from: int
    """First brick to read."""
    wanted_from: int
    """First brick that may be published and is reported."""
    last: int
    """Last brick to publish."""
    top_unknown: bool = False
    """Whether no record has the last ID as the end of a brick of this feed."""


def known(feed: Feed, wanted: Sequence[int], state: State, records: Mapping[int, BrickReport]) -> list[BrickReport]:
    """The leading partitions of a request that are recorded as done and were in the stream."""
    done = []
    bricks, top = feed.partitions, state.top.ordinal
    top_start = bricks.start(top) if top in bricks else None
    for start in wanted:
        record = records.get(start)
        if record is None or (record.last_entry or EntryId(start, record.rows)) > state.top:
            break
        if start == top_start and record.last_entry != state.top:
            break
        done.append(record)
    return done


def loss(feed: Feed, wanted: Sequence[int], state: State, records: Mapping[int, BrickReport]) -> str | None:
    """The message if Redis has less than is recorded for a request; None otherwise."""
    above = [start for start, record in records.items() if (record.last_entry or START) > state.top]
    lost = sorted(start for start in above if start in wanted)
    if not lost:
        return None
    return (
        f"feed {feed.name!r}: stream {feed.stream_name!r} {_end(state.top)}, but {bricks_are(feed.partitions, lost)} "
        "recorded. Redis lost entries, or the stream was deleted. The run publishes the missing rows again."
    )


def _end(top: EntryId) -> str:
    return "is empty" if top == START else f"ends at {top}"


def foreign_entry(feed: Feed, state: State) -> str | None:
    """The warning about a last ID that is no position of the feed, if there is nothing to publish; None otherwise."""
    if state.top <= floor(feed) or state.top.ordinal in feed.partitions:
        return None
    return f"{_foreign(feed, state)} All bricks of this run are published; the next brick will be refused."


def refuse_adopted(feed: Feed, wanted: Sequence[int], state: State, records: Mapping[int, BrickReport]) -> None:
    """Refuses to publish adopted bricks.

    Raises:
        StreamError: one of them was adopted, and the stream no longer begins after it.
    """
    adopted = (record.ordinal for record in records.values() if record.adopted and record.ordinal in wanted)
    ordinal = min((ordinal for ordinal in adopted if EntryId(ordinal, 1) > state.top), default=None)
    if ordinal is not None:
        raise StreamError(
            f"feed {feed.name!r}: brick {feed.partitions.name(ordinal)} was adopted, and stream {feed.stream_name!r} "
            f"no longer begins after it: the stream was lost or deleted. Run `ucs adopt {feed.name} <last adopted "
            "brick>` again.",
            "UCS-ADOPT",
        )


def plan(
    feed: Feed,
    wanted: Sequence[int],
    state: State,
    top_record: BrickReport | None,
    below: Mapping[int, BrickReport] = MappingProxyType({}),
) -> Plan:
    """Plans a pass over the partitions `wanted`, all of them unfinished.

    Args:
        feed: the feed.
        wanted: starts of the partitions to publish.
        state: the stream now.
        top_record: the record of the partition that holds the stream's last ID, if any.
        below: the records of partitions between the last ID and `wanted`. One that was done without rows is not read
            again: rows it has now are late.

    Raises:
        StreamError: the stream's last ID is no position of this feed.
    """
    top, bricks = state.top, feed.partitions
    last = bricks.end(wanted[-1])
    if top <= floor(feed):
        return Plan(top, _first_open(feed, bricks.first, wanted, below), wanted[0], last)
    if top.ordinal not in bricks:
        raise _foreign(feed, state)
    complete = top_record is not None and top_record.last_entry == top
    start = bricks.start(top.ordinal)
    if complete:
        following = bricks.next(start)
        start = wanted[0] if following is None else following
    start = min(wanted[0], start)
    return Plan(top, _first_open(feed, start, wanted, below) if complete else start, wanted[0], last, not complete)


def least_offset(feed: Feed, top: EntryId) -> int:
    """The smallest `id_offset` with which the feed's entries come after an id. Without one, the stream must be new."""
    return max(1, top.ordinal + 1 - feed.partitions.first + feed.stream.id_offset)


def _foreign(feed: Feed, state: State) -> StreamError:
    bricks, top = feed.partitions, state.top
    side = "beyond" if top.ordinal > bricks.last else "before" if top.ordinal < bricks.first else "none of"
    if state.first is not None and state.first.ordinal in bricks:
        # An offset would change the ids of published rows.
        other = "delete the stream and publish all bricks again"
    else:
        other = (
            "if a previous writer that is stopped wrote the entries, set `stream.id_offset` to "
            f"{least_offset(feed, top)} or more to continue after them"
        )
    return StreamError(
        f"feed {feed.name!r}: the last ID of stream {feed.stream_name!r} is {top}, {side} the feed's bricks "
        f"{bricks.name(bricks.first)} to {bricks.name(bricks.last)}. Another client wrote to the stream, or the feed's "
        f"brick range became shorter. Choose another `stream.name`, or {other}.",
        "UCS-FOREIGN-ENTRY",
    )


def _first_open(feed: Feed, start: int, wanted: Sequence[int], below: Mapping[int, BrickReport]) -> int:
    """The first partition from `start` on that is not recorded as done without rows."""
    while start < wanted[0] and start in below and not below[start].rows:
        following = feed.partitions.next(start)
        assert following is not None
        start = following
    return start


def gap(feed: Feed, found: EntryId, plan_: Plan) -> OutOfTurnError:
    """The refusal of a range that does not follow the rows in the stream."""
    name = feed.partitions.name
    missing, first = name(found.ordinal), name(plan_.wanted_from)
    have = _end(plan_.top)
    if plan_.top.ordinal in feed.partitions and plan_.top != START:
        have += f" (brick {name(plan_.top.ordinal)})"
    return OutOfTurnError(
        f"feed {feed.name!r}: publishing {first} now would leave a gap. Stream {feed.stream_name!r} {have}, and brick "
        f"{missing}, which comes before {first}, has rows that are not in it. Launch {missing}...{name(plan_.last)} "
        "instead."
    )


def changed(feed: Feed, ordinal: int, table: int, stream: int) -> StreamError:
    """The refusal of a brick whose row count changed after some of it was published."""
    return StreamError(
        f"feed {feed.name!r}: brick {feed.partitions.name(ordinal)} has {counted(table, 'row')} in the table and "
        f"{stream:,} in stream {feed.stream_name!r}. The brick changed after it was published, or the stream holds "
        "another feed's entries. Restore the table's rows, or publish to another `stream.name`.",
        "UCS-BRICK-CHANGED",
    )


def differs(
    feed: Feed, entry: EntryId, stream: Mapping[bytes, bytes], table: Mapping[bytes, bytes] | None
) -> StreamError:
    """The refusal of a brick with an entry that differs from its row; `table`: the row's fields, None without a row."""
    changed = {name for name in {**stream, **(table or {})} if stream.get(name) != (table or {}).get(name)}
    there, expected = (
        fields_shown({name: value for name, value in fields.items() if name in changed}) or "no such field"
        for fields in (stream, table or {})
    )
    expected = "no such row" if table is None else expected
    return StreamError(
        f"feed {feed.name!r}: brick {feed.partitions.name(entry.ordinal)}: entry {entry} of stream "
        f"{feed.stream_name!r} differs from the table. Stream: {there}. Table: {expected}. Restore the row, or publish "
        "to another `stream.name`.",
        "UCS-BRICK-CHANGED",
    )
