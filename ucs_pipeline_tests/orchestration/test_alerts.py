"""Alerts as Dagster's daemon sends them: its own sensor iteration over a code server, and a webhook that answers."""

import logging
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.workspace.load_target import PythonFileTarget
from dagster._daemon.sensor import execute_sensor_iteration

from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.sensors.webhook import URL_VARIABLE, WebhookError, post
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.servers.webhook_server import SECRET, WebhookServer, closed_port
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.support.home import run_bricks, write_table

FEEDS = """
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.orchestration.test_alerts import feed

defs = build_defs(feed("numbers"), feed("nowhere"))
"""

RUNS, CHECKS = "run_failure_alerts", "check_failure_alerts"


def feed(name: str) -> Feed:
    """A feed of three bricks."""
    return BrickFeed(name=name, table=name, key="n", bricks={"class": "number", "last": 29_999}, sensor=False)


@pytest.fixture(scope="module")
def server() -> Iterator[WebhookServer]:
    with WebhookServer() as server:
        yield server


@pytest.fixture
def webhook(server: WebhookServer) -> WebhookServer:
    """A webhook that nothing was posted to yet."""
    for seen in (server.taken, server.asked, server.answers):
        seen.clear()
    return server


# The webhook


@pytest.mark.parametrize("answers", [[], [500], [404]])
def test_a_message_is_posted_once_and_once_more_if_that_failed(webhook: WebhookServer, answers: list[int]) -> None:
    webhook.answers.extend(answers)
    post(webhook.url, {"text": "“a”", "run_id": None})
    assert webhook.taken == [{"text": "“a”", "run_id": None}]
    assert len(webhook.asked) == len(answers) + 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_not_followed(webhook: WebhookServer, status: int) -> None:
    webhook.answers.extend([status, status])
    with pytest.raises(WebhookError, match=f"it answered with status {status}"):
        post(webhook.url, {"text": "a"})
    assert [asked.split()[0] for asked in webhook.asked] == ["POST", "POST"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"http://127.0.0.1:PORT/{SECRET}", "it cannot be reached (Connection refused)"),
        (f"http://{SECRET}.invalid/", "it cannot be reached (gaierror)"),
        (f"https://127.0.0.1:PORT/{SECRET}", "it cannot be reached (Connection refused)"),
        (f"file:///{SECRET}", "it is not an http:// or https:// address"),
        (SECRET, "it is not an http:// or https:// address"),
        (f"http://user:{SECRET}@127.0.0.1/", "the address or its answer cannot be read (InvalidURL)"),
        (f"http://[{SECRET}/", "the address or its answer cannot be read (ValueError)"),
        (f"http://127.0.0.1/a b{SECRET}", "the address or its answer cannot be read (InvalidURL)"),
    ],
)
def test_an_address_that_does_not_work_is_not_said(url: str, said: str) -> None:
    with pytest.raises(WebhookError) as caught:
        post(url.replace("PORT", str(closed_port())), {"text": "a"})
    assert said in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_server_without_tls_is_named_as_such(webhook: WebhookServer) -> None:
    with pytest.raises(WebhookError, match=r"it cannot be reached \(SSLError\)"):
        post(webhook.url.replace("http:", "https:"), {"text": "a"})


def test_an_answer_in_drops_does_not_hold_a_post_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ucs_pipeline.orchestration.sensors.webhook._TIMEOUT_SECONDS", 2)
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        while not ended.is_set():
            with suppress(OSError):
                client, _ = listener.accept()
                with client:
                    while not ended.wait(0.05):
                        client.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            with pytest.raises(WebhookError, match=r"it has not answered within 2 s"):
                post(f"http://127.0.0.1:{listener.getsockname()[1]}/", {"text": "a"})
        finally:
            ended.set()
            thread.join()


# The sensors


