"""Publishing to a real Redis Cluster, and to a master that a real Sentinel watches, while they move and fail over."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event

import pyarrow as pa
import pytest

from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.ordered.publisher import Publisher
from ucs_pipeline.publishing.ordered.shard_progress import noted
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import verify
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_cluster import RedisCluster, WatchedRedis, wait_until
from ucs_pipeline_tests.servers.webhook_server import closed_port
from ucs_pipeline_tests.support.connections import connect_each, connect_redis, open_stream, read_entries
from ucs_pipeline_tests.support.tables import expected, numbers, source_of

ROWS = 50_000
HELD_FROM = 30_000


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path, "feed") as cluster:
        monkeypatch.setenv("UCS_REDIS_URL", cluster.url)
        yield cluster


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedRedis]:
    with WatchedRedis(tmp_path) as watched:
        monkeypatch.setenv("UCS_REDIS_URL", watched.url)
        yield watched


def _held_source(feed: Feed, happened: Event) -> Source:
    """The feed's table, whose last bricks are not read before something has happened."""
    source = source_of(feed)
    scan = source.scan

    def held(first: int, last: int) -> Iterator[pa.RecordBatch]:
        with closing(scan(first, last)) as batches:
            for batch in batches:
                if batch.column("key")[0].as_py() >= HELD_FROM:
                    assert happened.wait(60), "nothing has happened"
                yield batch

    pytest.MonkeyPatch().setattr(source, "scan", held)
    return source


def _publish(happens: Callable[[list[str], Event], None], **settings: int) -> None:
    """Publishes five bricks, and something happens after the second one.

    It is given what is logged meanwhile, and an event that it may set: only then, or when it is over, the last bricks
    are read.
    """
    feed = numbers(ROWS).feed(ROWS - 1, stream={"max_rows_per_second": 40_000, "timeout_s": 60, **settings})
    stream = OrderedStream("feed", connect_redis("feed"))
    logged: list[str] = []
    done: list[BrickReport] = []
    happening: list[Future[None]] = []
    happened = Event()

    def happen() -> None:
        try:
            happens(logged, happened)
        finally:
            happened.set()

    with ThreadPoolExecutor() as parked:
        for report in publish(feed, _held_source(feed, happened), stream, feed.ordinals, lambda _: {}, logged.append):
            done.append(report)
            if report.ordinal == 1 and not happening:
                assert stream.state().length < ROWS
                happening.append(parked.submit(happen))
    happening[0].result()
    assert list(dict.fromkeys(report.ordinal for report in done)) == list(feed.ordinals)
    stream = OrderedStream("feed", connect_redis("feed"))
    assert stream.entries(EntryId(0, 0), EntryId(2**63, 0)) == expected(ROWS)
    assert verify(feed, source_of(feed), stream).agrees


def test_shards_spread_over_the_nodes_and_another_number_of_them_is_refused_on_any(cluster: RedisCluster) -> None:
    table = numbers(60_000)

    def shards(number: int) -> Feed:
        return table.feed(59_999, stream={"shards": number})

    def publish_shard(part: Feed) -> None:
        stream = open_stream(part, connect_redis(part.stream_name))
        for _ in noted(part, stream, publish(part, source_of(part), stream, part.ordinals, lambda _: {}), None):
            pass

    for part in streams_of(shards(2)):
        publish_shard(part)
    assert [(entry_id, dict(fields)) for entry_id, fields in read_entries(shards(2), follow=True)] == expected(60_000)
    owners = {
        next(s.port for s in cluster.servers[:3] if s.client().keys(part.stream_name)) for part in streams_of(shards(2))
    }
    assert len(owners) == 2
    for part in streams_of(shards(4)):
        with pytest.raises(
            StreamError, match=r"'feed.0' was written as shard 0 of 2|'feed.1' was written as shard 1 of 2"
        ):
            publish_shard(part)
    with pytest.raises(StreamError, match=r"'feed.0' has those of the same feed"):
        publish_shard(shards(1))


def test_a_stream_whose_slot_moves_while_it_is_published_is_the_table(cluster: RedisCluster) -> None:
    target = next(server for server in cluster.servers[:3] if server is not cluster.owner)

    def move(logged: list[str], begun: Event) -> None:
        cluster.begin_move(target)
        begun.set()
        wait_until(lambda: any("the Redis cluster is moving the stream's slot" in line for line in logged))
        cluster.end_move(target)

    _publish(move)
    assert target.client().xlen("feed") == ROWS
    assert target.client().exists("{feed}:writer") == 1


