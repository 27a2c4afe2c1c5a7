"""Appends rows of an any-order feed: transactions, many in flight at once, each behind a guard (see `guard`).

One answer after each transaction proves it: the brick's head in the ledger, which only the rows' own transaction
writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import hiredis

from ucs_pipeline.entries.batches import TRANSACTION_ROWS, Batch
from ucs_pipeline.entries.resp import command
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redis_keys import fencing_token_key, ledger_key
from ucs_pipeline.publishing.any_order.guard import DOUBT, FULL, GONE, MOVED, OPEN, LedgerGuard, refuse_numbering
from ucs_pipeline.publishing.pipeline import AROUND_ROWS, PipelinedPublisher, RivalError
from ucs_pipeline.redis.connection import classify
from ucs_pipeline.stream.ledger import Ledger, LedgerEntry, ResumePoint, numbering_text
from ucs_pipeline.stream.stream import RedisStream


class MovedError(RivalError):
    """The ledger has another state of a brick than expected: another publisher works on it."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start
        """Start of the partition."""


@dataclass(frozen=True)
class PartitionBatch(Batch):
    """Consecutive rows of one partition."""

    partition: int
    """Its start."""
    end: int | None = None
    """Index after the partition's last row, if the entries have it."""

    @property
    def ends(self) -> bool:
        """Whether the partition ends with these rows."""
        return self.stop == self.end


class _Sent(NamedTuple):
    """The expected result of a transaction in flight, and the number of its probe."""

    expected: bytes
    head: bytes
    begins: bool
    number: int