class Daemon:
    """Dagster's sensor daemon, one iteration at a time, half a minute apart."""

    def __init__(self, home: Path, instance: dg.DagsterInstance, workspace: Any) -> None:
        self.home = home
        self.instance = instance
        self._workspace = workspace
        self._now = datetime.now(tz=timezone.utc)
        self._defs = build_defs(feed("numbers"), feed("nowhere"))

    def look(self, seconds: int = 31) -> None:
        """Every sensor that is due ticks, so long after the last time."""
        self._now += timedelta(seconds=seconds)
        with freeze_time(self._now):
            list(execute_sensor_iteration(self._workspace, logging.getLogger("daemon"), None, None))

    def tick(self, name: str) -> InstigatorTick:
        """A sensor's latest tick."""
        [state] = [found for found in self.instance.all_instigator_state() if found.instigator_name == name]
        [tick] = self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        return tick

    def publish(self, name: str) -> dg.ExecuteInProcessResult:
        """A run of the feed's bricks."""
        return run_bricks(self._defs, name, self.instance, 0, 2)

    def check(self) -> dg.ExecuteInProcessResult:
        """A run of the checks of the feed that works."""
        return self._defs.resolve_job_def("numbers_checks").execute_in_process(instance=self.instance)

    def fail(self, **tags: str) -> str:
        """A run that ends before it begins; its id."""
        job = self._defs.resolve_implicit_global_asset_job_def()
        ends = {"dagster/asset_partition_range_start": "0.0.0.1", "dagster/asset_partition_range_end": "0.0.0.2"}
        selection = frozenset([dg.AssetKey("nowhere")])
        run = self.instance.create_run_for_job(job, asset_selection=selection, tags={**ends, **tags})
        self.instance.report_run_failed(run, "the machine was switched off")
        return run.run_id


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, server: WebhookServer, redis_server: RedisServer
) -> Iterator[Daemon]:
    """A daemon after its first iteration, with a table of a feed that works, and none of the other."""
    home = tmp_path_factory.mktemp("alerts")
    write_table(home, "numbers", {"n": pa.array(range(25_000), pa.int64())})
    (home / "feeds.py").write_text(FEEDS)
    target = PythonFileTarget(str(home / "feeds.py"), None, None, "feeds")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("UCS_REDIS_URL", redis_server.url)
        patch.delenv("UCS_CLICKHOUSE_URL", raising=False)
        instance = stack.enter_context(dg.instance_for_test(temp_dir=str(home)))
        # The code server has the address; runs of this process need none.
        with pytest.MonkeyPatch.context() as address:
            address.setenv(URL_VARIABLE, server.url)
            workspace = stack.enter_context(create_test_daemon_workspace_context(target, instance))
        found = Daemon(home, instance, workspace)
        found.fail()
        found.look()
        for sensor in (RUNS, CHECKS):
            skipped = "skipped: alerts begin with the next run that ends. Next check in 30 s."
            assert found.tick(sensor).skip_reason == skipped
        assert server.asked == []
        yield found


