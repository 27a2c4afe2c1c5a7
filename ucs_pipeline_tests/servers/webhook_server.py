"""A webhook: a small HTTP server that keeps what is posted to it, with configurable answers."""

import json
import socket
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from typing_extensions import Self

SECRET = "T0P-s3cr3t"
"""The part of the address that nobody may see."""


class WebhookServer:
    """Started on entry, ended on exit."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        """Messages that were answered with 200, in order."""
        self.asked: list[str] = []
        """Every request, as method and path."""
        self.answers: deque[int] = deque()
        """Statuses of the next answers; 200 when there are none."""
        handler = type("Handler", (_Handler,), {"webhook": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """The address to post to."""
        return f"http://127.0.0.1:{self._server.server_port}/services/{SECRET}?token={SECRET}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class _Handler(BaseHTTPRequestHandler):
    webhook: WebhookServer

    def do_POST(self) -> None:
        self.webhook.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.webhook.answers.popleft() if self.webhook.answers else 200
        if status == 200:
            assert self.headers["Content-Type"] == "application/json"
            self.webhook.taken.append(json.loads(body))
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.webhook.asked.append(f"GET {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Logs nothing."""
