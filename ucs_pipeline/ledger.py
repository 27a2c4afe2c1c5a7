"""What an any-order feed has put into its stream: a Redis hash beside it, one field per partition.

A field reads `<rows> <content> <open or done> <replay> <request> <first id> <last id>`. It is written by the scripts of
`ledger_gate`, in the transactions that add the rows, and only read here. Everything up to the ids is known before a
transaction is sent, so that one comparison tells whether the ledger says what a publisher believes: the *head*.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self, cast

import redis

from ucs_pipeline.errors import StreamError
from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.keys import ledger_key
from ucs_pipeline.position import EntryId
from ucs_pipeline.redis_link import translate
from ucs_pipeline.stream import RedisStream
from ucs_pipeline.wording import hash_text

NOBODY = "-"
"""In the place of who asked for a replay: nobody did."""

_PAGE = 1000
_STATES = {"open": False, "done": True}


class Account(NamedTuple):
    """What the ledger says of one partition."""

    rows: int = 0
    """Rows in the stream since the latest replay began."""
    content_hash: int = 0
    """Sum modulo 2^64 of their hashes."""
    done: bool = False
    """Whether these are all."""
    replay: int = 0
    """How many times it was published before."""
    request: str = NOBODY
    """Whoever asked for the latest replay."""
    first: EntryId | None = None
    last: EntryId | None = None

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """From a field of the ledger.

        Raises:
            ValueError: it is none.
        """
        rows, content, state, replay, request, first, last = text.decode().split(" ")
        if state not in _STATES:
            raise ValueError(state)
        ids = EntryId.parse(first), EntryId.parse(last)
        return cls(int(rows), int(content, 16), _STATES[state], int(replay), request, *ids)

    @property
    def head(self) -> bytes:
        """What the field begins with."""
        state = "done" if self.done else "open"
        return f"{self.rows} {hash_text(self.content_hash)} {state} {self.replay} {self.request} ".encode()

    def plus(self, rows: int, content_hash: int, *, done: bool) -> Self:
        """With more rows; the ids are known afterwards."""
        content = (self.content_hash + content_hash) % 2**64
        return self._replace(rows=self.rows + rows, content_hash=content, done=done, first=None, last=None)

    def again(self, request: str) -> Self:
        """The beginning of a replay."""
        return type(self)(replay=self.replay + 1, request=request)


class Opening(NamedTuple):
    """Where publishing a partition begins."""

    expected: bytes
    """Head of what the ledger says of it; nothing if it says nothing."""
    account: Account
    """What the rows are added to."""


class Ledger:
    """The ledger of a feed."""

    def __init__(self, feed: BrickFeed, stream: RedisStream) -> None:
        self._feed = feed
        self._stream = stream
        self.key = ledger_key(feed.stream_name, feed.name)

    def accounts(self, starts: Sequence[int]) -> dict[int, Account]:
        """What it says of those of the partitions that it knows, by start.

        Raises:
            StreamError: it is no ledger, or Redis refuses or cannot be reached.
        """
        found: dict[int, Account] = {}
        for position in range(0, len(starts), _PAGE):
            page = starts[position : position + _PAGE]
            for start, text in zip(page, self._texts(map(self._feed.numbering.name, page)), strict=True):
                if text is not None:
                    found[start] = self._account(start, text)
        return found

    def rows(self) -> int:
        """Rows the feed ever added to the stream, replays included.

        Raises:
            StreamError: it is no ledger, or Redis refuses or cannot be reached.
        """
        return int(self._texts(["rows"])[0] or 0)

    def refuse_others(self) -> None:
        """Makes sure that all that was ever added to the stream is the feed's: then so is all that was read from it.

        Raises:
            StreamError: others write to the stream as well, or Redis does not count what was added, refuses or cannot
                be reached.
        """
        client, name = self._stream.client, self._stream.name
        try:
            # At one moment: the feed may be publishing.
            with client.pipeline(transaction=True) as pipe:
                pipe.hget(self.key, "rows")
                pipe.xinfo_stream(name)
                rows, info = pipe.execute(raise_on_error=False)
        except redis.RedisError as error:
            raise self._stream.named(translate(error)) from error
        for answer in (rows, info):
            if isinstance(answer, redis.RedisError) and "no such key" not in str(answer):
                raise self._stream.named(translate(answer)) from answer
        own, added = int(rows or 0), None if isinstance(info, redis.RedisError) else info.get("entries-added")
        if added == own or isinstance(info, redis.RedisError):
            return
        found = (
            "whether others write to it is not known, since Redis counts what was added from version 7 on"
            if added is None
            else f"entries that were ever added to it: {added:,}, of this feed by its ledger: {own:,}"
        )
        raise StreamError(
            f"feed {self._feed.name!r} is any-order, and the entries of stream {name!r} do not say whose they are: "
            f"{found}; read it brick by brick (`ucs read {self._feed.name} BRICK`), or read the stream with a consumer "
            "group"
        )

    def _texts(self, names: Iterable[str]) -> list[bytes | None]:
        try:
            return cast("list[bytes | None]", self._stream.client.hmget(self.key, list(names)))
        except redis.RedisError as error:
            raise self._stream.named(translate(error)) from error

    def _account(self, start: int, text: bytes) -> Account:
        try:
            return Account.parse(text)
        except ValueError:
            raise StreamError(
                f"feed {self._feed.name!r}, brick {self._feed.numbering.name(start)}: ledger {self.key!r} says "
                f"{text!r}, which this project has not written: restore it, or delete it and the stream to begin again"
            ) from None


def numbering_text(feed: BrickFeed) -> str:
    """What a partition of the feed is: a ledger means nothing to a feed that cuts its table in another way."""
    bricks = feed.bricks
    details: Mapping[str, str] = {
        "number": f"width {bricks.width}",
        "time": f"zone {bricks.zone}, unit {bricks.unit}",
        "text": f"base {bricks.base}, digit {bricks.digit}",
    }
    return f"class {bricks.kind}, level {bricks.level}, {details[bricks.kind]}"
