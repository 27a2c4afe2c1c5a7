"""Any order of publishers, workers and accidents on one stream: what is in it is always a prefix of the feed."""

import itertools
import time
from collections.abc import Generator, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ucs_pipeline.entries.batches import Batch
from ucs_pipeline.entries.encode import Entries, encode
from ucs_pipeline.entries.entry_id import START, EntryId
from ucs_pipeline.entries.resp import command
from ucs_pipeline.errors import StreamError
from ucs_pipeline.publishing.ordered.publisher import FencedError, Publisher
from ucs_pipeline.redis.raw_connection import RawConnection
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.tables import expected, numbers, source_of

ROWS, STEP = 40, 2_500
FEED = expected(ROWS, STEP)
IDS = [entry_id for entry_id, _ in FEED]
_names = itertools.count()
ALL = (EntryId(0, 0), EntryId(2**63, 0))


def settle(wire: RawConnection, client: Any) -> None:
    """Returns when Redis has done with all that was sent. Before that, two reads could differ."""
    name = f"settled-{next(_names)}"
    wire.send([command(b"CLIENT", b"SETNAME", name.encode())])
    while name not in {other["name"] for other in client.client_list()}:
        time.sleep(0.001)


class Writer:
    """A publisher that continues from its own last ID, possibly an old one."""

    def __init__(self, stream: OrderedStream, entries: Entries) -> None:
        self.publisher = Publisher(stream)
        top = self.publisher.state.top
        self._next = 0 if top == START else IDS.index(top) + 1
        self._entries = entries
        self._client: Any = stream.client
        self._sizes: list[int] = []
        self._going: Generator[Any, None, None] | Iterator[Any] = self.publisher.publish(self._transactions())
        self._held = False

    def _transactions(self) -> Iterator[Batch]:
        for position in itertools.count():
            stop = min(self._next + self._sizes[position], ROWS)
            if stop == self._next:
                return
            yield Batch(self._entries, self._next, stop)
            self._next = stop

    def step(self, rows: int) -> None:
        """Sends some transactions at first and then one more each time, and waits for the first one under way."""
        self._sizes += [rows] * 10
        next(self._going, None)

    def settle(self) -> None:
        """Returns when Redis has done with all that was sent."""
        settle(self.publisher._wire, self._client)

    def hold(self) -> None:
        """Sends rows, but not what ends their transaction: the next step, if any, does."""
        if self._next < ROWS:
            rows = self._entries.requests.rows(self._next, self._next + 1)
            gate = self.publisher._guard
            self.publisher._wire.send([gate.begin(IDS[self._next - 1] if self._next else START), rows])
            self._held = True

    def release(self) -> None:
        """Sends the end that was held back."""
        if self._held:
            self.publisher._wire.send([self.publisher._guard.commit, command(b"CLIENT", b"REPLY", b"ON")])
            self.publisher._wire.reply()


def machine(server: RedisServer, entries: Entries) -> type[RuleBasedStateMachine]:
    """The state machine on this server."""
    client = server.client()

    class Publishers(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            client.flushall()
            self.stream = OrderedStream("feed", client)
            self.writers: list[Writer] = []
            self.held: list[Writer] = []
            self.trimmed = False

        @rule()
        def a_publisher_takes_over(self) -> None:
            self.writers.append(Writer(self.stream, entries))

        @precondition(lambda self: self.writers)
        @rule(data=st.data(), rows=st.integers(1, 7))
        def a_publisher_publishes(self, data: st.DataObject, rows: int) -> None:
            writer = data.draw(st.sampled_from(self.writers))
            try:
                writer.step(rows)
            except (FencedError, StreamError):
                self.writers.remove(writer)
                writer.settle()
                writer.publisher.close()
            else:
                writer.settle()

        @precondition(lambda self: self.writers)
        @rule(data=st.data(), rows=st.integers(1, 7))
        def redis_refuses_rows(self, data: st.DataObject, rows: int) -> None:
            client.config_set("maxmemory", 1)
            try:
                self.a_publisher_publishes(data, rows)
            finally:
                client.config_set("maxmemory", 0)

        @precondition(lambda self: self.writers)
        @rule(data=st.data())
        def a_publisher_freezes_inside_a_transaction(self, data: st.DataObject) -> None:
            writer = data.draw(st.sampled_from(self.writers))
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

        @rule(keep=st.integers(0, 20))
        def somebody_trims(self, keep: int) -> None:
            self.trimmed |= self.stream.state().length > keep
            client.xtrim("feed", maxlen=keep, approximate=False)

        @rule(again=st.booleans())
        def somebody_deletes_the_stream(self, again: bool) -> None:
            client.delete("feed")
            self.trimmed = False
            if again:
                client.xgroup_create("feed", "workers", mkstream=True)

        @rule(keep=st.integers(0, ROWS))
        def redis_loses_the_end(self, keep: int) -> None:
            kept = self.stream.entries(*ALL)[:keep]
            client.delete("feed")
            for entry_id, fields in kept:
                client.xadd("feed", fields, id=str(entry_id))
            self.trimmed &= bool(kept)

        @invariant()
        def the_stream_is_a_prefix_of_the_feed(self) -> None:
            state, found = self.stream.state(), self.stream.entries(*ALL)
            end = 0 if state.top == START else IDS.index(state.top) + 1
            assert found == FEED[end - len(found) : end]
            assert self.trimmed or len(found) == end
            assert client.exists("{feed}:writer:aside") == 0

        def teardown(self) -> None:
            for writer in self.writers + self.held:
                writer.publisher.close()

    return Publishers


def test_whatever_happens_in_whatever_order_the_stream_is_a_prefix_of_the_feed(
    redis_server: RedisServer,
) -> None:
    feed = numbers(ROWS, STEP).feed(ROWS * STEP)
    [entries] = encode(b"feed", source_of(feed).scan(feed.ordinals[0], feed.ordinals[-1]))
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
