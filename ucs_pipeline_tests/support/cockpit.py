"""Dagster's own UI over a project home in a temporary directory, and a Chromium to drive it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright
from typing_extensions import Self

from ucs_pipeline.cli.demo_data import DATASETS, write_data
from ucs_pipeline_tests.servers.lifetime import Started
from ucs_pipeline_tests.servers.ports import HeldPort
from ucs_pipeline_tests.support.home import make_home

# Asks the kernel for a SIGTERM when the test process is gone (PR_SET_PDEATHSIG, which survives the exec), upon which
# `dagster dev` ends what it has started.
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)
_CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

_PAGE_MS = 60_000
"""How long a page may take to show what it is asked for."""
START_S = 300
"""How long Dagster's servers may take to start: each imports for seconds, on a slow machine one after another."""

_LAUNCH = """
mutation ($it: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $it) { ... on LaunchBackfillSuccess { backfillId } ... on Error { message } }
}
"""
_LAUNCH_RUN = """
mutation ($it: ExecutionParams!) {
  launchRun(executionParams: $it) { __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } }
}
"""
_CANCEL = "mutation ($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }"
_WORKSPACE = "load_from: [{python_file: {relative_path: feeds.py, location_name: ucs_pipeline}}]"


class DagsterDev(Started):
    """`dagster dev` in a directory: started on entry, ended on exit."""

    def __init__(self, home: Path, directory: Path, python: str = sys.executable, **environment: str) -> None:
        """`home`: Dagster's; `python`: of the environment that `dagster` is installed in."""
        self.home = home
        self._directory = directory
        self._python = python
        self._environment = environment
        self._port = HeldPort()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of the UI."""
        return f"http://127.0.0.1:{self._port.number}"

    @property
    def pid(self) -> int:
        """Number of the session and the process group that the servers and the runs are in."""
        assert self._process
        return self._process.pid

    def start(self) -> Self:
        """Starts the web server, the daemon and the code server, and returns once the UI answers."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("UCS_", "DAGSTER_"))}
        command = [self._python, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(self._port.number)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *command],
                cwd=self._directory,
                env={**environment, "DAGSTER_HOME": str(self.home), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A group of its own: `close` reaches the servers, and the runs they started, by its number.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/server_info", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"dagster dev did not start:\n{self.log()}")

    def ask(self, query: str, **variables: object) -> Mapping[str, Any]:
        """The data of a GraphQL query, as the UI would receive it."""
        return ask(self.url, query, **variables)

    def launch(self, feed: str, partitions: Sequence[str]) -> str:
        """Launches a backfill, as the button in the UI does; its id."""
        return launch(self.url, feed, partitions)

    def launch_run(self, feed: str, **tags: str) -> str:
        """Launches one run of a feed's asset, as the button in the UI does; its id."""
        selector = {
            "repositoryLocationName": "ucs_pipeline",
            "repositoryName": "__repository__",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": [feed]}],
            "assetCheckSelection": [],
        }
        named = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        params = {"selector": selector, "mode": "default", "runConfigData": "{}", "executionMetadata": named}
        launched = self.ask(_LAUNCH_RUN, it=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def cancel(self, backfill: str) -> None:
        """Cancels a backfill, as the button in the UI does."""
        self.ask(_CANCEL, id=backfill)

    def switch_on(self, sensor: str, location: str = "ucs_pipeline") -> None:
        """Starts a sensor, as the switch in the UI does."""
        selector = {"repositoryLocationName": location, "repositoryName": "__repository__", "sensorName": sensor}
        started = self.ask(
            "mutation ($it: SensorSelector!) { startSensor(sensorSelector: $it) { __typename } }", it=selector
        )
        assert started["startSensor"]["__typename"] == "Sensor", started

    def log(self) -> str:
        """The end of the servers' output."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def close(self) -> None:
        """Ends the servers and every run they started."""
        self._port.close()
        if self._process is None:
            return
        group = self._process.pid
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        self._process = None

    @property
    def _log(self) -> Path:
        return self.home / "dagster-dev.log"


class Cockpit(DagsterDev):
    """`dagster dev` on the project's definitions and the demo's tables: started on entry, ended on exit."""

    def __init__(self, home: Path, redis_url: str, feeds: str | None = None, **environment: str) -> None:
        """`feeds`: Python text that makes other definitions, instead of the project's."""
        super().__init__(make_home(home), home, UCS_REDIS_URL=redis_url, **environment)
        self._feeds = feeds

    def start(self) -> Self:
        """As `DagsterDev.start`, after the tables or the definitions are written."""
        if self._feeds is None:
            for data in DATASETS.values():
                write_data(data, self.home / ".ucs" / "tables")
        else:
            (self.home / "feeds.py").write_text(self._feeds)
            (self.home / "workspace.yaml").write_text(_WORKSPACE)
        return super().start()


def ask(url: str, query: str, **variables: object) -> Mapping[str, Any]:
    """Data of a GraphQL query to the web server at `url`."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: Mapping[str, Any] = json.load(response)
    assert "errors" not in answer, answer
    data: Mapping[str, Any] = answer["data"]
    return data


def launch(url: str, feed: str, partitions: Sequence[str]) -> str:
    """Launches a backfill at the web server at `url`, as the button in the UI does; its id."""
    answer = ask(url, _LAUNCH, it={"assetSelection": [{"path": [feed]}], "partitionNames": list(partitions)})
    return str(answer["launchPartitionBackfill"]["backfillId"])


def chromium() -> str:
    """Path of the browser."""
    found = shutil.which("chromium")
    if found is None:
        raise RuntimeError(
            "the test of the UI needs Chromium and there is no `chromium` on the PATH: install it with "
            "`apt-get install -y --no-install-recommends chromium`"
        )
    return found


@contextmanager
def chromium_page(url: str) -> Iterator[Page]:
    """A page of Debian's Chromium whose addresses are relative to `url`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_CHROMIUM_OPTIONS)
        try:
            page = browser.new_page(
                base_url=url, viewport={"width": 1400, "height": 900}, device_scale_factor=1, timezone_id="UTC"
            )
            page.set_default_timeout(_PAGE_MS)
            expect.set_options(timeout=_PAGE_MS)
            yield page
        finally:
            browser.close()


def screenshot(page: Page, name: str, height: float = 900) -> None:
    """Takes a picture of the page for the documentation, if `UCS_SCREENSHOTS` names a directory."""
    directory = os.environ.get("UCS_SCREENSHOTS")
    if not directory:
        return
    # Away from everything that opens when pointed at; then until fades and plots have come to rest.
    page.mouse.move(120, 500)
    page.wait_for_timeout(2_000)
    Path(directory).mkdir(parents=True, exist_ok=True)
    page.screenshot(
        path=Path(directory) / f"{name}.png",
        clip={"x": 0, "y": 0, "width": 1400, "height": height},
        animations="disabled",
    )
