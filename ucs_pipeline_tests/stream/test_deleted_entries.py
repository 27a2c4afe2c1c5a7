"""Workers that delete entries from the middle of a stream: nothing is called lost, and nothing unread is trimmed.

On a server that has Redis 8.2's XACKDEL and XDELEX, by these; on another one by XACK and XDEL.
"""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError
from ucs_pipeline.publishing.backpressure import trim_acknowledged
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import Verdict, verify
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer, redis_executable
from ucs_pipeline_tests.support.tables import Table, numbers, source_of

ROWS = 25_000
MIDDLE = ("0-2", "0-9999", "0-10000", "1-1", "1-7", "2-5000")


@pytest.fixture(scope="module")
def table() -> Table:
    return numbers(ROWS)


def _publish(table: Table, stream: OrderedStream, rows: int = ROWS) -> list[int]:
    feed = table.feed(rows - 1)
    return [report.published for report in publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {})]


def _verify(table: Table, stream: OrderedStream) -> Verdict:
    feed = table.feed(ROWS - 1)
    return verify(feed, source_of(feed), stream)


def _counts(verdict: Verdict) -> tuple[int, int, int, int]:
    return verdict.equal, verdict.trimmed, verdict.deleted, verdict.missing


def _read(client: Any, group: str, count: int | None = None) -> None:
    client.xgroup_create("feed", group, "0")
    client.xreadgroup(group, "worker", {"feed": ">"}, count=count)


def _ackdel(client: Any, group: str, *ids: str) -> None:
    try:
        assert client.execute_command("XACKDEL", "feed", group, "IDS", len(ids), *ids) == [1] * len(ids)
    except redis.ResponseError as error:
        if "unknown command" not in str(error):
            raise
        client.xack("feed", group, *ids)
        client.xdel("feed", *ids)


def _delex(client: Any, _group: str, *ids: str) -> None:
    try:
        assert client.execute_command("XDELEX", "feed", "KEEPREF", "IDS", len(ids), *ids) == [1] * len(ids)
    except redis.ResponseError as error:
        if "unknown command" not in str(error):
            raise
        client.xdel("feed", *ids)


@pytest.mark.parametrize("delete", [_ackdel, _delex])
@pytest.mark.parametrize("oldest", [False, True])
def test_what_workers_delete_is_not_lost_and_does_not_stop_the_publisher(
    table: Table, tmp_path: Any, oldest: bool, delete: Callable[..., None]
) -> None:
    with RedisServer(tmp_path, executable=redis_executable(oldest=oldest)) as server:
        stream, client = OrderedStream("feed", server.client()), server.client()
        _publish(table, stream)
        _read(client, "workers")
        delete(client, "workers", *MIDDLE)
        verdict = _verify(table, stream)
        assert _counts(verdict) == (ROWS - 6, 0, 6, 0)
        assert verdict.agrees
        # Without records, all that is there is compared, brick by brick. Before Redis 7 nothing shows that the last
        # rows of a brick were deleted.
        if stream.state().deleted is not None:
            assert _publish(table, stream) == [0, 0, 0]
        delete(client, "workers", "0-1")
        client.xtrim("feed", minid="0-100", approximate=False)
        assert _counts(_verify(table, stream)) == (ROWS - 104, 99, 5, 0)


def test_what_no_group_was_given_is_missing(table: Table, stream: OrderedStream) -> None:
    client = stream.client
    _publish(table, stream)
    client.xdel("feed", "0-5")
    assert _counts(_verify(table, stream)) == (ROWS - 1, 0, 0, 1)
    _read(client, "workers", 10)
    client.xdel("feed", "0-12")
    verdict = _verify(table, stream)
    assert _counts(verdict) == (ROWS - 2, 0, 1, 1)
    assert [difference.entry for difference in verdict.differences] == [EntryId(0, 12)]
    assert not verdict.agrees


def test_rows_that_came_late_are_not_taken_for_deleted_ones(stream: OrderedStream) -> None:
    table = Table("id UInt32", "SELECT number FROM numbers(30000) WHERE number != 9999", order_by="id")
    _publish(table, stream)
    _read(stream.client, "workers")
    _ackdel(stream.client, "workers", "0-5")
    table.run(f"INSERT INTO {table.name} SELECT 9999")
    with pytest.raises(StreamError, match="10,000 rows in the table and 9,999 in stream 'feed'"):
        _publish(table, stream, 30_000)


def test_nothing_unread_is_trimmed_behind_deleted_entries(stream: OrderedStream) -> None:
    client: Any = stream.client
    for row in range(1, 21):
        client.xadd("feed", {"n": row}, id=f"0-{row}")
    _read(client, "fast")
    _read(client, "slow", 3)
    _ackdel(client, "fast", "0-5", "0-6", "0-20")
    client.xack("feed", "fast", *(f"0-{row}" for row in range(1, 20)))
    assert trim_acknowledged(stream) == 0
    client.xack("feed", "slow", "0-1", "0-2", "0-3")
    assert trim_acknowledged(stream) == 3
    client.xreadgroup("slow", "worker", {"feed": ">"})
    assert [row for row, _ in stream.entries(EntryId(0, 0), EntryId(1, 0))] == [
        EntryId(0, row) for row in range(4, 20) if row not in (5, 6)
    ]
    # What was deleted under a worker, and is still pending, holds back what comes after it until it is acknowledged.
    _delex(client, "slow", "0-4")
    client.xack("feed", "slow", *(f"0-{row}" for row in range(5, 20)))
    assert trim_acknowledged(stream) == 0
    client.xack("feed", "slow", "0-4")
    assert trim_acknowledged(stream) == 13
    assert stream.state().top == EntryId(0, 20)
