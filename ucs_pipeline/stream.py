"""One ordered stream: its top, its entries read back, and the transactions that append to it.

Why a transaction. Redis may refuse one command of a pipeline and accept the next (out of memory for a moment, a
failing disk, a replica being promoted): sent bare, row 7 could be refused and row 8 accepted, and row 7 could
never be added again. In MULTI, one refused row makes EXEC refuse them all.

Why a fence. A publisher that was frozen may wake up after the stream was deleted and begun again by another one.
Every publisher writes its own token under the fence key when it starts, and every transaction WATCHes that key: a
publisher that has been replaced cannot execute anything more.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import hiredis
import redis

from ucs_pipeline.entries import Entries, EntryId, bulk
from ucs_pipeline.errors import StreamError
from ucs_pipeline.redis_link import classify, translate
from ucs_pipeline.wire import UnexpectedReplyError, Wire

START = EntryId(0, 0)
"""The top of a stream that never had an entry."""

_MAX_SEQUENCE = 2**64 - 1
_TRANSACTION_ROWS = 512
_TRANSACTION_BYTES = 1 << 20
_OK, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"
_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"


class FencedError(Exception):
    """Another publisher of the same stream has taken over."""


class State(NamedTuple):
    """What Redis knows of a stream."""

    exists: bool
    top: EntryId
    """The highest id the stream ever had; trims and deletes do not lower it."""
    length: int
    """Entries in it now."""


@dataclass(frozen=True)
class Transaction:
    """Consecutive rows that are appended together or not at all."""

    entries: Entries
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def ids(self) -> tuple[EntryId, EntryId]:
        """Ids of the first and the last row."""
        return self.entries.id(self.start), self.entries.id(self.stop - 1)


def cut(entries: Entries, start: int, stop: int) -> Iterator[Transaction]:
    """Cuts rows into transactions small enough for Redis to run without holding up other clients."""
    while start < stop:
        end = min(start + _TRANSACTION_ROWS, stop)
        while end - start > 1 and entries.size(start, end) > _TRANSACTION_BYTES:
            end = start + (end - start) // 2
        yield Transaction(entries, start, end)
        start = end


class OrderedStream:
    """A stream in Redis that one ordered feed writes to."""

    def __init__(self, name: str, client: "redis.Redis") -> None:
        self.name = name
        self.client = client

    def state(self) -> State:
        """Top and length.

        Raises:
            StreamError: the key is not a stream, or Redis refuses or cannot be reached.
        """
        try:
            info: dict[str, Any] = self.client.xinfo_stream(self.name)
        except redis.RedisError as error:
            if "no such key" in str(error):
                return State(False, START, 0)
            raise self.named(translate(error)) from error
        return State(True, EntryId.parse(info["last-generated-id"]), info["length"])

    def last_row(self, ordinal: int) -> int:
        """Number of the last row of a brick that is still in the stream; 0 if there is none."""
        found = self._read(EntryId(ordinal, _MAX_SEQUENCE), EntryId(ordinal, 0), 1, reverse=True)
        return EntryId.parse(found[0][0]).row if found else 0

    def first(self) -> EntryId | None:
        """Id of the first entry that is still in the stream; None if it is empty."""
        found = self._read(START, EntryId(_MAX_SEQUENCE, _MAX_SEQUENCE), 1)
        return EntryId.parse(found[0][0]) if found else None

    def entries(self, first: EntryId, last: EntryId) -> list[tuple[EntryId, dict[bytes, bytes]]]:
        """Entries from `first` to `last`, both included."""
        return [(EntryId.parse(entry_id), fields) for entry_id, fields in self._read(first, last, None)]

    def _read(self, first: EntryId, last: EntryId, count: int | None, *, reverse: bool = False) -> list[Any]:
        command = self.client.xrevrange if reverse else self.client.xrange
        try:
            return cast("list[Any]", command(self.name, str(first), str(last), count))
        except redis.RedisError as error:
            raise self.named(translate(error)) from error

    def named(self, error: StreamError) -> StreamError:
        """The same error, with the stream's name in front."""
        return type(error)(f"stream {self.name!r}: {error}")


class Comparer:
    """Compares rows with the entries of the same ids, as bytes, over a connection of its own."""

    def __init__(self, stream: OrderedStream) -> None:
        self._stream = stream
        self._wire = Wire(stream.client)
        self._key = stream.name.encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._wire.close()

    def holds(self, entries: Entries, start: int, stop: int) -> bool:
        """Whether the stream holds exactly these rows, byte for byte."""
        first, last = entries.id(start), entries.id(stop - 1)
        self._wire.send([_command(b"XRANGE", self._key, str(first).encode(), str(last).encode())])
        expected = b"".join((b"*%d\r\n" % (stop - start), entries.views.rows(start, stop)))
        try:
            self._wire.expect(expected)
        except UnexpectedReplyError as unexpected:
            reply = self._wire.replies(unexpected.received, 1)[0]
            if isinstance(reply, hiredis.ReplyError):
                raise self._stream.named(classify(str(reply))) from unexpected
            return False
        return True


