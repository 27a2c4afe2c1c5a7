"""Servers every test file may ask for. Nothing starts before the first test that names it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, settings

from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer

# An example takes as long as a busy machine makes it.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def _without_browser() -> bool:
    return shutil.which("chromium") is None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Reports that the tests in a browser are left out; `-q` hides what pytest itself would print of it."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and _without_browser():
        terminal.write_line("left out: the tests in a browser (`-m browser`), for there is no `chromium` on the PATH")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the tests in a browser out where there is none; `.ci/run` does not begin without one."""
    if _without_browser():
        items[:] = [item for item in items if item.get_closest_marker("browser") is None]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server per test process, empty at the start of each test. Tests that change its options start their own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def clickhouse_http() -> Iterator[ClickHouseServer]:
    """One ClickHouse over HTTP per test process, without faults at the start of each test; tables stay."""
    with ClickHouseServer() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _migrations_read_once() -> Iterator[None]:
    """Alembic loads Dagster's 60 migrations once per test process, and not for each database of each test."""
    with pytest.MonkeyPatch.context() as patch:
        load, loaded = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

        def from_config(config: Config) -> ScriptDirectory:
            place = config.get_main_option("script_location")
            if place not in loaded:
                loaded[place] = load(config)
            return loaded[place]

        patch.setattr(ScriptDirectory, "from_config", from_config)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer) -> Path:
    """An empty home for Dagster, on the embedded engine and the test process's Redis."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("UCS_REDIS_URL", redis_server.url)
    monkeypatch.delenv("UCS_CLICKHOUSE_URL", raising=False)
    return tmp_path


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """Dagster's instance in that home, with Dagster's own settings."""
    with dg.instance_for_test(temp_dir=str(home)) as found:
        yield found


@pytest.fixture(autouse=True)
def _clean_servers(request: pytest.FixtureRequest) -> None:
    if "redis_server" in request.fixturenames:
        redis_server: RedisServer = request.getfixturevalue("redis_server")
        if not redis_server.running:
            redis_server.restart()
        with redis_server.client() as client:
            client.flushall()
    if "clickhouse_http" in request.fixturenames:
        clickhouse_http: ClickHouseServer = request.getfixturevalue("clickhouse_http")
        clickhouse_http.clear_faults()
