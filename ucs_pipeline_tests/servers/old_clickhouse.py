"""An older ClickHouse: the engine of an old chDB wheel, in an environment of its own, behind a few lines of HTTP.

This file is run by that environment's Python too, which has chDB and nothing else: it prints its port.
Settings of a request's address are not applied; what this project needs is in the text of its queries.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit


@contextmanager
def old_clickhouse(wheel: str, home: Path) -> Iterator[str]:
    """The URL of a server with the engine of a release of chDB, installed into `home`."""
    environment = home / "environment"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, f"chdb=={wheel}"], check=True)
    with subprocess.Popen([python, __file__], cwd=home, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield f"http://default:@127.0.0.1:{int(server.stdout.readline())}/default"
        finally:
            server.kill()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's signature
        """Keeps the test output quiet."""

    def do_POST(self) -> None:
        import chdb

        arguments = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        sql = "\n".join(part for part in (arguments.get("query", ""), body) if part)
        output = self.headers.get("X-ClickHouse-Format") or arguments.get("default_format") or "TabSeparated"
        if found := re.search(r"\bFORMAT\s+(\w+)\s*\Z", sql):
            sql, output = sql[: found.start()], found[1]
        for name, value in arguments.items():
            if name.startswith("param_"):
                sql = re.sub(rf"\{{{name[6:]}:(\w+)\}}", rf"CAST('{value}', '\1')", sql)
        try:
            status, data = 200, bytes(chdb.query(sql, output).bytes() or b"")
        except Exception as error:
            status, data = 500, str(error)[str(error).find("Code: ") :].encode()
        self.send_response(status)
        self.send_header("X-ClickHouse-Format", output)
        self.send_header("X-ClickHouse-Timezone", "UTC")
        if status != 200:
            self.send_header("X-ClickHouse-Exception-Code", "1001")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    listening = HTTPServer(("127.0.0.1", 0), _Handler)
    print(listening.server_port, flush=True)
    listening.serve_forever()
