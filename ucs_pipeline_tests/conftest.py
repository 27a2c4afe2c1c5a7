"""Servers every test file may ask for. Nothing starts before the first test that names it."""

from collections.abc import Iterator

import pytest

from ucs_pipeline_tests.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.redis_server import RedisServer


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
