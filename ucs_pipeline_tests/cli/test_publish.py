"""`ucs publish`, as cron and people run it, on a copy of the project with small feeds of its own."""

import configparser
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import PROJECT, copy_project, write_table

ROWS = 25_000
"""Two bricks are sealed, and half of the third is there."""
FEED = """
type: ucs_pipeline.BrickFeed
attributes:
  name: {name}
  table: orders
  key: id
  bricks: {{class: number, last: 1999999}}
"""
NO_TABLES = """
import dagster as dg

from ucs_pipeline import BrickFeed, ClickHouseResource, RedisResource, build_defs

bricks = {"class": "number", "last": 19_999}
feed = BrickFeed(name="counted", table="numbers(20000)", key="number", bricks=bricks, columns={"id": "number"})
servers = {"clickhouse": ClickHouseResource(url="embedded"), "redis": RedisResource(url=dg.EnvVar("UCS_REDIS_URL"))}
defs = build_defs(feed, resources=servers)
"""
FEEDS = {
    "orders": "",
    "shared": "  stream: {order: any}",
    "capped": "  stream: {max_len: 10000}",
    "hasty": "  stream: {max_len: 10000, timeout_s: 1}",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = copy_project(tmp_path)
    for name, settings in FEEDS.items():
        (project / "ucs_pipeline" / "defs" / name).mkdir()
        (project / "ucs_pipeline" / "defs" / name / "defs.yaml").write_text(FEED.format(name=name) + settings)
    write_table(project, "orders", {"id": pa.array(range(ROWS))})
    return project


def _environment(project: Path, redis: RedisServer, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "UCS_CLICKHOUSE_URL"}
    here = {"PYTHONPATH": str(project), "DAGSTER_HOME": str(project), "UCS_REDIS_URL": redis.url}
    return {**kept, **here, **more}


def _start(
    project: Path, redis: RedisServer, *arguments: str, background: bool = False, **more: str
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "ucs_pipeline.cli.main", "publish", *arguments],
        cwd=project,
        env=_environment(project, redis, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a shell starts a command with & in a script.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN) if background else None,
    )


def _publish(project: Path, redis: RedisServer, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = _start(project, redis, *arguments, background=False, **more)
    out, err = process.communicate()
    assert "Traceback" not in err
    return process.returncode, out, err


def _runs(project: Path, monkeypatch: pytest.MonkeyPatch, feed: str) -> list[dg.DagsterRun]:
    """The feed's runs as its page finds them, the first one first."""
    monkeypatch.setenv("DAGSTER_HOME", str(project))
    with dg.DagsterInstance.get() as instance:
        found = instance.get_run_records(dg.RunsFilter(tags={f"ucs.feed/{feed}": "yes"}), ascending=True)
        return [record.dagster_run for record in found]


def _done(project: Path, monkeypatch: pytest.MonkeyPatch, feed: str) -> list[str]:
    monkeypatch.setenv("DAGSTER_HOME", str(project))
    with dg.DagsterInstance.get() as instance:
        return sorted(instance.get_materialized_partitions(dg.AssetKey(feed)))


def _ids(redis: RedisServer, stream: str) -> list[int]:
    return [int(fields[b"id"]) for _, fields in redis.client().xrange(stream)]


def test_without_bricks_it_publishes_what_is_sealed_and_then_says_what_it_waits_for(
    project: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = _publish(project, redis_server, "orders")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"feed 'orders': published 2 bricks with 20,000 rows in \d+\.\d s\n", out)
    assert _ids(redis_server, "orders") == list(range(20_000))
    assert _done(project, monkeypatch, "orders") == ["0.0.0.0", "0.0.0.1"]
    [run] = _runs(project, monkeypatch, "orders")
    assert run.is_success
    assert {"ucs/feed": "orders", "ucs/bricks": "0.0.0.0...0.0.0.1"}.items() <= run.tags.items()
    assert _publish(project, redis_server, "orders") == (
        3,
        "feed 'orders': skipped: brick 0.0.0.2 is not sealed. The newest id is 24,999; an id of 30,000 or more seals "
        "it. To publish it earlier, launch it by hand or set `tail: follow`.\n",
        "",
    )
    assert len(_runs(project, monkeypatch, "orders")) == 1


def test_the_embedded_engine_ends_without_a_word(project: Path, redis_server: RedisServer) -> None:
    (project / "feeds.py").write_text(NO_TABLES)
    code, _, err = _publish(project, redis_server, "counted", "0...1", DAGSTER_PYTHON_FILE="feeds.py")
    assert (code, err) == (0, "")
    assert _ids(redis_server, "counted") == list(range(20_000))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["orders", "0.0.0.900"],
            "ucs: feed 'orders' has no brick 0.0.0.900. Its bricks are 0.0.0.0 to 0.0.0.199. [UCS-BRICK-NAME]\n",
        ),
        (["orders", "2..."], "ucs publish: '2...' is not a brick range. Expected FIRST...LAST.\n"),
    ],
)
def test_a_mistake_ends_with_one_sentence(
    project: Path, redis_server: RedisServer, arguments: list[str], sentence: str
) -> None:
    assert _publish(project, redis_server, *arguments) == (2, "", sentence)


