"""Takes over from another program: the bricks it handled are recorded as done, and the feed goes on after them.

It goes on on a new stream or, where the feed has an `id_offset`, on the other program's: that one's entries are all
below those of the feed, and are left alone.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dagster as dg
import redis
from dagster._core.events import StepMaterializationData
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID

from ucs_pipeline.assets import brick_event
from ucs_pipeline.errors import StreamError, UcsError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.feeds import start_in
from ucs_pipeline.plan import BrickReport, least_offset
from ucs_pipeline.position import START, EntryId, State, floor
from ucs_pipeline.record import recorded
from ucs_pipeline.redis_link import translate
from ucs_pipeline.shard_note import Note, refuse_other_dealing, write_note
from ucs_pipeline.source import Content, Source
from ucs_pipeline.stream import OrderedStream

_BATCH = 500
_LAST_ROW = 2**64 - 1


class Adoption(NamedTuple):
    """What adopting a brick and those before it did."""

    bricks: int
    """Bricks that are recorded now."""
    rows: int
    """Rows of theirs in the table."""
    before: int
    """Bricks that were recorded before."""
    top: EntryId
    """Top of the stream: the end of the last adopted brick."""


def adopt(
    feed: BrickFeed,
    last_brick: str,
    source: Source,
    stream: OrderedStream,
    instance: dg.DagsterInstance,
    progress: Callable[[int], None] = lambda _: None,
) -> Adoption:
    """Records the feed's bricks up to `last_brick` as done without publishing them, and begins its stream after them.

    The stream is created (or, where the feed has an `id_offset`, taken over) last, when everything is recorded: broken
    off before that, and called again, it goes on. Called again after the stream was lost, it creates the stream again.

    Args:
        feed: the feed.
        last_brick: name of the last brick that was handled elsewhere.
        source: the feed's table; what it holds now is recorded, so that checks notice rows that come later.
        stream: the feed's stream, which must not have had an entry of the feed yet.
        instance: where the bricks are recorded.
        progress: takes the number of bricks recorded so far, those recorded before included, from time to time.

    Raises:
        UcsError: the feed has no such brick, or is an any-order feed.
        StreamError: the stream is in use, or Redis refuses or cannot be reached.
        SourceError: the table cannot be read.
    """
    if feed.any_order:
        raise UcsError(
            f"feed {feed.name!r}: stream.order is any, and bricks are adopted by feeds with `order: strict`, whose "
            "stream begins after them: to leave out what another program has handled, set `bricks.first`"
        )
    bricks, last = feed.numbering, start_in(feed, last_brick)
    top = EntryId(bricks.end(last), _LAST_ROW)
    _refuse_used(feed, stream, top)
    refuse_other_dealing(feed, stream, State(False, START, 0))
    starts = bricks.between(bricks.first, last)
    missing = _not_recorded(feed, starts, top, instance)
    rows, before = 0, len(starts) - len(missing)
    progress(before)
    census = source.census().bricks if missing else {}
    for start in range(0, len(missing), _BATCH):
        batch = missing[start : start + _BATCH]
        reports = [_report(start, census.get(start, Content(0, 0)), top if start == last else None) for start in batch]
        instance.event_log_storage.store_event_batch([_entry(brick_event(feed, report)) for report in reports])
        rows += sum(report.rows for report in reports)
        progress(before + start + len(batch))
    if feed.share:
        write_note(stream, Note.of(feed)._replace(done=top.ordinal, top=top))
    _begin(feed, stream, top)
    return Adoption(len(missing), rows, before, top)


def _not_recorded(feed: BrickFeed, starts: Sequence[int], top: EntryId, instance: dg.DagsterInstance) -> list[int]:
    done = instance.get_materialized_partitions(dg.AssetKey(feed.name))
    missing = [start for start in starts if feed.numbering.name(start) not in done]
    last = starts[-1]
    # Publishing goes on after a top that is recorded as a brick's end: a brick that was published once has another.
    if last not in missing and recorded(instance, feed, [last])[last].last_entry != top:
        missing.append(last)
    return missing


def _report(start: int, content: Content, end: EntryId | None) -> BrickReport:
    return BrickReport(start, content.rows, None, None, None, end, content.hash, adopted=True)


def _entry(event: dg.AssetMaterialization) -> dg.EventLogEntry:
    # What `instance.report_runless_asset_event` makes of an event; it would store each one by itself.
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


def _refuse_used(feed: BrickFeed, stream: OrderedStream, top: EntryId) -> None:
    state = stream.state()
    if (state.top <= floor(feed) or state.top == top) and state.first is None:
        return
    raise StreamError(
        f"feed {feed.name!r}: stream {stream.name!r} is in use: its top is {state.top} and it holds "
        f"{state.length:,} entries, expected none that it ever had; choose another stream name (`stream.name`), "
        f"which then begins after brick {feed.numbering.name(top.ordinal)}; or, to go on on this one after the program "
        f"that wrote it, set `stream.id_offset` to {least_offset(feed, state.top)} or more"
    )


def _begin(feed: BrickFeed, stream: OrderedStream, top: EntryId) -> None:
    token = "ucs-adopt"  # noqa: S105 - names a writer, and opens nothing
    client: Any = stream.client
    try:
        with client.pipeline() as pipe:
            # A publisher may begin the stream at this very moment: then nothing is executed.
            pipe.watch(stream.name)
            _refuse_used(feed, stream, top)
            pipe.multi()
            # A group that comes and goes is the only way to create a stream without an entry.
            pipe.xgroup_create(stream.name, token, "0", mkstream=True)
            pipe.xgroup_destroy(stream.name, token)
            pipe.execute_command("XSETID", stream.name, str(top))
            pipe.execute()
    except redis.WatchError:
        raise StreamError(
            f"feed {feed.name!r}: something wrote to stream {stream.name!r} while its bricks were adopted: stop what "
            "writes to it, and adopt again"
        ) from None
    except redis.RedisError as error:
        raise stream.named(translate(error)) from error
