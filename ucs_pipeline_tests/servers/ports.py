"""Ports for servers that tests start."""

import socket

from ucs_pipeline_tests.servers.lifetime import Closed


class HeldPort(Closed):
    """A port that the kernel assigns to no other process until it is closed; a server may listen at it by number.

    It is bound, and nobody listens: Linux lets a server bind it too where both set SO_REUSEADDR, as servers do.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def listen(self) -> None:
        """Takes the port from servers as well."""
        self._socket.listen()

    def close(self) -> None:
        """Lets others have it."""
        self._socket.close()
