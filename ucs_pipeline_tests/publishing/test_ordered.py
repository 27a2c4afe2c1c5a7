"""The guarantee, on a real Redis and ClickHouse's own engine: once, in order, no gaps, nothing lost."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from ucs_pipeline.entries.batches import Batch, cut
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.feed.redis_keys import fencing_token_key
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.ordered.comparison import PrefixCheck
from ucs_pipeline.publishing.ordered.plan import plan
from ucs_pipeline.publishing.ordered.publisher import FencedError, Publisher
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import verify
from ucs_pipeline.stream.comparer import StreamComparer
from ucs_pipeline.stream.stream import OrderedStream, Page
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import PROJECT
from ucs_pipeline_tests.support.tables import Table, expected, numbers, source_of

ROWS = 45_000


@pytest.fixture
def stream(redis_server: RedisServer) -> OrderedStream:
    return OrderedStream("feed", redis_server.client())


def _publish(
    table: Table,
    stream: OrderedStream,
    wanted: range | None = None,
    *,
    last: int = ROWS - 1,
    records: Sequence[BrickReport] = (),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[BrickReport]:
    feed = table.feed(last, **settings)
    known = {report.ordinal: report for report in records}
    return list(publish(feed, source_of(feed), stream, wanted or feed.ordinals, lambda _: known))


def _all(stream: OrderedStream) -> list[tuple[EntryId, dict[bytes, bytes]]]:
    return stream.entries(EntryId(0, 0), EntryId(2**63, 0))


def test_every_row_arrives_once_in_order(stream: OrderedStream) -> None:
    reports = _publish(numbers(ROWS), stream)
    assert _all(stream) == expected(ROWS)
    assert [(r.ordinal, r.rows, r.published) for r in reports] == [
        (0, 10_000, 10_000),
        (1, 10_000, 10_000),
        (2, 10_000, 10_000),
        (3, 10_000, 10_000),
        (4, 5_000, 5_000),
    ]
    assert [(r.length_before, r.length_after) for r in reports][-1] == (40_000, 45_000)


def test_sparse_ids_and_empty_bricks_cost_one_report_each(stream: OrderedStream) -> None:
    reports = _publish(numbers(40, step=7_500), stream, last=399_999)
    assert _all(stream) == expected(40, step=7_500)
    assert [report.ordinal for report in reports] == list(range(40))
    assert sum(report.rows for report in reports) == 40
    assert reports[35] == BrickReport(35, 0, None, None, None, None, 0, seconds=reports[35].seconds)


def test_rows_with_one_key_have_a_total_order(stream: OrderedStream) -> None:
    table = Table("id UInt32, a Float64, b Array(UInt8)", "SELECT 5, number % 50 / 4, [number % 3] FROM numbers(3000)")
    _publish(table, stream, last=9_999)
    first = _all(stream)
    stream.client.flushall()
    again = Table("id UInt32, a Float64, b Array(UInt8)", f"SELECT * FROM {table.name} ORDER BY rand()")
    _publish(again, stream, last=9_999)
    assert _all(stream) == first
    assert len(first) == 3000


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_transfer_that_was_stopped_goes_on_where_it_was(stream: OrderedStream, stop_after: int) -> None:
    table = numbers(ROWS)
    feed = table.feed(ROWS - 1)
    going = publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {})
    done = list(itertools.islice(going, stop_after + 1))
    going.close()
    reports = _publish(table, stream, records=done)
    assert _all(stream) == expected(ROWS)
    assert [report.ordinal for report in reports] == [0, 1, 2, 3, 4]


def test_rows_without_a_record_are_compared_and_not_added_again(stream: OrderedStream) -> None:
    table = numbers(ROWS)
    _publish(table, stream, range(3))
    reports = _publish(table, stream)
    assert _all(stream) == expected(ROWS)
    assert [(r.rows, r.published) for r in reports] == [(10_000, 0)] * 3 + [(10_000, 10_000), (5_000, 5_000)]


def test_a_range_that_would_leave_a_hole_is_refused_before_any_row_moves(stream: OrderedStream) -> None:
    table = numbers(ROWS)
    with pytest.raises(
        StreamError, match=r"would leave a gap. Stream 'feed' is empty.*Launch 0\.0\.0\.0\.\.\.0\.0\.0\.3"
    ):
        _publish(table, stream, range(2, 4))
    _publish(table, stream, range(1))
    with pytest.raises(StreamError, match=r"ends at 0-10000 \(brick 0\.0\.0\.0\).*Launch 0\.0\.0\.1\.\.\.0\.0\.0\.4"):
        _publish(table, stream, range(3, 5))
    assert len(_all(stream)) == 10_000


def test_a_half_published_brick_must_be_finished_first(stream: OrderedStream) -> None:
    table = numbers(ROWS)
    _half_published(table, stream, 4_000)
    with pytest.raises(StreamError, match=r"Launch 0\.0\.0\.0\.\.\.0\.0\.0\.1"):
        _publish(table, stream, range(1, 2))
    _publish(table, stream)
    assert _all(stream) == expected(ROWS)


def test_empty_bricks_before_a_range_are_no_hole(stream: OrderedStream) -> None:
    table = numbers(2, step=50_000)
    _publish(table, stream, range(1), last=59_999)
    assert [r.rows for r in _publish(table, stream, range(4, 6), last=59_999)] == [0, 1]
    assert _all(stream) == expected(2, step=50_000)


def _half_published(table: Table, stream: OrderedStream, rows: int) -> None:
    feed = table.feed(ROWS - 1)
    entries = next(encode(b"feed", source_of(feed).scan(0, 0)))
    with Publisher(stream) as publisher:
        list(publisher.publish(cut(entries, 0, rows)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "UPDATE word = 'changed' WHERE id = 3999",
            "entry 0-4000 of stream 'feed' differs from the table.*word=changed",
        ),
        ("DELETE WHERE id = 7", "entry 0-8 of stream 'feed' differs from the table"),
        ("DELETE WHERE id >= 2000 AND id < 10000", "has 2,000 rows in the table and 4,000 in stream 'feed'"),
        ("DELETE WHERE id < 10000", "has 0 rows in the table and 4,000 in stream 'feed'"),
    ],
)
def test_a_brick_that_changed_while_half_published_is_refused(
    stream: OrderedStream, change: str, sentence: str
) -> None:
    table = numbers(ROWS)
    _half_published(table, stream, 4_000)
    table.run(f"ALTER TABLE {table.name} {change} SETTINGS mutations_sync = 2")
    with pytest.raises(StreamError, match=sentence):
        _publish(table, stream)
    assert len(_all(stream)) == 4_000


def test_late_rows_in_a_recorded_brick_do_not_stop_the_next(stream: OrderedStream) -> None:
    table = numbers(20_000)
    records = _publish(table, stream, range(2))
    table.run(f"INSERT INTO {table.name} SELECT 19999, 'late'")
    table.run(f"INSERT INTO {table.name} SELECT number, 'next' FROM numbers(20000, 10)")
    assert _publish(table, stream, range(2, 3), records=records)[0].rows == 10
    assert len(_all(stream)) == 20_010


def test_entries_that_are_lost_while_they_are_compared_are_no_rows_that_changed(
    stream: OrderedStream, tmp_path: Path
) -> None:
    # Two servers that are promoted one after the other: the publisher is with the first, what compares with the second.
    table = numbers(ROWS)
    feed = table.feed(ROWS - 1)
    _publish(table, stream, range(3))
    with RedisServer(tmp_path) as other, Publisher(stream) as publisher:
        lagging = OrderedStream("feed", other.client())
        _half_published(table, lagging, 4_000)
        with StreamComparer(lagging) as comparer:
            course = plan(feed, feed.ordinals, publisher.state, None)
            comparison = PrefixCheck(feed, lagging, comparer, course)
            chunks = encode(b"feed", source_of(feed).scan(0, 1))
            transactions = [part for entries in chunks for part in cut(entries, 0, entries.count)]
            with pytest.raises(StreamUnavailableError, match="ends at 0-4000, and ended at 2-10000 a moment ago"):
                deque(map(comparison.check, transactions))


@pytest.mark.parametrize("entry", ["*", "3-1", f"{2**63}-0"])
def test_entries_of_something_else_are_refused(stream: OrderedStream, entry: str) -> None:
    stream.client.xadd("feed", {"who": "somebody else"}, id=entry)
    with pytest.raises(StreamError, match=r"another `stream\.name`"):
        _publish(numbers(ROWS), stream)
    assert len(_all(stream)) == 1


def test_a_key_that_is_no_stream_is_refused(stream: OrderedStream) -> None:
    stream.client.set("feed", "text")
    with pytest.raises(StreamError, match="holds another type, expected a stream"):
        _publish(numbers(ROWS), stream)


def test_a_trimmed_stream_goes_on(stream: OrderedStream) -> None:
    table = numbers(ROWS)
    _publish(table, stream, range(3))
    stream.client.xtrim("feed", minid="2-5000", approximate=False)
    reports = _publish(table, stream)
    assert [report.rows for report in reports] == [10_000, 10_000, 10_000, 10_000, 5_000]
    assert _all(stream) == [entry for entry in expected(ROWS) if entry[0] >= EntryId(2, 5000)]
    verdict = verify(table.feed(ROWS - 1), source_of(table.feed(ROWS - 1)), stream)
    assert (verdict.agrees, verdict.trimmed, verdict.equal) == (True, 24_999, 20_001)


def test_a_stream_deleted_on_purpose_is_published_again(stream: OrderedStream) -> None:
    table = numbers(ROWS)
    records = _publish(table, stream)
    stream.client.delete("feed")
    _publish(table, stream, records=records)
    assert _all(stream) == expected(ROWS)


def test_a_stream_deleted_while_it_is_written_does_not_begin_again_in_the_middle(stream: OrderedStream) -> None:
    table = numbers(ROWS)
    feed = table.feed(ROWS - 1)
    entries = next(encode(b"feed", source_of(feed).scan(0, 4)))
    with Publisher(stream) as publisher:
        going = publisher.publish(cut(entries, 0, entries.count))
        next(going)
        stream.client.delete("feed")
        with pytest.raises(StreamError, match="was deleted while it was written"):
            list(going)
    assert _all(stream) == []


def test_a_frozen_publisher_cannot_write_into_a_stream_begun_again(stream: OrderedStream) -> None:
    table = numbers(ROWS)
    feed = table.feed(ROWS - 1)
    entries = next(encode(b"feed", source_of(feed).scan(0, 4)))
    frozen = Publisher(stream)
    going = frozen.publish(cut(entries, 0, entries.count))
    next(going)
    next(going)  # its next transaction is in Redis now, and waits for its EXEC
    stream.client.delete("feed")
    with Publisher(stream) as other:
        list(other.publish(cut(entries, 0, 100)))
        with pytest.raises((FencedError, StreamError)):
            list(going)
        assert _all(stream) == expected(100)
        list(other.publish(cut(entries, 100, 1_000)))
    frozen.close()
    assert _all(stream) == expected(1_000)


def test_one_refused_row_takes_its_whole_transaction_with_it(stream: OrderedStream, redis_server: RedisServer) -> None:
    # What a bare pipeline gets wrong: the large row is refused, and the small ones after it would be accepted.
    table = Table(
        "id UInt32, v String",
        "SELECT number, if(number = 300, repeat(repeat('x', 4000), 1000), 'v') FROM numbers(2000)",
        order_by="id",
    )
    client = redis_server.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 3_000_000)
    try:
        with pytest.raises(StreamUnavailableError, match="out of memory"):
            _publish(table, stream, last=9_999, settings={"stream": {"timeout_s": 1}})
        present = [entry_id for entry_id, _ in _all(stream)]
        assert present == [EntryId(0, row) for row in range(1, len(present) + 1)]
        assert len(present) <= 300
    finally:
        client.config_set("maxmemory", 0)
    _publish(table, stream, last=9_999)
    assert len(_all(stream)) == 2_000


PUBLISH = """
import sys
import redis
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline.publishing.run import publish
from ucs_pipeline_tests.support.tables import numbers, source_of
rows = int(sys.argv[2])
feed = numbers(rows).feed(rows - 1, stream={"max_rows_per_second": float(sys.argv[3])})
stream = OrderedStream("feed", redis.Redis.from_url(sys.argv[1], protocol=2))
print("ready", flush=True)
sys.stdin.readline()
print(sum(report.rows for report in publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {})))
"""


def _process(server: RedisServer, rows: int, rows_per_second: float = 1e9) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, server.url, str(rows), str(rows_per_second)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def _go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_publishers_at_once_leave_one_stream(stream: OrderedStream, redis_server: RedisServer) -> None:
    rows = 200_000
    processes = [_process(redis_server, rows) for _ in range(2)]
    for process in processes:
        _go(process)
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{rows}\n"] * 2
    assert _all(stream) == expected(rows)


def test_publishers_killed_at_random_moments_leave_a_prefix(stream: OrderedStream, redis_server: RedisServer) -> None:
    rows, generator = 300_000, random.Random(11)
    whole = [entry_id for entry_id, _ in expected(rows)]
    for _ in range(4):
        process = _process(redis_server, rows)
        before = stream.state().length
        _go(process)
        while stream.state().length < before + 1 and process.poll() is None:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.15)
        process.kill()
        process.communicate()
        present = [entry_id for entry_id, _ in _all(stream)]
        assert present == whole[: len(present)]
    process = _process(redis_server, rows)
    _go(process)
    process.communicate(timeout=60)
    assert _all(stream) == expected(rows)


def test_a_publisher_frozen_while_another_finishes_changes_nothing(
    stream: OrderedStream, redis_server: RedisServer
) -> None:
    rows = 300_000
    frozen = _process(redis_server, rows, rows_per_second=20_000)
    _go(frozen)
    while stream.state().length < 50_000:
        assert frozen.poll() is None
        time.sleep(0.002)
    os.kill(frozen.pid, signal.SIGSTOP)
    reached = stream.state().length
    assert reached < rows
    other = _process(redis_server, rows)
    _go(other)
    assert other.communicate(timeout=60)[0] == f"{rows}\n"
    os.kill(frozen.pid, signal.SIGCONT)
    assert frozen.communicate(timeout=60)[0] == f"{rows}\n"
    assert _all(stream) == expected(rows)


def test_small_transactions_carry_long_rows(stream: OrderedStream) -> None:
    table = Table("id UInt32, v String", "SELECT number, repeat('x', 700000) FROM numbers(20)", order_by="id")
    feed = table.feed(9_999)
    [entries] = encode(b"feed", source_of(feed).scan(0, 0))
    assert [t.rows for t in cut(entries, 0, entries.count)] == [1] * 20
    _publish(table, stream, last=9_999)
    assert {len(fields[b"v"]) for _, fields in _all(stream)} == {700_000}


@pytest.mark.parametrize(
    ("name", "fence"),
    [("flights", "{flights}:writer"), ("a{b}c", "a{b}c:writer"), ("a{}c", "{a{}c}:writer"), ("{x", "{{x}:writer")],
)
def test_the_fence_is_beside_the_stream(name: str, fence: str) -> None:
    assert fencing_token_key(name) == fence


@pytest.mark.parametrize("order", ["strict", "any"])
@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ("proto-max-bulk-len 2mb", r"3,000,000 bytes in field 'v', and Redis takes 2,097,152 \(proto-max-bulk-len\)"),
        ("client-query-buffer-limit 1mb", r"3,000,\d+ bytes in all its fields, .* \(client-query-buffer-limit\)"),
        ("maxmemory-clients 2mb", r"3,000,\d+ bytes in all its fields, .* \(maxmemory-clients\)"),
    ],
)
def test_a_row_that_redis_does_not_take_is_named_before_it_is_sent_and_all_before_it_are_there(
    tmp_path: Path, server: str, sentence: str, order: str
) -> None:
    table = Table("id UInt32, v String", "SELECT number, 'v' FROM numbers(20000) WHERE number != 11500", order_by="id")
    table.run(f"INSERT INTO {table.name} SELECT 11500, repeat(repeat('x', 3000), 1000)")
    feed, name, value = table.feed(19_999, stream={"order": order}), *server.split()
    with RedisServer(tmp_path, {name: value}) as small:
        there, reports, told = OrderedStream("feed", small.client()), deque[BrickReport](), list[str]()
        with pytest.raises(StreamError, match=rf"brick 0\.0\.0\.1: the row with key 11500 has {sentence}") as caught:
            reports.extend(publish(feed, source_of(feed), there, feed.ordinals, lambda _: {}, told.append))
        assert not isinstance(caught.value, StreamUnavailableError)
        assert [report.rows for report in reports] == [10_000]
        assert there.state().length == 11_500
        assert told == []
        small.client().config_set(name, "0" if name == "maxmemory-clients" else "1gb")
        list(publish(feed, source_of(feed), there, feed.ordinals, lambda _: {}))
        # A row that is there already, however long it is, is not sent again.
        small.client().config_set(name, value)
        assert len(list(publish(feed, source_of(feed), there, feed.ordinals, lambda _: {}))) == 2
        assert there.state().length == 20_000


@pytest.mark.parametrize("command", ["INFO", "CONFIG"])
def test_a_redis_without_a_command_that_is_not_needed_is_published_to(tmp_path: Path, command: str) -> None:
    (tmp_path / "redis.conf").write_text(f'rename-command {command} ""\n')
    with RedisServer(tmp_path, arguments=[str(tmp_path / "redis.conf")]) as server:
        _publish(numbers(ROWS), OrderedStream("feed", server.client()))
        assert server.client().xlen("feed") == ROWS


@pytest.mark.parametrize("order", ["strict", "any"])
@pytest.mark.parametrize("command", ["XADD", "MULTI", "EVAL", "XINFO", "XGROUP", "RENAME"])
def test_a_redis_without_a_command_that_is_needed_is_refused_by_its_name(
    tmp_path: Path, command: str, order: str
) -> None:
    (tmp_path / "redis.conf").write_text(f'rename-command {command} ""\n')
    with (
        RedisServer(tmp_path, arguments=[str(tmp_path / "redis.conf")]) as server,
        pytest.raises(StreamError, match=rf"does not have the command {command}\. Use a server that has it") as caught,
    ):
        _publish(numbers(10), OrderedStream("feed", server.client()), last=9, settings={"stream": {"order": order}})
    assert not isinstance(caught.value, StreamUnavailableError)


def test_long_rows_are_not_read_back_many_at_once(stream: OrderedStream) -> None:
    client: Any = stream.client
    for row in range(60):
        client.xadd("feed", {"v": b"x" * 200_000}, id=f"0-{row + 1}")
    for row in range(3_000):
        client.xadd("feed", {"v": b"x"}, id=f"1-{row + 1}")
    client.config_resetstat()
    walked = [(entry_id, len(fields[b"v"])) for entry_id, fields in stream.walk(EntryId(0, 0), EntryId(9, 0))]
    assert walked == [(EntryId(0, n + 1), 200_000) for n in range(60)] + [(EntryId(1, n + 1), 1) for n in range(3_000)]
    assert client.info("commandstats")["cmdstat_xrange"]["calls"] < 20
    page = Page()
    assert page.after(stream.entries(EntryId(0, 1), EntryId(0, 3))).most == (1 << 22) // 200_001
    assert page.after(stream.entries(EntryId(1, 1), EntryId(1, 3))).most == 2 * page.most


def test_entries_longer_than_their_rows_are_not_compared_many_at_once(stream: OrderedStream) -> None:
    table, rows = numbers(1_000), 600
    feed, client = table.feed(9_999), stream.client
    for row in range(rows):
        client.xadd("feed", {"v": b"x" * 200_000}, id=f"0-{row + 1}")
    for row in range(rows):
        client.xadd("feed", {"v": b"x" * 200_000}, id=f"1-{row + 1}")
    tracemalloc.start()
    try:
        verdict = verify(feed, source_of(feed), stream)
        with pytest.raises(StreamError, match=r"brick 0\.0\.0\.0: entry 0-1 of stream 'feed' differs from the table"):
            _publish(table, stream, last=19_999)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (verdict.equal, verdict.different, verdict.missing) == (0, rows, 400)
    assert 0 < len(verdict.differences) < 50
    assert 0 < len(verdict.strays) < 50
    assert peak < 40_000_000


def test_a_transaction_names_its_first_and_last_id() -> None:
    feed = numbers(15_000).feed(19_999)
    [entries] = encode(b"feed", source_of(feed).scan(0, 1))
    assert Batch(entries, 9_998, 10_002).ids == (EntryId(0, 9_999), EntryId(1, 2))
