"""Back-pressure: how many more entries a stream may take, and what to do when it is full."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import redis

from ucs_pipeline.entries.batches import Batch
from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.errors import StreamFullError, counted
from ucs_pipeline.feed.settings import Stream
from ucs_pipeline.stream.stream import RedisStream, reading_groups

T = TypeVar("T", bound=Batch)

_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.01, 1.0
_LOG_EVERY_SECONDS = 60
_TRIM_STEP = 100_000
_MAX_SEQUENCE = 2**64 - 1
_WAYS_OUT = {
    "wait": "Trim the entries that the consumers have handled, raise the cap, or choose another `when_full`.",
    "trim_acknowledged": "Let the consumer groups acknowledge more entries (XACK), remove unused groups, or raise the "
    "cap.",
    "trim": "Raise the cap.",
}


class Backpressure:
    """Counts a stream's entries against its caps. `when_full` decides what a full stream loses."""

    def __init__(
        self,
        stream: RedisStream,
        settings: Stream,
        length: int,
        pause: Callable[[float], None],
        log: Callable[[str], None],
    ) -> None:
        """`length`: entries in the stream now. `pause` waits for some seconds, or raises when the publisher ends."""
        self._stream = stream
        self._settings = settings
        self._length = length
        self._bytes = 0 if settings.max_bytes is None else self._measure()
        self._in_flight = 0
        self._pause = pause
        self._log = log
        self._log_after = 0.0

    def fitting(self, transaction: T) -> T | None:
        """The leading rows that fit in addition to those in the stream and those in flight; None if none does.

        By the latest known length: consumers may have trimmed since.
        """
        here = self._length + self._in_flight
        stop = min(transaction.stop, transaction.start + self._settings.max_len - here)
        if self._settings.max_bytes is not None:
            # A request takes more bytes than an entry in the stream, which stores repeated field names once.
            left = self._settings.max_bytes - self._bytes
            while stop > transaction.start and transaction.entries.size(transaction.start, stop) > left:
                stop = transaction.start + (stop - transaction.start) // 2
            if not here:
                # A row larger than the cap fits only into an empty stream.
                stop = max(stop, transaction.start + 1)
        return replace(transaction, stop=stop) if stop > transaction.start else None

    def reserve(self, transaction: Batch) -> None:
        """Rows are in flight."""
        self._in_flight += transaction.rows
        self._bytes += transaction.size

    def settle(self, transaction: Batch, length: int) -> None:
        """Rows were added; the stream has this length now."""
        self._in_flight -= transaction.rows
        self._length = length

    def wait_for(self, transaction: T) -> T:
        """Waits until some of these rows fit, and returns those; nothing may be in flight.

        Raises:
            StreamFullError: no entries were trimmed for `timeout_s` seconds.
            StreamUnavailableError: Redis does not answer.
        """
        self._refresh()
        seconds, since, shortest = _FIRST_POLL_SECONDS, time.monotonic(), self._length
        while True:
            if fitting := self.fitting(transaction):
                return fitting
            if self._trim(transaction):
                self._refresh()
                continue
            now = time.monotonic()
            if self._length < shortest:
                since, shortest = now, self._length
            if now - since > self._settings.timeout_s:
                raise StreamFullError(
                    f"{self._full()}. No entry was trimmed for {self._settings.timeout_s:g} s. "
                    f"{_WAYS_OUT[self._settings.when_full]}"
                )
            if now > self._log_after:
                left = since + self._settings.timeout_s - now
                self._log(f"{self._full()}. Waiting for another {left:.0f} s until entries are trimmed.")
                self._log_after = now + _LOG_EVERY_SECONDS
            self._pause(seconds)
            seconds = min(seconds * 2, _LONGEST_POLL_SECONDS)
            self._refresh()

    def _refresh(self) -> None:
        self._length = self._stream.state().length
        if self._settings.max_bytes is not None:
            self._bytes = self._measure()

    def _measure(self) -> int:
        try:
            return self._stream.client.memory_usage(self._stream.name) or 0
        except redis.RedisError as error:
            raise self._stream.failure(error) from error

    def _trim(self, transaction: Batch) -> int:
        """Removes what `when_full` allows; returns how many entries that were."""
        try:
            if self._settings.when_full == "trim":
                return self._stream.client.xtrim(self._stream.name, maxlen=self._newest(transaction), approximate=False)
            if self._settings.when_full == "trim_acknowledged":
                return trim_acknowledged(self._stream)
        except redis.RedisError as error:
            raise self._stream.failure(error) from error
        return 0

    def _newest(self, transaction: Batch) -> int:
        """How many of the newest entries may stay in addition to these rows."""
        keep = self._settings.max_len - transaction.rows
        most = self._settings.max_bytes
        if most is not None and self._bytes + transaction.size > most:
            keep = min(keep, self._length * max(0, most - transaction.size) // self._bytes)
        return max(0, keep)

    def _full(self) -> str:
        caps, amount = f"max_len {self._settings.max_len:,}", counted(self._length, "entry")
        if self._settings.max_bytes is not None:
            caps += f", max_bytes {self._settings.max_bytes:,}"
            amount += f" in {self._bytes:,} bytes"
        return f"stream {self._stream.name!r} is full: it holds {amount} ({caps})"


def fullness(stream: RedisStream, settings: Stream, state: State) -> str | None:
    """Why a publisher that starts now would only wait; None if it would not.

    Raises:
        StreamError: Redis refuses or cannot be reached.
    """
    if settings.when_full == "trim":
        return None
    try:
        taken = 0 if settings.max_bytes is None else stream.client.memory_usage(stream.name) or 0
        if state.length >= settings.max_len:
            text = f"It holds {counted(state.length, 'entry')} (max_len {settings.max_len:,})"
        elif settings.max_bytes is not None and taken >= settings.max_bytes:
            text = f"It takes {taken:,} bytes (max_bytes {settings.max_bytes:,})"
        else:
            return None
        needed = _first_unacknowledged(stream) if settings.when_full == "trim_acknowledged" else None
    except redis.RedisError as error:
        raise stream.failure(error) from error
    if settings.when_full == "wait":
        return f"{text}. It waits until its consumers have trimmed entries."
    if needed is not None and state.first is not None and state.first < needed:
        return None
    return f"{text}. It waits until its consumer groups have acknowledged the oldest entries."


def trim_acknowledged(stream: RedisStream) -> int:
    """Removes the entries that every consumer group has acknowledged, or does not need; returns how many.

    Raises:
        redis.RedisError: Redis refuses or cannot be reached.
    """
    try:
        keep = _first_unacknowledged(stream)
    except redis.ResponseError as error:
        if "NOGROUP" not in str(error):
            raise
        # A group was deleted between the two commands; the next call does not list it.
        return 0
    if keep is None:
        return 0
    # In steps, so that other clients are served; Redis limits only trims of whole nodes, so the rest comes last.
    removed = 0
    while step := stream.client.xtrim(stream.name, minid=str(keep), approximate=True, limit=_TRIM_STEP):
        removed += step
    return removed + stream.client.xtrim(stream.name, minid=str(keep), approximate=False)


def _first_unacknowledged(stream: RedisStream) -> EntryId | None:
    """The lowest id that some consumer group still needs; None if there is no group.

    Calculated from the groups' own lists: Redis' `lag` is wrong or missing after trims and
    deletes.
    """
    needed: list[EntryId] = []
    for group in reading_groups(stream):
        lowest = stream.client.xpending(stream.name, group["name"])["min"]
        delivered = EntryId.parse(group["last-delivered-id"])
        # It is lower if the group was set back to read again (XGROUP SETID).
        after = EntryId(delivered.ordinal, min(delivered.row + 1, _MAX_SEQUENCE))
        needed.append(min(EntryId.parse(lowest), after) if lowest else after)
    return min(needed, default=None)
