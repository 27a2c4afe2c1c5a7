"""A TCP proxy that counts bytes and cuts a connection after a given number of them."""

import enum
import socket
import struct
import threading

from ucs_pipeline_tests.servers.lifetime import Closed

_CHUNK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Way(enum.Enum):
    """Direction of the bytes."""

    TO_SERVER = enum.auto()
    TO_CLIENT = enum.auto()


class Cut:
    """A cut to be made after so many bytes in one direction; `made` is set once it happened."""

    def __init__(self, way: Way, after: int, reset: bool) -> None:
        self.way = way
        self.left = after
        self.reset = reset
        self.made = threading.Event()


class Proxy(Closed):
    """Passes connections on to a port of this machine that may change."""

    def __init__(self) -> None:
        self.target = 0
        self._lock = threading.Lock()
        self._cut: Cut | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def cut(self, way: Way, after: int, *, reset: bool) -> Cut:
        """Asks for a cut after `after` more bytes; the client sees a reset connection instead of a closed one."""
        with self._lock:
            self._cut = Cut(way, after, reset)
            return self._cut

    def spare(self) -> None:
        """Takes back a cut that was not made."""
        with self._lock:
            self._cut = None

    def drop(self) -> None:
        """Closes every connection."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            _hang_up(*pair)

    def close(self) -> None:
        """Ends the proxy and its connections."""
        _hang_up(self._listener)
        self._acceptor.join(5)
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._connect, args=(client,), name="proxy-link", daemon=True)
            self._threads = [*(other for other in self._threads if other.is_alive()), thread]
            thread.start()

    def _connect(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                return
            with server:
                server.settimeout(None)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pair = (client, server)
                with self._lock:
                    self._pairs.add(pair)
                back = threading.Thread(target=self._pump, args=(server, client, client, Way.TO_CLIENT), daemon=True)
                back.start()
                self._pump(client, server, client, Way.TO_SERVER)
                back.join()
                with self._lock:
                    self._pairs.discard(pair)

    def _pump(self, source: socket.socket, sink: socket.socket, client: socket.socket, way: Way) -> None:
        try:
            while data := source.recv(_CHUNK):
                passed, cut = self._allowed(way, data)
                sink.sendall(passed)
                if cut:
                    if cut.reset:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    cut.made.set()
                    break
        except OSError:
            pass
        # What was passed on arrives before the end of the connection does.
        _hang_up(source, sink)

    def _allowed(self, way: Way, data: bytes) -> tuple[bytes, Cut | None]:
        with self._lock:
            cut = self._cut
            if cut is None or cut.way is not way:
                return data, None
            if len(data) < cut.left:
                cut.left -= len(data)
                return data, None
            self._cut = None
            return data[: cut.left], cut


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
