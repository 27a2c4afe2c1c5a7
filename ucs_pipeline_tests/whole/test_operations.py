"""The procedures of docs/how-to: the commands on the page are run, with the results that it describes."""

import itertools
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import yaml  # type: ignore[import-untyped]

from ucs_pipeline import BrickFeed
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.orchestration.checks.facts import CheckInputs, collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline_tests.servers.postgres_server import PostgresServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, connect_redis, open_source, open_stream
from ucs_pipeline_tests.support.home import PROJECT, make_home, run_bricks, write_table

KEY, OTHER = dg.AssetKey("flights"), dg.AssetKey("other")


def block(page: str, name: str) -> str:
    """The text of the code block after a comment of that name in a page of the documentation."""
    text = (PROJECT / "docs" / page).read_text()
    [found] = re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    return str(found)


def shell(commands: str, **environment: str) -> str:
    """Runs commands as a person would, in the project's directory; returns their output."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace("uv run ", "")],
        cwd=PROJECT,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def feed(last: int = 29_999, **more: Any) -> Feed:
    """A feed whose name is the one on the pages."""
    return BrickFeed(name="flights", table="flights", key="n", bricks={"class": "number", "last": last, **more})


def table(home: Path, rows: int) -> None:
    write_table(home, "flights", {"n": pa.array(range(rows), pa.int64())})


def publish(instance: dg.DagsterInstance, first: int, last: int, it: Feed | None = None) -> str | None:
    """One run; why it failed, or None."""
    result = run_bricks(build_defs(it or feed()), "flights", instance, first, last)
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.user_failure_data:
            return event.step_failure_data.user_failure_data.description
    assert result.success
    return None


def facts(instance: dg.DagsterInstance, it: Feed | None = None) -> CheckInputs:
    it = it or feed()
    return collect(it, open_source(it), open_stream(it, connect_redis(it.stream_name)), instance, held_only=False)


def failed_checks(instance: dg.DagsterInstance, it: Feed) -> set[str]:
    return {finding.check.name for finding in findings(facts(instance, it), None) if not finding.passed}


# Make the list longer


def test_a_longer_list_goes_on_and_a_shorter_one_is_told_apart(
    instance: dg.DagsterInstance, home: Path, redis_server: RedisServer
) -> None:
    table(home, 40_000)
    assert publish(instance, 0, 2) is None
    longer = feed(39_999)
    assert publish(instance, 3, 3, longer) is None
    assert redis_server.client().xlen("flights") == 40_000
    assert facts(instance, longer).verdict.agrees
    assert failed_checks(instance, longer) == set()
    assert "all_rows_arrived" in failed_checks(instance, feed(19_999))
    assert failed_checks(instance, longer) == set()


# Move a feed to another Redis


@pytest.fixture
def new_redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "new").mkdir()
    with RedisServer(tmp_path / "new") as server:
        yield server


@pytest.fixture
def begun(instance: dg.DagsterInstance, home: Path, redis_server: RedisServer) -> dg.DagsterInstance:
    """A feed with two of three bricks published; a group has read some entries."""
    table(home, 30_000)
    assert publish(instance, 0, 1) is None
    client = redis_server.client()
    client.xgroup_create("flights", "workers", "0")
    client.xreadgroup("workers", "a", {"flights": ">"}, count=70)
    client.xack("flights", "workers", "0-1")
    return instance


@pytest.mark.parametrize("way", ["move all", "move one"])
def test_a_stream_moves_with_its_groups_and_its_feed_goes_on(
    begun: dg.DagsterInstance,
    redis_server: RedisServer,
    new_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    old_port = str(redis_server.port)
    urls = {"OLD": redis_server.url, "NEW": new_redis.url}
    shell(block("how-to/change-move-retire.md", way), **urls, OLD_HOST="127.0.0.1", OLD_PORT=old_port)
    before, after = redis_server.client(), new_redis.client()
    assert after.xinfo_stream("flights") == before.xinfo_stream("flights")
    assert after.xpending("flights", "workers") == before.xpending("flights", "workers")
    monkeypatch.setenv("UCS_REDIS_URL", new_redis.url)
    assert publish(begun, 2, 2) is None
    assert (before.xlen("flights"), after.xlen("flights")) == (20_000, 30_000)
    assert facts(begun).verdict.agrees
    assert after.info("replication")["role"] == "master"


def test_old_entries_may_be_left_behind(
    begun: dg.DagsterInstance, new_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ucs adopt flights 0.0.0.2" in block("how-to/change-move-retire.md", "leave behind")
    monkeypatch.setenv("UCS_REDIS_URL", new_redis.url)
    assert "publishing 0.0.0.2 now would leave a gap" in str(publish(begun, 2, 2))
    it = feed()
    client = connect_redis(it.stream_name)
    adopt(it, "0.0.0.1", open_source(it), open_stream(it, client), begun, lambda _: None)
    assert publish(begun, 2, 2) is None
    ids = [entry_id.decode() for entry_id, _ in new_redis.client().xrange("flights")]
    assert ids == [f"2-{row}" for row in range(1, 10_001)]


# Retire a feed


def test_of_a_retired_feed_nothing_is_left_and_one_of_its_name_begins_anew(
    begun: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    shell(block("how-to/change-move-retire.md", "retire"), UCS_REDIS_URL=redis_server.url)
    assert redis_server.client().keys() == []
    assert not begun.has_asset_key(KEY)
    assert publish(begun, 0, 2) is None
    assert redis_server.client().xlen("flights") == 30_000
    assert len(begun.get_materialized_partitions(KEY)) == 3


# Back up and restore


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@contextmanager
def _others_at_work(instance: dg.DagsterInstance) -> Iterator[None]:
    """Another feed's bricks are recorded without a pause meanwhile."""
    begun, ended = threading.Event(), threading.Event()

    def record() -> None:
        for n in itertools.count():
            instance.report_runless_asset_event(dg.AssetMaterialization(OTHER, partition=f"0.0.0.{n}"))
            begun.set()
            if ended.is_set():
                return

    thread = threading.Thread(target=record)
    thread.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("storage", "copy", "restore"), [("sqlite", "back up", "restore"), ("postgresql", "dump", "restore the dump")]
)
def test_a_record_that_was_put_back_is_caught_up_and_no_row_is_published_twice(
    home: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    storage: str,
    copy: str,
    restore: str,
) -> None:
    make_home(home)
    environment = {"BACKUP": str(tmp_path / "backup"), "DAGSTER_HOME": str(home)}
    (tmp_path / "backup").mkdir()
    if storage == "postgresql":
        url = request.getfixturevalue("postgres").url
        monkeypatch.setenv("TEST_POSTGRES_URL", url)
        environment["PGURL"] = url.replace("+psycopg2", "")
        (home / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: TEST_POSTGRES_URL}}}\n")
    table(home, 30_000)
    with dg.DagsterInstance.get() as instance:
        assert publish(instance, 0, 0) is None
        with _others_at_work(instance):
            shell(block("how-to/back-up-upgrade.md", copy), **environment)
        assert publish(instance, 1, 1) is None
    shell(block("how-to/back-up-upgrade.md", restore), **environment)
    with dg.DagsterInstance.get() as instance:
        assert instance.get_materialized_partitions(KEY) == {"0.0.0.0"}
        assert instance.get_materialized_partitions(OTHER)
        assert publish(instance, 0, 2) is None
        assert len(instance.get_materialized_partitions(KEY)) == 3
        assert facts(instance).verdict.agrees
    assert redis_server.client().xlen("flights") == 30_000