def test_a_failed_run_is_posted_when_the_webhook_takes_it(daemon: Daemon, webhook: WebhookServer) -> None:
    webhook.answers.extend([500, 500])
    run_id = daemon.publish("nowhere").run_id
    daemon.look()
    tick = daemon.tick(RUNS)
    assert tick.status is TickStatus.FAILURE
    assert tick.error is not None
    said = f"The webhook in {URL_VARIABLE} did not accept an alert: it answered with status 500"
    assert said in tick.error.to_string()
    assert webhook.taken == []

    daemon.look()
    assert daemon.tick(RUNS).skip_reason == "skipped: 1 alert sent. Next check in 30 s."
    [message] = webhook.taken
    assert message["text"].startswith(f"feed 'nowhere', bricks 0.0.0.0...0.0.0.2: run {run_id} failed: feed 'nowhere'")
    assert (message["feed"], message["bricks"], message["run_id"]) == ("nowhere", "0.0.0.0...0.0.0.2", run_id)
    assert message["error"] in message["text"]
    daemon.look()
    assert len(webhook.taken) == 1
    stored = [path for path in daemon.home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert stored == []


def test_checks_that_do_not_pass_are_posted(daemon: Daemon, webhook: WebhookServer, redis_server: RedisServer) -> None:
    assert daemon.publish("numbers").success
    assert daemon.check().success
    daemon.look()
    assert daemon.tick(CHECKS).skip_reason == "skipped: no run or check has failed. Next check in 30 s."
    redis_server.client().delete("numbers")
    assert daemon.check().success
    daemon.look()
    assert daemon.tick(RUNS).skip_reason == "skipped: no run or check has failed. Next check in 30 s."
    assert daemon.tick(CHECKS).skip_reason == "skipped: 1 alert sent. Next check in 30 s."
    [message] = webhook.taken
    assert (message["feed"], message["bricks"], message["error"]) == ("numbers", None, None)
    assert "stream_not_behind" in message["failed_checks"]
    assert "check stream_not_behind (ERROR) failed: feed 'numbers'" in message["text"]


def test_a_run_that_is_launched_again_is_posted_when_its_last_one_failed(
    daemon: Daemon, webhook: WebhookServer
) -> None:
    daemon.fail(**{"dagster/will_retry": "true"})
    daemon.look()
    assert daemon.tick(RUNS).skip_reason == "skipped: no run or check has failed. Next check in 30 s."
    last = daemon.fail(**{"dagster/will_retry": "false"})
    daemon.look()
    assert [message["run_id"] for message in webhook.taken] == [last]


def test_what_was_sent_before_the_webhook_failed_is_not_sent_again(daemon: Daemon, webhook: WebhookServer) -> None:
    runs = [daemon.fail(), daemon.fail()]
    webhook.answers.extend([200, 503, 503])
    daemon.look()
    said = daemon.tick(RUNS).skip_reason
    assert said is not None
    assert said.startswith("skipped: 1 alert sent, then: The webhook in")
    daemon.look()
    assert [message["run_id"] for message in webhook.taken] == runs


def test_a_webhook_that_is_down_for_an_hour_gets_every_alert_once_and_in_order(
    daemon: Daemon, webhook: WebhookServer
) -> None:
    # More than a tick reads, and two posts a tick that all fail.
    minutes, runs = 15, list[str]()
    webhook.answers.extend([503] * 2 * (60 // minutes))
    for _ in range(60 // minutes):
        runs += [daemon.fail() for _ in range(6)]
        daemon.look(60 * minutes)
        assert daemon.tick(RUNS).status is TickStatus.FAILURE
    assert webhook.taken == []
    daemon.look()
    assert daemon.tick(RUNS).skip_reason == "skipped: 20 alerts sent. Next check in 30 s."
    daemon.look()
    assert daemon.tick(RUNS).skip_reason == "skipped: 4 alerts sent. Next check in 30 s."
    assert [message["run_id"] for message in webhook.taken] == runs


def test_a_run_that_never_began_is_posted_too(daemon: Daemon, webhook: WebhookServer) -> None:
    run_id = daemon.fail()
    daemon.look()
    [message] = webhook.taken
    about = "feed 'nowhere', bricks 0.0.0.1...0.0.0.2"
    assert message["text"] == f"{about}: run {run_id} failed: the machine was switched off"


def test_a_slow_webhook_holds_up_one_alert_and_not_a_tick(
    daemon: Daemon, webhook: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = str(
        daemon.instance.fetch_run_status_changes(dg.DagsterEventType.RUN_FAILURE, limit=1).records[0].storage_id
    )
    runs = [daemon.fail() for _ in range(3)]
    monkeypatch.setenv(URL_VARIABLE, webhook.url)
    monkeypatch.setattr("ucs_pipeline.orchestration.sensors.alerts._TICK_SECONDS", 0)
    defs = build_defs(feed("nowhere"))
    for sent in range(1, 4):
        context = dg.build_sensor_context(daemon.instance, cursor=cursor, definitions=defs)
        tick = defs.resolve_sensor_def(RUNS).evaluate_tick(context)
        slow = "" if sent == 3 else "the webhook is slow. "
        assert tick.skip_message == f"skipped: {slow}1 alert sent. Next check in 30 s."
        assert [message["run_id"] for message in webhook.taken] == runs[:sent]
        cursor = str(tick.cursor)
    daemon.look()


def test_without_an_address_there_are_no_alerts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert not list(build_defs(feed("numbers")).sensors or ())
    monkeypatch.setenv(URL_VARIABLE, "")
    assert not list(build_defs(feed("numbers")).sensors or ())
