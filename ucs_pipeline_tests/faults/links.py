"""Plain connections to a Redis server: no retries, no pool, replies as they come."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ucs_pipeline_tests.faults.shapes import Entry

_CHUNK = 5_000


class Link:
    """One connection."""

    def __init__(self, port: int) -> None:
        # redis-py does not declare the types of this class.
        kind: Any = redis.Connection
        self._connection = kind(host="127.0.0.1", port=port, socket_timeout=10, protocol=2, retry=Retry(NoBackoff(), 0))
        self._connection.connect()

    def ask(self, *command: str | bytes | int) -> Any:
        """Sends a command; returns its reply, in bytes."""
        self._connection.send_command(*command)
        return self._connection.read_response()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.disconnect()


@contextmanager
def link(port: int) -> Iterator[Link]:
    """A connection for a while."""
    opened = Link(port)
    try:
        yield opened
    finally:
        opened.close()


def entries_of(port: int, stream: str) -> Iterator[list[Entry]]:
    """Every entry of a stream, in chunks."""
    start = "-"
    with link(port) as opened:
        while chunk := opened.ask("XRANGE", stream, start, "+", "COUNT", _CHUNK):
            yield chunk
            start = "(" + chunk[-1][0].decode()
