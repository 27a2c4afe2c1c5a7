"""The rights in docs/how-to/connect.md are those that a Redis user needs: all of them, and no other."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import redis

from ucs_pipeline import BrickFeed
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.orchestration.checks.facts import collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline.publishing.ordered.publisher import Publisher
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import verify
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer, redis_executable
from ucs_pipeline_tests.support.connections import (
    build_defs,
    connect_redis,
    evaluate_tick,
    feed_statuses,
    open_source,
    open_stream,
    read_brick,
    resources,
)
from ucs_pipeline_tests.support.home import PROJECT, run_bricks, write_table
from ucs_pipeline_tests.support.tables import Table, numbers, source_of

ROWS = 3_000
PAGE = (PROJECT / "docs" / "how-to" / "connect.md").read_text()
[_RULES] = re.findall(r"<!-- rights -->\n```text\n(.*?)```\n<!-- /rights -->", PAGE, re.DOTALL)
RULES = {line.split()[2]: line for line in _RULES.splitlines()}
"""The commands of the page, by user."""
OPTIONAL = {"+client|reply", "+info"}
"""Without these, publishing is slower, or less careful, by the page."""

AFTERWARDS = {"+xrange", "+xrevrange", "+xinfo|groups"}
SETTINGS: dict[str, dict[str, Any]] = {
    "stream.max_bytes": {"max_bytes": 10_000_000},
    "stream.when_full: trim": {"when_full": "trim", "max_len": 1_000},
    "stream.when_full: trim_acknowledged": {"when_full": "trim_acknowledged", "max_len": 1_000},
    "stream.min_replicas": {"min_replicas": 1},
}


def _rights(user: str) -> list[str]:
    return [part for part in RULES[user].split() if part.startswith("+")]


def _more(setting: str) -> list[str]:
    """Further rights that a setting needs, by the page."""
    [rights] = re.findall(rf"^\| `?{setting}`? \| `(.*?)` \|$", PAGE, re.MULTILINE)
    return str(rights).replace("\\|", "|").split()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """The newest and the oldest Redis there is: they word a missing right in different ways."""
    newest, oldest = (
        RedisServer(tmp_path_factory.mktemp("guarded"), executable=redis_executable(oldest=oldest))
        for oldest in (False, True)
    )
    with newest, oldest:
        yield [newest, oldest]


@pytest.fixture
def guarded(servers: list[RedisServer], request: pytest.FixtureRequest) -> RedisServer:
    return servers[getattr(request, "param", 0)]


both = pytest.mark.parametrize("guarded", [0, 1], ids=["newest", "oldest"], indirect=True)


@pytest.fixture
def become(guarded: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a user of the page the one that UCS_REDIS_URL names, with rights left out or added."""

    def become(user: str, *, without: str = "", more: tuple[str, ...] = ()) -> str:
        rule = [part for part in RULES[user].split() if part != without]
        with guarded.client() as client:
            client.execute_command(*rule, *more)
        url = guarded.url.replace("://", f"://{user}:password@")
        monkeypatch.setenv("UCS_REDIS_URL", url)
        return url

    with guarded.client() as client:
        client.flushall()
    return become


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    write_table(tmp_path, "flights", {"id": pa.array(range(25_000))})
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("UCS_CLICKHOUSE_URL", raising=False)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as found:
        yield found


def _flights(**more: Any) -> Feed:
    return BrickFeed(name="flights", table="flights", key="id", bricks={"class": "number", "last": 39_999}, **more)


def _all_is_well(feed: Feed, instance: dg.DagsterInstance) -> None:
    """What `ucs status`, `ucs verify` and `ucs read` do."""
    [status] = feed_statuses([feed], instance)
    assert (status.problem, status.done) == (None, 3)
    assert status.redis
    stream = open_stream(feed, connect_redis(feed.stream_name))
    facts = collect(feed, open_source(feed), stream, instance, held_only=False)
    assert facts.verdict.agrees
    assert all(finding.passed for finding in findings(facts))
    assert len(read_brick(feed, "0.0.0.2")) == 5_000


