"""Entries of several streams in the order of their table: never one before its turn, on a real Redis."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.errors import StreamError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.stream.shard_state import ShardState, write_shard_state
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.ports import HeldPort
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import Reader, open_stream, read_brick, read_entries


def _feed(bricks: int, shards: int, **more: Any) -> Feed:
    last = bricks * 10_000 - 1
    chosen = {"class": "number", "last": last, **more}
    return Feed(name="rows", table="rows", key="id", bricks=chosen, stream={"shards": shards})


class Publishers:
    """Publishes rows to the shards of a feed, each at its own pace, in the order of its own bricks."""

    def __init__(self, feed: Feed, rows: Sequence[int], client: Any) -> None:
        """`rows`: how many each brick has."""
        self.ids = [EntryId(brick, row) for brick, count in enumerate(rows) for row in range(1, count + 1)]
        self._parts = streams_of(feed)
        self._streams: list[OrderedStream] = [open_stream(part, client) for part in self._parts]
        self._left = [[n for n in self.ids if n.ordinal in part.partitions] for part in self._parts]
        for part, stream in zip(self._parts, self._streams, strict=True):
            write_shard_state(stream, ShardState.of(part))

    def publish(self, shard: int, rows: int) -> None:
        """The next rows of a shard."""
        stream, left = self._streams[shard], self._left[shard]
        with stream.client.pipeline() as pipe:
            for entry in left[:rows]:
                pipe.xadd(stream.name, {"n": str(entry)}, str(entry))
            pipe.execute()
        del left[:rows]

    def note(self, shard: int) -> None:
        """Writes down how far a shard is complete."""
        part, stream, left = self._parts[shard], self._streams[shard], self._left[shard]
        end = part.partitions.before(left[0].ordinal) if left else part.partitions.last
        if end is not None:
            write_shard_state(stream, ShardState.of(part)._replace(done=end, top=stream.state().top))


@settings(max_examples=40)
@given(
    st.integers(2, 4),
    st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=4, max_size=14),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.booleans(), st.integers(0, 9)), max_size=30),
)
def test_whatever_shard_is_ahead_what_is_read_is_a_prefix_of_the_table(
    redis_server: RedisServer, shards: int, rows: list[int], steps: list[tuple[int, int, bool, int]]
) -> None:
    client = redis_server.client()
    client.flushall()
    feed = _feed(len(rows), shards)
    publishers, reader = Publishers(feed, rows, client), Reader(feed, client=client)
    given_out: list[EntryId] = []
    for shard, count, noted, most in steps:
        publishers.publish(shard % shards, count)
        if noted:
            publishers.note(shard % shards)
        given_out += [entry.id for entry in reader.take(most)]
        assert given_out == publishers.ids[: len(given_out)]
    for shard in range(shards):
        publishers.publish(shard, 10**6)
        publishers.note(shard)
    given_out += [entry.id for entry in reader.take(10**6)]
    assert given_out == publishers.ids
    assert reader.finished


def test_a_brick_is_over_when_its_shard_is_beyond_it_or_says_so(redis_server: RedisServer) -> None:
    client, feed = redis_server.client(), _feed(6, 2)
    publishers = Publishers(feed, [2, 2, 0, 2, 2, 2], client)
    publishers.publish(1, 6)
    reader = Reader(feed, client=client)
    assert reader.take(10) == []
    publishers.publish(0, 1)
    assert [str(entry.id) for entry in reader.take(10)] == ["0-1"]
    publishers.publish(0, 1)
    assert [str(entry.id) for entry in reader.take(10)] == ["0-2"]
    # Brick 0 may still grow until shard 0 is beyond it: here its state marks brick 2, which is empty, as complete too.
    assert reader.take(10) == []
    publishers.note(0)
    assert [str(entry.id) for entry in reader.take(10)] == ["1-1", "1-2", "3-1", "3-2"]
    publishers.publish(0, 2)
    assert [str(entry.id) for entry in reader.take(10)] == ["4-1", "4-2"]
    assert not reader.finished
    publishers.note(0)
    publishers.note(1)
    assert [str(entry.id) for entry in reader.take(10)] == ["5-1", "5-2"]
    assert reader.finished


def test_a_note_from_before_the_stream_was_lost_is_not_believed(redis_server: RedisServer) -> None:
    client, feed = redis_server.client(), _feed(4, 2)
    publishers = Publishers(feed, [1, 1, 1, 1], client)
    for shard in (0, 1):
        publishers.publish(shard, 2)
        publishers.note(shard)
    client.delete("rows.0")
    assert list(read_entries(feed, client=client)) == []
    client.xadd("rows.0", {"n": "0-1"}, "0-1")
    assert [str(entry.id) for entry in read_entries(feed, client=client)] == ["0-1"]
    assert ShardState(("0", "2", "brick"), 2, EntryId(2, 1)).reach(State(True, EntryId(2, 1), 2)) == 2


def test_a_reader_goes_on_after_the_last_entry_it_handled(redis_server: RedisServer) -> None:
    client, feed = redis_server.client(), _feed(9, 3)
    rows = [random.Random(n).randrange(3000) for n in range(9)]
    publishers = Publishers(feed, rows, client)
    for shard in range(3):
        publishers.publish(shard, 10**6)
        publishers.note(shard)
    everything = list(read_entries(feed, client=client))
    assert [entry.id for entry in everything] == publishers.ids
    assert all(entry.fields == {b"n": str(entry.id).encode()} for entry in everything)
    middle = everything[len(everything) // 2].id
    rest = list(read_entries(feed, str(middle), follow=True, client=client))
    assert [entry.id for entry in rest] == [entry for entry in publishers.ids if entry > middle]
    adopted = list(read_entries(feed, EntryId(4, 2**64 - 1), client=client))
    assert [entry.id for entry in adopted] == [entry for entry in publishers.ids if entry.ordinal > 4]


def test_a_feed_with_one_stream_is_read_the_same(redis_server: RedisServer) -> None:
    client = redis_server.client()
    for entry in ("0-1", "0-2", "3-1"):
        client.xadd("rows", {"n": entry}, entry)
    assert [str(entry.id) for entry in read_entries(_feed(4, 1), client=client)] == ["0-1", "0-2", "3-1"]
    assert [str(entry.id) for entry in read_entries(_feed(4, 1), "0-1", client=client)] == ["0-2", "3-1"]


def test_streams_of_another_number_of_shards_are_refused(redis_server: RedisServer) -> None:
    client = redis_server.client()
    Publishers(_feed(6, 2), [1] * 6, client).publish(0, 3)
    with pytest.raises(StreamError, match=r"'rows.0' was written as shard 0 of 2, by bricks, expected shard 0 of 3"):
        list(read_entries(_feed(6, 3), client=client))
    client.delete("{rows.0}:shard")
    with pytest.raises(StreamError, match=r"'rows.0' has entries, and no key '{rows.0}:shard' names their shard"):
        list(read_entries(_feed(6, 2), client=client))


@pytest.mark.parametrize("order", ["strict", "any"])
def test_what_a_callers_own_client_meets_is_not_put_down_to_the_url(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    feed = Feed(name="rows", table="rows", key="id", bricks={"class": "number", "last": 9}, stream={"order": order})
    with HeldPort() as port:
        # Another server than the URL's, which is well.
        monkeypatch.setenv("UCS_REDIS_URL", redis_server.url.replace("redis://", "rediss://"))
        for client, sentence in (
            (
                redis.Redis(port=port.number),
                r"cannot be reached .*\. Check the client's settings and the server\. \[UCS-",
            ),
            (
                redis.Redis(port=redis_server.port, username="no", password="x"),
                r"Correct it in the client's settings\. \[UCS-LOGIN\]$",
            ),
        ):
            with pytest.raises(StreamError, match=sentence):
                list(read_entries(feed, client=client))
            with pytest.raises(StreamError, match=sentence):
                read_brick(feed, "0.0.0.0", client)
        monkeypatch.setenv("UCS_REDIS_URL", f"redis://127.0.0.1:{port.number}")
        with pytest.raises(StreamError, match=r"Check UCS_REDIS_URL and the server\. \[UCS-REDIS-UNAVAILABLE\]$"):
            list(read_entries(feed))
