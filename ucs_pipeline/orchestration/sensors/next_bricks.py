"""Which bricks the sensor launches next. Pure decisions on facts that `snapshot` collects."""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ucs_pipeline.bricks.sequences import between
from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.errors import counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.sensors.sealed import Seal

MANY_TRIES = 6
"""Launches of one brick without progress before the sensor warns."""

_FULL, _STUCK = "UCS-STREAM-FULL", "UCS-RUN"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 60, 3600


@dataclass(frozen=True)
class FeedSnapshot:
    """The state of a feed at one moment."""

    missing: int | None
    """Ordinal of the first brick that is not recorded as done; None if all are."""
    busy: int | None
    """Ordinal of a brick in a queued or running run."""
    recorded: EntryId
    """The highest entry that is recorded; `START` if none is."""
    state: State
    """The stream."""
    seal: Seal | str
    """Which partitions from the first one to publish on can still change; or the reason why that is not known."""
    open_rows: Mapping[int, int] = field(default_factory=dict)
    """Rows of each brick of the partition that can still grow, for feeds that publish it."""
    has_rows_beyond: bool = False
    """Whether the table has rows after the last brick; read once all partitions are done."""
    full: str | None = None
    """Why the stream is full; None if it is not."""
    stretch: Sequence[int] | None = None
    """For an any-order feed: the consecutive partitions from the first missing one that are not done."""
    rows: int | None = None
    """For an any-order feed: rows that it ever added to its stream."""

    @property
    def at(self) -> EntryId | int:
        """A value that changes whenever the feed adds a row.

        Other clients change the last ID of an any-order stream as well.
        """
        return self.state.top if self.rows is None else self.rows


class Request(NamedTuple):
    """Consecutive partitions to publish in one run, by start."""

    first: int
    last: int
    open: bool = False
    """Whether the last one can still grow: its rows are published, and it is not done."""
    live: bool = False
    """Whether the run has `tail: live`."""

    def bricks(self, feed: Feed) -> str:
        """The range in the UI's notation."""
        return f"{feed.partitions.name(self.first)}...{feed.partitions.name(self.last)}"


def first_to_publish(feed: Feed, missing: int | None, recorded: EntryId, state: State) -> int | None:
    """Start of the first partition that is not done, or that Redis has lost; None if there is none."""
    if recorded <= state.top:
        return missing
    bricks, top = feed.partitions, state.top.ordinal
    lost = bricks.start(top) if top in bricks else bricks.first
    return lost if missing is None else min(lost, missing)


def next_bricks(feed: Feed, seen: FeedSnapshot, most: int, *, live: bool = False) -> Request | str:
    """The next partitions to publish, at most `most` of them; or the reason why there are none now.

    `live`: for a run with `tail: live`, which also starts without new rows.
    """
    bricks = feed.partitions
    if seen.busy is not None:
        return f"feed {feed.name!r}: skipped: a run is already publishing brick {bricks.name(seen.busy)}."
    start = first_to_publish(feed, seen.missing, seen.recorded, seen.state)
    if start is None:
        beyond = " The table has rows beyond the last brick: raise `bricks.last`." if seen.has_rows_beyond else ""
        number = len(bricks.starts)
        done = f"its only {bricks.unit} is" if number == 1 else f"all {number:,} {bricks.unit}s are"
        return f"feed {feed.name!r}: skipped: {done} materialized.{beyond}"
    if not live and isinstance(seen.seal, str):
        return seen.seal
    if seen.full:
        return f"feed {feed.name!r}: skipped: stream {feed.stream_name!r} is full. {seen.full} [{_FULL}]"
    following = (seen.stretch or bricks.starts[bisect_left(bricks.starts, start) :])[:most]
    if live:
        return Request(start, following[-1], live=True)
    assert isinstance(seen.seal, Seal)
    open_ = seen.seal.open
    if open_ is None or start < open_:
        sealed = following if open_ is None else between(following, start, open_ - 1)
        follows = feed.tail != "hold" and open_ is not None and len(sealed) < most
        return Request(start, following[len(sealed)], open=True) if follows else Request(start, sealed[-1])
    name = bricks.name(start)
    if feed.tail == "hold":
        earlier = "launch it by hand" if feed.any_order else "launch it by hand or set `tail: follow`"
        return (
            f"feed {feed.name!r}: skipped: brick {name} is not sealed. {seen.seal.waits_for} To publish it earlier, "
            f"{earlier}."
        )
    if not seen.open_rows or EntryId(*max(seen.open_rows.items())) <= seen.state.top:
        rows = sum(seen.open_rows.values())
        held = "its only row is" if rows == 1 else f"all its {rows:,} rows are"
        return f"feed {feed.name!r}: skipped: brick {name} is not sealed, and {held} in the stream."
    return Request(start, start, open=True)


class LaunchBackoff(NamedTuple):
    """How often the same bricks were launched without progress, kept in the sensor's cursor."""

    bricks: str = ""
    top: str = ""
    tries: int = 0
    at: float = 0.0
    """Time of the last launch, in seconds since 1970."""

    @classmethod
    def parse(cls, cursor: str | None) -> "LaunchBackoff":
        """From a sensor's cursor; empty if the cursor is invalid."""
        try:
            found = json.loads(cursor or "")
            return cls(found["bricks"], found["top"], found["tries"], found["at"])
        except (ValueError, TypeError, KeyError):
            return cls()

    def __str__(self) -> str:
        return json.dumps(self._asdict())

    def launched(self, feed: Feed, request: Request, at: EntryId | int, now: float) -> "LaunchBackoff":
        """The state after a launch."""
        return LaunchBackoff(request.bricks(feed), str(at), self.tries + 1 if self._same(feed, request, at) else 1, now)

    def objection(self, feed: Feed, request: Request, at: EntryId | int, now: float) -> str | None:
        """The reason why these bricks should not be launched now; None if they should."""
        if not self._same(feed, request, at):
            return None
        pause = _FIRST_PAUSE_SECONDS * 2 ** min(self.tries - 1, MANY_TRIES)
        # A run with `tail: live` may have met no row.
        longest = min(_LONGEST_PAUSE_SECONDS, feed.live_max_s) if request.live else _LONGEST_PAUSE_SECONDS
        left = self.at + min(pause, longest) - now
        if left <= 0:
            return None
        stuck = " Read the error of its last run." if self.tries >= MANY_TRIES else ""
        return (
            f"feed {feed.name!r}: skipped: brick {feed.partitions.name(request.first)} was launched "
            f"{counted(self.tries, 'time')} without progress.{stuck} It is launched again in {left:.0f} s. [{_STUCK}]"
        )

    def _same(self, feed: Feed, request: Request, at: EntryId | int) -> bool:
        return (self.bricks, self.top) == (request.bricks(feed), str(at))
