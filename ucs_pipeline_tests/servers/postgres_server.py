"""A real PostgreSQL for tests, on a free port, in a directory of its own."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg2
from typing_extensions import Self

from ucs_pipeline_tests.servers.lifetime import Started
from ucs_pipeline_tests.servers.ports import HeldPort


class PostgresServer(Started):
    """A PostgreSQL with an empty database: started on entry, ended and deleted on exit or with the starting thread."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="ucs-pg-", dir="/tmp"))
        self._password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = HeldPort()

    @property
    def url(self) -> str:
        """URL for SQLAlchemy; the driver is named, because SQLAlchemy 2.1 takes another one by itself."""
        return f"postgresql+psycopg2://ucs:{self._password}@127.0.0.1:{self._port.number}/postgres"

    def start(self) -> Self:
        """Makes the database's files, starts the server, and returns once it answers."""
        password, data = self._directory / "password", self._directory / "data"
        password.write_text(self._password)
        if os.getuid() == 0:
            user = _unprivileged()
            for path in (self._directory, password):
                os.chown(path, user.pw_uid, user.pw_gid)
        options = ["--no-sync", "--encoding=UTF8", "--locale=C", "--username=ucs", "--auth=scram-sha-256"]
        made = subprocess.run(
            [*_as_user(), _binary("initdb"), *options, f"--pwfile={password}", data],
            cwd="/",
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_user(), _binary("postgres"), "-D", data, "-p", str(self._port.number), *settings],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                psycopg2.connect(self.url.replace("+psycopg2", "")).close()
                return self
            except psycopg2.OperationalError:
                time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start: {self._log.read_text(errors='replace')}")

    def close(self) -> None:
        """Ends the server and deletes its files."""
        if self._process is not None:
            self._process.terminate()
            try:
                # It waits for its clients to leave; SIGQUIT does not.
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
            self._process = None
        self._port.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._directory / "postgres.log"


def _binary(name: str) -> str:
    """Path of a PostgreSQL program: Debian's newest, which is not on the PATH, or the PATH's."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    found = str(debian[-1]) if debian else shutil.which(name)
    if found is None:
        raise RuntimeError(
            f"the test of many workers needs PostgreSQL and there is no `{name}`: install it with "
            "`apt-get install -y --no-install-recommends postgresql`"
        )
    return found


def _unprivileged() -> pwd.struct_passwd:
    names = {user.pw_name: user for user in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _as_user() -> list[str]:
    """What stands before a command: PostgreSQL refuses to run as root, and is to end with the test."""
    end = ["setpriv", "--pdeathsig", "INT"]
    if os.getuid():
        return end
    user = _unprivileged()
    return [*end, "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