class LedgerPublisher(PipelinedPublisher[PartitionBatch, _Sent]):
    """Appends transactions over one connection, each only if the ledger has the result of the previous one."""

    def __init__(self, feed: Feed, stream: RedisStream) -> None:
        """Creates stream and ledger if they do not exist; `lost`: whether the ledger was lost."""
        super().__init__(stream, feed.stream.min_replicas)
        self._feed = feed
        self._ledger = ledger_key(stream.name, feed.name)
        # Publishing waits at `max_len`, by the latest known length. Other clients write meanwhile: a guard with that
        # limit would refuse rows that just fitted.
        most = feed.stream.max_len + min(TRANSACTION_ROWS, feed.stream.max_len // 10)
        self._guard = LedgerGuard(stream.name, feed.name, most)
        self._numbers = count(1)
        self._current: int | None = None
        self._expected, self._account = b"", LedgerEntry()
        self._openings: Mapping[int, ResumePoint] = {}
        self.finished: dict[int, LedgerEntry] = {}
        try:
            self.lost = self._begin()
        except BaseException:
            self.close()
            raise

    finished: dict[int, LedgerEntry]
    """The ledger's entries of partitions that this publisher has finished, by start."""

    lost: int
    """The number of fields of the ledger before its stream was lost; it is empty now."""

    def open(self, openings: Mapping[int, ResumePoint]) -> None:
        """Sets the resume points of the next partitions, by start."""
        self._openings, self._current = openings, None

    def finish(self, start: int) -> None:
        """Marks a partition whose rows are all in the stream as done.

        Raises:
            MovedError: the ledger has changed.
            StreamError: Redis refuses or cannot be reached.
        """
        expected, account = self._openings[start]
        brick, head = self._name(start), account._replace(done=True).head
        begin, commit = self._guard.begin(brick, expected, 0), self._guard.commit(brick, head, 0, begins=False)
        self._raise_refusal(start, self._replies(begin + commit))
        self.finished[start] = account._replace(done=True)

    def _begin(self) -> int:
        guard, fence = self._guard, fencing_token_key(self._stream.name)
        self._refuse_taken(guard.parked)
        if self._demand(command(b"EXISTS", fence.encode())):
            raise StreamError(
                f"feed {self._feed.name!r}: stream {self._stream.name!r} was written by an ordered feed, which owns "
                f"key {fence!r} and keeps no ledger. Choose another `stream.name`, or, if no ordered feed writes to "
                "the stream any more, delete that key.",
                "UCS-FOREIGN-ENTRY",
            )
        partitions = numbering_text(self._feed)
        begun = self._demand(guard.prepare(partitions))
        if begun == DOUBT:
            # Raises the error, unless the cause is gone.
            Ledger(self._feed, self._stream).rows()
            raise StreamUnavailableError(
                f"stream {self._stream.name!r} was changed by another client while it was read. Wait for the next "
                "attempt.",
                "UCS-OTHER-WRITER",
            )
        found, lost = begun
        refuse_numbering(self._feed.name, self._ledger, found, partitions)
        # Two empty transactions, through an open and a closed guard, prove before any row that this user has all
        # rights.
        for expected in (b"", b"something else"):
            self._raise_errors(self._replies(guard.begin(b"", expected, 0) + guard.commit(b"", b"", 0, begins=False)))
        self._demand(guard.probe(b"", 0))
        self._mute_replies()
        self._confirm()
        return int(lost)

    def _send(self, transaction: PartitionBatch) -> _Sent:
        start, entries = transaction.partition, transaction.entries
        if start == self._current:
            expected = self._account.head
        else:
            self._current = start
            expected, self._account = self._openings[start]
        before = self._account
        content = entries.content_hash(transaction.start, transaction.stop)
        self._account = before.plus(transaction.rows, content, done=transaction.ends)
        sent = _Sent(expected, self._account.head, before.rows == 0, next(self._numbers))
        question = self._guard.probe(self._name(start), sent.number)
        if self._waits(transaction):
            question += self._wait()
        self._transact(transaction, *self._around(transaction, sent), question)
        return sent

    def _accepted(self, transaction: PartitionBatch, sent: _Sent) -> int:
        in_step, answer = self._answer(transaction)
        if isinstance(answer, hiredis.ReplyError):
            raise self._stream.named(classify(str(answer)))
        if not in_step or not isinstance(answer, list) or answer[-1] != b"%d" % sent.number:
            raise self._out_of_step()
        length, text, _ = answer
        if not text.startswith(sent.head):
            unchanged = text.startswith(sent.expected) if sent.expected else not text
            raise self._refusal(transaction, sent) if unchanged else MovedError(transaction.partition)
        if self._waits(transaction):
            self._check_replicas()
        if transaction.ends:
            self.finished[transaction.partition] = LedgerEntry.parse(text)
        return int(length)

    def _refusal(self, transaction: PartitionBatch, sent: _Sent) -> Exception:
        """The error of a refused transaction, from sending it again with replies on."""
        try:
            self._raise_refusal(
                transaction.partition, self._replay_verbosely(transaction, *self._around(transaction, sent))
            )
        except (MovedError, StreamError) as error:
            return error
        return self._refused_for_a_moment()

    def _raise_refusal(self, start: int, replies: list[Any]) -> None:
        """Raises the error in a transaction's own replies."""
        done = replies[-1]
        verdict = done[0] if isinstance(done, list) else OPEN
        if verdict == MOVED:
            raise MovedError(start)
        if verdict == GONE:
            # The next attempt reads both again, as a launch does: it starts again after a loss, and refuses doubt.
            raise StreamUnavailableError(
                f"stream {self._stream.name!r} or its ledger {self._ledger!r} is gone or replaced, and no further row "
                "was added. Redis lost it in a failover, or a client deleted, restored, renamed or copied over it. "
                "Wait: the next attempt publishes the missing rows.",
                "UCS-ENTRIES-LOST",
            )
        if verdict == FULL:
            raise StreamUnavailableError(
                f"stream {self._stream.name!r} is full: other clients have filled it beyond max_len "
                f"{self._feed.stream.max_len:,}. Trim it, or raise `stream.max_len`.",
                "UCS-STREAM-FULL",
            )
        self._raise_errors(replies)

    def _around(self, transaction: PartitionBatch, sent: _Sent) -> tuple[bytes, bytes]:
        brick, rows = self._name(transaction.partition), transaction.rows
        begin = self._guard.begin(brick, sent.expected, rows)
        return begin, self._guard.commit(brick, sent.head, rows, begins=sent.begins)

    def _replies(self, transaction: bytes) -> list[Any]:
        """The replies to a transaction without rows."""
        self._wire.send([self._with_replies(transaction)])
        if self._quiet:
            self._wire.reply()
        return [self._wire.reply() for _ in range(AROUND_ROWS)]

    def _waits(self, transaction: PartitionBatch) -> bool:
        return bool(self._min_replicas and transaction.ends)

    def _name(self, start: int) -> bytes:
        return self._feed.partitions.name(start).encode()
