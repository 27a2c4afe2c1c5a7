"""Bricks from a table into a stream: accidents, races and refusals, and what the next pass makes of them."""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from ucs_pipeline.entries.batches import cut
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.publishing.brick_results import BrickReport, ConfirmedBatch
from ucs_pipeline.publishing.ordered.publisher import Publisher
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.faults.proxy import Proxy
from ucs_pipeline_tests.servers.redis_cluster import wait_until
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.accidents import at
from ucs_pipeline_tests.support.tables import Table, expected, numbers, source_of

ALL = (EntryId(0, 0), EntryId(2**63, 0))


@pytest.fixture
def stream(redis_server: RedisServer) -> OrderedStream:
    return OrderedStream("feed", redis_server.client())


def _move(
    table: Table,
    stream: OrderedStream,
    last: int,
    wanted: range | None = None,
    log: Callable[[str], None] = lambda _: None,
    timeout_s: float = 60,
    watch: Callable[[ConfirmedBatch], None] = lambda _: None,
    min_replicas: int = 0,
    order: str = "strict",
) -> Iterator[BrickReport]:
    feed = table.feed(last, stream={"timeout_s": timeout_s, "min_replicas": min_replicas, "order": order})
    return publish(feed, source_of(feed), stream, wanted or feed.ordinals, lambda _: {}, log, watch)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# Refusals


@pytest.mark.parametrize("wanted", [range(2, 4), range(2, 3), range(2)])
def test_a_foreign_entry_far_inside_the_list_does_not_pass_for_progress(stream: OrderedStream, wanted: range) -> None:
    # Bricks below the top count as published, so a top that is not the feed's must not vouch for them.
    table = numbers(60_000)
    list(_move(table, stream, 59_999, range(2)))
    stream.client.xadd("feed", {"who": "somebody else"}, id="4-1")
    with pytest.raises(StreamError, match=r"entry 4-1 of stream 'feed' differs from the table.*somebody else"):
        list(_move(table, stream, 59_999, wanted))
    assert stream.state().length == 20_001


def test_a_foreign_entry_beyond_the_list_is_said_where_nothing_is_to_be_published(stream: OrderedStream) -> None:
    feed, said = numbers(20_000).feed(19_999), list[str]()
    source = source_of(feed)
    done = {report.ordinal: report for report in publish(feed, source, stream, feed.ordinals, lambda _: {})}
    assert list(publish(feed, source, stream, feed.ordinals, lambda _: done, said.append)) == list(done.values())
    assert said == []
    stream.client.xadd("feed", {"who": "somebody else"}, id="99999999-1")
    assert list(publish(feed, source, stream, feed.ordinals, lambda _: done, said.append)) == list(done.values())
    [sentence] = said
    assert "the last ID of stream 'feed' is 99999999-1, beyond the feed's bricks 0.0.0.0 to 0.0.0.1" in sentence
    assert "All bricks of this run are published" in sentence


def test_a_foreign_entry_behind_the_last_row_of_a_brick_is_refused(stream: OrderedStream) -> None:
    table = numbers(30_000)
    list(_move(table, stream, 29_999, range(1)))
    stream.client.xadd("feed", {"who": "somebody else"}, id="0-20000")
    with pytest.raises(StreamError, match=r"has 10,000 rows in the table and 20,000 in stream 'feed'"):
        list(_move(table, stream, 29_999, range(1, 3)))
    assert stream.state().length == 10_001


def test_another_program_that_keeps_writing_is_named_and_not_waited_for(stream: OrderedStream) -> None:
    adds = at(50_000, lambda: stream.client.xadd("feed", {"who": "somebody else"}))
    with pytest.raises(StreamError, match=r"Another client wrote to the stream.*Choose another `stream.name`"):
        list(_move(numbers(100_000), stream, 99_999, watch=adds))


def test_a_worker_that_makes_a_deleted_stream_again_causes_no_half_stream(stream: OrderedStream) -> None:
    def make_again() -> None:
        stream.client.delete("feed")
        stream.client.xgroup_create("feed", "workers", mkstream=True)

    with pytest.raises(StreamError, match="was deleted while it was written"):
        list(_move(numbers(100_000), stream, 99_999, watch=at(50_000, make_again)))
    assert stream.state().length == 0


def test_a_late_row_in_an_unrecorded_brick_below_the_top_is_refused(stream: OrderedStream) -> None:
    table = numbers(25_000)
    list(_move(table, stream, 29_999))
    table.run(f"INSERT INTO {table.name} VALUES (9999, 'zzz')")
    with pytest.raises(StreamError, match=r"brick 0\.0\.0\.0 has 10,001 rows in the table and 10,000 in stream 'feed'"):
        list(_move(table, stream, 29_999))


