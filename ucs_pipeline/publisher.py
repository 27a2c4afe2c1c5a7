"""Appends rows to an ordered stream: transactions, many under way at once, each behind a gate (see `gate`).

Redis is told not to answer the rows. Thousands of `+QUEUED` and ids cost it and the publisher time, and prove no more
than the one answer that follows each transaction: its gate let it in where the row before its first one was the top,
EXEC added all its rows or none, and now the top is its last row and the stream has had so many entries more.
"""

import secrets
from collections import deque
from collections.abc import Iterator
from typing import Any, Self

import hiredis

from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.gate import FENCED, GONE, Gate
from ucs_pipeline.position import EntryId, State
from ucs_pipeline.redis_link import classify
from ucs_pipeline.stream import OrderedStream, Transaction
from ucs_pipeline.wire import Wire, command

_UNDER_WAY = 8
"""Transactions sent ahead of the answers: Redis goes on with the next one while Python is busy elsewhere."""

_WAIT_SECONDS = 5
_SPEAK, _BE_QUIET = command(b"CLIENT", b"REPLY", b"ON"), command(b"CLIENT", b"REPLY", b"OFF")
_NOTHING_ASIDE = "no such key"


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
        self._token = secrets.token_hex(8).encode()
        self._gate = Gate(stream.name, self._token)
        self._min_replicas = min_replicas
        self._wire = Wire(stream.client)
        try:
            self.state = self._take_over()
        except BaseException:
            self.close()
            raise
        self._top, self._added = self.state.top, self.state.added

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

        A few transactions are under way at once. A `None` from the iterator means that the next one is not ready yet,
        so that those under way need not wait for it.

        Raises:
            FencedError: another publisher took over; what was not yielded may or may not be in the stream.
            StreamUnavailableError: Redis cannot take rows now; likewise.
            StreamError: Redis refuses the rows for good.
        """
        under_way: deque[tuple[Transaction, EntryId]] = deque()
        for transaction in transactions:
            if transaction:
                under_way.append((transaction, self._send(transaction)))
            while under_way and (transaction is None or len(under_way) > _UNDER_WAY):
                yield under_way[0][0], self._accepted(*under_way.popleft())
        while under_way:
            yield under_way[0][0], self._accepted(*under_way.popleft())
        self._confirm()

    def _take_over(self) -> State:
        gate, wire = self._gate, self._wire
        # A cluster refuses keys in several slots here, before it is asked about any of them.
        self._demand(command(b"EXISTS", gate.stream, gate.fence, gate.aside))
        wire.send([command(b"EXISTS", gate.aside)])
        self._look_for_errors([aside := wire.reply()])
        if aside:
            raise StreamError(
                f"stream {self._stream.name!r}: there is a key {gate.aside.decode()!r}, a name that this project needs "
                "for itself and leaves nothing under: rename or delete it"
            )
        # A group that comes and goes is the only way to create a stream without an entry.
        self._demand(command(b"SET", gate.fence, self._token))
        self._demand(command(b"XGROUP", b"CREATE", gate.stream, self._token, b"0", b"MKSTREAM"))
        self._demand(command(b"XGROUP", b"DESTROY", gate.stream, self._token))
        state = self._stream.state()
        # What is missing in a script Redis does not name.
        self._demand(command(b"GET", gate.fence))
        self._demand(command(b"XLEN", gate.stream))
        # An empty transaction shows now, before any row, that this user may do all a transaction does.
        wire.send([gate.enter(state.top), gate.leave])
        self._look_for_errors([wire.reply() for _ in range(4)])
        self._demand(gate.ask(state.top))
        # A proxy that cannot do this makes publishing slower, and nothing else.
        wire.send([_SPEAK])
        self._quiet = not isinstance(wire.reply(), hiredis.ReplyError)
        if self._quiet:
            wire.send([_BE_QUIET])
        self._confirm()
        return state

    def _demand(self, request: bytes) -> None:
        self._wire.send([request])
        self._look_for_errors([self._wire.reply()])

    def _look_for_errors(self, replies: list[Any]) -> None:
        if error := self._error(replies):
            raise error

    def _error(self, replies: list[Any]) -> StreamError | None:
        """The first error in replies and in what they hold, but for that of a gate that had moved nothing."""
        for reply in replies:
            for part in reply if isinstance(reply, list) else [reply]:
                if isinstance(part, hiredis.ReplyError) and _NOTHING_ASIDE not in str(part):
                    return self._stream.named(classify(str(part)))
        return None

    def _send(self, transaction: Transaction) -> EntryId:
        """Sends a whole transaction; returns the top that it goes on from."""
        rows = transaction.entries.requests.rows(transaction.start, transaction.stop)
        before, self._top = self._top, transaction.ids[1]
        question = self._aloud(self._gate.ask(self._top) + self._waits(transaction))
        self._wire.send([self._gate.enter(before), rows, self._gate.leave + question])
        return before

    def _accepted(self, transaction: Transaction, before: EntryId) -> int:
        replies = [self._wire.reply() for _ in range(1 if self._quiet else transaction.rows + 4)]
        answer = self._wire.reply()
        if not isinstance(answer, list):
            raise self._reason(transaction, before, answer)
        length, added, top = answer
        # While a script of somebody's runs too long, Redis refuses to speak, and says nothing.
        if replies[0] != b"OK" or top != str(transaction.ids[1]).encode():
            raise self._out_of_step()
        if self._waits(transaction):
            self._check_replicas()
        if self._added is not None:
            self._added += transaction.rows
            if added != self._added:
                raise StreamError(
                    f"stream {self._stream.name!r} had {added:,} entries after {transaction.ids[1]}, expected "
                    f"{self._added:,}: Redis refused a row that it was sent, or something else changed the stream "
                    "(XSETID); run `ucs verify`"
                )
        return int(length)

    def _reason(self, transaction: Transaction, before: EntryId, answer: "bytes | hiredis.ReplyError") -> Exception:
        """Why a transaction was not accepted, from the answer to the question that followed it."""
        if isinstance(answer, hiredis.ReplyError):
            return self._stream.named(classify(str(answer)))
        return self._refusal(transaction, before) if answer == str(before).encode() else self._closed(before, answer)

    def _closed(self, before: EntryId, found: bytes) -> Exception:
        """Why a gate is closed, from what it found in the place of the top."""
        if found == FENCED:
            return FencedError()
        try:
            top = None if found == GONE else EntryId.parse(found)
        except ValueError:
            return self._out_of_step()
        if top is not None and top > before:
            return StreamUnavailableError(
                f"stream {self._stream.name!r}: something else has written to it: its top is {top}, expected {before}"
            )
        return StreamError(
            f"stream {self._stream.name!r} was deleted while it was being written, and was not begun again half-way; "
            "stop other runs of this feed and publish it again from its first brick"
        )

    def _refusal(self, transaction: Transaction, before: EntryId) -> Exception:
        """What Redis says when it is sent a transaction that it has refused once more, and speaks."""
        rows = transaction.entries.requests.rows(transaction.start, transaction.stop)
        with Wire(self._stream.client) as wire:
            wire.send([self._gate.enter(before), rows, self._gate.leave])
            replies = [wire.reply() for _ in range(transaction.rows + 4)]
        executed = replies[-1]
        if isinstance(executed, list) and isinstance(executed[0], bytes) and executed[0] != str(before).encode():
            # It has closed since: what Redis says of the rows is about the text in the stream's place.
            return self._closed(before, executed[0])
        return self._error(replies) or StreamUnavailableError(
            f"stream {self._stream.name!r}: Redis refused rows for a moment"
        )

    def _out_of_step(self) -> StreamUnavailableError:
        return StreamUnavailableError(f"stream {self._stream.name!r}: Redis left a question unanswered")

    def _waits(self, transaction: Transaction) -> bytes:
        """What asks for the replicas after a transaction that ends a brick, or begins the one after it."""
        if not self._min_replicas:
            return b""
        parts = transaction.entries.within(transaction.start, transaction.stop)
        return self._wait() if any(part.first.row == 1 for part in parts) else b""

    def _confirm(self) -> None:
        if self._min_replicas:
            self._wire.send([self._aloud(self._wait())])
            if self._quiet:
                self._wire.reply()
            self._check_replicas()

    def _aloud(self, question: bytes) -> bytes:
        return _SPEAK + question + _BE_QUIET if self._quiet else question

    def _wait(self) -> bytes:
        return command(b"WAIT", b"%d" % self._min_replicas, b"%d" % (_WAIT_SECONDS * 1000))

    def _check_replicas(self) -> None:
        reply = self._wire.reply()
        self._look_for_errors([reply])
        if not isinstance(reply, int):
            raise self._out_of_step()
        if reply < self._min_replicas:
            raise StreamUnavailableError(
                f"stream {self._stream.name!r}: {reply} replicas have confirmed the entries within {_WAIT_SECONDS} s, "
                f"expected {self._min_replicas} (min_replicas): check Redis' replication"
            )
