"""Metrics and health over HTTP, from a real Dagster instance, a real Redis and a real table."""

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import dagster as dg
import pyarrow as pa
import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from ucs_pipeline import BrickFeed
from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.metrics import UNKNOWN, rows_behind
from ucs_pipeline.operations.metrics_server import FeedCollector, MetricsServer, TableChecks, address, problems
from ucs_pipeline.orchestration.names import LIVE_TAG, runs_tag
from ucs_pipeline_tests.servers.many_workers import wait_until
from ucs_pipeline_tests.servers.ports import HeldPort
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, feed_figures, opened
from ucs_pipeline_tests.support.home import make_home, run_bricks, run_ucs, ucs, write_table

BRICKS = {"class": "number", "last": 59_999}
FEED = BrickFeed(name="numbers", table="numbers", key="n", bricks=BRICKS)
PATIENCE_S = 120


def _ignore(_problem: str) -> None:
    pass


def get(url: str) -> tuple[int, str]:
    """Status and body of an answer."""
    try:
        with urlopen(url, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(url: str) -> dict[tuple[str, str], float]:
    """Values by the gauge's name and the feed's."""
    code, text = get(f"{url}/metrics")
    assert code == 200, text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, sample.labels.get("feed", "")): sample.value for sample in samples}


@contextmanager
def served(collector: FeedCollector, health: Callable[[], Sequence[str]] = list) -> Iterator[str]:
    server = MetricsServer("127.0.0.1:0", collector, health)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server.url
    finally:
        server.end()
        thread.join()


