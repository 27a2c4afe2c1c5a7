"""Appends rows to an ordered stream: transactions, each opened by a gate and a fence.

Why a transaction. Redis may refuse one command of a pipeline and accept the next (out of memory for a moment, a
failing disk, a replica being promoted): sent bare, row 7 could be refused and row 8 accepted, and row 7 could
never be added again. In MULTI, one refused row makes EXEC refuse them all.

Why a gate. Redis accepts any id above a stream's top, so nothing in XADD itself stops rows from being appended where
rows before them are missing: the transaction before was refused, or somebody deleted the stream and a worker's
XGROUP CREATE ... MKSTREAM made it again. So every transaction begins with a script that looks whether the top is the
row before its first one. Nothing can end a transaction from inside; but XADD with NOMKSTREAM adds nothing to a stream
that is not there, so a gate that finds another top moves the stream aside, and the transaction's last command moves
it back. Nobody sees that: EXEC runs as one step.

Why a fence. A publisher that was frozen may wake up after the stream was deleted and begun again by another one, and
find the very top it expects. Every publisher writes its own token under the fence key when it starts, and the gate
looks at that too: a publisher that has been replaced cannot add anything more.
"""

import secrets
from collections.abc import Iterator
from typing import Any, Self

import hiredis

from ucs_pipeline.entries import EntryId
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.redis_link import classify
from ucs_pipeline.stream import OrderedStream, State, Transaction
from ucs_pipeline.wire import UnexpectedReplyError, Wire, command

_WAIT_SECONDS = 5
_OK, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"
_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
_FENCED, _GONE = b"fenced", b"gone"

# Keys of both: the stream, its fence, the name it is moved aside to.
_GATE = b"""
local found = 'fenced'
if redis.call('GET', KEYS[2]) == ARGV[1] then
  found = 'gone'
  local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then found = info[i + 1] end
  end
  if found == ARGV[2] then return 1 end
end
redis.pcall('RENAME', KEYS[1], KEYS[3])
return found
"""
_LEAVE = b"""
if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('RENAME', KEYS[3], KEYS[1])
end
return redis.call('XLEN', KEYS[1])
"""
_OPEN = b":1\r\n"


class FencedError(Exception):
    """Another publisher of the same stream has taken over."""


