"""The files next to the package: Dagster's configuration, the changelog, and what is in the repository."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import tomlkit
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

import ucs_pipeline
from ucs_pipeline.instance.event_log import PooledSqliteEventLogStorage
from ucs_pipeline.instance.run_queue import StreamRunCoordinator
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import make_home, python, run_ucs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance as the project's dagster.yaml makes it, in a home of the test's own."""
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_the_instance_is_what_dagster_yaml_says(instance: dg.DagsterInstance) -> None:
    assert not instance.telemetry_enabled
    assert instance.run_monitoring_enabled
    assert instance.run_retries_enabled
    assert instance.run_retries_max_retries == 2
    assert not instance.run_retries_retry_on_asset_or_op_failure
    assert isinstance(instance.run_coordinator, StreamRunCoordinator)
    assert instance.run_coordinator.dequeue_interval_seconds == 1
    pools = instance.get_concurrency_config().pool_config
    assert pools.default_pool_limit == 1
    assert pools.pool_granularity is not None
    assert pools.pool_granularity.value == "run"


def test_runs_log_into_the_home_from_any_directory(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    @dg.asset
    def speaker(context: dg.AssetExecutionContext) -> None:
        context.log.info("a line for the file")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        assert dg.materialize([speaker], instance=instance).success
    assert "speaker - a line for the file" in (tmp_path / "logs" / "ucs.log").read_text()
    assert list(elsewhere.iterdir()) == []


def test_the_workspace_names_the_location_that_pyproject_names() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    module = workspace["load_from"][0]["python_module"]
    project = _pyproject()["tool"]["dg"]["project"]
    assert module["module_name"] == project["code_location_target_module"]
    assert module["location_name"] == project["code_location_name"]


def test_the_changelog_the_package_and_pyproject_have_one_version() -> None:
    top = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top is not None
    assert top[1] == ucs_pipeline.__version__ == _pyproject()["project"]["version"]


def test_no_lock_file_is_in_the_repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a repository")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {Path(line).name for line in tracked.stdout.splitlines()}
    assert not names & {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml"}


def test_every_dependency_is_bounded_on_both_sides() -> None:
    project = _pyproject()
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    groups += [*project["dependency-groups"].values(), project["build-system"]["requires"]]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name != project["project"]["name"]:
            assert {part.operator for part in requirement.specifier} == {">=", "<"}, str(requirement)


def test_what_the_command_line_and_dagster_keep_is_its_owner_s(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        home = make_home(tmp_path)
        assert run_ucs("status", "--json", home=home, UCS_REDIS_URL="redis://127.0.0.1:1/0")[0] == 0
        open_to_all = home / "other"
        open_to_all.mkdir()
        PooledSqliteEventLogStorage(str(open_to_all / "history" / "runs")).dispose()
    finally:
        os.umask(before)
    kept = [home / name for name in ("history", "storage", "schedules", "logs", "other/history/runs")]
    assert {str(path): path.stat().st_mode & 0o777 for path in kept if path.exists()} == {
        str(path): 0o700 for path in kept if path.exists()
    }
    assert kept[0].exists()
    assert kept[-1].exists()


def _pyproject() -> dict[str, Any]:
    return tomlkit.parse((ROOT / "pyproject.toml").read_text()).unwrap()


def test_loading_the_definitions_imports_no_client_and_no_engine() -> None:
    # Every process loads them: the web server's code server, the daemon's, each run. Dagster alone takes its seconds.
    heavy = {"chdb", "clickhouse_connect", "hiredis", "numpy", "pandas", "pyarrow", "redis", "rich", "valkey"}
    text = f"import sys, dagster, ucs_pipeline.definitions; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


_PUBLISH = """
import sys
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.support.connections import connect_redis
from ucs_pipeline_tests.support.connections import open_source
from ucs_pipeline_tests.support.connections import open_stream
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import verify

columns = {"number": "number", "word": "nullIf(toString(number % 3), '0')"}
bricks = {"class": "number", "last": 19_999}
feed = Feed(name="lean", table="numbers(20000)", key="number", columns=columns, bricks=bricks)
source, stream = open_source(feed), open_stream(feed, connect_redis(feed.stream_name))
rows = sum(report.rows for report in publish(feed, source, stream, feed.partitions.starts, lambda _: {}))
print(rows, verify(feed, source, stream).equal, "pandas" in sys.modules)
"""


@pytest.mark.parametrize("over_http", [False, True], ids=["embedded", "HTTP"])
def test_bricks_are_published_and_verified_without_pandas(
    home: Path, redis_server: RedisServer, clickhouse_http: ClickHouseServer, over_http: bool
) -> None:
    # Arrow imports it for a single Python number, and every run would start half a second later.
    server = {"UCS_CLICKHOUSE_URL": clickhouse_http.url} if over_http else {}
    assert python(_PUBLISH, home, UCS_REDIS_URL=redis_server.url, **server).wait() == 0
    assert (home / "process.log").read_text() == "20000 20000 False\n"


@pytest.mark.parametrize("browser", [True, False])
def test_the_tests_in_a_browser_are_left_out_where_there_is_none(tmp_path: Path, browser: bool) -> None:
    if browser:
        (tmp_path / "chromium").touch(0o755)
    path = "ucs_pipeline_tests/whole/test_ui_automation.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", path],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ("left out: the tests in a browser" in done.stdout) is not browser, done.stdout
    assert ("test_ui_automation.py::" in done.stdout) is browser, done.stdout