@contextmanager
def command(home: Path, *more: str, **environment: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The command, serving; its URL and its process."""
    log = home / "process.log"
    log.unlink(missing_ok=True)
    # As a shell starts a command with & in a script.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = ucs("metrics", "--listen", "127.0.0.1:0", *more, home=home, **environment)
    signal.signal(signal.SIGINT, before)
    try:
        wait_until(lambda: process.poll() is not None or "serving" in log.read_text(), log.read_text, PATIENCE_S)
        found = re.search(r"serving (\S+)/metrics", log.read_text())
        assert found, log.read_text()
        yield found[1], process
    finally:
        process.kill()
        process.wait()


def test_the_command_serves_metrics_and_health_until_a_signal(tmp_path: Path) -> None:
    home, directory = make_home(tmp_path), tmp_path / "redis"
    directory.mkdir()
    with RedisServer(directory) as server:
        with command(home, UCS_REDIS_URL=server.url) as (url, process):
            assert get(f"{url}/health") == (200, "ok\n")
            assert get(f"{url}/")[0] == 404
            found = scrape(url)
            assert found["ucs_bricks", "flights"] == 34
            assert found["ucs_dagster_up", ""] == found["ucs_stream_up", "flights"] == 1
            assert ("ucs_lag_rows", "flights") not in found
            assert found["ucs_next_brick_start_timestamp_seconds", "weather"] == 1357016400  # 2013-01-01 in New York
            server.kill()
            code, text = get(f"{url}/health")
            assert (code, text.count("\n")) == (503, 1)
            assert text.startswith("resource 'redis': Redis cannot be reached")
            wait_until(lambda: scrape(url)["ucs_stream_up", "flights"] == 0, str, PATIENCE_S)
            server.start()
            assert get(f"{url}/health") == (200, "ok\n")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, (home / "process.log").read_text()
        with command(home, "--table-every", "1", UCS_REDIS_URL=server.url) as (url, process):
            wait_until(lambda: ("ucs_table_up", "flights") in scrape(url), str, PATIENCE_S)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
    assert "Traceback" not in (home / "process.log").read_text()


def test_an_address_that_cannot_be_listened_on_is_refused_in_a_sentence(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    with HeldPort() as held:
        held.listen()
        at = f"127.0.0.1:{held.number}"
        code, output = run_ucs("metrics", "--listen", at, home=home)
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith(f"ucs: Cannot listen on {at} (Address already in use). Choose another address.")
    code, output = run_ucs("metrics", "--listen", "9465", home=home)
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith("ucs: Cannot listen on '9465'. Expected HOST:PORT, such as 127.0.0.1:9465 or [::1]:9465.")


@pytest.mark.parametrize("text", ["", ":1", "host:", "host:x", "host:65536", "host:-1", "host:²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UcsError, match="Expected HOST:PORT"):
        address(text)


def test_addresses() -> None:
    assert address("localhost:9465") == ("localhost", 9465)
    assert address("[::1]:0") == ("::1", 0)
    with pytest.raises(UcsError, match=r"Cannot listen on no\.such\.host\.invalid:1"):
        MetricsServer("no.such.host.invalid:1", _Nothing(), list)


class _Nothing(FeedCollector):
    def __init__(self) -> None:
        pass


def _calls(server: RedisServer) -> int:
    stats: dict[str, Any] = server.client().info("commandstats")
    return sum(stat["calls"] for name, stat in stats.items() if name in ("cmdstat_xinfo", "cmdstat_xinfo|stream"))


def test_scrapes_at_the_same_time_ask_once(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    redis_server.client().config_resetstat()
    with served(FeedCollector([([FEED], opened())], instance, _ignore)) as url:
        scrapes = [threading.Thread(target=scrape, args=(url,)) for _ in range(8)]
        for thread in scrapes:
            thread.start()
        for thread in scrapes:
            thread.join()
        assert _calls(redis_server) == 1
        time.sleep(1.1)
        scrape(url)
        assert _calls(redis_server) == 2


def test_a_server_leaves_no_connections(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    feeds = [([FEED], opened())]
    collector = FeedCollector(feeds, instance, _ignore)
    client = redis_server.client()
    before = len(client.client_list())
    for _ in range(20):
        collector._until = 0
        assert list(collector.collect())
        assert not problems(feeds, instance)
    assert len(client.client_list()) < before + 10


def test_a_storage_that_is_broken_is_named(instance: dg.DagsterInstance, home: Path) -> None:
    feeds = [([FEED], opened())]
    logged: list[str] = []
    with served(FeedCollector(feeds, instance, logged.append), lambda: problems(feeds, instance)) as url:
        assert get(f"{url}/health") == (200, "ok\n")
        for database in (home / "history").rglob("*.db"):
            database.write_bytes(b"no database " * 1000)
        code, text = get(f"{url}/health")
        assert (code, text) == (503, "Dagster's storage cannot be read (DatabaseError)\n")
        assert scrape(url) == {("ucs_dagster_up", ""): 0}
    assert logged == ["Dagster's storage cannot be read (DatabaseError)"]


def test_failures_and_live_runs_are_those_of_the_feed(instance: dg.DagsterInstance, home: Path) -> None:
    write_table(home, "numbers", {"n": pa.array(range(25_000))})
    live = BrickFeed(name="live", table="numbers", key="n", bricks=BRICKS, tail="live")
    [hold, found] = feed_figures([FEED, live], instance)
    assert (hold.live, hold.failure, found.live, found.failure) == (None, None, False, None)
    job = build_defs(FEED, live).resolve_implicit_global_asset_job_def()
    tags = {runs_tag("live"): "yes", LIVE_TAG: "yes"}
    run = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert feed_figures([live], instance)[0].live
    instance.report_run_failed(run)
    [found] = feed_figures([live], instance)
    assert found.failure
    assert (found.live, found.failure.code) == (False, UNKNOWN)
    assert not run_bricks(build_defs(live), "live", instance, 3, 4).success
    [hold, found] = feed_figures([FEED, live], instance)
    assert found.failure
    assert (hold.failure, found.failure.code in ("OutOfTurnError", "UCS-GAP")) == (None, True)


@pytest.mark.parametrize("order", ["strict", "any"])
def test_lag_is_counted_in_the_table(instance: dg.DagsterInstance, home: Path, order: str) -> None:
    write_table(home, "numbers", {"n": pa.array(range(10, 25_000))})
    feed = BrickFeed(name="numbers", table="numbers", key="n", bricks=BRICKS, stream={"order": order})
    assert rows_behind(feed, opened()) == 24_990
    assert run_bricks(build_defs(feed), "numbers", instance, 0, 0).success
    assert rows_behind(feed, opened()) == 15_000
    assert run_bricks(build_defs(feed), "numbers", instance, 1, 2).success
    assert rows_behind(feed, opened()) == 0
    write_table(home, "numbers", {"n": pa.array(range(10, 25_003))})
    assert rows_behind(feed, opened()) == 3


def test_lag_of_times_and_of_texts(instance: dg.DagsterInstance, home: Path) -> None:
    hours = pa.array([0, 1800, 3600, 7200], pa.timestamp("s", "UTC"))
    write_table(home, "times", {"at": hours, "name": pa.array(["a", "b", "c", "d"])})
    bricks = {"class": "time", "first": "1970-01-01", "last": "1970-01-01T23"}
    times = BrickFeed(name="times", table="times", key="at", bricks=bricks)
    texts = BrickFeed(name="texts", table="times", key="name", bricks={"class": "text", "base": 10})
    assert [rows_behind(feed, opened()) for feed in (times, texts)] == [4, 4]
    first = "1970.01.01.00"
    assert run_bricks(build_defs(times), "times", instance, first, first).success
    assert rows_behind(times, opened()) == 2
    assert feed_figures([times], instance)[0].next_start == 3600


def _values(families: Sequence[GaugeMetricFamily]) -> dict[str, float]:
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_table_checks_say_how_long_rows_have_waited(instance: dg.DagsterInstance, home: Path) -> None:
    write_table(home, "numbers", {"n": pa.array(range(5))})
    logged: list[str] = []
    checks = TableChecks([([FEED], opened())], 0.01, logged.append)
    checks.start()
    try:
        wait_until(lambda: _values(checks.gauges()).get("ucs_lag_seconds", 0) > 0.5, str, PATIENCE_S, 0.01)
        found = _values(checks.gauges())
        assert (found["ucs_lag_rows"], found["ucs_table_up"]) == (5, 1)
        assert run_bricks(build_defs(FEED), "numbers", instance, 0, 0).success
        wait_until(lambda: _values(checks.gauges())["ucs_lag_rows"] == 0, str, PATIENCE_S, 0.01)
        assert _values(checks.gauges())["ucs_lag_seconds"] == 0
        (home / ".ucs" / "tables" / "numbers.parquet").unlink()
        wait_until(lambda: _values(checks.gauges())["ucs_table_up"] == 0, str, PATIENCE_S, 0.01)
        assert "ucs_lag_rows" not in _values(checks.gauges())
    finally:
        checks.end()
    assert not checks.is_alive()
    assert "feed 'numbers'" in logged[0]


def test_a_feed_whose_stream_is_beyond_its_bricks_has_no_lag(home: Path, redis_server: RedisServer) -> None:
    write_table(home, "numbers", {"n": pa.array(range(5))})
    redis_server.client().xadd("numbers", {"n": 0}, "6-1")
    feed: Feed = FEED
    assert rows_behind(feed, opened()) == 0
