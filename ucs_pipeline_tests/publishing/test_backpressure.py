"""Back-pressure: full streams, slow consumers, replicas that lag, and a pace."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ucs_pipeline.entries.batches import Batch
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError, StreamFullError, StreamUnavailableError
from ucs_pipeline.feed.settings import Stream
from ucs_pipeline.publishing.backpressure import Backpressure, trim_acknowledged
from ucs_pipeline.publishing.brick_results import BrickReport, ConfirmedBatch
from ucs_pipeline.publishing.rate_limit import RateLimiter
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer, redis_executable
from ucs_pipeline_tests.support.accidents import at
from ucs_pipeline_tests.support.tables import Table, expected, numbers, source_of

ALL = (EntryId(0, 0), EntryId(2**63, 0))


@pytest.fixture
def stream(redis_server: RedisServer) -> OrderedStream:
    return OrderedStream("feed", redis_server.client())


@pytest.fixture(params=["newest", "oldest"])
def stream_of_any_age(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OrderedStream]:
    with RedisServer(tmp_path, executable=redis_executable(oldest=request.param == "oldest")) as server:
        yield OrderedStream("feed", server.client())


@pytest.fixture
def client(stream: OrderedStream) -> Any:
    return stream.client


def _move(
    table: Table,
    stream: OrderedStream,
    rows: int,
    log: Callable[[str], None] = lambda _: None,
    records: tuple[BrickReport, ...] = (),
    watch: Callable[[ConfirmedBatch], None] = lambda _: None,
    **settings: Any,
) -> Iterator[BrickReport]:
    feed = table.feed(rows - 1, stream=settings)
    known = {report.ordinal: report for report in records}
    return publish(feed, source_of(feed), stream, feed.ordinals, lambda _: known, log, watch)


class Worker:
    """Reads a stream in a thread, through a consumer group unless it has none, and acknowledges what it has read."""

    def __init__(
        self,
        server: RedisServer,
        *,
        group: str | None = "workers",
        batch: int = 300,
        trims: bool = False,
        leaves: int = 1,
    ) -> None:
        self.read: list[EntryId] = []
        self.longest = 0
        self._client = server.client()
        self._group, self._batch, self._trims, self._leaves = group, batch, trims, leaves
        self._over = threading.Event()
        if group:
            self._client.xgroup_create("feed", group, id="0", mkstream=True)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            # Once the publisher has finished, what is left is read to the end.
            over = self._over.is_set()
            if not self._step() and over:
                return

    def _step(self) -> bool:
        self.longest = max(self.longest, self._client.xlen("feed"))
        if self._group:
            found = self._client.xreadgroup(self._group, "one", {"feed": ">"}, count=self._batch, block=10)
        else:
            last = str(self.read[-1]) if self.read else "0"
            found = self._client.xread({"feed": last}, count=self._batch, block=10)
        if not found:
            return False
        ids = [entry_id for entry_id, _ in found[0][1]]
        if self._group:
            self._client.xack("feed", self._group, *ids)
        self.read += map(EntryId.parse, ids)
        if self._trims and self._leaves:
            # One entry stays, so that the publisher has to make do with less than the whole of its cap.
            self._client.xtrim("feed", minid=ids[-1], approximate=False)
        elif self._trims:
            self.longest = max(self.longest, self._client.xlen("feed"))
            self._client.xtrim("feed", maxlen=0, approximate=False)
        return True


# Waiting


@pytest.mark.parametrize("max_len", [2, 100, 700, 5_000])
def test_a_full_stream_waits_for_its_consumer(redis_server: RedisServer, stream: OrderedStream, max_len: int) -> None:
    rows = 20_000 if max_len > 2 else 100
    table = numbers(rows)
    with Worker(redis_server, trims=True) as worker:
        reports = list(_move(table, stream, rows, max_len=max_len))
    assert sum(report.rows for report in reports) == rows
    assert worker.read == [entry_id for entry_id, _ in expected(rows)]
    assert worker.longest <= max_len


def test_a_stream_that_stays_full_ends_the_wait_with_a_sentence_and_goes_on_later(stream: OrderedStream) -> None:
    table, told = numbers(3_000), list[str]()
    with pytest.raises(
        StreamFullError,
        match=r"stream 'feed' is full: it holds 1,000 entries \(max_len 1,000\)\. No entry was trimmed for 0\.2 s\. ",
    ):
        list(_move(table, stream, 3_000, told.append, max_len=1_000, timeout_s=0.2))
    assert len(told) == 1
    assert "Waiting for another" in told[0]
    assert stream.entries(*ALL) == expected(3_000)[:1_000]
    stream.client.xtrim("feed", maxlen=0)
    list(_move(table, stream, 3_000, max_len=2_000))
    assert stream.entries(*ALL) == expected(3_000)[1_000:]


def test_a_publisher_that_is_stopped_while_it_waits_ends(stream: OrderedStream) -> None:
    started = threading.Event()
    going = _move(numbers(30_000), stream, 30_000, lambda _: started.set(), max_len=15_000)
    assert next(going).rows == 10_000
    assert started.wait(30)
    going.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "ucs-publish"]
    assert stream.state().length == 15_000


def test_a_cap_in_bytes_holds(redis_server: RedisServer, stream: OrderedStream, client: Any) -> None:
    rows, most, seen = 20_000, 200_000, list[int]()
    # Without a group: Redis counts about 1 KB for each of its pending entries, and they change meanwhile.
    with Worker(redis_server, group=None, trims=True) as worker:
        for report in _move(numbers(rows), stream, rows, max_bytes=most):
            seen.append(report.rows)
            assert client.memory_usage("feed") <= most * 1.1
    assert len(seen) == 2
    assert worker.read == [entry_id for entry_id, _ in expected(rows)]
    with pytest.raises(StreamFullError, match=r"entries in [\d,]+ bytes \(max_len 10,000,000, max_bytes 200,000\)"):
        list(_move(numbers(rows * 2), stream, rows * 2, max_bytes=most, timeout_s=0.2))
    assert client.memory_usage("feed") <= most * 1.1


def test_a_row_larger_than_the_cap_in_bytes_goes_alone(redis_server: RedisServer, stream: OrderedStream) -> None:
    table = Table("id UInt32, v String", "SELECT number, repeat('x', 70000) FROM numbers(10)", order_by="id")
    with Worker(redis_server, batch=1, trims=True, leaves=0) as worker:
        list(_move(table, stream, 10, max_bytes=50_000))
    assert len(worker.read) == 10
    assert worker.longest == 1


# Trimming


def test_trim_drops_the_oldest_and_only_those(stream: OrderedStream) -> None:
    reports = _move(numbers(25_000), stream, 25_000, max_len=3_000, when_full="trim")
    lengths = [report.length_after or 0 for report in reports]
    assert stream.entries(*ALL) == expected(25_000)[-3_000:]
    assert max(lengths) <= lengths[-1] == 3_000


def test_trim_keeps_a_cap_in_bytes(stream: OrderedStream, client: Any) -> None:
    list(_move(numbers(25_000), stream, 25_000, max_bytes=100_000, when_full="trim"))
    assert client.memory_usage("feed") <= 100_000
    found = stream.entries(*ALL)
    assert len(found) > 500
    assert found == expected(25_000)[-len(found) :]


def test_trim_acknowledged_goes_at_the_pace_of_the_slowest_group(
    redis_server: RedisServer, stream: OrderedStream
) -> None:
    rows = 30_000
    with (
        Worker(redis_server, group="fast", batch=1_000) as fast,
        Worker(redis_server, group="slow", batch=100) as slow,
    ):
        reports = list(_move(numbers(rows), stream, rows, max_len=2_000, when_full="trim_acknowledged"))
    assert [report.rows for report in reports] == [10_000] * 3
    ids = [entry_id for entry_id, _ in expected(rows)]
    assert fast.read == slow.read == ids
    assert max(fast.longest, slow.longest) <= 2_000


def test_trim_acknowledged_without_a_group_trims_nothing(stream: OrderedStream) -> None:
    with pytest.raises(StreamFullError, match=r"No entry was trimmed for 0\.2 s\. Let the consumer groups acknowledge"):
        list(_move(numbers(3_000), stream, 3_000, max_len=1_000, timeout_s=0.2, when_full="trim_acknowledged"))
    assert stream.entries(*ALL) == expected(3_000)[:1_000]


def _left(stream: OrderedStream) -> tuple[int, int]:
    trim_acknowledged(stream)
    found = stream.entries(*ALL)
    return (found[0][0].row, len(found)) if found else (0, 0)


def test_what_counts_as_acknowledged(stream_of_any_age: OrderedStream) -> None:
    stream = stream_of_any_age
    client: Any = stream.client
    for row in range(1, 21):
        client.xadd("feed", {"n": row}, id=f"0-{row}")
    assert _left(stream) == (1, 20)  # no group: unknown what is needed
    client.xgroup_create("feed", "a", id="0")
    assert _left(stream) == (1, 20)  # nothing delivered yet
    client.xreadgroup("a", "one", {"feed": ">"}, count=5)
    assert _left(stream) == (1, 20)  # delivered, not acknowledged
    client.xack("feed", "a", "0-1", "0-2", "0-4", "0-5")
    assert _left(stream) == (3, 18)  # 3 is pending: what was acknowledged after it stays as well
    client.xgroup_create("feed", "b", id="0")
    client.xack("feed", "a", "0-3")
    assert _left(stream) == (3, 18)  # the other group has read nothing
    client.xreadgroup("b", "one", {"feed": ">"}, count=10, noack=True)
    assert _left(stream) == (6, 15)  # the first group needs what comes after its last delivery
    client.xreadgroup("a", "one", {"feed": ">"}, count=100)
    client.xreadgroup("b", "two", {"feed": ">"}, count=100)
    client.xack("feed", "a", *(f"0-{row}" for row in range(6, 21)))
    assert _left(stream) == (13, 8)  # pending of the second group
    client.xclaim("feed", "b", "three", 0, ["0-13"])
    client.xack("feed", "b", "0-13", *(f"0-{row}" for row in range(15, 21)))
    assert _left(stream) == (14, 7)
    client.xgroup_setid("feed", "b", "0-9")
    assert _left(stream) == (14, 7)  # reads again from 10 on, where 14 is the first still there
    client.xgroup_setid("feed", "b", "0-20")
    client.xgroup_create("feed", "c", id="$")
    client.xack("feed", "b", "0-14")
    assert _left(stream) == (0, 0)
    client.xgroup_setid("feed", "c", f"5-{2**64 - 1}")
    client.xadd("feed", {"n": 1}, id="0-21")
    assert _left(stream) == (21, 1)


def test_a_redis_that_may_evict_the_stream_is_refused(stream: OrderedStream, client: Any) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        list(_move(numbers(10), stream, 10))  # without a limit nothing is evicted
        client.config_set("maxmemory", "100mb")
        with pytest.raises(StreamError, match=r"maxmemory-policy allkeys-lru and may evict the whole stream"):
            list(_move(numbers(20), stream, 20))
        assert stream.state().length == 10
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def test_every_redis_from_6_2_on_is_published_to_trimmed_and_healed(stream_of_any_age: OrderedStream) -> None:
    stream, rows = stream_of_any_age, 25_000
    client: Any = stream.client
    client.xgroup_create("feed", "workers", id="0", mkstream=True)
    table = numbers(rows)
    settings: dict[str, Any] = {"max_len": 12_000, "max_bytes": 10_000_000, "when_full": "trim_acknowledged"}
    with pytest.raises(StreamFullError):
        list(_move(table, stream, rows, timeout_s=0.2, **settings))
    assert stream.entries(*ALL) == expected(rows)[:12_000]
    [[_, found]] = client.xreadgroup("workers", "one", {"feed": ">"}, count=9_000)
    client.xack("feed", "workers", *(entry_id for entry_id, _ in found))
    with pytest.raises(StreamFullError):
        list(_move(table, stream, rows, timeout_s=0.2, **settings))
    assert stream.entries(*ALL) == expected(rows)[9_000:21_000]
    list(_move(table, stream, rows))
    assert stream.entries(*ALL) == expected(rows)[9_000:]
    client.delete("feed")
    list(_move(table, stream, rows))
    assert stream.entries(*ALL) == expected(rows)


# Pace


def test_a_pace_spreads_rows_evenly_and_makes_up_for_nothing(
    stream: OrderedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, sent = [1_000.0], list[float]()
    monkeypatch.setattr("ucs_pipeline.publishing.rate_limit.time.monotonic", lambda: clock[0])

    def pause(seconds: float) -> None:
        clock[0] += seconds

    feed = numbers(1_000).feed(9_999)
    [entries] = encode(b"feed", source_of(feed).scan(0, 0))
    settings = Stream(max_rows_per_second=200)
    going = RateLimiter(settings, Backpressure(stream, settings, 0, pause, print), pause)
    assert going.most_rows == 20

    def transactions() -> Iterator[Batch]:
        for number in range(5):
            if number == 3:
                clock[0] += 60  # the publisher had to wait for something else
            yield Batch(entries, number * 20, number * 20 + 20)

    sent = [clock[0] - 1_000 for transaction in going.admit(transactions()) if transaction]
    assert sent == pytest.approx([0.0, 0.1, 0.2, 60.2, 60.3])


def test_a_pace_below_one_row_a_step_sends_single_rows(stream: OrderedStream) -> None:
    rows = 30
    list(_move(numbers(rows), stream, rows, max_rows_per_second=0.5 * 10 * rows))
    assert stream.entries(*ALL) == expected(rows)
    settings = Stream(max_rows_per_second=0.1)
    assert RateLimiter(settings, Backpressure(stream, settings, 0, print, print), print).most_rows == 1


# Replicas


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "primary") as primary, RedisServer(tmp_path / "replica") as replica:
        replica.client().replicaof("127.0.0.1", primary.port)
        yield primary, replica


def test_a_brick_counts_as_done_only_when_enough_replicas_have_it(
    replicated: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucs_pipeline.publishing.pipeline._WAIT_SECONDS", 0.3)
    rows, more, told = 45_000, 75_000, list[str]()
    replica = replicated[1]
    stream, copy = (OrderedStream("feed", server.client()) for server in replicated)
    records = list[BrickReport]()
    for report in _move(numbers(rows), stream, rows, min_replicas=1):
        records.append(report)
        assert copy.state().top >= (report.last_entry or EntryId(0, 0))
    assert len(records) == 5
    table = numbers(more)
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        going = _move(table, stream, more, told.append, tuple(records[:4]), min_replicas=1, timeout_s=1)
        # What was recorded counts as it is; the brick that has grown since, and those after it, do not.
        assert [next(going).ordinal for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(StreamUnavailableError, match=r"0 replicas confirmed .* expected 1 \(min_replicas\)"):
            next(going)
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    assert told
    done = list(_move(table, stream, more, min_replicas=1))
    assert [report.rows for report in done] == [10_000] * 7 + [5_000]
    assert copy.entries(*ALL) == expected(more)


# Loss


def test_a_redis_that_comes_back_empty_in_the_middle_of_a_run_gets_everything_again(tmp_path: Path) -> None:
    rows, told = 100_000, list[str]()
    with RedisServer(tmp_path) as server:
        stream = OrderedStream("feed", server.client())

        def log(text: str) -> None:
            told.append(text)
            if not server.running:
                server.start()

        reports = list(_move(numbers(rows), stream, rows, log, watch=at(45_000, server.kill)))
        assert stream.entries(*ALL) == expected(rows)
    assert [report.ordinal for report in reports[-10:]] == list(range(10))
    assert any("is empty, but brick" in text and "recorded. Redis lost" in text for text in told)


def test_a_stream_that_lost_its_end_gets_exactly_that_again(stream: OrderedStream, client: Any) -> None:
    rows, told = 45_000, list[str]()
    table = numbers(rows)
    records = tuple(_move(table, stream, rows))
    kept = client.xrange("feed", "-", "2-7000")
    client.delete("feed")
    for entry_id, fields in kept:
        client.xadd("feed", fields, id=entry_id)
    reports = list(_move(table, stream, rows, told.append, records))
    assert stream.entries(*ALL) == expected(rows)
    assert [report.published for report in reports[2:]] == [3_000, 10_000, 5_000]
    assert told == [
        "feed 'feed': stream 'feed' ends at 2-7000, but bricks 0.0.0.2...0.0.0.4 are recorded. Redis lost "
        "entries, or the stream was deleted. The run publishes the missing rows again."
    ]
