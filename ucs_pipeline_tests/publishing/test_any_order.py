"""The any-order feed on a real Redis and ClickHouse's own engine: each row once, after any fault."""

import io
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import redis

from ucs_pipeline.cli.entry_tables import print_entries, write_entries
from ucs_pipeline.entries.encode import Entries, UnnumberedEntries, encode
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError, StreamFullError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.redis_keys import companion_key, has_neighbours
from ucs_pipeline.publishing.any_order.publisher import LedgerPublisher, MovedError, PartitionBatch
from ucs_pipeline.publishing.backpressure import trim_acknowledged
from ucs_pipeline.publishing.brick_results import BrickReport, ConfirmedBatch
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.any_order_search import trimmed_rows
from ucs_pipeline.reading.any_order_verify import ledger_verify
from ucs_pipeline.stream.ledger import Ledger, LedgerEntry, ResumePoint
from ucs_pipeline.stream.stream import RedisStream, reading_groups
from ucs_pipeline_tests.servers.redis_server import RedisServer, redis_executable
from ucs_pipeline_tests.support.accidents import at
from ucs_pipeline_tests.support.connections import Reader, read_brick, read_entries
from ucs_pipeline_tests.support.home import PROJECT
from ucs_pipeline_tests.support.tables import Table, expected, numbers, source_of

ROWS = 25_000
LEDGER = "{feed}:ledger:feed"
Fields = dict[bytes, bytes]


@pytest.fixture
def stream(redis_server: RedisServer) -> RedisStream:
    return RedisStream("feed", redis_server.client())


