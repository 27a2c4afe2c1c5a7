"""One connection to Redis that carries ready-made bytes and accepts replies by comparing bytes."""

import socket
from collections.abc import Sequence
from typing import Any, Self

import hiredis
import redis

from ucs_pipeline.entries import bulk
from ucs_pipeline.redis_link import translate

_RECEIVE = 1 << 16


class UnexpectedReplyError(Exception):
    """The server answered with other bytes than expected; `received` holds them from the first expected one on."""

    def __init__(self, received: bytes) -> None:
        super().__init__(received[:200])
        self.received = received


class Wire:
    """A connection redis-py has made and logged in (password, user, TLS, database), used as a plain socket."""

    def __init__(self, client: "redis.Redis") -> None:
        # Not `make_connection`: the pool would count this connection as one of its own for ever.
        pool = client.connection_pool
        connection: Any = pool.connection_class(**pool.connection_kwargs)
        self._connection = connection
        try:
            connection.connect()
        except (redis.RedisError, OSError) as error:
            raise translate(error) from error
        # redis-py would parse every reply into objects; nothing is buffered in it right after the login.
        self._socket: socket.socket = connection._sock
        self._ahead = b""

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
            raise translate(error) from error

    def expect(self, expected: bytes) -> None:
        """Receives exactly these bytes.

        Raises:
            UnexpectedReplyError: other bytes came.
            StreamUnavailableError: the connection broke.
        """
        position = 0
        while position < len(expected):
            data = self._receive()
            wanted = len(expected) - position
            if not expected.startswith(data[:wanted], position):
                raise UnexpectedReplyError(expected[:position] + data)
            self._ahead = data[wanted:]
            position += len(data) - len(self._ahead)

    def line(self) -> bytes:
        """Receives one line, without its line end."""
        data = b""
        while b"\r\n" not in data:
            data += self._receive()
        line, self._ahead = data.split(b"\r\n", 1)
        return line

    def replies(self, received: bytes, count: int) -> list[Any]:
        """Parses `count` whole replies that begin with bytes already received; errors come as `hiredis.ReplyError`."""
        reader = hiredis.Reader()
        reader.feed(received)
        replies: list[Any] = []
        while len(replies) < count:
            reply = reader.gets()
            if reply is False:
                reader.feed(self._receive())
            else:
                replies.append(reply)
        return replies

    def close(self) -> None:
        """Closes the connection; Redis forgets a transaction that was not executed."""
        self._connection.disconnect()

    def _receive(self) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        try:
            data = self._socket.recv(_RECEIVE)
        except OSError as error:
            raise translate(error) from error
        if not data:
            raise translate(ConnectionError("the connection was closed"))
        return data


def command(*arguments: bytes) -> bytes:
    """A command of the Redis protocol."""
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))
