"""The ordered stream in Redis: its publisher, guard and fencing token, and the errors for Redis' refusals."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import hiredis
import pytest
from redis.crc import key_slot

from ucs_pipeline.entries.batches import Batch, cut
from ucs_pipeline.entries.encode import Entries, encode
from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.feed.redis_keys import fencing_token_key
from ucs_pipeline.publishing.ordered.publisher import FencedError, Publisher
from ucs_pipeline.redis.raw_connection import RawConnection
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import connect_redis
from ucs_pipeline_tests.support.tables import Table, expected, numbers, source_of

ROWS = 5_000
ALL = (EntryId(0, 0), EntryId(2**63, 0))


@pytest.fixture(scope="module")
def table() -> Table:
    return numbers(ROWS)


@pytest.fixture(scope="module")
def entries(table: Table) -> Entries:
    [found] = encode(b"feed", source_of(table.feed(ROWS)).scan(0, 0))
    return found


def _ids(stream: OrderedStream) -> list[EntryId]:
    return [entry_id for entry_id, _ in stream.entries(*ALL)]


def test_a_publisher_makes_the_stream_and_leaves_no_group_behind(stream: OrderedStream) -> None:
    assert stream.state() == State(False, START, 0)
    with Publisher(stream) as publisher:
        assert publisher.state[:4] == (True, START, 0, None)
    assert stream.client.xinfo_groups("feed") == []


def test_each_transaction_comes_back_with_the_length_after_it(stream: OrderedStream, entries: Entries) -> None:
    with Publisher(stream) as publisher:
        lengths = [length for _, length in publisher.publish(cut(entries, 0, 2_100))]
    assert lengths == [1_024, 2_048, 2_100]
    assert stream.entries(*ALL) == expected(2_100)
    assert stream.last_row(0) == 2_100
    assert stream.state().first == EntryId(0, 1)


def test_a_next_transaction_that_is_not_ready_does_not_hold_up_the_current_one(
    stream: OrderedStream, entries: Entries
) -> None:
    seen: list[int] = []

    def transactions() -> Iterator[Batch | None]:
        for transaction in cut(entries, 0, 3_000):
            yield transaction
            yield None
            seen.append(stream.state().length)

    with Publisher(stream) as publisher:
        assert [length for _, length in publisher.publish(transactions())] == seen
    assert seen == [1_024, 2_048, 3_000]


def test_nothing_and_nothing_but_pauses_can_be_published(stream: OrderedStream) -> None:
    with Publisher(stream) as publisher:
        assert list(publisher.publish(iter(()))) == []
        assert list(publisher.publish(iter((None, None)))) == []
    assert stream.state().length == 0


def test_a_publisher_that_was_replaced_cannot_add_anything(stream: OrderedStream, entries: Entries) -> None:
    with Publisher(stream) as first, Publisher(stream) as second:
        with pytest.raises(FencedError):
            list(first.publish(cut(entries, 0, 100)))
        list(second.publish(cut(entries, 0, 200)))
    assert stream.entries(*ALL) == expected(200)


def test_a_stream_that_a_worker_makes_again_while_it_is_written_stays_empty(
    stream: OrderedStream, entries: Entries
) -> None:
    # What most workers do when their group is gone. Without a guard the rows would continue in the middle of the table.
    def transactions() -> Iterator[Batch | None]:
        first, *rest = cut(entries, 0, ROWS)
        yield first
        yield None  # it is in the stream, and nothing is under way: Redis could have been quicker than the worker
        stream.client.delete("feed")
        stream.client.xgroup_create("feed", "workers", mkstream=True)
        yield from rest

    with Publisher(stream) as publisher:
        going = publisher.publish(transactions())
        assert next(going)[1] == 1_024
        with pytest.raises(StreamError, match=r"was deleted while it was written.*from its first brick"):
            list(going)
    assert stream.state()[:4] == (True, START, 0, None)
    with Publisher(stream) as publisher:
        list(publisher.publish(cut(entries, 0, 300)))
    client: Any = stream.client
    [[_, delivered]] = client.xreadgroup("workers", "one", {"feed": ">"})
    assert [EntryId.parse(entry_id) for entry_id, _ in delivered] == [entry_id for entry_id, _ in expected(300)]


def test_a_transaction_sent_behind_a_refused_one_is_refused_too(stream: OrderedStream, entries: Entries) -> None:
    client: Any = stream.client

    def transactions() -> Iterator[Batch]:
        first, second, third = cut(entries, 0, 3_000)
        yield first
        _wait(lambda: stream.state().length == first.rows)
        client.config_set("maxmemory", 1)
        refused = client.info("stats")["total_error_replies"]
        yield second
        _wait(lambda: client.info("stats")["total_error_replies"] > refused + second.rows)
        client.config_set("maxmemory", 0)
        yield third

    try:
        with Publisher(stream) as publisher:
            with pytest.raises(StreamUnavailableError, match="'feed': Redis refused rows for a moment"):
                list(publisher.publish(transactions()))
            publisher.close()
    finally:
        client.config_set("maxmemory", 0)
    with Publisher(stream) as publisher:
        # Sent again, to get the reason, the refused one was accepted.
        assert publisher.state[:4] == (True, EntryId(0, 2_048), 2_048, EntryId(0, 1))
    assert stream.entries(*ALL) == expected(2_048)


@pytest.mark.parametrize(
    ("on", "off"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
)
def test_a_refusal_between_the_rows_and_their_exec_may_pass(
    stream: OrderedStream, entries: Entries, on: str, off: str
) -> None:
    client: Any = stream.client
    with Publisher(stream) as publisher:
        [transaction] = cut(entries, 0, 10)
        gate, wire = publisher._guard, RawConnection(stream.client)
        with wire:
            wire.send([gate.begin(START), entries.requests.rows(0, 10)])
            assert [wire.reply() for _ in range(12)] == [b"OK", *[b"QUEUED"] * 11]
            try:
                client.execute_command(*on.split())
                wire.send([gate.commit, gate.probe(transaction.ids[1])])
                queued, refused, answer = (wire.reply() for _ in range(3))
                reason = publisher._reason(transaction, START, answer)
            finally:
                client.execute_command(*off.split())
    assert queued == b"QUEUED" or isinstance(queued, hiredis.ReplyError)
    assert isinstance(refused, hiredis.ReplyError)
    assert isinstance(reason, StreamUnavailableError)
    assert _ids(stream) == []


@pytest.mark.parametrize(
    ("happened", "kind", "sentence"),
    [
        (Publisher, FencedError, ""),
        (lambda stream: stream.client.delete("feed"), StreamUnavailableError, "is gone, and ended at 0-0 a moment ago"),
        (lambda stream: stream.client.xadd("feed", {"a": "b"}, id="7-1"), StreamUnavailableError, "its last ID is 7-1"),
    ],
    ids=["another publisher", "the stream deleted", "an entry added"],
)
def test_what_comes_between_a_refusal_and_the_question_why_is_the_answer(
    stream: OrderedStream, entries: Entries, happened: Callable[[OrderedStream], object], kind: type, sentence: str
) -> None:
    [transaction] = cut(entries, 0, 10)
    with Publisher(stream) as publisher:
        happened(stream)
        reason = publisher._reason(transaction, START, b"0-0")
    assert type(reason) is kind
    assert sentence in str(reason)
    assert EntryId(0, 1) not in _ids(stream)


def test_rows_that_do_not_follow_on_the_top_are_refused(stream: OrderedStream, entries: Entries) -> None:
    with Publisher(stream) as publisher:
        stream.client.xadd("feed", {"who": "somebody else"}, id="0-50")
        with pytest.raises(
            StreamUnavailableError, match="another client has written to it: its last ID is 0-50, expected 0-0"
        ):
            list(publisher.publish(cut(entries, 0, 100)))
    assert _ids(stream) == [EntryId(0, 50)]


def test_a_stream_that_had_other_entries_than_were_sent_is_refused(stream: OrderedStream, entries: Entries) -> None:
    client: Any = stream.client
    first, second = cut(entries, 0, 2_000)
    with Publisher(stream) as publisher:
        list(publisher.publish(iter([first])))
        client.execute_command("XSETID", "feed", str(first.ids[1]), "ENTRIESADDED", 1_025, "MAXDELETEDID", "0-0")
        with pytest.raises(StreamError, match="'feed' had 2,001 entries after 0-2000, expected 2,000"):
            list(publisher.publish(iter([second])))


def test_a_key_where_the_stream_is_moved_aside_to_does_not_take_its_place(
    stream: OrderedStream, entries: Entries
) -> None:
    client: Any = stream.client
    first, second = cut(entries, 0, 2_000)
    with Publisher(stream) as publisher:
        list(publisher.publish(iter([first])))
        client.set("{feed}:writer:aside", "somebody's")
        with pytest.raises(StreamUnavailableError, match="refused rows for a moment"):
            list(publisher.publish(iter([second])))
    assert stream.entries(*ALL) == expected(2_000)
    client.set("{feed}:writer:aside", "somebody's")
    with pytest.raises(StreamError, match=r"key '\{feed\}:writer:aside' exists.*Rename or delete the key"):
        Publisher(stream)
    assert client.get("{feed}:writer:aside") == b"somebody's"
    assert stream.entries(*ALL) == expected(2_000)


def test_a_question_that_redis_does_not_answer_is_no_answer_to_the_next(
    stream: OrderedStream, entries: Entries
) -> None:
    # While another client's script runs too long, Redis refuses everything, also CLIENT REPLY ON, so no refusal is
    # sent.
    first, second = cut(entries, 0, 2_000)
    with Publisher(stream) as publisher:
        gate, wire = publisher._guard, publisher._wire
        wire.send([gate.begin(START), entries.requests.rows(first.start, first.stop), gate.commit])
        publisher._top = first.ids[1]
        publisher._send(second)
        with pytest.raises(StreamUnavailableError, match="did not answer a command"):
            publisher._accepted(first, START)


def test_a_text_that_took_the_stream_s_place_is_kept(stream: OrderedStream, entries: Entries) -> None:
    client: Any = stream.client
    with Publisher(stream) as publisher:
        client.delete("feed")
        client.set("feed", "text")
        with pytest.raises(StreamError, match="was deleted while it was written"):
            list(publisher.publish(cut(entries, 0, ROWS)))
    assert client.get("feed") == b"text"
    assert not client.exists("{feed}:writer:aside")


def test_a_refused_publisher_does_not_disturb_a_worker_that_waits(stream: OrderedStream, entries: Entries) -> None:
    # The guard renames the stream and renames it back; a blocked XREADGROUP must not notice.
    client: Any = stream.client
    got: list[Any] = []

    def work() -> None:
        got.append(client.xreadgroup("workers", "one", {"feed": ">"}, block=20_000))

    with Publisher(stream) as old:
        client.xgroup_create("feed", "workers", id="0")
        worker = threading.Thread(target=work)
        worker.start()
        _wait(lambda: client.info("clients")["blocked_clients"] == 1)
        with Publisher(stream) as new:
            with pytest.raises(FencedError):
                list(old.publish(cut(entries, 0, 10)))
            assert client.info("clients")["blocked_clients"] == 1
            list(new.publish(cut(entries, 0, 10)))
        worker.join(20)
    assert len(got) == 1
    assert got[0][0][1][0][0] == b"0-1"
    assert client.exists("{feed}:writer:aside") == 0


def test_a_key_of_another_type_is_refused_and_kept(stream: OrderedStream) -> None:
    stream.client.set("feed", "text")
    with pytest.raises(StreamError, match=r"'feed'.*holds another type, expected a stream"):
        Publisher(stream)
    assert stream.client.get("feed") == b"text"


@pytest.mark.parametrize("name", ["flights", "a b", "é", "{tag}flights", "a{b}c", "{{x", "x:{y}:{z}"])
def test_fence_and_stream_share_a_cluster_slot(name: str) -> None:
    assert key_slot(fencing_token_key(name).encode()) == key_slot(name.encode())
    assert key_slot(f"{fencing_token_key(name)}:aside".encode()) == key_slot(name.encode())


def test_transactions_cover_all_rows_once_and_stay_small(entries: Entries) -> None:
    parts = list(cut(entries, 3, ROWS))
    assert [part.start for part in parts] == [3, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == ROWS
    assert max(part.rows for part in parts) == 1_024
    assert list(cut(entries, 7, 7)) == []


def test_connections_do_not_run_out_over_many_attempts(stream: OrderedStream) -> None:
    for _ in range(150):
        RawConnection(stream.client).close()


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# Connections


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("guarded"), {"requirepass": "secret"}) as server:
        yield server


def _open(monkeypatch: pytest.MonkeyPatch, url: str) -> OrderedStream:
    monkeypatch.setenv("UCS_REDIS_URL", url)
    return OrderedStream("feed", connect_redis("feed"))


def test_a_wrong_or_missing_password_is_said_and_not_shown(
    guarded: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for login in (":wr0ng@", "nobody:wr0ng@", ""):
        stream = _open(monkeypatch, f"redis://{login}127.0.0.1:{guarded.port}/0")
        for action in (stream.state, lambda stream=stream: Publisher(stream)):
            with pytest.raises(StreamError, match=r"password.*UCS_REDIS_URL") as caught:
                action()
            assert not isinstance(caught.value, StreamUnavailableError)
            assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["redis://:pa55@127.0.0.1:1/0", "redis://:pa55@no-such-host.invalid/0", "unix://:pa55@/no/such/redis.sock"],
)
def test_a_server_that_is_not_there_may_come_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _open(monkeypatch, url)
    for action in (stream.state, lambda: Publisher(stream)):
        with pytest.raises(
            StreamUnavailableError, match=r"cannot be reached .*Check UCS_REDIS_URL and the server"
        ) as e:
            action()
        assert "pa55" not in str(e.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://u:pa55@h",
        "redis://u:pa55/w0rd@h:6379/0",
        "redis://u:pa55@[h",
        "redis://u:pa55@h?socket_timeout=pa55",
        "redis://u:pa55@h?no_such_option=pa55",
    ],
)
def test_a_bad_url_is_refused_without_quoting_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StreamError, match=r"UCS_REDIS_URL is not a Redis URL\. Expected redis://") as caught:
        _open(monkeypatch, url)
    assert "pa55" not in str(caught.value)
    assert caught.value.__cause__ is None