def _consume(client: Any) -> None:
    client.xgroup_create("flights", "workers", "0")
    [[_, entries]] = client.xreadgroup("workers", "one", {"flights": ">"}, count=10)
    _, taken, *_ = client.xautoclaim("flights", "workers", "other", 0, "0-0", count=10)
    assert client.xack("flights", "workers", *(entry_id for entry_id, _ in taken)) == len(entries) == 10
    assert client.xtrim("flights", minid="0-1", approximate=False) == 0


def test_a_whole_feed_does_with_the_rights_of_the_page(
    become: Callable[..., str], instance: dg.DagsterInstance
) -> None:
    become("publisher")
    feed, defs = _flights(), build_defs(_flights())
    assert run_bricks(defs, "flights", instance, 0, 1).success
    with redis.Redis.from_url(become("consumer")) as client:
        _consume(client)
    become("publisher")
    repository = defs.get_repository_def()
    sensor = repository.get_sensor_def("flights_sensor")
    context = dg.build_sensor_context(
        instance=instance, repository_def=repository, sensor_name=sensor.name, resources=resources()
    )
    assert "brick 0.0.0.2 is not sealed" in str(evaluate_tick(sensor, context).skip_message)
    assert run_bricks(defs, "flights", instance, 2, 2).success
    checks = defs.resolve_job_def("flights_checks").execute_in_process(instance=instance)
    assert all(check.passed for check in checks.get_asset_check_evaluations())
    _all_is_well(feed, instance)
    become("watcher")
    _all_is_well(feed, instance)
    with pytest.raises(StreamError, match=r"may not run EXISTS\. Grant \+exists to the user: docs/how-to/connect\.md"):
        Publisher(open_stream(feed, connect_redis("flights")))


def test_adopting_does_with_the_rights_of_the_page(
    guarded: RedisServer, become: Callable[..., str], instance: dg.DagsterInstance
) -> None:
    # Continuing a previous writer's stream reads its entries, and more of them for an incomplete brick.
    with guarded.client().pipeline(transaction=False) as pipe:
        for n in range(20_001):
            pipe.xadd("flights", {"id": n}, id=f"500-{n + 1}")
        pipe.execute()
    feed = _flights(stream={"id_offset": 1_000})
    # What Redis has against the other two is hidden by what redis-py does next. The entries are read before anything is
    # recorded, and not again after it.
    for right in sorted({*_rights("adopter")} - {"+multi", "+unwatch"}, key="+xrevrange".__ne__):
        become("adopter", without=right)
        stream = open_stream(feed, connect_redis("flights"))
        with pytest.raises(StreamError, match=_grant(right)):
            adopt(feed, "0.0.0.1", open_source(feed), stream, instance)
    become("adopter")
    stream = open_stream(feed, connect_redis("flights"))
    adopt(feed, "0.0.0.1", open_source(feed), stream, instance)
    become("publisher")
    assert run_bricks(build_defs(feed), "flights", instance, 2, 2).success


@pytest.fixture(scope="module")
def table() -> Table:
    return numbers(ROWS)


@pytest.fixture(scope="module")
def memory() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance without records, for tests that only read Redis."""
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def _grant(right: str) -> str:
    """The right in an error's text; Redis 6 names no subcommand."""
    command, _, more = right.partition("|")
    return rf"Grant {re.escape(command)}(\|{more})? to the user: docs/how-to/connect\.md"


def _feed(table: Table, **settings: Any) -> Feed:
    stream = {"name": "flights", "timeout_s": 1, **settings}
    return table.feed(ROWS - 1, bricks={"class": "number", "last": ROWS - 1, "width": 1_000}, stream=stream)


def _look(feed: Feed, instance: dg.DagsterInstance) -> None:
    [status] = feed_statuses([feed], instance)
    if status.problem:
        raise StreamError(status.problem)