def test_a_refusal_is_one_message_and_recorded_in_dagster(
    project: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = _publish(project, redis_server, "orders", "0.0.0.1")
    assert (code, out) == (2, "")
    assert err.startswith("ucs: feed 'orders': publishing 0.0.0.1 now would leave a gap")
    assert err.count("\n") == 1
    [run] = _runs(project, monkeypatch, "orders")
    assert run.status is dg.DagsterRunStatus.FAILURE
    with dg.DagsterInstance.get() as instance:
        [record] = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    failure = record.event_log_entry.get_dagster_event().step_failure_data.user_failure_data
    assert failure
    assert err == f"ucs: {failure.description}\n"


def test_what_is_unavailable_is_another_exit_code(project: Path, redis_server: RedisServer) -> None:
    for name, url, sentence in (
        ("UCS_REDIS_URL", "redis://127.0.0.1:1", "Check UCS_REDIS_URL"),
        ("UCS_CLICKHOUSE_URL", "http://127.0.0.1:1", "Check UCS_CLICKHOUSE_URL"),
    ):
        code, out, err = _publish(project, redis_server, "orders", **{name: url})
        assert (code, out, err.count("\n")) == (os.EX_TEMPFAIL, "", 1)
        assert sentence in err


def test_a_full_stream_is_tried_again_later(
    project: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the middle of a run, until its time limit.
    code, out, err = _publish(project, redis_server, "hasty", "0...1")
    assert (code, out) == (os.EX_TEMPFAIL, "")
    assert err.startswith("ucs: stream 'hasty' is full: it holds 10,000 entries (max_len 10,000). No entry was trimmed")
    [run] = _runs(project, monkeypatch, "hasty")
    assert run.status is dg.DagsterRunStatus.FAILURE
    # Before there is one.
    code, out, err = _publish(project, redis_server, "hasty")
    assert (code, out) == (os.EX_TEMPFAIL, "")
    assert err.startswith("ucs: feed 'hasty': stream 'hasty' is full")
    assert len(_runs(project, monkeypatch, "hasty")) == 1
    redis_server.client().xtrim("hasty", maxlen=0, approximate=False)
    assert _publish(project, redis_server, "hasty")[0] == 0
    assert _ids(redis_server, "hasty") == list(range(10_000, 20_000))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_it_leaves_no_run_at_work_and_continues(
    project: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, which: signal.Signals
) -> None:
    client = redis_server.client()
    # The stream's cap is one brick: it waits in the second.
    process = _start(project, redis_server, "capped", "0...1", background=which == signal.SIGTERM)
    while client.xlen("capped") < 10_000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(which)
    _, err = process.communicate()
    if which != signal.SIGKILL:
        assert (process.returncode, err.lstrip()) == (
            *(130, "ucs: stopped. The published rows stay in the stream; run the same command to continue.\n"),
        )
        [run] = _runs(project, monkeypatch, "capped")
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert run.tags["dagster/will_retry"] == "false"
    client.xtrim("capped", maxlen=0, approximate=False)
    assert _publish(project, redis_server, "capped")[0] == 0
    assert _ids(redis_server, "capped") == list(range(10_000, 20_000))
    assert _done(project, monkeypatch, "capped") == ["0.0.0.0", "0.0.0.1"]
    ends = [run.status for run in _runs(project, monkeypatch, "capped")]
    assert (ends[0], ends[-1]) == (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS)


@pytest.mark.parametrize("bricks", [[], ["0...199"]], ids=["next", "named"])
def test_two_at_once_lose_and_double_nothing(
    project: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, bricks: list[str]
) -> None:
    # Two processes that open an empty home at once trip over each other as they make Dagster's tables.
    assert _runs(project, monkeypatch, "orders") == []
    write_table(project, "orders", {"id": pa.array(range(0, 2_000_001, 10))})
    both = [_start(project, redis_server, "orders", *bricks) for _ in range(2)]
    ends = [(process.communicate(), process.returncode) for process in both]
    # Without names, one may find the other's run.
    assert {code for _, code in ends} in ([{0}, {0, 3}] if not bricks else [{0}]), ends
    assert _ids(redis_server, "orders") == list(range(0, 2_000_000, 10))


def test_on_a_terminal_a_bar_counts_the_rows_in_redis_and_a_wait_has_its_reason(
    project: Path, redis_server: RedisServer
) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ucs_pipeline.cli.main", "publish", "capped"],
        cwd=project,
        env=_environment(project, redis_server, TERM="xterm", COLUMNS="120"),
        stdout=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
            # Lines are broken where the terminal ends.
            if b"until entries are trimmed" in shown.replace(b"\r\n", b" "):
                redis_server.client().xtrim("capped", maxlen=0, approximate=False)
    except OSError:
        # Linux's error for a closed terminal.
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"publishing 0.0.0.0...0.0.0.1" in shown
    assert b"20000/20000" in shown


def _block(name: str) -> str:
    page = (PROJECT / "docs" / "reference" / "commands.md").read_text()
    [found] = re.findall(rf"<!-- publish {name} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    return str(found)


def test_the_line_of_the_crontab_publishes(project: Path, redis_server: RedisServer) -> None:
    times, command = re.fullmatch(r"((?:\S+ ){5})(.*)\n", _block("cron")).groups()  # type: ignore[union-attr]
    assert len(times.split()) == 5
    (project / "ucs.env").write_text(f"UCS_REDIS_URL={redis_server.url}\n")
    for there, here in (
        ("/opt/ucs", str(project)),
        ("/etc/ucs", str(project)),
        ("/var/lib/ucs", str(project)),
        (".venv/bin/ucs", f"{shlex.quote(sys.executable)} -m ucs_pipeline.cli.main"),
        ("flights", "orders"),
    ):
        command = command.replace(there, here)
    done = subprocess.run(["sh", "-c", command], env=_environment(project, redis_server), check=True)
    assert done.returncode == 0
    assert "published 2 bricks" in (project / "publish.log").read_text()


def test_the_units_of_systemd_run_the_command_and_take_nothing_to_do_for_success(
    project: Path, redis_server: RedisServer
) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(_block("service"))
    command = shlex.split(unit["Service"]["ExecStart"].replace("%i", "orders"))
    assert command[0] == "/opt/ucs/.venv/bin/ucs"
    assert command[1] == "publish"
    codes = [_publish(project, redis_server, *command[2:])[0] for _ in range(2)]
    assert codes == [0, int(unit["Service"]["SuccessExitStatus"])]
    timer = configparser.ConfigParser(interpolation=None)
    timer.read_string(_block("timer"))
    assert timer["Timer"]["OnCalendar"] == "*:0/5"


def test_the_lines_of_python_publish(project: Path, redis_server: RedisServer) -> None:
    code = _block("python").replace('"flights"', '"orders"')
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=project,
        env=_environment(project, redis_server),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^2 20000 \d+\.\d+ \('[0-9a-f-]{36}',\) feed 'orders': skipped: brick 0\.0\.0\.2 is not sealed",
        done.stdout,
        re.M,
    )
