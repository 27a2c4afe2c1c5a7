"""Which bricks go next without a hand on the keyboard. Pure decisions on known facts; `triggers` collects those."""

import json
from dataclasses import dataclass
from typing import NamedTuple

from ucs_pipeline.bricks import BRICK, name_of_ordinal
from ucs_pipeline.entries import EntryId
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.stream import State

MANY_TRIES = 6
"""Launches of one brick without any progress after which somebody should look."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 60, 3600


@dataclass(frozen=True)
class Situation:
    """What is known of a feed at one moment."""

    missing: int | None
    """Ordinal of the first brick that is not recorded as done; None if all are."""
    busy: int | None
    """Ordinal of a brick that a run is about to publish, or publishing."""
    recorded: EntryId
    """The highest entry that is recorded; `START` if none is."""
    state: State
    """The stream."""
    newest_key: int | None
    """The largest key of the table from the first brick to publish on; None if there is none."""
    open_rows: int = 0
    """Rows of the brick that holds the newest key; of interest to feeds that follow their tail."""
    full: str | None = None
    """Why the stream takes no more entries now; None if it does."""


class Request(NamedTuple):
    """Consecutive bricks to publish in one run."""

    first: int
    last: int
    open: bool = False
    """Whether the last brick can still grow: its rows are published, and it is not done."""

    @property
    def bricks(self) -> str:
        """The range as it is launched in the UI."""
        return f"{name_of_ordinal(self.first)}...{name_of_ordinal(self.last)}"


def first_to_publish(feed: BrickFeed, missing: int | None, recorded: EntryId, state: State) -> int | None:
    """Ordinal of the first brick that is not done, or that Redis has lost; None if there is none."""
    if recorded <= state.top:
        return missing
    lost = max(state.top.ordinal, feed.ordinals[0])
    return lost if missing is None else min(lost, missing)


def next_bricks(feed: BrickFeed, seen: Situation, most: int) -> Request | str:
    """The next bricks to publish, at most `most` of them; or why there are none now, in one sentence."""
    if seen.busy is not None:
        return f"feed {feed.name!r}: a run is publishing already (brick {name_of_ordinal(seen.busy)})"
    start = first_to_publish(feed, seen.missing, seen.recorded, seen.state)
    if start is None:
        return f"feed {feed.name!r}: all {len(feed.ordinals):,} bricks are done"
    name = name_of_ordinal(start)
    if seen.newest_key is None:
        return f"feed {feed.name!r}: brick {name} is next, and the table has no ids from {start * BRICK:,} on"
    if seen.full:
        return f"feed {feed.name!r}: stream {feed.stream_name!r} is full: {seen.full}"
    # The brick of the newest key can still grow; those before it cannot.
    sealed = min(seen.newest_key // BRICK, feed.ordinals[-1] + 1)
    if start < sealed:
        last = min(start + most, sealed) - 1
        follows = feed.tail == "follow" and sealed in feed.ordinals and last == sealed - 1 and last - start + 1 < most
        return Request(start, sealed, open=True) if follows else Request(start, last)
    if feed.tail == "hold":
        needed = (start + 1) * BRICK
        return f"feed {feed.name!r}: brick {name} is open: newest id {seen.newest_key:,}, needs {needed:,}"
    if EntryId(start, seen.open_rows) <= max(seen.state.top, EntryId(start, 0)):
        return f"feed {feed.name!r}: brick {name} is open, and all its {seen.open_rows:,} rows are in the stream"
    return Request(start, start, open=True)


class Tries(NamedTuple):
    """How often the same bricks were launched without any progress: a sensor's memory."""

    bricks: str = ""
    top: str = ""
    tries: int = 0
    at: float = 0.0
    """Time of the last launch, in seconds since 1970."""

    @classmethod
    def parse(cls, cursor: str | None) -> "Tries":
        """From a sensor's cursor; nothing is known if it is not one of these."""
        try:
            found = json.loads(cursor or "")
            return cls(found["bricks"], found["top"], found["tries"], found["at"])
        except (ValueError, TypeError, KeyError):
            return cls()

    def __str__(self) -> str:
        return json.dumps(self._asdict())

    def launched(self, request: Request, top: EntryId, now: float) -> "Tries":
        """The memory after a launch."""
        return Tries(request.bricks, str(top), self.tries + 1 if self._same(request, top) else 1, now)

    def objection(self, feed: BrickFeed, request: Request, top: EntryId, now: float) -> str | None:
        """Why these bricks should not be launched now, in one sentence; None if they should."""
        if not self._same(request, top):
            return None
        pause = _FIRST_PAUSE_SECONDS * 2 ** min(self.tries - 1, MANY_TRIES)
        left = self.at + min(pause, _LONGEST_PAUSE_SECONDS) - now
        if left <= 0:
            return None
        stuck = ": it is stuck, see why its last run failed" if self.tries >= MANY_TRIES else ""
        return (
            f"feed {feed.name!r}: brick {name_of_ordinal(request.first)} was launched {self.tries} times, and nothing "
            f"moved{stuck}; trying again in {left:.0f} s"
        )

    def _same(self, request: Request, top: EntryId) -> bool:
        return (self.bricks, self.top) == (request.bricks, str(top))