def _publish(table: Table, instance: dg.DagsterInstance, **settings: Any) -> None:
    """Publishes a table, compares it with the stream, and reads the feed's status."""
    feed = _feed(table, **settings)
    stream = open_stream(feed, connect_redis("flights"))
    for _ in range(2):
        reports = list(publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {}))
        assert sum(report.rows for report in reports) == ROWS
    _look(feed, instance)


def _watch(table: Table, instance: dg.DagsterInstance) -> None:
    feed = _feed(table)
    verify(feed, source_of(feed), open_stream(feed, connect_redis("flights")))
    read_brick(feed, "0.0.0.0")
    _look(feed, instance)


@both
def test_a_publisher_needs_each_of_its_rights(
    guarded: RedisServer, become: Callable[..., str], table: Table, memory: dg.DagsterInstance
) -> None:
    client = guarded.client()
    for right in _rights("publisher"):
        become("publisher", without=right)
        client.flushall()
        if right in OPTIONAL:
            _publish(table, memory)
            continue
        with pytest.raises(StreamError, match=_grant(right)) as caught:
            _publish(table, memory)
        assert not isinstance(caught.value, StreamUnavailableError)
        assert not client.exists("{flights}:writer:aside")
        # Before any row moves, but for what is asked of rows that are there.
        if right not in AFTERWARDS:
            assert not client.exists("flights") or client.xlen("flights") == 0


@both
def test_a_publisher_needs_each_of_its_keys(
    guarded: RedisServer, become: Callable[..., str], table: Table, memory: dg.DagsterInstance
) -> None:
    keys = [part for part in RULES["publisher"].split() if part.startswith("~")]
    assert len(keys) == 3
    for key in keys:
        become("publisher", without=key)
        with pytest.raises(StreamError, match=r"lacks a right to the key.*Grant both.*docs/how-to/connect\.md"):
            _publish(table, memory)
    assert guarded.client().keys("*") in ([], [b"{flights}:writer"])


def test_a_watcher_and_a_consumer_need_each_of_their_rights(
    guarded: RedisServer, become: Callable[..., str], table: Table, memory: dg.DagsterInstance
) -> None:
    become("publisher")
    _publish(table, memory)
    for right in _rights("watcher"):
        become("watcher", without=right)
        with pytest.raises(StreamError, match=_grant(right)):
            _watch(table, memory)
    for right in _rights("consumer"):
        with (
            redis.Redis.from_url(become("consumer", without=right)) as client,
            pytest.raises(redis.exceptions.NoPermissionError),
        ):
            _consume(client)
        guarded.client().execute_command("XGROUP DESTROY", "flights", "workers")


@both
def test_what_settings_need_is_what_the_page_says(
    guarded: RedisServer,
    become: Callable[..., str],
    table: Table,
    memory: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = guarded.client()
    for setting, settings in SETTINGS.items():
        rights = _more(setting)
        # Confirmation by replicas is tested with the other replica tests.
        for left_out in (*rights, *(() if setting == "stream.min_replicas" else ("",))):
            client.flushall()
            client.xgroup_create("flights", "workers", id=f"{2**63}-0", mkstream=True)
            become("publisher", more=tuple(right for right in rights if right != left_out))
            if left_out:
                with pytest.raises(StreamError, match=_grant(left_out)):
                    _publish(table, memory, **settings)
            else:
                _publish(table, memory, **settings)
    monkeypatch.setenv("UCS_REDIS_URL", become("watcher").replace("/0", "/1"))
    with pytest.raises(StreamError, match=_grant("+select")):
        OrderedStream("flights", connect_redis("flights")).state()
    url = become("watcher", more=tuple(_more("a database other than 0")))
    monkeypatch.setenv("UCS_REDIS_URL", url.replace("/0", "/1"))
    assert not OrderedStream("flights", connect_redis("flights")).state().exists