class Publisher:
    """Appends transactions over one connection, each only if the one before it is in the stream."""

    def __init__(self, stream: OrderedStream, min_replicas: int = 0) -> None:
        """Takes over from any other publisher of the stream, and creates the stream if there is none.

        With `min_replicas`, so many replicas have what is in the stream now, and each finished brick before the
        transaction that follows it is yielded.
        """
        self._stream = stream
        self._min_replicas = min_replicas
        self._wire = Wire(stream.client)
        self._token = secrets.token_hex(8).encode()
        fence = fence_key(stream.name)
        self._keys = [stream.name.encode(), fence.encode(), f"{fence}:aside".encode()]
        self._leave = _script(_LEAVE, self._keys) + _EXEC
        try:
            self.state = self._take_over()
        except BaseException:
            self.close()
            raise
        self._top = self.state.top

    state: State
    """The stream as it was taken over; from there on no other publisher moves its top."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. What was not executed is forgotten by Redis."""
        self._wire.close()

    def publish(self, transactions: "Iterator[Transaction | None]") -> Iterator[tuple[Transaction, int]]:
        """Appends transactions in order; yields each one that is in the stream, and the stream's length after it.

        While one transaction is executed the next is already on its way to Redis. A `None` from the iterator means
        that the next transaction is not ready yet, so that the current one need not wait for it.

        Raises:
            FencedError: another publisher took over; what was not yielded may or may not be in the stream.
            StreamUnavailableError: Redis cannot take rows now; likewise.
            StreamError: Redis refuses the rows for good.
        """
        current: tuple[Transaction, EntryId] | None = None
        for transaction in transactions:
            following = (transaction, self._send(transaction)) if transaction else None
            if current:
                yield current[0], self._accepted(*current)
            current = following
        if current:
            yield current[0], self._accepted(*current)
        self._confirm()

    def _take_over(self) -> State:
        stream, fence, aside = self._keys
        # A group that comes and goes is the only way to create a stream without an entry. Every row can then be
        # added with NOMKSTREAM.
        self._ask(
            command(b"SET", fence, self._token),
            command(b"XGROUP", b"CREATE", stream, self._token, b"0", b"MKSTREAM"),
            command(b"XGROUP", b"DESTROY", stream, self._token),
        )
        state = self._stream.state()
        # An empty transaction shows now, before any row, that this user may do all a transaction does. RENAME is
        # needed in an emergency only, so it is tried on a key that is not there.
        self._ask(self._enter(state.top) + self._leave, replies=4)
        self._ask(command(b"RENAME", aside, aside), harmless="no such key")
        self._confirm()
        return state

    def _confirm(self) -> None:
        if self._min_replicas:
            self._wire.send([self._wait()])
            self._check_replicas()

    def _wait(self) -> bytes:
        return command(b"WAIT", b"%d" % self._min_replicas, b"%d" % (_WAIT_SECONDS * 1000))

    def _check_replicas(self) -> None:
        # A line and no more: the replies to the next transaction may be right behind it.
        reply = self._wire.line()
        if not reply.startswith(b":"):
            raise self._stream.named(classify(reply[1:].decode(errors="replace")))
        if int(reply[1:]) < self._min_replicas:
            raise StreamUnavailableError(
                f"stream {self._stream.name!r}: {reply[1:].decode()} replicas have confirmed the entries within "
                f"{_WAIT_SECONDS} s, expected {self._min_replicas} (min_replicas): check Redis' replication"
            )

    def _ask(self, *commands: bytes, replies: int = 0, harmless: str | None = None) -> None:
        self._wire.send(commands)
        for reply in self._wire.replies(b"", replies or len(commands)):
            for part in reply if isinstance(reply, list) else [reply]:
                if isinstance(part, hiredis.ReplyError) and not (harmless and harmless in str(part)):
                    raise self._stream.named(classify(str(part)))

    def _enter(self, top: EntryId) -> bytes:
        return _MULTI + _script(_GATE, self._keys, self._token, str(top).encode())

    def _send(self, transaction: Transaction) -> EntryId:
        """Sends a whole transaction; returns the top that it goes on from."""
        rows = transaction.entries.requests.rows(transaction.start, transaction.stop)
        before = self._top
        self._wire.send([self._enter(before), rows, self._leave, *self._confirmation(transaction)])
        self._top = transaction.ids[1]
        return before

    def _accepted(self, transaction: Transaction, before: EntryId) -> int:
        queued = _QUEUED * (transaction.rows + 2)
        rows = transaction.entries.replies.rows(transaction.start, transaction.stop)
        expected = b"".join((_OK, queued, b"*%d\r\n" % (transaction.rows + 2), _OPEN, rows))
        try:
            self._wire.expect(expected)
        except UnexpectedReplyError as unexpected:
            raise self._reason(self._wire.replies(unexpected.received, transaction.rows + 4), before) from unexpected
        length = int(self._wire.line()[1:])
        if self._confirmation(transaction):
            self._check_replicas()
        return length

    def _confirmation(self, transaction: Transaction) -> list[bytes]:
        """What asks for the replicas after a transaction that ends a brick, or begins the one after it."""
        begins = (s.start for s in transaction.entries.segments if s.first.row == 1)
        ended = self._min_replicas and any(transaction.start <= start < transaction.stop for start in begins)
        return [self._wait()] if ended else []

    def _reason(self, replies: list[Any], before: EntryId) -> Exception:
        """What the replies to a refused transaction mean."""
        *queued, executed = replies
        for reply in [*queued, *(executed if isinstance(executed, list) else [executed])]:
            if isinstance(reply, hiredis.ReplyError):
                return self._stream.named(classify(str(reply)))
        found = executed[0]
        if found == _FENCED:
            return FencedError()
        if found != _GONE and EntryId.parse(found) > before:
            return StreamUnavailableError(
                f"stream {self._stream.name!r}: something else has written to it: its top is {found.decode()}, "
                f"expected {before}"
            )
        return StreamError(
            f"stream {self._stream.name!r} was deleted while it was being written, and was not begun again half-way; "
            "stop other runs of this feed and publish it again from its first brick"
        )


def fence_key(stream: str) -> str:
    """Key beside the stream, in the same cluster slot, that names its current publisher."""
    start = stream.find("{")
    tagged = start >= 0 and stream.find("}", start) > start + 1
    return f"{stream}:writer" if tagged else f"{{{stream}}}:writer"


def _script(text: bytes, keys: list[bytes], *arguments: bytes) -> bytes:
    return command(b"EVAL", text, b"%d" % len(keys), *keys, *arguments)
