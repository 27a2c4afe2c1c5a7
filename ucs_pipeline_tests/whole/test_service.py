"""The units of `deploy/systemd/` as processes, started by the very lines that systemd would execute."""

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from string import Template

import pytest

from ucs_pipeline_tests.servers.many_workers import wait_until
from ucs_pipeline_tests.servers.ports import HeldPort
from ucs_pipeline_tests.support.cockpit import ask
from ucs_pipeline_tests.support.home import PROJECT

UNITS = PROJECT / "deploy" / "systemd"
BIN = "/opt/ucs/.venv/bin/"

_LAUNCH = """
mutation ($it: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $it) { __typename ... on Error { message } }
}
"""
_SWITCH = "mutation ($it: SensorSelector!) { startSensor(sensorSelector: $it) { __typename ... on Error { message } } }"
_FEEDS = {"assetSelection": [{"path": ["flights"]}], "partitionNames": ["0.0.0.0"]}
_SENSOR = {"repositoryLocationName": "ucs_pipeline", "repositoryName": "__repository__", "sensorName": "flights_sensor"}


def _environment(name: str) -> dict[str, str]:
    lines = (PROJECT / name).read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value.strip("'") for name, value in pairs}


def _command(unit: str) -> str:
    return _setting(f"{unit}.service", "ExecStart")


def _setting(file: str, name: str) -> str:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(UNITS / file)
    return parser["Service"][name]


def _start(unit: str, home: Path, port: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A unit's process, on a port of the test's own, after what all units do before."""
    lines = f"{_setting('ucs-.service.d/common.conf', 'ExecStartPre')} && exec {_command(unit)}"
    command = Template(lines.replace(BIN, f"{Path(sys.executable).parent}/")).substitute(environment)
    command = re.sub(r"-p \d+", f"-p {port}", command)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("UCS_", "DAGSTER_"))}
    with (home / f"{unit}.log").open("ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", command],
            cwd=PROJECT,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _end(processes: Collection["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _feeds_of(url: str) -> list[object]:
    return list(ask(url, "{ assetNodes { assetKey { path } } }")["assetNodes"])


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """Ports of the code server, the full web server and the read-only one, by unit."""
    units = ("ucs-code-server", "ucs-webserver", "ucs-webserver-read-only")
    with ExitStack() as held:
        yield {unit: held.enter_context(HeldPort()).number for unit in units}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[dict[str, str]]:
    """Addresses of the full web server and of the read-only one."""
    home = tmp_path_factory.mktemp("service")
    for file in (PROJECT / "dagster.yaml", PROJECT / "deploy" / "workspace.yaml"):
        shutil.copy(file, home)
    environment = {
        **_environment("deploy/systemd/ucs.env.example"),
        "DAGSTER_HOME": str(home),
        "UCS_CODE_SERVER_PORT": str(ports["ucs-code-server"]),
    }
    started = {unit: _start(unit, home, port, environment) for unit, port in ports.items()}
    try:
        for unit, port in ports.items():
            # Ends, too, when the process has ended.
            ended, log = started[unit].poll, home / f"{unit}.log"
            wait_until(lambda: ended() is not None or _listens(port), log.read_text, 180)  # noqa: B023
            assert ended() is None, log.read_text()
        # They may start in any order, as they do when the machine starts.
        for web in ("ucs-webserver", "ucs-webserver-read-only"):
            url = f"http://127.0.0.1:{ports[web]}"
            wait_until(lambda: _feeds_of(url), (home / f"{web}.log").read_text, 120)  # noqa: B023
        yield {unit: f"http://127.0.0.1:{port}" for unit, port in ports.items()}
    finally:
        _end(started.values())


@pytest.mark.parametrize(("mutation", "it"), [(_LAUNCH, _FEEDS), (_SWITCH, _SENSOR)])
def test_the_read_only_web_server_shows_everything_and_changes_nothing(
    addresses: dict[str, str], mutation: str, it: dict[str, object]
) -> None:
    full, read_only = addresses["ucs-webserver"], addresses["ucs-webserver-read-only"]
    for address in (full, read_only):
        assert {"assetKey": {"path": ["flights"]}} in _feeds_of(address)
    [refused] = ask(read_only, mutation, it=it).values()
    assert refused["__typename"] == "UnauthorizedError"
    [done] = ask(full, mutation, it=it).values()
    assert done["__typename"] in ("LaunchBackfillSuccess", "Sensor"), done


def test_the_units_name_programs_that_are_installed_and_variables_that_are_set() -> None:
    environment = _environment("deploy/systemd/ucs.env.example")
    units = sorted(path.stem for path in UNITS.glob("*.service"))
    assert len(units) == 6
    for unit in units:
        command = _command(unit)
        assert command.startswith(BIN)
        assert (Path(sys.executable).parent / command.removeprefix(BIN).split()[0]).exists()
        assert set(re.findall(r"\$\{(\w+)\}", command)) <= environment.keys()


def test_both_deployments_have_one_place_for_secrets() -> None:
    for example in ("deploy/systemd/ucs.env.example", "deploy/celery/ucs.env.example"):
        assert {"UCS_REDIS_URL", "UCS_CLICKHOUSE_URL"} <= _environment(example).keys()
    for unit in UNITS.rglob("*.*"):
        if unit.suffix in (".service", ".conf"):
            assert "://" not in unit.read_text()