def test_a_stream_whose_node_dies_while_it_is_published_is_the_table(cluster: RedisCluster) -> None:
    _publish(lambda *_: cluster.owner.kill())
    assert cluster.replica.client().xlen("feed") == ROWS


def test_a_stream_whose_node_hands_over_while_it_is_published_is_the_table(cluster: RedisCluster) -> None:
    # An orderly failover: the node that had the stream becomes a replica, and redirects to the new master.
    replica = cluster.replica.client()

    def hand_over(*_: object) -> None:
        replica.cluster("failover")
        wait_until(lambda: replica.info("replication")["role"] == "master")

    _publish(hand_over)
    assert replica.xlen("feed") == ROWS


def test_streams_of_a_cluster_are_found_on_their_nodes(cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["feed", "{shop}:orders", "planes", "trips"]
    clients = connect_each(names)
    for name, client in zip(names, clients, strict=True):
        with Publisher(OrderedStream(name, client)) as publisher:
            assert publisher.state.exists
    held = [set(server.client().keys("*")) for server in cluster.servers[:3]]
    assert min(map(len, held)) >= 2
    assert {b"{shop}:orders", b"{shop}:orders:writer"} <= set.union(*held)
    with pytest.raises(StreamError, match=r"'a\}b': the stream's name has braces.*Choose another stream name"):
        Publisher(OrderedStream("a}b", connect_redis("a}b")))
    # Two nodes of three do not have it.
    for server in cluster.servers[:3]:
        if server is not cluster.owner:
            monkeypatch.setenv("UCS_REDIS_URL", server.url)
            stream = OrderedStream("feed", connect_redis("feed"))
            with pytest.raises(
                StreamError, match=r"on another node of a Redis cluster. Name the cluster.*redis\+cluster"
            ) as caught:
                stream.state()
            assert not isinstance(caught.value, StreamUnavailableError)


def test_a_cluster_that_is_down_may_come_back(cluster: RedisCluster) -> None:
    stream = OrderedStream("feed", connect_redis("feed"))
    for server in cluster.servers[1:]:
        server.kill()
    with pytest.raises(StreamUnavailableError):
        stream.state()


@pytest.mark.parametrize("settings", [{}, {"min_replicas": 1}], ids=["", "min_replicas"])
def test_a_stream_whose_watched_master_dies_while_it_is_published_is_the_table(
    watched: WatchedRedis, settings: dict[str, int]
) -> None:
    _publish(lambda *_: watched.master.kill(), **settings)
    [promoted] = [each for each in watched.replicas if each.client().info("replication")["role"] == "master"]
    assert promoted.client().xlen("feed") == ROWS


def test_a_master_that_the_sentinels_do_not_know_is_refused(
    watched: WatchedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", watched.url.replace("prime", "second"))
    with pytest.raises(StreamError, match=r"UCS_REDIS_URL know no master 'second'\. Check its name") as caught:
        OrderedStream("feed", connect_redis("feed")).state()
    assert not isinstance(caught.value, StreamUnavailableError)
    monkeypatch.setenv("UCS_REDIS_URL", f"redis+sentinel://127.0.0.1:{closed_port()}/prime")
    with pytest.raises(StreamUnavailableError, match=r"no Sentinel names a master 'prime'.*Check UCS_REDIS_URL"):
        OrderedStream("feed", connect_redis("feed")).state()


def test_sentinels_have_a_login_of_their_own(watched: WatchedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    sentinel, master = watched.sentinel.client(), watched.master.client()
    sentinel.execute_command("ACL SETUSER seeker reset on >word +sentinel|get-master-addr-by-name")
    sentinel.execute_command("ACL SETUSER default off")
    master.execute_command("ACL SETUSER watcher reset on >pass ~feed +xinfo|stream")
    login = watched.url.replace("://", "://watcher:pass@")
    monkeypatch.setenv("UCS_REDIS_URL", f"{login}?sentinel_username=seeker&sentinel_password=word")
    assert not OrderedStream("feed", connect_redis("feed")).state().exists
    monkeypatch.setenv("UCS_REDIS_URL", f"{login}?sentinel_username=seeker&sentinel_password=wr0ng")
    with pytest.raises(StreamError, match=r"A Sentinel refused the login\. Check sentinel_username") as caught:
        OrderedStream("feed", connect_redis("feed")).state()
    assert "wr0ng" not in str(caught.value)