def test_a_list_that_now_begins_earlier_does_not_pass_for_published(stream: OrderedStream) -> None:
    table = numbers(80, 1_000)
    later = table.feed(79_999, bricks={"class": "number", "first": 50_000, "last": 79_999})
    list(publish(later, source_of(later), stream, later.ordinals, lambda _: {}))
    with pytest.raises(StreamError, match=r"brick 0\.0\.0\.0 has 10 rows in the table and 0 in stream 'feed'"):
        list(_move(table, stream, 79_999, range(5)))
    assert stream.state().length == 30


def test_late_rows_in_an_unrecorded_brick_without_any_are_refused(stream: OrderedStream) -> None:
    table = Table("id UInt64", "SELECT arrayJoin([1, 2, 20001, 20002])")
    list(_move(table, stream, 29_999))
    table.run(f"INSERT INTO {table.name} VALUES (10001), (10002)")
    with pytest.raises(StreamError, match=r"brick 0\.0\.0\.1 has 2 rows in the table and 0 in stream 'feed'"):
        list(_move(table, stream, 29_999))


def test_late_rows_in_a_recorded_brick_without_any_do_not_stop_the_next(stream: OrderedStream) -> None:
    table = Table("id UInt64", "SELECT arrayJoin([1, 2])")
    records = {report.ordinal: report for report in _move(table, stream, 19_999)}
    table.run(f"INSERT INTO {table.name} VALUES (10001), (20001)")
    feed = table.feed(29_999)
    [report] = publish(feed, source_of(feed), stream, range(2, 3), lambda _: records)
    assert (report.ordinal, report.rows) == (2, 1)
    assert [entry_id for entry_id, _ in stream.entries(*ALL)] == [(0, 1), (0, 2), (2, 1)]


def test_a_row_that_went_away_before_a_small_brick_is_refused_in_a_sentence(stream: OrderedStream) -> None:
    table = Table("id UInt64", "SELECT arrayJoin([1, 2, 3, 10001, 10002])")
    list(_move(table, stream, 19_999))
    table.run(f"ALTER TABLE {table.name} DELETE WHERE id = 3 SETTINGS mutations_sync = 2")
    with pytest.raises(StreamError, match=r"entry 0-3 of stream 'feed' differs from the table.*Table: no such row"):
        list(_move(table, stream, 19_999))


# Ends


def test_bricks_beyond_the_keys_type_are_empty(stream: OrderedStream) -> None:
    table = Table("id UInt8, v String", "SELECT number, 'v' FROM numbers(256)", order_by="id")
    reports = list(_move(table, stream, 49_999))
    assert [(report.ordinal, report.rows) for report in reports] == [(0, 256), (1, 0), (2, 0), (3, 0), (4, 0)]


def test_rows_beyond_the_lists_end_stay_out_and_the_last_brick_is_whole(stream: OrderedStream) -> None:
    reports = list(_move(numbers(45_000), stream, 12_000))
    assert [report.rows for report in reports] == [10_000, 10_000]
    assert stream.entries(*ALL) == expected(20_000)


def test_an_empty_table_makes_an_empty_stream(stream: OrderedStream) -> None:
    assert [report.rows for report in _move(numbers(0), stream, 29_999)] == [0, 0, 0]
    assert stream.state().length == 0


def test_a_crash_between_the_rows_and_their_record_doubles_nothing(stream: OrderedStream) -> None:
    table = numbers(25_000)
    _ = list(_move(table, stream, 29_999, range(2)))
    reports = list(_move(table, stream, 29_999))
    assert [(report.rows, report.published) for report in reports] == [(10_000, 0), (10_000, 0), (5_000, 5_000)]
    assert (reports[0].length_before, reports[0].bytes, reports[2].length_before) == (None, 0, 20_000)
    assert stream.entries(*ALL) == expected(25_000)


def test_a_brick_half_there_is_counted_as_half_published(stream: OrderedStream) -> None:
    table = numbers(12_000)
    feed = table.feed(19_999)
    [entries] = encode(b"feed", source_of(feed).scan(0, 1))
    with Publisher(stream) as publisher:
        list(publisher.publish(cut(entries, 0, 10_700)))
    reports = list(_move(table, stream, 19_999))
    assert [(report.rows, report.published) for report in reports] == [(10_000, 0), (2_000, 1_300)]
    assert (reports[1].length_before, reports[1].length_after) == (10_700, 12_000)
    assert (reports[1].first_entry, reports[1].last_entry) == (EntryId(1, 1), EntryId(1, 2_000))