def _feed(table: Table, last: int = ROWS - 1, stream: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> Any:
    return table.feed(last, stream={"order": "any", **stream}, **more)


def _publish(
    table: Table,
    stream: RedisStream,
    wanted: Sequence[int] = range(3),
    *,
    records: Sequence[BrickReport] = (),
    log: Callable[[str], None] = lambda _: None,
    watch: Callable[[ConfirmedBatch], None] = lambda _: None,
    request: str | None = None,
    last: int = ROWS - 1,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[BrickReport]:
    feed = _feed(table, last, settings)
    known = {report.ordinal: report for report in records}
    return list(publish(feed, source_of(feed), stream, wanted, lambda _: known, log, watch, request))


def _all(stream: RedisStream) -> list[tuple[EntryId, Fields]]:
    return stream.entries(EntryId(0, 0), EntryId(2**63, 0))


def _rows(brick: int, rows: int = ROWS) -> list[Fields]:
    return [fields for entry_id, fields in expected(rows) if entry_id.ordinal == brick]


def _by_brick(stream: RedisStream) -> dict[int, list[Fields]]:
    """The feed's entries in the order of the stream, by brick; those of others under -1."""
    found: dict[int, list[Fields]] = {}
    for _, fields in _all(stream):
        found.setdefault(int(fields[b"id"]) // 10_000 if b"id" in fields else -1, []).append(fields)
    return found


def _accounts(stream: RedisStream) -> dict[int, LedgerEntry]:
    return Ledger(_feed(numbers(1)), stream).accounts(range(3))


def _entries(table: Table, first: int = 0, last: int = 2) -> Entries:
    feed = _feed(table)
    [entries] = encode(b"feed", source_of(feed).scan(first, last), UnnumberedEntries)
    return entries


def _half(table: Table, stream: RedisStream, rows: int) -> None:
    """Publishes the first rows of brick 0."""
    feed = _feed(table)
    entries = next(encode(b"feed", source_of(feed).scan(0, 0), UnnumberedEntries))
    with LedgerPublisher(feed, stream) as publisher:
        publisher.open({0: ResumePoint(b"", LedgerEntry())})
        list(
            publisher.publish(
                iter([PartitionBatch(entries, 0, rows // 2, 0), PartitionBatch(entries, rows // 2, rows, 0)])
            )
        )


def test_bricks_go_in_any_order_among_the_entries_of_others(stream: RedisStream) -> None:
    table = numbers(ROWS)
    stream.client.xadd("feed", {"who": "somebody else"})
    [last] = _publish(table, stream, [2])
    stream.client.xadd("feed", {"who": "somebody else"})
    first, middle = _publish(table, stream, [0, 1])
    assert _by_brick(stream) == {-1: [{b"who": b"somebody else"}] * 2, **{brick: _rows(brick) for brick in range(3)}}
    assert [(r.rows, r.published, r.length_before, r.length_after) for r in (last, first, middle)] == [
        (5_000, 5_000, 1, 5_001),
        (10_000, 10_000, 5_002, 15_002),
        (10_000, 10_000, 15_002, 25_002),
    ]
    ids = [entry_id for entry_id, _ in _all(stream)]
    assert (last.first_entry, last.last_entry) == (ids[1], ids[5_000])
    assert (first.first_entry, middle.last_entry) == (ids[5_002], ids[-1])
    assert {start: account[:4] for start, account in _accounts(stream).items()} == {
        report.ordinal: (report.rows, report.content_hash, True, 0) for report in (last, first, middle)
    }
    assert stream.client.hget(LEDGER, "rows") == b"25000"


def test_a_row_of_a_brick_goes_once_and_finished_bricks_are_left_alone(stream: RedisStream) -> None:
    table = numbers(ROWS)
    records = _publish(table, stream, [0, 1])
    before = _all(stream)
    again = _publish(table, stream, [0, 1], records=records)
    assert again == records
    without_a_record = _publish(table, stream, [0, 1])
    assert [(r.rows, r.published, r.first_entry, r.last_entry) for r in without_a_record] == [
        (10_000, 0, r.first_entry, r.last_entry) for r in records
    ]
    assert _all(stream) == before


def test_sparse_and_empty_bricks_cost_one_report_each(stream: RedisStream) -> None:
    table = numbers(40, step=7_500)
    reports = _publish(table, stream, range(40), last=399_999)
    assert [report.ordinal for report in reports] == list(range(40))
    assert sum(report.published for report in reports) == 40
    assert (reports[35].rows, reports[35].first_entry) == (0, None)
    assert [fields for _, fields in _all(stream)] == [fields for _, fields in expected(40, step=7_500)]
    assert stream.client.hlen(LEDGER) == 30 + 5


def test_a_coarser_partition_is_one_line_of_the_ledger(stream: RedisStream) -> None:
    feed = numbers(ROWS).feed(
        29_999_999, stream={"order": "any"}, bricks={"class": "number", "last": 29_999_999, "level": "block"}
    )
    reports = list(publish(feed, source_of(feed), stream, feed.partitions.starts, lambda _: {}))
    assert [(report.ordinal, report.rows) for report in reports] == [(0, ROWS), (1_000, 0), (2_000, 0)]
    assert (stream.client.hget(LEDGER, "0.0.0") or b"")[:6] == b"25000 "
    again = list(publish(feed, source_of(feed), stream, feed.partitions.starts, lambda _: {}))
    assert [(report.rows, report.published) for report in again] == [(ROWS, 0), (0, 0), (0, 0)]
    assert stream.state().length == ROWS


def test_publishing_goes_on_inside_a_brick(stream: RedisStream) -> None:
    table = numbers(ROWS)
    _half(table, stream, 4_000)
    assert _accounts(stream)[0][:3:2] == (4_000, False)
    reports = _publish(table, stream)
    assert [(r.rows, r.published) for r in reports] == [(10_000, 6_000), (10_000, 10_000), (5_000, 5_000)]
    assert _by_brick(stream) == {brick: _rows(brick) for brick in range(3)}
    assert [fields for _, fields in _all(stream)] == [fields for _, fields in expected(ROWS)]


def test_a_brick_whose_rows_are_all_there_is_only_written_down_as_done(stream: RedisStream) -> None:
    table = numbers(4_000)
    _half(table, stream, 4_000)
    [report, _] = _publish(table, stream, [0, 1])
    assert (report.rows, report.published) == (4_000, 0)
    assert _accounts(stream)[0].done
    assert (report.first_entry, report.last_entry) == _accounts(stream)[0][-2:]
    assert stream.state().length == 4_000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("UPDATE word = 'changed' WHERE id = 3999", "has content 4,000 rows.*expected the first 4,000 rows"),
        ("DELETE WHERE id = 7", "changed after it was published.*has content 4,000 rows"),
        ("DELETE WHERE id >= 2000", "has 2,000 rows, expected the first 4,000 rows.*another `stream.name`"),
        ("DELETE WHERE id < 10000", "has 0 rows, expected the first 4,000 rows"),
    ],
)
def test_a_half_published_brick_that_changed_is_refused(stream: RedisStream, change: str, sentence: str) -> None:
    table = numbers(ROWS)
    _half(table, stream, 4_000)
    table.run(f"ALTER TABLE {table.name} {change} SETTINGS mutations_sync = 2")
    with pytest.raises(StreamError, match=sentence):
        _publish(table, stream)
    assert stream.state().length == 4_000


def test_a_finished_brick_that_grew_is_refused_unless_it_is_recorded(stream: RedisStream) -> None:
    table = numbers(5_000)
    records = _publish(table, stream, [0])
    table.run(f"INSERT INTO {table.name} SELECT 9999, 'late'")
    with pytest.raises(StreamError, match=r"has more rows, expected the 5,000 rows.*`replay: true`"):
        _publish(table, stream, [0])
    assert _publish(table, stream, [0], records=records) == records
    [report] = _publish(table, stream, [0], request="again")
    assert (report.rows, report.published, report.replay) == (5_001, 5_001, 1)
    assert stream.state().length == 10_001


def test_a_replay_is_asked_for_and_numbered(stream: RedisStream) -> None:
    table = numbers(ROWS)
    records = _publish(table, stream, [0, 1])
    replayed = _publish(table, stream, [1, 2], records=records, request="a")
    assert [(r.ordinal, r.published, r.replay) for r in replayed] == [(1, 10_000, 1), (2, 5_000, 0)]
    # Dagster may launch the same run again, or one partition twice: it is the same request.
    once_more = _publish(table, stream, [1, 2], records=[records[0], *replayed], request="a")
    assert once_more == replayed
    without_a_record = _publish(table, stream, [1], records=records, request="a")
    assert [(r.published, r.replay) for r in without_a_record] == [(0, 1)]
    [second] = _publish(table, stream, [1], records=replayed, request="b")
    assert (second.published, second.replay) == (10_000, 2)
    assert _by_brick(stream) == {0: _rows(0), 1: _rows(1) * 3, 2: _rows(2)}


def test_a_replay_that_was_broken_off_is_finished_first(stream: RedisStream) -> None:
    table = numbers(ROWS)
    records = _publish(table, stream, [0, 1, 2])
    feed = _feed(table)
    going = publish(feed, source_of(feed), stream, range(3), lambda _: {r.ordinal: r for r in records}, request="a")
    next(going)
    going.close()
    again = {report.ordinal: report for report in _publish(table, stream, range(3), records=records)}
    assert _by_brick(stream) == {brick: _rows(brick) * (1 + again[brick].replay) for brick in range(3)}
    assert again[0].replay == 1
    asked = _publish(table, stream, range(3), records=list(again.values()), request="a")
    assert [report.replay for report in asked] == [1, 1, 1]
    assert _by_brick(stream) == {brick: _rows(brick) * 2 for brick in range(3)}


def test_what_redis_lost_is_said_and_published_again(stream: RedisStream) -> None:
    table, said = numbers(ROWS), list[str]()
    records = _publish(table, stream)
    stream.client.flushall()
    reports = _publish(table, stream, records=records, log=said.append)
    assert [r.published for r in reports] == [10_000, 10_000, 5_000]
    assert ["bricks 0.0.0.0...0.0.0.2 are recorded, and the ledger" in line for line in said] == [True]
    assert _by_brick(stream) == {brick: _rows(brick) for brick in range(3)}


@pytest.mark.parametrize("oldest", [False, True], ids=["newest Redis", "oldest Redis"])
@pytest.mark.parametrize("made_again", [False, True])
def test_a_stream_that_was_deleted_beside_its_ledger_is_begun_anew(
    tmp_path: Any, made_again: bool, oldest: bool
) -> None:
    table, said = numbers(ROWS), list[str]()
    with RedisServer(tmp_path, executable=redis_executable(oldest=oldest)) as server:
        stream = RedisStream("feed", server.client())
        records = _publish(table, stream, [0, 2])
        stream.client.delete("feed")
        if made_again:
            stream.client.xgroup_create("feed", "workers", mkstream=True)
        _publish(table, stream, [2], records=records, log=said.append)
        assert [line for line in said if "The ledger starts again from empty" in line]
        assert _by_brick(stream) == {2: _rows(2)}
        assert list(_accounts(stream)) == [2]


def _others(client: Any, entries: int) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(entries):
        pipe.xadd("feed", {"who": "somebody else", "n": number})
    pipe.execute()


@pytest.mark.parametrize(("more", "kept"), [(-1, 0), (-1, 100), (0, 100), (1, 100)])
def test_a_stream_that_others_fill_again_as_far_as_it_ever_was_is_another_one(
    stream: RedisStream, more: int, kept: int
) -> None:
    table, said = numbers(ROWS), list[str]()
    records = _publish(table, stream)
    stream.client.delete("feed")
    _others(stream.client, ROWS + more)
    stream.client.xtrim("feed", maxlen=kept, approximate=False)
    assert _accounts(stream) == {}
    assert not Ledger(_feed(table), stream).rows()
    reports = _publish(table, stream, records=records, log=said.append)
    assert [report.published for report in reports] == [10_000, 10_000, 5_000]
    assert [line for line in said if "The ledger starts again from empty" in line]
    assert {brick: rows for brick, rows in _by_brick(stream).items() if brick >= 0} == {
        brick: _rows(brick) for brick in range(3)
    }


def test_a_redis_that_does_not_count_refuses_a_stream_that_others_fill_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path, executable=redis_executable(oldest=True)) as server:
        stream, table = RedisStream("feed", server.client()), numbers(ROWS)
        _publish(table, stream, [2])
        if stream.state().added is not None:
            pytest.skip("no Redis before version 7 is installed")
        stream.client.delete("feed")
        _others(stream.client, 10)
        with pytest.raises(StreamError, match=r"do not belong together.*If the stream is another one, run `DEL"):
            _publish(table, stream, [2])
        assert list(_by_brick(stream)) == [-1]


def test_a_stream_that_others_fill_again_while_it_is_written_gets_no_more_rows(stream: RedisStream) -> None:
    table = numbers(ROWS)
    entries = _entries(table, 2)
    with LedgerPublisher(_feed(table), stream) as publisher:
        publisher.open({2: ResumePoint(b"", LedgerEntry())})
        going = publisher.publish(PartitionBatch(entries, start, start + 10, 2) for start in range(0, 5_000, 10))
        next(going)
        stream.client.delete("feed")
        _others(stream.client, 5_000)
        with pytest.raises(StreamError, match="deleted, restored, renamed or copied over it"):
            list(going)
    assert list(_by_brick(stream)) == [-1]


APART: Mapping[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "an older copy of the stream": (
        lambda client, old, _: client.restore("feed", 0, old, replace=True),
        "of another time",
    ),
    "an older copy of the ledger": (
        lambda client, _, old: client.restore(LEDGER, 0, old, replace=True),
        "of another time",
    ),
    "another stream renamed over it": (
        lambda client, old, _: (client.restore("other", 0, old), client.rename("other", "feed")),
        "of another time",
    ),
    "the ledger deleted": (lambda client, *_: client.delete(LEDGER), "which the ledger does not know"),
    "the mark destroyed": (
        lambda client, *_: (client.xtrim("feed", maxlen=0), client.xgroup_destroy("feed", "ucs:ledger:feed")),
        "the stream was replaced, or the group was destroyed",
    ),
}


@pytest.mark.parametrize("kind", APART)
def test_a_stream_and_a_ledger_of_two_moments_are_refused_by_whoever_looks(
    stream: RedisStream, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", redis_server.url)
    table = numbers(ROWS)
    records = _publish(table, stream, [0])
    old = stream.client.dump("feed"), stream.client.dump(LEDGER)
    records += _publish(table, stream, [2])
    happens, sentence = APART[kind]
    happens(stream.client, *old)
    before = _all(stream)
    whole = rf"feed 'feed': stream 'feed' and ledger '{{feed}}:ledger:feed' do not belong together\. .*{sentence}"
    looks: list[Callable[[], object]] = [
        lambda: _publish(table, stream, records=records),
        lambda: _publish(table, stream),
        lambda: _accounts(stream),
        lambda: read_brick(_feed(table), "0.0.0.2"),
        lambda: list(read_entries(_feed(table))),
    ]
    for look in looks:
        with pytest.raises(StreamError, match=whole):
            look()
    assert _all(stream) == before


def test_what_a_refusal_says_to_do_is_enough(stream: RedisStream) -> None:
    table = numbers(ROWS)
    records = _publish(table, stream, [2])
    stream.client.xgroup_destroy("feed", "ucs:ledger:feed")
    with pytest.raises(StreamError) as refusal:
        _publish(table, stream, [2], records=records)
    put_back, begin_anew = re.findall(r"`([A-Z].*?)`", str(refusal.value))
    client: Any = stream.client
    client.execute_command(put_back)
    assert [report.published for report in _publish(table, stream, [2])] == [0]
    stream.client.xgroup_destroy("feed", "ucs:ledger:feed")
    client.execute_command(begin_anew)
    assert [report.published for report in _publish(table, stream, [2])] == [5_000]
    stream.client.delete(LEDGER)
    with pytest.raises(StreamError) as refusal:
        _publish(table, stream, [2])
    for command in re.findall(r"`([A-Z].*?)`", str(refusal.value)):
        client.execute_command(command)
    assert [report.published for report in _publish(table, stream, [2])] == [5_000]


def test_a_feed_that_was_published_before_there_was_a_mark_goes_on(stream: RedisStream) -> None:
    table = numbers(ROWS)
    _publish(table, stream, [0])
    stream.client.xgroup_destroy("feed", "ucs:ledger:feed")
    stream.client.hdel(LEDGER, "mark", "top")
    assert _accounts(stream)[0].done
    assert [report.published for report in _publish(table, stream)] == [0, 10_000, 5_000]
    assert _by_brick(stream) == {brick: _rows(brick) for brick in range(3)}
    stream.client.xgroup_destroy("feed", "ucs:ledger:feed")
    stream.client.hdel(LEDGER, "mark", "top")
    stream.client.delete("feed")
    _others(stream.client, 10)
    assert [report.published for report in _publish(table, stream)] == [10_000, 10_000, 5_000]


@pytest.mark.parametrize("window", [10, 1_000_000])
def test_a_trimmed_brick_is_found_among_any_number_of_entries_of_others(
    stream: RedisStream, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", redis_server.url)
    monkeypatch.setattr("ucs_pipeline.reading.any_order_search._WINDOW", window)
    table = numbers(50)
    feed, entries = _feed(table), next(encode(b"feed", source_of(_feed(table)).scan(0, 0), UnnumberedEntries))
    with LedgerPublisher(feed, stream) as publisher:
        publisher.open({0: ResumePoint(b"", LedgerEntry())})
        for start, stop in ((0, 20), (20, 50)):
            list(publisher.publish(iter([PartitionBatch(entries, start, stop, 0, 50)])))
            _others(stream.client, 37)
    source = source_of(feed)
    for kept, left in ((50 + 74, 50), (30 + 74 + 5, 35), (30 + 50, 30), (30 + 37, 30), (10 + 37, 10), (20, 0)):
        stream.client.xtrim("feed", maxlen=kept, approximate=False)
        verdict = ledger_verify(feed, source, stream, _accounts(stream))
        assert (verdict.equal, verdict.trimmed, verdict.missing) == (left, 50 - left, 0)
    account, state = _accounts(stream)[0], stream.state()
    assert trimmed_rows(feed, source, stream, 0, account, state) == 50


def test_entries_are_walked_in_pages_that_take_little_memory(
    stream: RedisStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in [10] * 10 + [1_000_000] * 40:
        stream.client.xadd("feed", {"value": "x" * size})
    pages = list[int]()
    read = stream._read

    def counted(*args: Any, **more: Any) -> list[Any]:
        page = read(*args, **more)
        pages.append(sum(len(fields[b"value"]) for _, fields in page))
        return page

    monkeypatch.setattr(stream, "_read", counted)
    assert len(list(stream.walk(EntryId(0, 0), EntryId(2**63, 0)))) == 50
    assert max(pages[2:]) <= 4 << 20


def test_the_mark_is_no_consumer_group_of_anybody(stream: RedisStream) -> None:
    table = numbers(ROWS)
    _publish(table, stream, [2])
    [mark] = stream.client.xinfo_groups("feed")
    assert (mark["name"], mark["pending"], mark["consumers"]) == (b"ucs:ledger:feed", 0, 0)
    assert not mark.get("lag")
    assert reading_groups(stream) == []
    assert trim_acknowledged(stream) == 0
    stream.client.xgroup_create("feed", "workers", 0)
    stream.client.xreadgroup("workers", "one", {"feed": ">"}, count=10, noack=True)
    assert trim_acknowledged(stream) == 10
    stream.client.xtrim("feed", maxlen=0, approximate=False)
    assert [report.published for report in _publish(table, stream, [2])] == [0]


def test_a_stream_deleted_while_it_is_written_is_not_begun_again_half_way(stream: RedisStream) -> None:
    table = numbers(ROWS)
    entries = _entries(table, 2)
    with LedgerPublisher(_feed(table), stream) as publisher:
        publisher.open({2: ResumePoint(b"", LedgerEntry())})
        going = publisher.publish(PartitionBatch(entries, start, start + 10, 2) for start in range(0, 5_000, 10))
        next(going)
        stream.client.delete("feed")
        with pytest.raises(StreamError, match="deleted, restored, renamed or copied over it"):
            list(going)
    assert _all(stream) == []


@pytest.mark.parametrize("length", [4_000, 10_000])
@pytest.mark.parametrize("commands", [["FLUSHALL"], ["DEL feed"], [f"DEL {LEDGER}", "DEL feed"]])
@pytest.mark.parametrize("others", [0, 5])
@pytest.mark.parametrize("request_", [None, "again"])
def test_a_stream_that_is_lost_while_it_is_written_is_published_again_once(
    stream: RedisStream, length: int, commands: Sequence[str], others: int, request_: str | None
) -> None:
    client: Any = stream.client

    def loses() -> None:
        for line in commands:
            client.execute_command(*line.split())
        # In the same millisecond as the last rows, their IDs could be lower than those: that is a doubt, and refused.
        time.sleep(0.002)
        _others(client, others)

    told: list[str] = []
    reports = _publish(numbers(ROWS), stream, log=told.append, watch=at(length, loses), request=request_)
    assert {report.ordinal: report.rows for report in reports} == {0: 10_000, 1: 10_000, 2: 5_000}
    found = _by_brick(stream)
    assert len(found.pop(-1, [])) == others
    assert found == {brick: _rows(brick) for brick in range(3)}
    assert {start: account[:1] + account[2:4] for start, account in _accounts(stream).items()} == {
        0: (10_000, True, 0),
        1: (10_000, True, 0),
        2: (5_000, True, 0),
    }
    assert any("Redis lost" in line or "Redis has an older state" in line for line in told)


@pytest.mark.parametrize("command", [f"DEL {LEDGER}", "XGROUP DESTROY feed ucs:ledger:feed"])
def test_a_ledger_or_a_mark_that_goes_away_while_rows_are_added_is_refused_by_the_next_attempt(
    stream: RedisStream, command: str
) -> None:
    client: Any = stream.client
    happens = at(12_000, lambda: client.execute_command(*command.split()))
    with pytest.raises(StreamError, match="do not belong together") as caught:
        _publish(numbers(ROWS), stream, watch=happens)
    assert not isinstance(caught.value, StreamUnavailableError)
    rows = [fields for _, fields in _all(stream)]
    assert rows == [fields for _, fields in expected(ROWS)][: len(rows)]


def test_a_trimmed_stream_goes_on(stream: RedisStream) -> None:
    table = numbers(ROWS)
    records = _publish(table, stream, [0, 1])
    stream.client.xtrim("feed", maxlen=0, approximate=False)
    assert _publish(table, stream, [0, 1], records=records) == records
    _publish(table, stream, records=records)
    assert _by_brick(stream) == {2: _rows(2)}


class _Frozen:
    """A publisher that has sent rows of brick 2, but not what ends their transaction."""

    def __init__(self, table: Table, stream: RedisStream, opening: ResumePoint, rows: int) -> None:
        self.publisher = LedgerPublisher(_feed(table), stream)
        entries, gate, wire = _entries(table, 2), self.publisher._guard, self.publisher._wire
        after = opening.account.plus(rows, entries.content_hash(0, rows), done=False)
        wire.send([gate.begin(b"0.0.0.2", opening.expected, rows), entries.requests.rows(0, rows)])
        self._end = gate.commit(b"0.0.0.2", after.head, rows, begins=True)

    def wake(self) -> None:
        self.publisher._wire.send([self._end + self.publisher._with_replies(self.publisher._guard.probe(b"", 0))])
        self.publisher._wire.reply()
        self.publisher.close()


def test_a_frozen_publisher_adds_nothing_when_it_wakes_up(stream: RedisStream) -> None:
    table = numbers(ROWS)
    frozen = _Frozen(table, stream, ResumePoint(b"", LedgerEntry()), 100)
    records = _publish(table, stream)
    frozen.wake()
    assert _by_brick(stream) == {brick: _rows(brick) for brick in range(3)}
    frozen = _Frozen(table, stream, ResumePoint(_accounts(stream)[2].head, LedgerEntry(replay=1, requests=("a",))), 100)
    _publish(table, stream, [2], records=records, request="b")
    frozen.wake()
    assert _by_brick(stream)[2] == _rows(2) * 2
    stream.client.delete("feed", LEDGER)
    frozen = _Frozen(table, stream, ResumePoint(b"", LedgerEntry()), 100)
    stream.client.delete("feed", LEDGER)
    _publish(table, stream, [2])
    frozen.wake()
    assert _by_brick(stream) == {2: _rows(2)}
    assert stream.client.exists("{feed}:writer:aside") == 0


def _together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Runs jobs at once, each in a thread."""
    found: list[Any] = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def run(position: int) -> None:
        barrier.wait()
        try:
            found[position] = jobs[position]()
        except Exception as error:
            found[position] = error

    threads = [threading.Thread(target=run, args=(position,)) for position in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    for outcome in found:
        if isinstance(outcome, Exception):
            raise outcome
    return found


def test_writers_on_one_brick_at_once_publish_each_row_once(
    stream: RedisStream, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucs_pipeline.publishing.any_order.transfer._STALL_SECONDS", 0.2)
    table = numbers(ROWS)

    def publish() -> list[BrickReport]:
        return _publish(table, RedisStream("feed", redis_server.client()), settings={"max_rows_per_second": 20_000})

    reports = _together([publish] * 3)
    assert [[report.rows for report in each] for each in reports] == [[10_000, 10_000, 5_000]] * 3
    assert _by_brick(stream) == {brick: _rows(brick) for brick in range(3)}


def test_bricks_in_parallel_beside_another_producer(stream: RedisStream, redis_server: RedisServer) -> None:
    table = numbers(ROWS)
    over = threading.Event()

    def produce() -> int:
        client = redis_server.client()
        return sum(
            client.xadd("feed", {"n": n}) is not None
            for n in itertools.takewhile(lambda _: not over.is_set(), itertools.count())
        )

    def publish(brick: int) -> list[BrickReport]:
        return _publish(table, RedisStream("feed", redis_server.client()), [brick])

    def publish_all() -> None:
        _together([lambda brick=brick: publish(brick) for brick in range(3)])  # type: ignore[misc]
        over.set()

    added, _ = _together([produce, publish_all])
    found = _by_brick(stream)
    assert found.pop(-1) == [{b"n": b"%d" % n} for n in range(added)]
    assert found == {brick: _rows(brick) for brick in range(3)}


def test_two_replays_asked_for_at_once_make_two_whole_ones(
    stream: RedisStream, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucs_pipeline.publishing.any_order.transfer._STALL_SECONDS", 0.2)
    table = numbers(ROWS)
    records = _publish(table, stream, [2])

    def replay(request: str) -> list[BrickReport]:
        return _publish(table, RedisStream("feed", redis_server.client()), [2], records=records, request=request)

    _together([lambda: replay("a"), lambda: replay("b")])
    [account] = _accounts(stream).values()
    assert (account.done, account.replay, sorted(account.requests)) == (True, 2, ["a", "b"])
    assert _by_brick(stream) == {2: _rows(2) * 3}


def test_a_replay_that_is_launched_again_after_another_one_is_done_once(stream: RedisStream) -> None:
    table = numbers(ROWS)
    _publish(table, stream)
    # Interrupted after the first brick, another replay of all, and the first one once more.
    _publish(table, stream, [0], request="a")
    _publish(table, stream, request="b")
    for _ in range(2):
        _publish(table, stream, request="a")
        assert _by_brick(stream) == {brick: _rows(brick) * 3 for brick in range(3)}
    _publish(table, stream, request="b")
    _publish(table, stream, request="of a tag, as people write them")
    assert _by_brick(stream) == {brick: _rows(brick) * 4 for brick in range(3)}


def test_a_replay_that_meets_half_of_another_one_finishes_that_and_is_done_itself(stream: RedisStream) -> None:
    table = numbers(ROWS)
    records = _publish(table, stream, [2])
    with LedgerPublisher(_feed(table), stream) as publisher:
        account = _accounts(stream)[2]
        publisher.open({2: ResumePoint(account.head, account.again("a"))})
        list(publisher.publish(iter([PartitionBatch(_entries(table, 2), 0, 100, 2)])))
    reports = _publish(table, stream, [2], records=records, request="b")
    assert [(report.replay, report.published) for report in reports] == [(1, 4_900), (2, 5_000)]
    for request in ("a", "b"):
        _publish(table, stream, [2], request=request)
    assert _by_brick(stream) == {2: _rows(2) * 3}


def test_a_replay_takes_over_what_was_half_published_for_nobody(stream: RedisStream) -> None:
    table = numbers(ROWS)
    _half(table, stream, 4_000)
    for _ in range(2):
        _publish(table, stream, [0], request="a")
        assert _by_brick(stream) == {0: _rows(0)}
    assert _accounts(stream)[0].requests == ("a",)


def test_one_refused_row_takes_its_whole_transaction_with_it(stream: RedisStream, redis_server: RedisServer) -> None:
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
            _publish(table, stream, [0], settings={"timeout_s": 1})
        assert stream.state().length == sum(account.rows for account in _accounts(stream).values()) <= 300
    finally:
        client.config_set("maxmemory", 0)
    _publish(table, stream, [0])
    assert [int(fields[b"id"]) for _, fields in _all(stream)] == list(range(2_000))


def test_a_redis_that_takes_some_rows_of_a_transaction_keeps_none(stream: RedisStream) -> None:
    # The stream's ids end after three more entries.
    stream.client.xadd("feed", {"who": "somebody else"}, id=f"{2**64 - 1}-{2**64 - 4}")
    with pytest.raises(StreamError, match="exhausted the last possible ID"):
        _publish(numbers(ROWS), stream, [2])
    assert [fields for _, fields in stream.entries(EntryId(0, 0), EntryId(2**64 - 1, 2**64 - 1))] == [
        {b"who": b"somebody else"}
    ]
    assert _accounts(stream) == {}


def test_a_cap_holds_whoever_fills_the_stream(stream: RedisStream, redis_server: RedisServer) -> None:
    table, longest = numbers(ROWS), 0
    over = threading.Event()

    def consume() -> int:
        longest, client = 0, redis_server.client()
        while not over.is_set():
            longest = max(longest, client.xlen("feed"))
            client.xtrim("feed", maxlen=500, approximate=False)
        return longest

    def publish(brick: int) -> list[BrickReport]:
        return _publish(table, RedisStream("feed", redis_server.client()), [brick], settings={"max_len": 1_500})

    def publish_all() -> None:
        _together([lambda: publish(0), lambda: publish(1)])
        over.set()

    longest, _ = _together([consume, publish_all])
    assert 0 < longest <= 1_650
    assert {start: account.rows for start, account in _accounts(stream).items()} == {0: 10_000, 1: 10_000}
    with pytest.raises(StreamFullError, match="No entry was trimmed"):
        _publish(table, stream, [2], settings={"max_len": stream.state().length, "timeout_s": 0.1})


def test_a_stream_of_an_ordered_feed_is_refused(stream: RedisStream) -> None:
    stream.client.set("{feed}:writer", "token")
    with pytest.raises(StreamError, match=r"was written by an ordered feed.*Choose another `stream.name`"):
        _publish(numbers(ROWS), stream)


def test_a_ledger_of_other_bricks_is_refused(stream: RedisStream) -> None:
    _publish(numbers(ROWS), stream, [0])
    feed = _feed(numbers(ROWS), bricks={"class": "number", "last": ROWS, "width": 5_000})
    with pytest.raises(
        StreamError, match=r"written with bricks of class number, level brick, width 10000, and the feed has"
    ):
        list(publish(feed, source_of(feed), stream, [0], lambda _: {}))


def test_a_key_that_is_no_stream_and_a_ledger_that_is_none_are_refused(stream: RedisStream) -> None:
    stream.client.set("feed", "text")
    with pytest.raises(StreamError, match="holds another type, expected a stream"):
        _publish(numbers(ROWS), stream)
    stream.client.delete("feed")
    _publish(numbers(ROWS), stream, [2])
    stream.client.hset(LEDGER, "0.0.0.2", "nonsense")
    with pytest.raises(StreamError, match=r"brick 0\.0\.0\.2: ledger '\{feed\}:ledger:feed' has the value 'nonsense'"):
        _publish(numbers(ROWS), stream, [2])


def test_a_ledger_that_turns_into_something_else_closes_the_gate(stream: RedisStream) -> None:
    table = numbers(ROWS)
    entries = _entries(table, 2)
    with LedgerPublisher(_feed(table), stream) as publisher:
        stream.client.set(LEDGER, "text")
        publisher.open({2: ResumePoint(b"", LedgerEntry())})
        with pytest.raises(StreamError):
            list(publisher.publish(iter([PartitionBatch(entries, 0, 10, 2)])))
    assert _all(stream) == []
    assert stream.client.type("feed") == b"stream"


def test_rows_that_the_ledger_does_not_expect_move_nothing(stream: RedisStream) -> None:
    table = numbers(ROWS)
    entries = _entries(table, 2)
    with LedgerPublisher(_feed(table), stream) as publisher:
        publisher.open({2: ResumePoint(LedgerEntry(7).head, LedgerEntry(7))})
        with pytest.raises(MovedError):
            list(publisher.publish(iter([PartitionBatch(entries, 7, 10, 2)])))
    assert _all(stream) == []


def test_a_feed_with_a_stream_of_its_own_is_read_in_the_order_of_the_stream(stream: RedisStream) -> None:
    table = numbers(ROWS)
    feed = _feed(table)
    reader = Reader(feed, client=stream.client)
    assert reader.take(10) == []
    _publish(table, stream, [2])
    assert [(entry.id, entry.fields) for entry in reader.take(ROWS)] == _all(stream)
    records = _publish(table, stream, [0])
    _publish(table, stream, [0], records=records, request="again")
    assert [entry.fields for entry in reader.take(10**6)] == _rows(0) * 2
    assert not reader.finished
    there = _all(stream)
    assert list(read_entries(feed, client=stream.client)) == there
    assert list(read_entries(feed, there[7_000][0], client=stream.client)) == there[7_001:]
    stream.client.xtrim("feed", maxlen=3, approximate=False)
    assert list(read_entries(feed, client=stream.client)) == there[-3:]


def test_the_command_shows_a_feed_in_the_order_of_its_stream(
    stream: RedisStream, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", redis_server.url)
    monkeypatch.setattr("ucs_pipeline.cli.entry_tables.read_entries", read_entries)
    table = numbers(ROWS)
    _publish(table, stream, [2])
    _publish(table, stream, [0])
    print_entries(_feed(table), 3)
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if re.match(r"\s*\d+-\d+ ", line)] == [
        "20000",
        "20001",
        "20002",
    ]
    assert "the first 3 rows" in shown
    file = io.BytesIO()
    write_entries(_feed(table), file)
    keys = [line.split(b",")[1] for line in file.getvalue().splitlines()]
    assert keys == [b"id", *(b"%d" % n for n in (*range(20_000, ROWS), *range(10_000)))]


def test_entries_of_a_stream_that_others_write_to_are_not_taken_for_the_feeds(stream: RedisStream) -> None:
    table = numbers(ROWS)
    _publish(table, stream, [2])
    reader = Reader(_feed(table), client=stream.client)
    assert len(reader.take(10)) == 10
    stream.client.xadd("feed", {"who": "somebody else"})
    for _ in range(2):
        with pytest.raises(
            StreamError,
            match=r"feed 'feed': the entries of stream 'feed' do not name their feed, and 5,001 entries came, "
            r"5,000 from this feed by its ledger\. Read brick by brick with `ucs read feed BRICK`, or use a consumer",
        ):
            reader.take(10_000)
    stream.client.delete("feed")
    assert list(read_entries(_feed(table), client=stream.client)) == []
    stream.client.delete(LEDGER)
    stream.client.xadd("feed", {"who": "somebody else"})
    with pytest.raises(StreamError, match=r"1 entry came, 0 from this feed by its ledger"):
        list(read_entries(_feed(table), client=stream.client))
    stream.client.set("feed", "text")
    with pytest.raises(StreamError, match="holds another type"):
        Ledger(_feed(table), stream).refuse_others()


def test_a_redis_that_does_not_count_what_was_added_shows_no_entries_as_the_feeds(tmp_path: Path) -> None:
    with RedisServer(tmp_path, executable=redis_executable(oldest=True)) as server:
        stream, table = RedisStream("feed", server.client()), numbers(ROWS)
        assert list(read_entries(_feed(table), client=stream.client)) == []
        _publish(table, stream, [2])
        if stream.state().added is not None:
            pytest.skip("no Redis before version 7 is installed")
        with pytest.raises(StreamError, match="Redis before version 7 does not count"):
            list(read_entries(_feed(table), client=stream.client))


PUBLISH = """
import sys
import redis
from ucs_pipeline.publishing.run import publish
from ucs_pipeline_tests.support.connections import read_brick
from ucs_pipeline.publishing.backpressure import trim_acknowledged
from ucs_pipeline.stream.stream import RedisStream, reading_groups
from ucs_pipeline_tests.support.tables import numbers, source_of
rows = int(sys.argv[2])
feed = numbers(rows).feed(rows - 1, stream={"order": "any", "max_len": 15_000})
stream = RedisStream("feed", redis.Redis.from_url(sys.argv[1], protocol=2))
list(publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {}))
"""


def test_a_publisher_killed_inside_a_brick_leaves_what_its_ledger_says(
    stream: RedisStream, redis_server: RedisServer
) -> None:
    command = [sys.executable, "-c", PUBLISH, redis_server.url, str(ROWS)]
    process = subprocess.Popen(command, cwd=PROJECT)
    while stream.state().length < 12_000 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    accounts, length = _accounts(stream), stream.state().length
    assert length == sum(account.rows for account in accounts.values())
    assert 12_000 <= length < ROWS
    _publish(numbers(ROWS), stream)
    assert _by_brick(stream) == {brick: _rows(brick) for brick in range(3)}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("guarded")) as server:
        yield server


def _documented() -> list[str]:
    page = (PROJECT / "docs" / "how-to" / "connect.md").read_text()
    [line] = re.findall(r"ACL SETUSER publisher on >password (.*)", page)
    return str(line).split()


def _as_user(server: RedisServer, rights: Sequence[str]) -> RedisStream:
    with server.client() as client:
        client.flushall()
        client.execute_command("ACL SETUSER publisher reset on >word", *rights)
    return RedisStream("events", redis.Redis(port=server.port, username="publisher", password="word", protocol=2))


def _flights(table: Table) -> Any:
    return Feed(
        name="flights",
        table=table.name,
        key="id",
        bricks={"class": "number", "last": 9_999},
        stream={"name": "events", "order": "any"},
    )


def test_the_documented_rights_are_enough(guarded: RedisServer) -> None:
    feed, stream = _flights(numbers(3_000)), _as_user(guarded, _documented())
    for published in (3_000, 0):
        [report] = publish(feed, source_of(feed), stream, [0], lambda _: {})
        assert (report.rows, report.published) == (3_000, published)


@pytest.mark.parametrize("missing", [right for right in _documented() if right[0] in "+~"])
def test_a_right_that_is_missing_is_said_before_any_row_moves(guarded: RedisServer, missing: str) -> None:
    feed = _flights(numbers(10))
    stream = _as_user(guarded, [right for right in _documented() if right != missing])
    going = publish(feed, source_of(feed), stream, [0], lambda _: {})
    if missing in ("+info", "+client|reply", "+del", "+hlen"):
        assert [report.published for report in going] == [10]
        return
    with pytest.raises(StreamError, match=r"the Redis user (lacks a right|may not run)"):
        list(going)
    with guarded.client() as client:
        assert not client.exists("events") or client.xlen("events") == 0
        assert not client.exists("{events}:writer:aside")


@pytest.mark.parametrize(
    ("name", "key"),
    [("flights", "{flights}:x"), ("a{b}c", "a{b}c:x"), ("{x", "{{x}:x")],
)
def test_keys_beside_a_stream_are_in_its_slot(name: str, key: str) -> None:
    assert companion_key(name, "x") == key
    assert has_neighbours(name)


@pytest.mark.parametrize("name", ["a{}c", "}", "x}{y"])
def test_some_names_have_no_neighbours(name: str) -> None:
    assert not has_neighbours(name)


def _slots(*names: str) -> Iterator[int]:
    from redis.crc import key_slot

    return (key_slot(name.encode()) for name in names)


@pytest.mark.parametrize("name", ["flights", "a{b}c", "{x", "{a}{b}"])
def test_a_cluster_agrees(name: str) -> None:
    assert len(set(_slots(name, companion_key(name, "ledger:f"), companion_key(name, "writer:aside")))) == 1
