"""The deployment of `deploy/celery/` as processes on this machine: code server, daemon, web server and workers."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import dagster as dg
from typing_extensions import Self

from ucs_pipeline_tests.servers.lifetime import Started
from ucs_pipeline_tests.servers.ports import HeldPort
from ucs_pipeline_tests.support.cockpit import START_S, launch
from ucs_pipeline_tests.support.home import PROJECT

CONFIGURATION = [PROJECT / "deploy" / "celery" / "dagster.yaml", PROJECT / "deploy" / "workspace.yaml"]
_STARTED = re.compile(r"Started process for run \(pid: (\d+)\)")


class Deployment(Started):
    """Every process of the deployment but the servers it uses: started on entry, ended on exit."""

    def __init__(self, home: Path, feeds: str, workers: int, **environment: str) -> None:
        """`feeds`: Python text of a module that makes the definitions."""
        self.home = home
        for file in CONFIGURATION:
            shutil.copy(file, home)
        (home / "feeds.py").write_text(feeds)
        self._ports = {name: HeldPort() for name in ("code-server", "webserver")}
        self.environment = {
            "DAGSTER_HOME": str(home),
            "UCS_CODE_SERVER_HOST": "127.0.0.1",
            "UCS_CODE_SERVER_PORT": str(self._ports["code-server"].number),
            "UCS_WORKER_SLOTS": str(workers),
            **environment,
        }
        self._workers = workers
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def workers(self) -> list[str]:
        """Names of the workers."""
        return [name for name in self._processes if name.startswith("worker")]

    def start(self) -> Self:
        """Starts the processes, and returns once the web server answers."""
        self._start("code-server", "dagster", "api", "grpc", "-f", str(self.home / "feeds.py"))
        self._wait_for("code-server")
        self.start_daemon()
        self._start("webserver", "dagster_webserver", "-w", str(self.home / "workspace.yaml"))
        for number in range(self._workers):
            self.start_worker(f"worker-{number}")
        self._wait_for("webserver")
        return self

    def start_daemon(self) -> None:
        """Starts Dagster's daemon."""
        self._start("daemon", "dagster._daemon", "run", "-w", str(self.home / "workspace.yaml"))

    def start_worker(self, name: str) -> None:
        """Starts a worker for one run at a time."""
        worker = ["celery", "-A", "ucs_pipeline.instance.celery_worker", "worker", "-c", "1", "-n", f"{name}@%h"]
        self._start(name, *worker, "--loglevel", "INFO")

    def stop(self, name: str) -> None:
        """Ends a process as a process manager would."""
        process = self._processes.pop(name)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        _signal_group(process, signal.SIGKILL)
        process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process and to what it has started."""
        _signal_group(self._processes[name], number)

    def worker_of(self, run: int) -> str:
        """Name of the worker whose child this process is."""
        parent = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
        return next(name for name, process in self._processes.items() if process.pid == parent)

    def launch(self, feed: str, partitions: Sequence[str]) -> str:
        """Launches a backfill, as the button in the UI does; its id."""
        return launch(f"http://127.0.0.1:{self._ports['webserver'].number}", feed, partitions)

    def log(self, name: str) -> str:
        """The end of a process's output."""
        return (self.home / f"{name}.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """Ends all processes, the ones that launch something first."""
        for name in [*self._processes]:
            self.signal(name, signal.SIGCONT)
            self._processes[name].terminate()
        for name in [*self._processes]:
            self.stop(name)
        for port in self._ports.values():
            port.close()

    def _start(self, name: str, module: str, *arguments: str) -> None:
        address = ["-h", "127.0.0.1", "-p", str(self._ports[name].number)] if name in self._ports else []
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("UCS_", "DAGSTER_"))}
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", module, *arguments, *address],
                cwd=PROJECT,
                env={**inherited, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A group of its own, which a signal reaches as a whole.
                start_new_session=True,
            )

    def _wait_for(self, name: str) -> None:
        wait_until(lambda: self._answers(name), lambda: self.log(name), START_S)

    def _answers(self, name: str) -> bool:
        assert self._processes[name].poll() is None, self.log(name)
        try:
            socket.create_connection(("127.0.0.1", self._ports[name].number), 1).close()
        except OSError:
            return False
        return True


def pid_of(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """Process id of a run, once it has started."""
    events = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
    found = [_STARTED.search(record.event_log_entry.message) for record in events]
    return next((int(match[1]) for match in found if match), None)


def wait_until(condition: Callable[[], object], say: Callable[[], str], seconds: float, pause: float = 0.2) -> None:
    """Waits until something is true; fails with the text of `say` if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(pause)


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