# Interruptions


def test_a_full_redis_that_a_worker_empties_loses_nothing(tmp_path: Path) -> None:
    with RedisServer(tmp_path, {"maxmemory-policy": "noeviction"}) as server:
        client = server.client()
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
        reader, read = server.client(), list[EntryId]()

        def work(text: str = "") -> None:
            assert not text or "out of memory" in text
            found = reader.xrange("feed", f"({read[-1]}" if read else "-")
            read.extend(EntryId.parse(entry_id) for entry_id, _ in found)
            reader.xtrim("feed", minid=str(read[-1]), approximate=False)

        rows = 80_000
        # The worker begins only when the publisher logs that it waits.
        reports = list(_move(numbers(rows), OrderedStream("feed", server.client()), rows - 1, log=work))
        assert 0 < len(read) < rows
        work()
        assert sum(report.rows for report in reports) == rows
        assert read == [entry_id for entry_id, _ in expected(rows)]


@pytest.mark.parametrize("fault", ["maxmemory", "min-replicas-to-write", "kill"])
def test_refusals_that_pass_leave_no_hole_and_are_overcome(stream: OrderedStream, fault: str) -> None:
    over, generator = threading.Event(), random.Random(3)
    client: Any = stream.client
    read: list[str] = []

    def disturb() -> None:
        for _ in range(8):
            if over.wait(0.05 + generator.random() * 0.3):
                return
            if fault == "kill":
                client.client_kill_filter(_type="normal", skipme=True)
            else:
                client.config_set(fault, 1)
                time.sleep(generator.random() * 0.02)
                client.config_set(fault, 0)

    try:
        with _thread(disturb, over):
            reports = list(_move(numbers(100_000), stream, 99_999, log=read.append))
    finally:
        if fault != "kill":
            client.config_set(fault, 0)
    assert sum(report.rows for report in reports) == 100_000
    assert stream.entries(*ALL) == expected(100_000)


def test_a_restart_in_the_middle_is_overcome(tmp_path: Path) -> None:
    with RedisServer(tmp_path, {"appendonly": "yes", "appendfsync": "always"}) as server:
        stream = OrderedStream("feed", server.client())
        told: list[str] = []

        def log(text: str) -> None:
            told.append(text)
            if len(told) == 3:
                server.start()

        reports = list(_move(numbers(100_000), stream, 99_999, log=log, watch=at(20_000, server.kill)))
        assert [report.rows for report in reports] == [10_000] * 10
        assert stream.entries(*ALL) == expected(100_000)
        assert "cannot be reached" in told[0]


def test_a_redis_that_restarts_while_a_replaced_publisher_waits_does_not_end_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path, {"appendonly": "yes", "appendfsync": "always"}) as server:
        stream = OrderedStream("feed", server.client())
        told: list[str] = []

        def log(text: str) -> None:
            told.append(text)
            if len(told) == 1:
                server.kill()
            elif len(told) == 3:
                server.start()

        replaces = at(20_000, lambda: Publisher(stream).close())
        assert len(list(_move(numbers(100_000), stream, 99_999, log=log, watch=replaces))) == 10
        assert "another run writes to it" in told[0]
        assert "cannot be reached" in told[1]
        assert stream.entries(*ALL) == expected(100_000)


@contextmanager
def _servers(directory: Path, number: int) -> Iterator[list[RedisServer]]:
    with ExitStack() as stack:
        places = [directory / str(place) for place in range(number)]
        for place in places:
            place.mkdir()
        yield [stack.enter_context(RedisServer(place)) for place in places]


def _all(steps: Sequence[Callable[[ConfirmedBatch], None]]) -> Callable[[ConfirmedBatch], None]:
    def watch(span: ConfirmedBatch) -> None:
        for step in steps:
            step(span)

    return watch


def _follow(server: RedisServer, primary: RedisServer) -> None:
    """Makes a server the replica of another, in step with it."""
    server.client().replicaof("127.0.0.1", primary.port)
    wait_until(lambda: server.client().info("replication")["master_link_status"] == "up")


def _demote(old: RedisServer, new: RedisServer) -> None:
    _follow(old, new)


def _demote_and_promote(old: RedisServer, new: RedisServer) -> None:
    _follow(old, new)
    old.client().replicaof("NO", "ONE")


