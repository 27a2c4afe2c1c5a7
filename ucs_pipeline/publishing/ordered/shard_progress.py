"""Keeps the state of a feed's shard while its bricks are published."""

from collections.abc import Iterator

from typing_extensions import Self

from ucs_pipeline.entries.entry_id import State
from ucs_pipeline.errors import StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.stream.shard_state import _NOWHERE, ShardState, refuse_other_sharding, write_shard_state
from ucs_pipeline.stream.stream import OrderedStream


class ShardProgress:
    """Keeps the state of a feed's shard while its bricks are published; does nothing for other feeds."""

    def __init__(self, feed: Feed, stream: OrderedStream, note: ShardState, state: State) -> None:
        self._stream = stream
        self._feed = feed
        self._note = note
        self._top = state.top
        self._newest = _NOWHERE

    @classmethod
    def begin(cls, feed: Feed, stream: OrderedStream) -> "Self | None":
        """Checks that the feed may publish to the stream, and writes its first state.

        Raises:
            StreamError: earlier bricks have another number of shards, or Redis refuses or cannot be reached.
        """
        state = stream.state()
        found = refuse_other_sharding(feed, stream, state)
        if feed.shard_id is None:
            return None
        if found is None or found.sharding != ShardState.of(feed).sharding:
            found = ShardState.of(feed)
            write_shard_state(stream, found)
        elif found.top and found.top > state.top:
            # The stream was lost, or an older copy was restored. Its last ID will come again, and then the old state
            # must not count as complete: the table may have changed.
            found = ShardState(found.sharding)
            write_shard_state(stream, found)
        return cls(feed, stream, found, state)

    def done(self, report: BrickReport) -> None:
        """Records that a partition and all before it are complete, unless Redis cannot take it now."""
        self._top = max(self._top, report.last_entry or self._top)
        if report.ordinal <= self._newest:
            # Redis lost entries, and bricks are published again: it may have lost the state as well.
            self._note, self._top = ShardState(self._note.sharding), report.last_entry or self._stream.state().top
        self._newest = report.ordinal
        end = self._feed.partitions.end(report.ordinal)
        if end <= self._note.done:
            return
        try:
            write_shard_state(self._stream, self._note._replace(done=end, top=self._top))
            self._note = self._note._replace(done=end)
        except StreamUnavailableError:
            # The next one includes it.
            return


def noted(
    feed: Feed, stream: OrderedStream, reports: Iterator[BrickReport], open_brick: str | None
) -> Iterator[BrickReport]:
    """Updates the state of a feed's shard with each report; `open_brick` can still grow, and is not complete.

    Raises:
        StreamError: earlier bricks have another number of shards, or Redis refuses or cannot be reached.
    """
    notes = ShardProgress.begin(feed, stream)
    for report in reports:
        if notes and feed.partitions.name(report.ordinal) != open_brick:
            notes.done(report)
        yield report
