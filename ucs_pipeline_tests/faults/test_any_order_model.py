"""Any order of publishers, other producers and accidents on one stream: it has the ledger's rows, each once."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ucs_pipeline.entries.encode import Entries, UnnumberedEntries, encode
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError
from ucs_pipeline.publishing.any_order.publisher import LedgerPublisher, MovedError, PartitionBatch
from ucs_pipeline.stream.ledger import Ledger, LedgerEntry, ResumePoint
from ucs_pipeline.stream.stream import RedisStream
from ucs_pipeline_tests.faults.test_model import settle
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.tables import expected, numbers, source_of

ROWS, STEP, BRICKS = 10, 2_000, 2
FEED = numbers(ROWS, STEP).feed(BRICKS * 10_000 - 1, stream={"order": "any"})
KEYS = ("feed", "{feed}:ledger:feed")
ALL = (EntryId(0, 0), EntryId(2**63, 0))
WHOLE: Mapping[int, list[dict[bytes, bytes]]] = {
    brick: [fields for entry_id, fields in expected(ROWS, STEP) if entry_id.ordinal == brick] for brick in range(BRICKS)
}


class Writer:
    """A publisher of one brick, which continues from its own state, possibly an old one."""

    def __init__(self, stream: RedisStream, entries: Entries, brick: int) -> None:
        self.publisher = LedgerPublisher(FEED, stream)
        self._client: Any = stream.client
        account = Ledger(FEED, stream).accounts([brick]).get(brick)
        self._opening = ResumePoint(account.head, account) if account else ResumePoint(b"", LedgerEntry())
        if account and account.done:
            self._opening = ResumePoint(account.head, account.again("somebody"))
        self._brick, self._entries = brick, entries
        self._start, self._end = next(
            (segment.start, segment.stop) for segment in entries.segments if segment.first.ordinal == brick
        )
        self._next = self._start + self._opening.account.rows
        self._sizes: list[int] = []
        self.publisher.open({brick: self._opening})
        self._going = self.publisher.publish(self._parts())
        self._withheld = b""

    def _parts(self) -> Iterator[PartitionBatch]:
        for position in itertools.count():
            stop = min(self._next + self._sizes[position], self._end)
            if stop == self._next:
                return
            yield PartitionBatch(self._entries, self._next, stop, self._brick, self._end)
            self._next = stop

    def step(self, rows: int) -> None:
        """Sends some transactions at first and then one more each time, and waits for the first one under way."""
        self._sizes += [rows] * 10
        next(self._going, None)

    def settle(self) -> None:
        """Returns when Redis has done with all that was sent."""
        settle(self.publisher._wire, self._client)

    def hold(self) -> None:
        """Sends the first row that it believes to be missing, but not what ends its transaction."""
        first = self._start + self._opening.account.rows
        if first < self._end:
            name, gate, account = f"0.0.0.{self._brick}".encode(), self.publisher._guard, self._opening.account
            content = self._entries.content_hash(first, first + 1)
            after = account.plus(1, content, done=first + 1 == self._end)
            rows = self._entries.requests.rows(first, first + 1)
            self.publisher._wire.send([gate.begin(name, self._opening.expected, 1), rows])
            self._withheld = gate.commit(name, after.head, 1, begins=account.rows == 0)

    def release(self) -> None:
        """Sends the end that was held back."""
        if self._withheld:
            self.publisher._wire.send([self._withheld])
            self.settle()


def machine(server: RedisServer, entries: Entries) -> type[RuleBasedStateMachine]:
    """The state machine on this server."""
    client = server.client()

    class Publishers(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            client.flushall()
            self.stream = RedisStream("feed", client)
            self.writers: list[Writer] = []
            self.held: list[Writer] = []
            self.trimmed = False
            self.saved: list[tuple[list[bytes | None], bool]] = []
            self.doubtful: object = None
            # Without mark and ledger both, all is published once more: that is how a user asks for it.
            self.unmarked = False

        def writer(self, data: st.DataObject) -> Writer | None:
            """One that has begun before or begins now; None if it may not."""
            which = data.draw(st.integers(-BRICKS, len(self.writers) - 1))
            if which < 0:
                self.begin(-1 - which)
            return self.writers[max(which, -1)] if self.writers else None

        def begin(self, brick: int) -> None:
            """One begins, unless stream and ledger do not belong together."""
            try:
                self.writers.append(Writer(self.stream, entries, brick))
            except StreamError as error:
                assert "do not belong together" in str(error)  # noqa: PT017 - of some that begin, not of all

        def step(self, writer: Writer | None, rows: int) -> None:
            """One that has failed does not continue."""
            if writer is None:
                return
            try:
                writer.step(rows)
            except (MovedError, StreamError):
                self.writers.remove(writer)
                writer.settle()
                writer.publisher.close()
            else:
                writer.settle()

        @rule(brick=st.integers(0, BRICKS - 1), number=st.integers(1, 3))
        def publishers_begin(self, brick: int, number: int) -> None:
            for _ in range(number):
                self.begin(brick)

        @rule(data=st.data(), rows=st.integers(1, 5))
        def a_publisher_publishes(self, data: st.DataObject, rows: int) -> None:
            self.step(self.writer(data), rows)

        @rule(data=st.data(), rows=st.integers(1, 5))
        def redis_refuses_rows(self, data: st.DataObject, rows: int) -> None:
            writer = self.writer(data)
            client.config_set("maxmemory", 1)
            try:
                self.step(writer, rows)
            finally:
                client.config_set("maxmemory", 0)

        @rule(data=st.data())
        def a_publisher_freezes_inside_a_transaction(self, data: st.DataObject) -> None:
            if writer := self.writer(data):
                self.writers.remove(writer)
                writer.hold()
                self.held.append(writer)

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def a_frozen_publisher_wakes_up(self, data: st.DataObject) -> None:
            writer = data.draw(st.sampled_from(self.held))
            self.held.remove(writer)
            writer.release()
            writer.publisher.close()

        @rule()
        def somebody_else_writes(self) -> None:
            client.xadd("feed", {"who": "somebody else"})

        @rule(keep=st.integers(0, 20))
        def somebody_trims(self, keep: int) -> None:
            self.doubtful = None
            self.trimmed |= self.stream.state().length > keep
            client.xtrim("feed", maxlen=keep, approximate=False)

        @precondition(lambda self: not self.unmarked)
        @rule()
        def redis_saves(self) -> None:
            self.saved.append(([client.dump(key) for key in KEYS], self.trimmed))

        @precondition(lambda self: self.saved)
        @rule(data=st.data(), which=st.sampled_from([KEYS, KEYS[:1], KEYS[1:]]))
        def redis_goes_back_to_what_it_saved_of_both_or_of_one(
            self, data: st.DataObject, which: tuple[str, ...]
        ) -> None:
            dumps, trimmed = data.draw(st.sampled_from(self.saved))
            if KEYS[0] in which:
                self.trimmed, self.unmarked = trimmed, False
            elif self.unmarked:
                return
            self.doubtful = None
            for key, dump in zip(KEYS, dumps, strict=True):
                if key in which:
                    client.delete(key)
                    if dump is not None:
                        client.restore(key, 0, dump)

        @rule(again=st.booleans())
        def somebody_deletes_the_stream_and_a_publisher_begins(self, again: bool) -> None:
            client.delete("feed")
            if again:
                client.xgroup_create("feed", "workers", mkstream=True)
            self.trimmed, self.unmarked, self.doubtful = False, False, None
            self.saved.clear()
            LedgerPublisher(FEED, self.stream).close()

        @rule(others=st.integers(0, 2 * ROWS), keep=st.integers(0, 2 * ROWS))
        def others_write_to_the_name_of_a_deleted_stream(self, others: int, keep: int) -> None:
            client.delete("feed")
            for _ in range(others):
                client.xadd("feed", {"who": "somebody else"})
            client.xtrim("feed", maxlen=keep, approximate=False)
            self.trimmed, self.unmarked, self.doubtful = False, False, None

        @rule()
        def somebody_destroys_the_mark(self) -> None:
            if client.exists(*KEYS) == len(KEYS):
                self.unmarked |= client.xgroup_destroy("feed", "ucs:ledger:feed") > 0

        @rule()
        def somebody_deletes_the_ledger(self) -> None:
            if not self.unmarked:
                client.delete(KEYS[1])

        @invariant()
        def the_stream_has_what_the_ledger_says_or_nothing_is_added(self) -> None:
            found: dict[int, list[dict[bytes, bytes]]] = {brick: [] for brick in WHOLE}
            for _, fields in self.stream.entries(*ALL):
                if b"id" in fields:
                    found[int(fields[b"id"]) // 10_000].append(fields)
            assert client.exists("{feed}:writer:aside") == 0
            before, self.doubtful = self.doubtful, None
            try:
                accounts = Ledger(FEED, self.stream).accounts(range(BRICKS))
            except StreamError:
                assert before in (None, found)
                self.doubtful = found
                return
            for brick, rows in WHOLE.items():
                account = accounts.get(brick, LedgerEntry())
                wanted = rows * account.replay + rows[: account.rows]
                assert found[brick] == wanted[len(wanted) - len(found[brick]) :]
                assert self.trimmed or len(found[brick]) == len(wanted)
                assert account.done == (account.rows == len(rows))

        def teardown(self) -> None:
            for writer in self.writers + self.held:
                writer.publisher.close()

    return Publishers


def test_whatever_happens_in_whatever_order_the_stream_has_what_the_ledger_says(redis_server: RedisServer) -> None:
    [entries] = encode(b"feed", source_of(FEED).scan(0, BRICKS - 1), UnnumberedEntries)
    run_state_machine_as_test(
        machine(redis_server, entries),
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
