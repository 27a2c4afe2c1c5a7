"""Redis servers to publish to, by how well they keep what they acknowledged."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ucs_pipeline_tests.faults.links import Link, link
from ucs_pipeline_tests.servers.redis_server import RedisServer

ALWAYS, EVERYSEC, NONE, REPLICA = "appendfsync always", "appendfsync everysec", "no persistence", "a replica"

_NO_DELAY: Mapping[str, str | int] = {"repl-diskless-sync-delay": 0, "repl-timeout": 60}
_APPEND: Mapping[str, str | int] = {"appendonly": "yes", "auto-aof-rewrite-percentage": 0}
_OPTIONS: Mapping[str, Mapping[str, str | int]] = {
    ALWAYS: {**_APPEND, "appendfsync": "always"},
    EVERYSEC: {**_APPEND, "appendfsync": "everysec"},
    NONE: {},
    REPLICA: _NO_DELAY,
}
_WAIT_SECONDS = 60


class Rig:
    """One Redis, and its replica where it has one."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._directory = directory
        self._servers = 0
        self.server = self._new_server()
        self.replica: RedisServer | None = None
        self._watching: Link | None = None

    @property
    def keeps(self) -> bool:
        """Whether nothing that was acknowledged is ever lost here."""
        return self.kind == ALWAYS

    def fresh(self) -> None:
        """An empty server."""
        self.server.kill()
        for file in self.server.directory.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif file.suffix in (".aof", ".rdb"):
                file.unlink()
        self.server.start()
        if self.kind == REPLICA:
            self.add_replica()

    def length(self, stream: str) -> int | None:
        """Entries in a stream; None while the server does not answer."""
        try:
            if self._watching is None:
                self._watching = Link(self.server.port)
            return int(self._watching.ask("XLEN", stream))
        except (redis.RedisError, OSError):
            self._unwatch()
            return None

    def command(self, *command: str | int) -> Any:
        """Runs a command over a connection of its own."""
        with link(self.server.port) as opened:
            return opened.ask(*command)

    def add_replica(self) -> None:
        """A replica that has caught up once."""
        if self.replica is not None:
            self.replica.close()
        self.replica = self._new_server().start()
        deadline = time.monotonic() + _WAIT_SECONDS
        with _client(self.replica.port) as client:
            client.replicaof("127.0.0.1", str(self.server.port))
            while client.info("replication")["master_link_status"] != "up":
                if time.monotonic() > deadline:
                    raise RuntimeError("the replica does not catch up")
                time.sleep(0.01)

    def detach_replica(self) -> None:
        """From here on the replica gets nothing more."""
        assert self.replica is not None
        with _client(self.replica.port) as client:
            client.replicaof("no", "one")

    def promote_replica(self) -> None:
        """The primary is gone, the replica is the server."""
        assert self.replica is not None
        self.server.kill()
        self.server.close()
        self._unwatch()
        self.server, self.replica = self.replica, None

    def close(self) -> None:
        """Ends the servers."""
        self._unwatch()
        self.server.close()
        if self.replica is not None:
            self.replica.close()

    def _unwatch(self) -> None:
        if self._watching is not None:
            self._watching.close()
            self._watching = None

    def _new_server(self) -> RedisServer:
        self._servers += 1
        directory = self._directory / f"{self.kind.replace(' ', '-')}-{self._servers}"
        directory.mkdir(parents=True)
        return RedisServer(directory, _OPTIONS[self.kind])


def _client(port: int) -> Any:
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=10)
