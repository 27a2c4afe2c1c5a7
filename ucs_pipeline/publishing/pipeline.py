"""The common part of publishers: one connection, many transactions in flight at once, and few replies.

Replies to rows are switched off. Thousands of `+QUEUED` and ids cost Redis and the publisher time, and prove no more
than the one answer to the probe after each transaction.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import hiredis
from typing_extensions import Self

from ucs_pipeline.entries.batches import Batch
from ucs_pipeline.entries.resp import command
from ucs_pipeline.errors import StreamError, StreamUnavailableError, counted
from ucs_pipeline.redis.connection import classify
from ucs_pipeline.redis.raw_connection import RawConnection
from ucs_pipeline.stream.stream import RedisStream

T = TypeVar("T", bound=Batch)
Sent = TypeVar("Sent")

_IN_FLIGHT = 8
"""Transactions sent ahead of the answers: Redis continues with the next one while Python is busy."""

_ALONE_BYTES = 1 << 20
"""A longer transaction, which is one long row, is sent alone: rows in flight stay in memory."""

_WAIT_SECONDS = 5
_SPEAK, _BE_QUIET = command(b"CLIENT", b"REPLY", b"ON"), command(b"CLIENT", b"REPLY", b"OFF")
_NOTHING_ASIDE = "no such key"
AROUND_ROWS = 4
"""Replies to a transaction except those to its rows: to MULTI, the requests before and after the rows, and EXEC."""


class RivalError(Exception):
    """Another publisher writes the same rows."""


class PipelinedPublisher(ABC, Generic[T, Sent]):
    """Appends transactions over one connection, each only if the rows before it are in the stream."""

    def __init__(self, stream: RedisStream, min_replicas: int) -> None:
        self._stream = stream
        self._min_replicas = min_replicas
        # Other commands must go to the same server, so over connections as new as this one.
        stream.reconnect()
        self._wire = RawConnection(stream.client)
        self._quiet = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Redis drops what was not executed."""
        self._wire.close()

    def publish(self, transactions: "Iterator[T | None]") -> Iterator[tuple[T, int]]:
        """Appends transactions in order; yields each one that is in the stream, and the stream's length after it.

        A few transactions are in flight at once. A `None` from the iterator means that the next one is not ready yet,
        so those in flight are confirmed first.

        Raises:
            FencedError: another publisher took over; rows that were not yielded may or may not be in the stream.
            StreamUnavailableError: Redis cannot take rows now; likewise.
            StreamError: Redis refuses the rows permanently.
        """
        in_flight: deque[tuple[T, Sent]] = deque()
        for transaction in transactions:
            if transaction:
                in_flight.append((transaction, self._send(transaction)))
            most = 0 if transaction is None or transaction.size > _ALONE_BYTES else _IN_FLIGHT
            while len(in_flight) > most:
                yield in_flight[0][0], self._accepted(*in_flight.popleft())
        while in_flight:
            yield in_flight[0][0], self._accepted(*in_flight.popleft())
        self._confirm()

    @abstractmethod
    def _send(self, transaction: T) -> Sent:
        """Sends a whole transaction, and returns its expected result."""

    @abstractmethod
    def _accepted(self, transaction: T, sent: Sent) -> int:
        """Receives the answer; the stream's length after the transaction, or raises."""

    def _mute_replies(self) -> None:
        """From now on Redis answers only probes."""
        # A proxy that cannot do this only makes publishing slower.
        self._wire.send([_SPEAK])
        self._quiet = not isinstance(self._wire.reply(), hiredis.ReplyError)
        if self._quiet:
            self._wire.send([_BE_QUIET])

    def _demand(self, request: bytes) -> Any:
        self._wire.send([request])
        self._raise_errors([reply := self._wire.reply()])
        return reply

    def _refuse_taken(self, parked: bytes) -> None:
        """Makes sure that the name that a closed guard renames the stream to is free."""
        if self._demand(command(b"EXISTS", parked)):
            raise StreamError(
                f"stream {self._stream.name!r}: key {parked.decode()!r} exists. ucs reserves this name. Rename or "
                "delete the key.",
                "UCS-RESERVED-KEY",
            )

    def _raise_errors(self, replies: list[Any]) -> None:
        if error := self._error(replies):
            raise error

    def _error(self, replies: list[Any]) -> StreamError | None:
        """The first error in replies, nested ones included, except that of a guard that had renamed nothing."""
        for reply in replies:
            for part in reply if isinstance(reply, list) else [reply]:
                if isinstance(part, hiredis.ReplyError) and _NOTHING_ASIDE not in str(part):
                    return self._stream.named(classify(str(part)))
        return None

    def _transact(self, transaction: Batch, begin: bytes, commit: bytes, question: bytes) -> None:
        """Sends rows between the requests before and after them, and a probe."""
        rows = transaction.entries.requests.rows(transaction.start, transaction.stop)
        self._wire.send([begin, rows, commit + self._with_replies(question)])

    def _answer(self, transaction: Batch) -> tuple[bool, Any]:
        """The answer to the probe after a transaction, and whether it is as expected.

        While another client's script runs too long, Redis refuses CLIENT REPLY ON, and sends nothing.
        """
        replies = [self._wire.reply() for _ in range(1 if self._quiet else transaction.rows + AROUND_ROWS)]
        return replies[0] == b"OK", self._wire.reply()

    def _replay_verbosely(self, transaction: Batch, begin: bytes, commit: bytes) -> list[Any]:
        """The error of a refused transaction, from sending it again with replies on."""
        rows = transaction.entries.requests.rows(transaction.start, transaction.stop)
        with RawConnection(self._stream.client) as wire:
            wire.send([begin, rows, commit])
            return [wire.reply() for _ in range(transaction.rows + AROUND_ROWS)]

    def _refused_for_a_moment(self) -> StreamUnavailableError:
        return StreamUnavailableError(
            f"stream {self._stream.name!r}: Redis refused rows for a moment. Wait for the next attempt."
        )

    def _out_of_step(self) -> StreamUnavailableError:
        return StreamUnavailableError(
            f"stream {self._stream.name!r}: Redis did not answer a command. Wait for the next attempt."
        )

    def _confirm(self) -> None:
        if self._min_replicas:
            self._wire.send([self._with_replies(self._wait())])
            if self._quiet:
                self._wire.reply()
            self._check_replicas()

    def _with_replies(self, question: bytes) -> bytes:
        return _SPEAK + question + _BE_QUIET if self._quiet else question

    def _wait(self) -> bytes:
        return command(b"WAIT", b"%d" % self._min_replicas, b"%d" % (_WAIT_SECONDS * 1000))

    def _check_replicas(self) -> None:
        reply = self._wire.reply()
        self._raise_errors([reply])
        if not isinstance(reply, int):
            raise self._out_of_step()
        if reply < self._min_replicas:
            raise StreamUnavailableError(
                f"stream {self._stream.name!r}: {counted(reply, 'replica')} confirmed the entries within "
                f"{_WAIT_SECONDS} s, expected {self._min_replicas} (min_replicas). Check Redis' replication.",
                "UCS-REPLICAS",
            )
