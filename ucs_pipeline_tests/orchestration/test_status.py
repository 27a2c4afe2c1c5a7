"""Where every feed is, from a real Dagster instance and a real Redis."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.cli.demo_data import DATASETS
from ucs_pipeline.cli.output import print_statuses
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.prune import prune
from ucs_pipeline.orchestration.status import FeedStatus, Group
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, evaluate_tick, feed_statuses, publish, resources
from ucs_pipeline_tests.support.home import make_home, run_bricks, run_ucs, write_table

FEED = BrickFeed(name="numbers", table="numbers", key="n", bricks={"class": "number", "last": 59_999})


@pytest.fixture
def instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> Iterator[dg.DagsterInstance]:
    write_table(tmp_path, "numbers", {"n": pa.array(range(25_000))})
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("UCS_REDIS_URL", redis_server.url)
    monkeypatch.delenv("UCS_CLICKHOUSE_URL", raising=False)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as found:
        yield found


def _publish(first: int, last: int, instance: dg.DagsterInstance) -> None:
    assert run_bricks(build_defs(FEED), "numbers", instance, first, last).success


def _status(instance: dg.DagsterInstance, feed: Feed = FEED) -> FeedStatus:
    [status] = feed_statuses([feed], instance)
    return status


def test_a_feed_that_has_not_begun(instance: dg.DagsterInstance) -> None:
    status = _status(instance)
    assert (status.bricks, status.done, status.failed, status.next_brick, status.rows) == (6, 0, 0, "0.0.0.0", 0)
    assert status.redis
    assert (status.redis.length, status.redis.top, status.redis.groups) == (0, None, [])


def test_bricks_done_failed_and_next(instance: dg.DagsterInstance) -> None:
    _publish(0, 1, instance)
    assert not run_bricks(build_defs(FEED), "numbers", instance, 4, 5).success
    _publish(2, 2, instance)
    status = _status(instance)
    assert (status.done, status.next_brick, status.rows) == (3, "0.0.0.3", 25_000)
    assert status.redis
    assert (status.redis.length, status.redis.top, status.problem) == (25_000, "2-5000", None)
    _publish(0, 5, instance)
    status = _status(instance)
    assert (status.done, status.failed, status.next_brick, status.rows) == (6, 0, None, 25_000)


def test_bricks_whose_run_broke_off_count_as_failed(instance: dg.DagsterInstance) -> None:
    _publish(0, 0, instance)
    assert not run_bricks(build_defs(FEED), "numbers", instance, 2, 4).success
    assert (_status(instance).done, _status(instance).failed, _status(instance).next_brick) == (1, 3, "0.0.0.1")


def test_a_finished_brick_that_failed_again_stays_done(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    _publish(0, 0, instance)
    client = redis_server.client()
    client.delete("numbers")
    client.set("numbers", "a string")
    assert not run_bricks(build_defs(FEED), "numbers", instance, 0, 0).success
    status = _status(instance)
    assert (status.done, status.failed, status.next_brick) == (1, 1, "0.0.0.1")
    assert status.redis is None
    assert "stream 'numbers': the key holds another type" in (status.problem or "")


def test_the_backlog_of_each_group(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    client = redis_server.client()
    for row in range(1, 11):
        client.xadd("numbers", {"n": row}, f"0-{row}")
    client.xtrim("numbers", minid="0-3", approximate=False)
    for name, start in (("all", "0"), ("some", "0-7"), ("none", "$")):
        client.xgroup_create("numbers", name, start)
    client.xgroup_create("numbers", b"\xff", "0")
    client.xreadgroup("all", "a", {"numbers": ">"}, count=8)
    client.xack("numbers", "all", "0-3", "0-4")
    status = _status(instance)
    assert status.redis
    groups = {group.name: group for group in status.redis.groups}
    assert groups["all"] == Group("all", 6, 0)
    assert groups["none"] == Group("none", 0, 0)
    assert groups["\\xff"] == Group("\\xff", 0, 8)
    # Known to Redis only where it counts what it delivered, which it cannot do from an id in the middle.
    assert groups["some"].undelivered in (None, 3)


def test_a_user_with_few_rights_sees_the_streams(
    instance: dg.DagsterInstance, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis_server.client()
    client.xadd("numbers", {"n": 0}, "0-1")
    client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~numbers", "-@all", "+xinfo")
    monkeypatch.setenv("UCS_REDIS_URL", redis_server.url.replace("redis://", "redis://reader:secret@"))
    status = _status(instance)
    assert status.redis, status.problem
    assert status.redis.top == "0-1"
    client.execute_command("ACL", "DELUSER", "reader")


def test_feeds_come_in_order_and_one_broken_stream_hides_no_other(
    instance: dg.DagsterInstance, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    redis_server.client().set("letters", "a string")
    letters = BrickFeed(name="letters", table="letters", key="n", bricks={"class": "number", "last": 9_999})
    _publish(0, 0, instance)
    statuses = feed_statuses([letters, FEED], instance)
    assert [(status.feed, status.redis is None) for status in statuses] == [("letters", True), ("numbers", False)]
    print_statuses(statuses)
    printed = capsys.readouterr().out
    assert "1 of 6 done" in printed
    assert "next: 0.0.0.1" in printed
    assert "last ID: 0-10000" in printed


def test_a_long_error_makes_lines_of_a_page_and_loses_no_word(
    instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = f"Redis cannot be reached: {' '.join(f'word{n}' for n in range(60))} {'x' * 200}"
    print_statuses([replace(_status(instance), redis=None, problem=problem)])
    printed = capsys.readouterr().out
    assert {len(line) for line in printed.splitlines()} == {120}
    assert "0 of 6 done" in printed
    assert printed.count("x") >= 200
    assert all(f"word{n}" in printed for n in range(60))


def test_the_command_prints_a_table_and_json(tmp_path: Path, redis_server: RedisServer) -> None:
    client = redis_server.client()
    client.xadd("flights", {"id": 0}, "0-1")
    client.xgroup_create("flights", "workers", "0")
    home = make_home(tmp_path)
    code, output = run_ucs("status", home=home, UCS_REDIS_URL=redis_server.url)
    assert code == 0, output
    for part in (
        "flights",
        "0 of 34 done",
        "next: 0.0.0.0",
        "1 of 10,000,000",
        "last ID: 0-1",
        "workers:",
        "0 pending",
        "1 to come",
    ):
        assert part in output
    code, output = run_ucs("status", "--json", home=home, UCS_REDIS_URL=redis_server.url)
    assert code == 0
    assert [status for status in json.loads(output) if status["feed"] == "flights"] == [
        {
            "feed": "flights",
            "stream": "flights",
            "bricks": 34,
            "done": 0,
            "failed": 0,
            "in_progress": 0,
            "next_brick": "0.0.0.0",
            "rows": 0,
            "max_len": 10_000_000,
            "order": "strict",
            "redis": {
                "length": 1,
                "top": "0-1",
                "groups": [{"name": "workers", "pending": 0, "undelivered": 1}],
            },
            "problem": None,
        }
    ]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis://127.0.0.1:1", "Redis cannot be reached"),
        ("http://127.0.0.1", "UCS_REDIS_URL is not a Redis URL"),
    ],
    ids=["no server", "no URL"],
)
def test_a_redis_that_cannot_be_reached_is_a_sentence(tmp_path: Path, url: str, sentence: str) -> None:
    home = make_home(tmp_path)
    code, output = run_ucs("status", "--json", home=home, UCS_REDIS_URL=url)
    assert code == 0, output
    statuses = json.loads(output)
    assert {status["feed"] for status in statuses} >= DATASETS.keys()
    for status in statuses:
        assert status["redis"] is None
        assert sentence in status["problem"]
    code, output = run_ucs("status", home=home, UCS_REDIS_URL=url)
    assert code == 0
    assert "Traceback" not in output
    assert "0 of 34 done" in output


@pytest.mark.parametrize("order", ["strict", "any"])
def test_what_asks_for_the_record_of_a_feed_asks_for_its_whole_key(instance: dg.DagsterInstance, order: str) -> None:
    settings = FEED.model_dump(include={"table", "key", "bricks"}, exclude_defaults=True, by_alias=True)
    feed = BrickFeed(name="numbers", key_prefix=["shop", "eu"], stream={"order": order}, **settings)
    assert publish(feed, 0, 1).rows == 20_000
    status = _status(instance, feed)
    assert (status.done, status.next_brick, status.rows) == (2, "0.0.0.2", 20_000)
    assert not publish(feed).bricks
    [sensor] = build_defs(feed).sensors or ()
    assert isinstance(sensor, dg.SensorDefinition)
    context = dg.build_sensor_context(instance, resources=resources())
    assert "brick 0.0.0.2" in evaluate_tick(sensor, context).skip_message
    assert prune([feed], instance, datetime.now(timezone.utc) + timedelta(days=1)).deleted == 0
    assert instance.get_materialized_partitions(dg.AssetKey(["shop", "eu", "numbers"])) == {"0.0.0.0", "0.0.0.1"}


AUTOMATED = """
name: numbers
table: numbers
key: n
bricks: {class: number, last: 59999}
automation_condition: '{{ dg.AutomationCondition.eager() }}'
"""


def test_a_condition_of_dagster_s_is_written_as_elsewhere_in_its_yaml() -> None:
    feed = BrickFeed.resolve_from_yaml(AUTOMATED)
    node = build_defs(feed).resolve_asset_graph().get(dg.AssetKey("numbers"))
    assert node.automation_condition == dg.AutomationCondition.eager()
