"""The wheel in an environment of its own, and a project of somebody else's that uses it, on Dagster as it comes."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from ucs_pipeline.bricks import get_brick_list
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.postgres_server import PostgresServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import DagsterDev
from ucs_pipeline_tests.support.home import PROJECT

# Installs Dagster once more, and waits for its daemon, whose loops take up to 30 seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FIRST = get_brick_list("0.0.0.0", "0.0.0.3")
"""Bricks of the shipments that go in one run."""

_LAUNCH = """
mutation ($it: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $it) { ... on LaunchBackfillSuccess { backfillId } ... on Error { message } }
}
"""
_BACKFILL = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
}
"""
_AT_WORK = ("REQUESTED", "CANCELING", "COMPLETING", "FAILING")
_RUNS = "{ runsOrError { ... on Runs { results { status tags { key value } } } } }"
_REPOSITORIES = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
_POSTGRES = "storage: {postgres: {postgres_url: {env: POSTGRES_URL}}}"
_READER = "from ucs_pipeline import Reader; print(len(Reader('orders').take(1000)))"


class Company:
    """The project, in a directory of its own, and the environment in which it is installed."""

    def __init__(self, directory: Path, python: Path, environment: Mapping[str, str], home: Path) -> None:
        """`home`: Dagster's."""
        self.directory = directory
        self.python = python
        self.home = home
        unset = ("UCS_", "DAGSTER_", "VIRTUAL_ENV", "PYTEST_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        self.environment = {**own, **environment, "DAGSTER_HOME": str(home)}

    def run(self, *command: str, without: Sequence[str] = ()) -> tuple[int, str]:
        """Exit code and output of a command of the environment, in the project's directory."""
        environment = {name: value for name, value in self.environment.items() if name not in without}
        done = subprocess.run(
            [self.python.parent / command[0], *command[1:]],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def succeed(self, *command: str, without: Sequence[str] = ()) -> str:
        """Output of a command that exits with 0."""
        code, output = self.run(*command, without=without)
        assert code == 0, f"{' '.join(command)}: {output}"
        return output

    def dagster_dev(self) -> DagsterDev:
        """`dagster dev` as the company runs it."""
        urls = {name: value for name, value in self.environment.items() if name.endswith("_URL")}
        return DagsterDev(self.home, self.directory, str(self.python), **urls)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has the wheel and nothing of this tree."""
    directory = tmp_path_factory.mktemp("outside")
    _uv("build", "--quiet", "--wheel", "--out-dir", str(directory), str(PROJECT))
    [wheel] = directory.glob("*.whl")
    _uv("venv", "--quiet", "--python", sys.executable, str(directory / "environment"))
    python = directory / "environment" / "bin" / "python"
    postgres = "dagster-postgres"
    _uv("pip", "install", "--quiet", "--python", str(python), f"{wheel}[embedded,ui]", "pytest", postgres)
    return python


def _uv(*arguments: str) -> None:
    subprocess.run(["uv", *arguments], check=True, cwd="/")


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[Company]:
    """The company's project, with two ClickHouse and two Redis servers."""
    directory = tmp_path_factory.mktemp("company") / "my-company"
    shutil.copytree(Path(__file__).parent / "my-company", directory, ignore=shutil.ignore_patterns("__pycache__"))
    _uv("pip", "install", "--quiet", "--python", str(installed), "--no-deps", "--editable", str(directory))
    redis_servers = [RedisServer(tmp_path_factory.mktemp("redis")) for _ in range(2)]
    with (
        ClickHouseServer() as shop,
        ClickHouseServer() as warehouse,
        redis_servers[0] as redis,
        redis_servers[1] as cache,
    ):
        with clickhouse_connect.get_client(dsn=warehouse.url) as client:
            columns = {"shipments": "order_id UInt64, weight Float64", "returns": "why Nullable(UInt8)"}
            for name, more in columns.items():
                client.command(f"CREATE TABLE {name} (id UInt64, {more}) ENGINE = MergeTree ORDER BY id")
            client.command("INSERT INTO shipments SELECT number * 100, number, number / 8 FROM numbers(600)")
            client.command("INSERT INTO returns SELECT number * 100, nullIf(number % 3, 1) FROM numbers(600)")
        urls = {
            "SHOP_CLICKHOUSE_URL": shop.url,
            "WAREHOUSE_CLICKHOUSE_URL": warehouse.url,
            "SHOP_REDIS_URL": redis.url,
            "CACHE_REDIS_URL": cache.url,
        }
        yield Company(directory, installed, urls, tmp_path_factory.mktemp("dagster_home"))


def test_the_wheel_has_no_code_location_and_the_demo_says_so(company: Company) -> None:
    find = "from importlib.util import find_spec as f; print(f('ucs_pipeline.definitions'), f('ucs_pipeline.defs'))"
    assert company.succeed("python", "-c", find) == "None None\n"
    names = "{i.name for i in f('ucs-pipeline')}"
    files = f"from importlib.metadata import files as f; print({names} >= {{'LICENSE', 'py.typed'}})"
    assert company.succeed("python", "-c", files) == "True\n"
    code, output = company.run("ucs", "demo")
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith("ucs: The demo is not in the installed package. Clone the repository")


@pytest.mark.parametrize(
    "command",
    ["dg check defs", "dg check yaml", "dg list defs", "dagster definitions validate", "ucs check"],
)
def test_the_definitions_are_right_for_every_command(company: Company, command: str) -> None:
    output = company.succeed(*command.split())
    if command == "dg list defs":
        assert all(name in output for name in ("returns_schedule", "shipments_sensor", "warehouse", "cache"))
    if command == "ucs check":
        assert output == "3 feeds are valid: orders, returns, shipments\n"
        assert company.succeed("ucs", "-m", "my_company.definitions", "check") == output


def test_the_kit_s_example_passes_in_the_project(company: Company) -> None:
    assert "2 passed" in company.succeed("pytest", "-q", "tests", without=["DAGSTER_HOME"])


def test_every_way_to_publish_leaves_each_stream_equal_to_its_table(company: Company) -> None:
    assert "recorded 1 brick with " in company.succeed("ucs", "adopt", "returns", "0.0.0.0")
    with company.dagster_dev() as dev:
        _switch_on(dev, "startSchedule", scheduleName="returns_schedule")
        # The table, its feed and what is behind it, as they are launched together from the asset graph.
        whole = _launch(dev, ["orders_table", "orders", "orders_seen"])
        # Two of the same bricks at once: nothing of Dagster's own settings keeps them apart.
        twice = [_launch(dev, ["shipments"], FIRST) for _ in range(2)]
        _wait_until(lambda: "0.0.0.1" in _bricks(dev, "returns"))
        _switch_on(dev, "startSensor", sensorName="returns_sensor")
        _wait_until(lambda: "0.0.0.4" in _bricks(dev, "returns"))
        _ended(dev, [whole, *twice])
    # No later row proves that the last bricks are complete.
    assert "published 2 bricks" in company.succeed("ucs", "publish", "shipments", "0.0.0.4...0.0.0.5")
    assert "published 1 brick" in company.succeed("ucs", "-m", "my_company.definitions", "publish", "returns", "5")
    for where in ([], ["-m", "my_company.definitions"]):
        statuses = {found["feed"]: found for found in json.loads(company.succeed("ucs", *where, "status", "--json"))}
        assert {name: (found["done"], found["redis"]["length"]) for name, found in statuses.items()} == {
            "orders": (8, 80),
            "shipments": (6, 600),
            "returns": (6, 500),
        }
    for where in ([], ["-m", "my_company.definitions"]):
        for name in statuses if where else ["orders"]:
            assert "table and stream agree" in company.succeed("ucs", *where, "verify", name)
    # A consumer has the address of one server, and no home of Dagster.
    others = [name for name in company.environment if name.endswith("_URL") and name != "SHOP_REDIS_URL"]
    assert company.succeed("python", "-c", _READER, without=["DAGSTER_HOME", *others]) == "80\n"
    read = company.succeed("ucs", "read", "orders", "0.0.0.7", "--rows", "1", without=["DAGSTER_HOME"])
    assert "1 of 10 rows" in read


def test_on_postgresql_two_backfills_at_once_leave_a_stream_equal_to_its_table(
    company: Company, tmp_path: Path
) -> None:
    with PostgresServer() as postgres:
        (tmp_path / "dagster.yaml").write_text(_POSTGRES)
        # Streams of its own: another database of the same server.
        cache = company.environment["CACHE_REDIS_URL"].removesuffix("/0") + "/1"
        environment = {**company.environment, "CACHE_REDIS_URL": cache, "POSTGRES_URL": postgres.url}
        del environment["SHOP_CLICKHOUSE_URL"]
        other = Company(company.directory, company.python, environment, tmp_path)
        with other.dagster_dev() as dev:
            unset = _launch(dev, ["orders"], ["0.0.0.0"])
            _ended(dev, [_launch(dev, ["shipments"], FIRST) for _ in range(2)])
            _wait_until(lambda: _backfill(dev, unset)["status"] not in _AT_WORK)
            # A variable that is not set is named where the UI shows why a backfill failed, and by the command.
            said = _backfill(dev, unset)["error"]["message"]
            assert 'environment variable "SHOP_CLICKHOUSE_URL" which is not set' in said
        code, said = other.run("ucs", "verify", "orders")
        assert (code, "environment variable SHOP_CLICKHOUSE_URL, which is not set" in said) == (2, True)
        assert "published 2 bricks" in other.succeed("ucs", "publish", "shipments", "4...5")
        assert "table and stream agree" in other.succeed("ucs", "verify", "shipments")


def _launch(dev: DagsterDev, assets: Sequence[str], partitions: Sequence[str] | None = None) -> str:
    which = {"allPartitions": True} if partitions is None else {"partitionNames": list(partitions)}
    answer = dev.ask(_LAUNCH, it={"assetSelection": [{"path": [asset]} for asset in assets], **which})
    launched = answer["launchPartitionBackfill"]
    assert "backfillId" in launched, launched
    return str(launched["backfillId"])


def _backfill(dev: DagsterDev, backfill: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = dev.ask(_BACKFILL, id=backfill)["partitionBackfillOrError"]
    return found


def _ended(dev: DagsterDev, backfills: Sequence[str]) -> None:
    for backfill in backfills:
        _wait_until(lambda: _backfill(dev, backfill)["status"] not in _AT_WORK)  # noqa: B023 - called at once
        assert _backfill(dev, backfill)["status"] == "COMPLETED_SUCCESS", dev.log()


def _switch_on(dev: DagsterDev, mutation: str, **what: str) -> None:
    [repository] = dev.ask(_REPOSITORIES)["repositoriesOrError"]["nodes"]
    where = {"repositoryLocationName": repository["location"]["name"], "repositoryName": repository["name"], **what}
    kind = "SensorSelector" if mutation == "startSensor" else "ScheduleSelector"
    argument = kind[0].lower() + kind[1:]
    text = f"mutation ($it: {kind}!) {{ {mutation}({argument}: $it) {{ __typename }} }}"
    assert dev.ask(text, it=where)[mutation]["__typename"] in ("Sensor", "ScheduleStateResult")


def _bricks(dev: DagsterDev, feed: str) -> set[str]:
    """Bricks of a feed's runs that succeeded."""
    runs: list[Any] = dev.ask(_RUNS)["runsOrError"]["results"]
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in runs if run["status"] == "SUCCESS"]
    spans = [tag["ucs/bricks"].split("...") for tag in tags if tag.get("ucs/feed") == feed]
    return {brick for first, last in spans for brick in get_brick_list(first, last)}


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)
