"""ClickHouse's HTTP protocol in front of the test server's engine, with faults on demand.

Left out: response compression, multipart queries, temporary tables that outlive a request.
"""

import base64
import json
import secrets
import socket
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from ucs_pipeline_tests.servers.clickhouse_engine import (
    Engine,
    ServerError,
    answer,
    arrow_stream,
    format_of,
    server_error,
)
from ucs_pipeline_tests.servers.clickhouse_http import NO_FAULTS

# Query-string names that ClickHouse's HTTP handler takes for itself; every other one is a setting.
_TRANSPORT = {
    *("query", "database", "user", "password", "quota_key", "role", "query_id", "default_format", "stacktrace"),
    *("session_id", "session_timeout", "session_check", "close_session", "compress", "decompress"),
    *("wait_end_of_query", "buffer_size", "client_protocol_version"),
}


class Server(ThreadingHTTPServer):
    """Accepts connections and keeps what requests share: the engine, the fault switches, the sessions in use."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, engine: Engine, user: str, password: str) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.engine = engine
        self.login = (user, password)
        self.lock = threading.Lock()
        self.faults = dict(NO_FAULTS)
        self.requests = 0
        self.sessions: set[str] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news; anything else is a fault of this server and goes to its stderr."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def take(self, switch: str) -> int:
        """Value of a switch that serves once."""
        with self.lock:
            value, self.faults[switch] = self.faults[switch], NO_FAULTS[switch]
            return value

    def count_request(self) -> bool:
        """Counts a request; whether `fail_next` covers it."""
        with self.lock:
            self.requests += 1
            failing = self.faults["fail_next"] > 0
            self.faults["fail_next"] -= failing
            return failing

    @contextmanager
    def locked_session(self, name: str) -> Iterator[None]:
        """One query at a time per session id, as in ClickHouse."""
        with self.lock:
            if name in self.sessions:
                raise server_error(373, f"Session {name} is locked by a concurrent client", "SESSION_IS_LOCKED")
            self.sessions |= {name} - {""}
        try:
            yield
        finally:
            with self.lock:
                self.sessions.discard(name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        """Keeps the test output quiet."""

    def _serve(self) -> None:
        target = urlsplit(self.path)
        arguments = dict(parse_qsl(target.query, keep_blank_values=True))
        if target.path == "/__fault__":
            if unknown := sorted(arguments.keys() - NO_FAULTS.keys()):
                return self._send(400, f"no such fault switch: {unknown}\n".encode(), {})
            with self.server.lock:
                self.server.faults.update({name: int(value) for name, value in arguments.items()})
                state = {**self.server.faults, "requests": self.server.requests}
            return self._send(200, json.dumps(state).encode(), {})
        body = self._body()
        failing = self.server.count_request()
        time.sleep(self.server.faults["delay_ms"] / 1000)
        if failing:
            return self._send(503, b"Service Unavailable\n", {})
        sql = b"\n".join(part for part in (arguments.get("query", "").encode(), body) if part)
        if target.path == "/ping" or not sql:
            return self._send(200, b"Ok.\n", {})
        return self._query(sql, arguments)

    def _query(self, sql: bytes, arguments: dict[str, str]) -> None:
        text = sql.decode(errors="replace")
        default_format = arguments.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated"
        output = format_of(text, default_format)
        parameters = {name[6:]: value for name, value in arguments.items() if name.startswith("param_")}
        settings = {n: v for n, v in arguments.items() if n not in _TRANSPORT and not n.startswith("param_")}
        tag = secrets.token_hex(8) if self.server.faults["tagged"] else ""
        headers = {
            "X-ClickHouse-Query-Id": arguments.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Timezone": self.server.engine.timezone,
            **({"X-ClickHouse-Format": output} if output else {}),
        }
        result: bytes | None = None
        streaming = False
        try:
            self._check_login(arguments)
            # ClickHouse frees the session before the last bytes of the answer, so that the client may continue at once.
            with (
                self.server.locked_session(arguments.get("session_id", "")),
                self.server.engine.session(arguments.get("database", ""), settings, self.command == "GET") as engine,
            ):
                if output != "ArrowStream":
                    result = answer(engine, sql, default_format, parameters)
                else:
                    with closing(arrow_stream(engine, text, parameters)) as messages:
                        first = next(messages)
                        streaming = True
                        self._start(200, headers | {"X-ClickHouse-Exception-Tag": tag, "Transfer-Encoding": "chunked"})
                        if not self._stream(first, messages):
                            return self._cut()
        except ServerError as error:
            message = f"{error} (version {self.server.engine.version})\n"
            if streaming:
                block = f"\r\n__exception__\r\n{tag}\r\n{message}{len(message)} {tag}\r\n__exception__\r\n"
                self._chunk(block.encode() if tag else message.encode())
                return self._cut()
            headers |= {"X-ClickHouse-Exception-Code": str(error.code)}
            return self._send(error.status, message.encode(), headers)
        if result is not None:
            return self._send(200, result, headers)
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _stream(self, first: tuple[bool, bytes], rest: Iterator[tuple[bool, bytes]]) -> bool:
        """Writes an Arrow stream; whether the connection is to be kept."""
        cut, clean, failing = map(
            self.server.take, ("cut_after_bytes", "cut_clean_after_batches", "exception_after_batches")
        )
        sent = batches = 0
        for is_batch, data in chain([first], rest):
            if 0 <= cut <= sent + len(data):
                self.wfile.write(b"%x\r\n%b" % (len(data), data[: cut - sent]))
                return False
            self._chunk(data)
            sent += len(data)
            batches += is_batch
            if batches == failing:
                raise server_error(241, "Memory limit (total) exceeded", "MEMORY_LIMIT_EXCEEDED")
            if batches == clean:
                return True
        return True

    def _check_login(self, arguments: dict[str, str]) -> None:
        user, password = arguments.get("user", "default"), arguments.get("password", "")
        if "X-ClickHouse-User" in self.headers:
            user, password = self.headers["X-ClickHouse-User"], self.headers.get("X-ClickHouse-Key", "")
        elif self.headers.get("Authorization", "").startswith("Basic "):
            user, _, password = base64.b64decode(self.headers["Authorization"][6:]).decode().partition(":")
        if (user, password) != self.server.login:
            what = "Authentication failed: password is incorrect, or there is no user with such name"
            raise server_error(516, f"{user}: {what}", "AUTHENTICATION_FAILED")

    def _body(self) -> bytes:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding == "identity" or not body:
            return body
        return bytes(pa.input_stream(pa.BufferReader(body), compression=encoding).read())

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._start(status, headers | {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def serve(port: int, path: str, login: tuple[str, str], certificate: tuple[str, str | None] | None) -> None:
    """Prints the port once ready, and serves until killed."""
    server = Server(port, Engine(path), *login)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        # The handshake is left to the connection's own thread: a slow client must not hold up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(server.server_port, flush=True)
    server.serve_forever()
