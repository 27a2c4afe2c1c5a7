"""Takes over from a previous writer: the bricks it handled are recorded as done, and the feed continues after them.

The feed continues on a new stream or, with `id_offset`, on that of the previous writer. The entries of the previous
writer are all below those of the feed, and stay unchanged.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg
import redis

from ucs_pipeline.clickhouse.source import BrickContent, Source
from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import StreamError, UcsError, counted
from ucs_pipeline.feed.feed import Feed, last_whole_in
from ucs_pipeline.operations.handled import row_after, rows_after
from ucs_pipeline.orchestration._dagster import RUNLESS_JOB_NAME, RUNLESS_RUN_ID, StepMaterializationData
from ucs_pipeline.orchestration.assets import brick_event, versions_read
from ucs_pipeline.orchestration.materializations import ADOPTED
from ucs_pipeline.orchestration.names import feed_key
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.ordered.plan import least_offset
from ucs_pipeline.stream.shard_state import ShardState, refuse_other_sharding, write_shard_state
from ucs_pipeline.stream.stream import OrderedStream, floor

_BATCH = 500
_LAST_ROW = 2**64 - 1
_CONTINUES_AFTER = "continues_after"
"""Metadata of the last adopted brick: the last ID that its stream began with."""


class Adoption(NamedTuple):
    """The result of adopting a brick and those before it."""

    bricks: int
    """Bricks that are recorded now."""
    rows: int
    """Rows of theirs in the table."""
    before: int
    """Bricks that were recorded before."""
    top: EntryId
    """Last ID of the stream: the end of the last adopted brick, or the last handled row of the next one."""


def adopt(
    feed: Feed,
    last_brick: str,
    source: Source,
    stream: OrderedStream,
    instance: dg.DagsterInstance,
    progress: Callable[[int], None] = lambda _: None,
    rows: int | None = None,
) -> Adoption:
    """Records the feed's bricks up to `last_brick` as done without publishing them, and begins its stream after them.

    The stream is created (or, with `id_offset`, taken over) last, when everything is recorded. If the call is
    interrupted, the next one continues. After the stream was lost, a call creates it again.

    If the stream has entries of the previous writer, they are compared with the rows of the table. An incomplete brick
    is published from the next row on, and any other difference is refused.

    Args:
        feed: the feed.
        last_brick: name of the last brick that was handled elsewhere as a whole; or its number, of number bricks.
        source: the feed's table; its rows are recorded, so that checks detect late rows.
        stream: the feed's stream, which must not have had an entry of the feed yet.
        instance: where the bricks are recorded.
        progress: called with the number of bricks recorded so far, earlier ones included.
        rows: rows of the brick after the last one, in the feed's order, that were handled too. Left out, they are
            determined from the previous writer's entries in the stream.

    Raises:
        UcsError: the feed has no such brick or row, or is an any-order feed.
        StreamError: the stream is in use or its entries are not the rows, or Redis refuses or cannot be reached.
        SourceError: the table cannot be read.
    """
    if feed.any_order:
        raise UcsError(
            f"feed {feed.name!r}: stream.order is any, and `ucs adopt` needs `order: strict`. To leave out bricks that "
            "a previous writer has handled, set `bricks.first`.",
            "UCS-ADOPT",
        )
    bricks, last = feed.partitions, last_whole_in(feed, last_brick)
    starts = bricks.between(bricks.first, last)
    end = EntryId(bricks.end(last), _LAST_ROW)
    began = _began_with(feed, last, instance)
    top = began if rows is None else row_after(feed, last, rows, source) if rows else end
    _refuse_used(feed, stream, last, top)
    refuse_other_sharding(feed, stream, State(False, START, 0))
    missing = _not_recorded(feed, starts, instance)
    # Adopted bricks keep the stream's first ID for when it is lost: published bricks do not have it.
    if last not in missing and (began is None or began != top):
        missing.append(last)
    census = source.census().bricks if missing else {}
    if top is None:
        handled = rows_after(feed, last, source, stream, census)
        top = row_after(feed, last, handled, source) if handled else end
    if top != end and bricks.depth and not stream.state().exists:
        # The bricks before that row would count as missing: nothing records that such a stream ever had them.
        raise UcsError(
            f"feed {feed.name!r}: a new stream cannot begin in the middle of a {bricks.unit}. Set `bricks.level: "
            "brick`, or continue the previous writer's stream with `stream.id_offset`.",
            "UCS-ADOPT",
        )
    read = versions_read(feed, instance)
    found, recorded_before = 0, len(starts) - len(missing)
    progress(recorded_before)
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        reports = [
            _report(start, census.get(start, BrickContent(0, 0)), end if start == last else None) for start in batch
        ]
        events = [_event(feed, report, top, read) for report in reports]
        instance.event_log_storage.store_event_batch([_entry(event) for event in events])
        found += sum(report.rows for report in reports)
        progress(recorded_before + start + len(batch))
    if feed.shard_id:
        write_shard_state(stream, ShardState.of(feed)._replace(done=end.ordinal, top=end))
    _begin(feed, stream, last, top)
    return Adoption(len(missing), found, recorded_before, top)


def _not_recorded(feed: Feed, starts: Sequence[int], instance: dg.DagsterInstance) -> list[int]:
    done = instance.get_materialized_partitions(feed_key(feed))
    return [start for start in starts if feed.partitions.name(start) not in done]


def _began_with(feed: Feed, last: int, instance: dg.DagsterInstance) -> EntryId | None:
    """The recorded last ID that the stream began with; None if `last` is not recorded as the last adopted brick."""
    which = dg.AssetRecordsFilter(feed_key(feed), asset_partitions=[feed.partitions.name(last)])
    records = instance.fetch_materializations(which, limit=1).records
    event = records[0].asset_materialization if records else None
    if event is None or "note" not in event.metadata or event.metadata["note"].value != ADOPTED:
        return None
    written = event.metadata.get(_CONTINUES_AFTER) or event.metadata.get("last_entry_id")
    return EntryId.parse(str(written.value)) if written else None


def _event(feed: Feed, report: BrickReport, top: EntryId, read: Mapping[str, str]) -> dg.AssetMaterialization:
    event = brick_event(feed, report, read)
    if report.last_entry in (None, top):
        return event
    # If the stream is lost, only this record has the row in the middle of the next brick.
    return event.with_metadata({**event.metadata, _CONTINUES_AFTER: str(top)})


def _report(start: int, content: BrickContent, end: EntryId | None) -> BrickReport:
    return BrickReport(start, content.rows, None, None, None, end, content.hash, adopted=True)


def _entry(event: dg.AssetMaterialization) -> dg.EventLogEntry:
    # As `instance.report_runless_asset_event`, which would store each event by itself.
    return dg.EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level=logging.INFO,
        user_message="",
        run_id=RUNLESS_RUN_ID,
        timestamp=time.time(),
        job_name=RUNLESS_JOB_NAME,
        dagster_event=dg.DagsterEvent(
            dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name=RUNLESS_JOB_NAME,
            event_specific_data=StepMaterializationData(event),
        ),
    )


def _refuse_used(feed: Feed, stream: OrderedStream, last: int, top: EntryId | None) -> None:
    state = stream.state()
    if (state.top <= floor(feed) or state.top == top) and state.first is None:
        return
    raise StreamError(
        f"feed {feed.name!r}: stream {stream.name!r} is in use: its last ID is {state.top}, and it holds "
        f"{counted(state.length, 'entry')}. Choose another `stream.name`, which then begins after brick "
        f"{feed.partitions.name(last)}, or, to continue this stream after its previous writer, set `stream.id_offset` "
        f"to {least_offset(feed, state.top)} or more.",
        "UCS-FOREIGN-ENTRY",
    )


def _begin(feed: Feed, stream: OrderedStream, last: int, top: EntryId) -> None:
    token = "ucs-adopt"  # noqa: S105 - the name of a writer, no secret
    client: Any = stream.client
    try:
        with client.pipeline() as pipe:
            # If a publisher creates the stream at the same moment, nothing is executed.
            pipe.watch(stream.name)
            _refuse_used(feed, stream, last, top)
            pipe.multi()
            # Creating and destroying a group is the only way to create a stream without an entry.
            pipe.xgroup_create(stream.name, token, "0", mkstream=True)
            pipe.xgroup_destroy(stream.name, token)
            pipe.execute_command("XSETID", stream.name, str(top))
            pipe.execute()
    except redis.WatchError:
        raise StreamError(
            f"feed {feed.name!r}: another client wrote to stream {stream.name!r} while its bricks were adopted. Stop "
            "that client, then run `ucs adopt` again.",
            "UCS-ADOPT",
        ) from None
    except redis.RedisError as error:
        raise stream.failure(error) from error
