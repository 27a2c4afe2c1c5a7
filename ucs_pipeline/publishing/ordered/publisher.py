"""Appends rows to an ordered stream: transactions, many in flight at once, each behind a guard (see `guard`).

One answer after each transaction proves it: its guard accepted it because the row before its first one was the last ID,
EXEC added all its rows or none, and now the last ID is its last row and the count of entries has grown by its rows.
"""

import secrets

import hiredis

from ucs_pipeline.entries.batches import Batch
from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.entries.resp import command
from ucs_pipeline.errors import StreamError, StreamUnavailableError, counted
from ucs_pipeline.publishing.ordered.guard import FENCED, GONE, LOST, AppendGuard
from ucs_pipeline.publishing.pipeline import PipelinedPublisher, RivalError
from ucs_pipeline.redis.connection import classify
from ucs_pipeline.stream.stream import OrderedStream


class FencedError(RivalError):
    """The stream's writer key has another publisher's token."""


class Publisher(PipelinedPublisher[Batch, EntryId]):
    """Appends transactions over one connection, each only if the one before it is in the stream."""

    def __init__(self, stream: OrderedStream, min_replicas: int = 0) -> None:
        """Takes over from any other publisher of the stream, and creates the stream if there is none.

        With `min_replicas`, so many replicas have the stream's contents, and have each finished brick before the next
        transaction is yielded.
        """
        super().__init__(stream, min_replicas)
        self._token = secrets.token_hex(8).encode()
        self._guard = AppendGuard(stream.name, self._token)
        try:
            self.state = self._take_over()
        except BaseException:
            self.close()
            raise
        self._top, self._added = self.state.top, self.state.added

    state: State
    """The stream as it was taken over; from then on no other publisher changes its last ID."""

    def _take_over(self) -> State:
        guard, wire = self._guard, self._wire
        # A cluster refuses keys in several slots here, before any of them is read.
        self._demand(command(b"EXISTS", guard.stream, guard.fence, guard.parked))
        self._refuse_taken(guard.parked)
        # Creating and destroying a group is the only way to create a stream without an entry.
        self._demand(command(b"SET", guard.fence, self._token))
        self._demand(command(b"XGROUP", b"CREATE", guard.stream, self._token, b"0", b"MKSTREAM"))
        self._demand(command(b"XGROUP", b"DESTROY", guard.stream, self._token))
        state = self._stream.state()
        # Redis does not name a missing right or command inside a script.
        self._demand(command(b"GET", guard.fence))
        self._demand(command(b"XLEN", guard.stream))
        # An empty transaction proves before any row that this user has all rights.
        wire.send([guard.begin(state.top), guard.commit])
        self._raise_errors([wire.reply() for _ in range(4)])
        answer = self._demand(guard.probe(state.top))
        if not isinstance(answer, list):
            raise self._closed(state.top, answer, same_server=False)
        self._mute_replies()
        self._confirm()
        return state

    def _send(self, transaction: Batch) -> EntryId:
        """Sends a whole transaction; returns the last ID that it follows."""
        before, self._top = self._top, transaction.ids[1]
        question = self._guard.probe(self._top) + self._waits(transaction)
        self._transact(transaction, self._guard.begin(before), self._guard.commit, question)
        return before

    def _accepted(self, transaction: Batch, before: EntryId) -> int:
        in_step, answer = self._answer(transaction)
        if not isinstance(answer, list):
            raise self._reason(transaction, before, answer)
        length, added, top = answer
        if not in_step or top != str(transaction.ids[1]).encode():
            raise self._out_of_step()
        if self._waits(transaction):
            self._check_replicas()
        if self._added is not None:
            self._added += transaction.rows
            if added != self._added:
                raise StreamError(
                    f"stream {self._stream.name!r} had {counted(added, 'entry')} after {transaction.ids[1]}, expected "
                    f"{self._added:,}. Redis refused a row, or another client changed the stream with XSETID. Run `ucs "
                    "verify`.",
                    "UCS-STREAM-CHANGED",
                )
        return int(length)

    def _reason(self, transaction: Batch, before: EntryId, answer: "bytes | hiredis.ReplyError") -> Exception:
        """Why a transaction was not accepted, from the answer to its probe."""
        if isinstance(answer, hiredis.ReplyError):
            return self._stream.named(classify(str(answer)))
        return self._refusal(transaction, before) if answer == str(before).encode() else self._closed(before, answer)

    def _closed(self, before: EntryId, found: bytes, *, same_server: bool = True) -> Exception:
        """Why a guard is closed, from its answer instead of the last ID.

        `same_server`: asked over the publisher's own connection. Another connection may lead to another server.
        """
        if found == FENCED:
            return FencedError()
        if found == LOST:
            return StreamUnavailableError(
                f"stream {self._stream.name!r}: its writer key {self._guard.fence.decode()!r} is gone. Redis lost the "
                "key, or a client deleted it with FLUSHALL or DEL. Wait for the next attempt.",
                "UCS-ENTRIES-LOST",
            )
        try:
            top = None if found == GONE else EntryId.parse(found)
        except ValueError:
            return self._out_of_step()
        if top and top > before:
            return StreamUnavailableError(
                f"stream {self._stream.name!r}: another client has written to it: its last ID is {top}, expected "
                f"{before}. Stop that client.",
                "UCS-OTHER-WRITER",
            )
        if (top and top > START) or not same_server:
            # A stream that was deleted and created again has no last ID. The next attempt compares the stream with the
            # table, and refuses rows of other clients.
            return self._stream.lost(before, top)
        return StreamError(
            f"stream {self._stream.name!r} was deleted while it was written, and the run stopped so as not to leave a "
            "gap. Stop other runs of this feed, then publish it from its first brick.",
            "UCS-STREAM-CHANGED",
        )

    def _refusal(self, transaction: Batch, before: EntryId) -> Exception:
        """The error of a refused transaction, from sending it again with replies on."""
        replies = self._replay_verbosely(transaction, self._guard.begin(before), self._guard.commit)
        executed = replies[-1]
        if isinstance(executed, list) and isinstance(executed[0], bytes) and executed[0] != str(before).encode():
            # The guard has closed since: errors about the rows concern the text in the stream's place.
            return self._closed(before, executed[0], same_server=False)
        return self._error(replies) or self._refused_for_a_moment()

    def _waits(self, transaction: Batch) -> bytes:
        """The WAIT after a transaction that ends a brick, or begins the next one."""
        if not self._min_replicas:
            return b""
        parts = transaction.entries.within(transaction.start, transaction.stop)
        return self._wait() if any(part.first.row == 1 for part in parts) else b""