def _isolate(old: RedisServer, _: RedisServer) -> None:
    old.client().config_set("min-replicas-to-write", 1)


@pytest.mark.parametrize("order", ["strict", "any"])
@pytest.mark.parametrize("began", [True, False], ids=["lagging", "empty"])
@pytest.mark.parametrize("old", [_demote, _demote_and_promote, _isolate])
def test_a_failover_that_loses_rows_is_overcome_while_the_old_primary_keeps_its_connections(
    tmp_path: Path, old: Callable[[RedisServer, RedisServer], None], began: bool, order: str
) -> None:
    with _servers(tmp_path, 2) as (first, second), Proxy() as proxy:
        proxy.target = first.port
        _follow(second, first)

        def leave() -> None:
            if began:
                wait_until(lambda: second.client().xlen("feed") >= 20_000)
            second.client().replicaof("NO", "ONE")

        def fail_over() -> None:
            proxy.target = second.port
            old(first, second)

        if not began:
            leave()
        steps = [at(20_000, leave), at(50_000, fail_over)] if began else [at(50_000, fail_over)]
        told: list[str] = []
        with redis.Redis(port=proxy.port) as client:
            stream = OrderedStream("feed", client)
            reports = list(_move(numbers(100_000), stream, 99_999, log=told.append, watch=_all(steps), order=order))
        assert {report.ordinal: report.rows for report in reports} == dict.fromkeys(range(10), 10_000)
        found = OrderedStream("feed", second.client()).entries(*ALL)
        if order == "any":
            assert [fields for _, fields in found] == [fields for _, fields in expected(100_000)]
        else:
            assert found == expected(100_000)
        assert any(" recorded" in line and "Redis lost entries" in line for line in told)


def test_a_failover_that_loses_rows_is_overcome_with_replicas_that_confirm(tmp_path: Path) -> None:
    with _servers(tmp_path, 3) as (first, second, third), Proxy() as proxy:
        proxy.target = first.port
        _follow(second, first)
        _follow(third, first)

        def fail_over() -> None:
            _follow(third, second)
            proxy.target = second.port
            _follow(first, second)

        steps = [at(20_000, lambda: second.client().replicaof("NO", "ONE")), at(50_000, fail_over)]
        with redis.Redis(port=proxy.port) as client:
            list(_move(numbers(100_000), OrderedStream("feed", client), 99_999, watch=_all(steps), min_replicas=1))
        assert OrderedStream("feed", third.client()).entries(*ALL) == expected(100_000)


@pytest.mark.parametrize(
    ("happens", "sentence"),
    [
        ("FLUSHALL", r"its writer key '\{feed\}:writer' is gone\. Redis lost the key, or a client deleted it"),
        ("DEL {feed}:writer", r"its writer key '\{feed\}:writer' is gone"),
        ("SET {feed}:writer old", "another publisher's token under its writer key: another run writes to it, or Redis"),
    ],
)
def test_a_lost_writer_key_is_said_and_no_other_publisher_blamed(
    stream: OrderedStream, happens: str, sentence: str
) -> None:
    told: list[str] = []
    client: Any = stream.client
    loses = at(50_000, lambda: client.execute_command(*happens.split()))
    reports = list(_move(numbers(100_000), stream, 99_999, log=told.append, watch=loses))
    assert {report.ordinal: report.rows for report in reports} == dict.fromkeys(range(10), 10_000)
    assert stream.entries(*ALL) == expected(100_000)
    assert re.search(sentence, told[0])
    assert ("another publisher" in " ".join(told)) == happens.startswith("SET")


def test_time_spent_publishing_one_long_brick_is_not_time_spent_waiting(stream: OrderedStream) -> None:
    rows = 200_000
    table = Table("id UInt64, n UInt64", f"SELECT number % 10000, number FROM numbers({rows})", order_by="id")
    client: Any = stream.client
    told: list[str] = []
    kills = at(rows // 2, lambda: client.client_kill_filter(_type="normal", skipme=True))
    [report] = _move(table, stream, 9_999, log=told.append, timeout_s=0.1, watch=kills)
    assert report.rows == rows
    assert len(told) >= 1


def test_a_redis_that_stays_full_ends_the_wait_with_a_sentence(stream: OrderedStream) -> None:
    stream.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StreamUnavailableError, match=r"stream 'feed': Redis is out of memory \(maxmemory\)"):
            list(_move(numbers(10), stream, 9_999, timeout_s=0.3))
    finally:
        stream.client.config_set("maxmemory", 0)


@contextmanager
def _thread(work: Callable[[], None], over: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
