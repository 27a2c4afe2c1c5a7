"""One connection to Redis that carries ready-made bytes and accepts replies by comparing bytes."""

import socket
from collections.abc import Sequence
from typing import Any, cast

import hiredis
import redis
from typing_extensions import Self

from ucs_pipeline.redis.connection import translate
from ucs_pipeline.redis.discovery import DiscoveredConnection, WrongServerError

_RECEIVE = 1 << 16


class RawConnection:
    """A connection redis-py has made and logged in (password, user, TLS, database), used as a plain socket."""

    def __init__(self, client: "redis.Redis") -> None:
        # Not `make_connection`: the pool would count this connection permanently.
        self._client, pool = client, client.connection_pool
        connection: Any = pool.connection_class(**pool.connection_kwargs)
        self._connection = connection
        try:
            connection.connect()
        except (redis.RedisError, OSError) as error:
            raise translate(error, client) from error
        # redis-py would parse every reply into objects; nothing is buffered in it right after the login.
        self._socket: socket.socket = connection._sock
        self._found = isinstance(connection, DiscoveredConnection)
        self._reader = hiredis.Reader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Sends the parts one after the other.

        Raises:
            StreamUnavailableError: the connection broke.
        """
        try:
            for part in parts:
                self._socket.sendall(part)
        except OSError as error:
            raise translate(error, self._client) from error

    def reply(self) -> Any:
        """Receives one reply, parsed; an error comes as `hiredis.ReplyError`.

        Raises:
            StreamUnavailableError: the connection broke, or the stream has moved to another server.
        """
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._receive())
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("MOVED ") and self._found:
            raise translate(WrongServerError(str(reply)), self._client)
        return reply

    def expect(self, expected: bytes) -> "bool | hiredis.ReplyError":
        """Whether the next bytes are these, or the error that came instead.

        Nothing but the answer to one command may be in flight. If it is another answer, it may be of any size and is
        not received: the connection can only be closed.

        Raises:
            StreamUnavailableError: the connection broke.
        """
        position = 0
        while position < len(expected):
            data = self._receive()
            if not expected.startswith(data, position):
                if position or not data.startswith(b"-"):
                    return False
                self._reader.feed(data)
                return cast("hiredis.ReplyError", self.reply())
            position += len(data)
        return True

    def close(self) -> None:
        """Closes the connection; Redis forgets a transaction that was not executed."""
        self._connection.disconnect()

    def _receive(self) -> bytes:
        try:
            data = self._socket.recv(_RECEIVE)
        except OSError as error:
            raise translate(error, self._client) from error
        if not data:
            closed = ConnectionError("the connection was closed; if that repeats, its log may name a limit")
            raise translate(closed, self._client)
        return data