class Publisher:
    """Appends transactions over one connection, each only after the one before it is known to be in the stream."""

    def __init__(self, stream: OrderedStream) -> None:
        """Takes over from any other publisher of the stream, and creates the stream if there is none."""
        self._stream = stream
        self._wire = Wire(stream.client)
        token = secrets.token_hex(8).encode()
        key, fence = stream.name.encode(), fence_key(stream.name).encode()
        self._head = _command(b"WATCH", fence) + _command(b"GET", fence) + _MULTI
        self._head_reply = _OK + bulk(token) + _OK
        self._length = _command(b"XLEN", key)
        try:
            self._take_over(key, fence, token)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. What was not executed is forgotten by Redis."""
        self._wire.close()

    def publish(self, transactions: "Iterator[Transaction | None]") -> Iterator[tuple[Transaction, int]]:
        """Appends transactions in order; yields each one that is in the stream, and the stream's length after it.

        While one transaction is executed the next is already on its way to Redis, where it waits for its EXEC, which
        is sent only when the one before it is proved. A `None` from the iterator means that the next transaction is
        not ready yet, so that the current one need not wait for it.

        Raises:
            FencedError: another publisher took over; what was not yielded may or may not be in the stream.
            StreamUnavailableError: Redis cannot take rows now; likewise.
            StreamError: Redis refuses the rows for good.
        """
        current: Transaction | None = None
        for following in transactions:
            if current is not None:
                yield current, self._execute(current, following)
            elif following is not None:
                self._wire.send(self._body(following))
                self._expect_head(following)
            current = following
        if current is not None:
            yield current, self._execute(current, None)

    def _take_over(self, key: bytes, fence: bytes, token: bytes) -> None:
        # A group that comes and goes is the only way to create a stream without an entry. Every row can then be
        # added with NOMKSTREAM.
        create = [
            _command(b"XGROUP", b"CREATE", key, token, b"0", b"MKSTREAM"),
            _command(b"XGROUP", b"DESTROY", key, token),
        ]
        # An empty transaction shows now, before any row, that this user may do all a transaction does.
        self._wire.send([_command(b"SET", fence, token), *create, self._head, self._length, _EXEC])
        for reply in self._wire.replies(b"", 8):
            if isinstance(reply, hiredis.ReplyError):
                raise self._stream.named(classify(str(reply)))

    def _body(self, transaction: Transaction) -> list[bytes | memoryview]:
        rows = transaction.entries.requests.rows(transaction.start, transaction.stop)
        return [self._head, rows, self._length]

    def _expect_head(self, transaction: Transaction) -> None:
        try:
            self._wire.expect(self._head_reply)
        except UnexpectedReplyError as unexpected:
            raise self._reason(self._wire.replies(unexpected.received, 3 + transaction.rows + 1)) from unexpected

    def _execute(self, current: Transaction, following: Transaction | None) -> int:
        self._wire.send([_EXEC, *(self._body(following) if following else ())])
        queued = _QUEUED * (current.rows + 1)
        accepted = current.entries.replies.rows(current.start, current.stop)
        expected = b"".join((queued, b"*%d\r\n" % (current.rows + 1), accepted))
        try:
            self._wire.expect(expected)
        except UnexpectedReplyError as unexpected:
            raise self._reason(self._wire.replies(unexpected.received, current.rows + 2)) from unexpected
        length = int(self._wire.line()[1:])
        if following:
            self._expect_head(following)
        return length

    def _reason(self, replies: list[Any]) -> Exception:
        """What a refused transaction means; the last reply is the one to its EXEC, if that was sent."""
        *before, executed = replies
        for reply in [*before, *(executed if isinstance(executed, list) else [executed])]:
            if isinstance(reply, hiredis.ReplyError):
                if "equal or smaller" in str(reply):
                    return FencedError()
                return self._stream.named(classify(str(reply)))
        if isinstance(executed, list):
            return StreamError(
                f"stream {self._stream.name!r} was deleted while it was being written, and was not begun again half-way; "
                "stop other runs of this feed and publish it again from its first brick"
            )
        return FencedError()


def fence_key(stream: str) -> str:
    """Key beside the stream, in the same cluster slot, that names its current publisher."""
    start = stream.find("{")
    tagged = start >= 0 and stream.find("}", start) > start + 1
    return f"{stream}:writer" if tagged else f"{{{stream}}}:writer"


def _command(*arguments: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))