# Upgrade Dagster


def test_a_migration_of_the_current_version_changes_nothing(home: Path) -> None:
    make_home(home)
    (home / "ucs.env").write_text(f"DAGSTER_HOME='{home}'\n")
    with dg.DagsterInstance.get() as instance:
        for n in range(3):
            instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=f"0.0.0.{n}"))
    # As the page has it, but for the user and the places.
    as_ucs = block("how-to/deploy-one-machine.md", "as ucs").splitlines()[0]
    for here, there in (("sudo -u ucs ", ""), ("/etc/ucs/", f"{home}/"), ("/opt/ucs/.venv", sys.prefix)):
        as_ucs = as_ucs.replace(here, there)
    said = shell(f"{as_ucs.replace('/opt/ucs', str(PROJECT))}\nas_ucs dagster instance migrate", DAGSTER_HOME="")
    assert "event_log_storage:" in said, said
    with dg.DagsterInstance.get() as instance:
        assert len(instance.get_materialized_partitions(KEY)) == 3


# Logs


def _speak(config: dict[str, Any], lines: int, home: Path) -> None:
    """A run that logs so many lines, in an instance with this `python_logs`."""
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))

    @dg.asset
    def speaker(context: dg.AssetExecutionContext) -> None:
        for n in range(lines):
            context.log.info(f"line {n}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        with dg.DagsterInstance.get() as instance:
            assert dg.materialize([speaker], instance=instance).success


def test_the_log_of_the_project_rotates(home: Path) -> None:
    project = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    config = {name: project[name] for name in ("python_logs", "telemetry")}
    handler = config["python_logs"]["dagster_handler_config"]["handlers"]["file"]
    handler["max_bytes"], handler["backup_count"] = 2_000, 2
    _speak(config, 100, home)
    found = {path.name: path.stat().st_size for path in (home / "logs").iterdir()}
    assert found.keys() == {"ucs.log", "ucs.log.1", "ucs.log.2"}
    assert max(found.values()) <= 2_000


def test_the_log_that_logrotate_moves_is_begun_anew(home: Path) -> None:
    config = yaml.safe_load(block("how-to/monitor.md", "logs"))
    handler = config["python_logs"]["dagster_handler_config"]["handlers"]["file"]
    assert handler["filename"] in block("how-to/monitor.md", "logrotate")
    log = home / "ucs.log"
    handler["filename"] = str(log)
    _speak(config, 1, home)
    log.rename(home / "ucs.log.1")
    _speak(config, 1, home)
    for file in (log, home / "ucs.log.1"):
        assert file.read_text().count("speaker - line 0") == 1
