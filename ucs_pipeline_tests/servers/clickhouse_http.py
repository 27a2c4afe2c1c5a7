"""A ClickHouse HTTP server for tests: chDB behind enough of the protocol for the real clickhouse-connect.

`ClickHouseServer` runs it as a process of its own, because chDB takes one engine path per process.
It answers faults on demand, set at `/__fault__?switch=value` or by `ClickHouseServer.fault`:

- `cut_after_bytes`: the next Arrow stream's connection closes after so many bytes of the body;
- `cut_clean_after_batches`: it ends properly as HTTP after so many batches, but without Arrow's end marker;
- `exception_after_batches`: it ends with an exception in the body, as ClickHouse does in mid-stream;
- `fail_next`: so many requests are answered with HTTP 503;
- `delay_ms`: every answer waits so long;
- `tagged`: 0 for the bare exception text of ClickHouse before 25.11, 1 for the tagged block since.

From the command line: `python -m ucs_pipeline_tests.servers.clickhouse_http --port 0` prints the port.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from urllib.parse import quote, urlencode
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

from typing_extensions import Self

NO_FAULTS = {
    "cut_after_bytes": -1,
    "cut_clean_after_batches": -1,
    "exception_after_batches": -1,
    "fail_next": 0,
    "delay_ms": 0,
    "tagged": 1,
}
_PR_SET_PDEATHSIG = 1


class ClickHouseServer:
    """The test server in a process of its own: started on entry, killed on exit or with the thread that started it."""

    def __init__(
        self,
        *,
        path: str = ":memory:",
        user: str = "tester",
        password: str = "secret",
        certfile: Path | None = None,
        keyfile: Path | None = None,
        **faults: int,
    ) -> None:
        options = {"path": path, "user": user, "password": password, "certfile": certfile, "keyfile": keyfile}
        self._options = [f"--{name}={value}" for name, value in options.items() if value is not None]
        self._scheme = "https" if certfile else "http"
        self._login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        self._faults = faults
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """A clickhouse-connect DSN."""
        return f"{self._scheme}://{self._login}@127.0.0.1:{self.port}/default"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Starts the server and returns once it answers; after a stop, on the port it had."""
        command = [sys.executable, "-m", __name__, f"--port={self.port}", f"--parent={os.getpid()}", *self._options]
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
            assert self._process.stdout is not None
            # Not `select`, which refuses descriptors from 1,024 on: a test process may have as many.
            waiting = select.poll()
            waiting.register(self._process.stdout, select.POLLIN)
            ready = waiting.poll(60_000)
            line = self._process.stdout.readline() if ready else b""
            if not line:
                self.stop()
                errors.seek(0)
                raise RuntimeError(f"the ClickHouse test server did not start: {errors.read().decode()}")
        self.port = int(line)
        if self._faults:
            self.fault(**self._faults)
        return self

    def stop(self) -> None:
        """Kills the server; the tables of an in-memory engine are gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def fault(self, **switches: int) -> dict[str, int]:
        """Sets fault switches. Returns the state of all, and `requests`, the queries received so far."""
        address = f"{self._scheme}://127.0.0.1:{self.port}/__fault__?{urlencode(switches)}"
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        # No proxy: the environment's is of no use to reach this machine.
        with build_opener(ProxyHandler({}), HTTPSHandler(context=trusting)).open(address) as response:
            state: dict[str, int] = json.load(response)
            return state

    def clear_faults(self) -> None:
        """Sets every switch back."""
        self.fault(**NO_FAULTS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def main() -> None:
    """Runs the server: prints its port once it is ready."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--path", default=":memory:")
    parser.add_argument("--user", default="default")
    parser.add_argument("--password", default="")
    parser.add_argument("--certfile")
    parser.add_argument("--keyfile")
    parser.add_argument("--parent", type=int, help="die with the process of this id")
    options = parser.parse_args()
    if options.parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != options.parent:
            sys.exit("the parent left before the server started")

    from ucs_pipeline_tests.servers.clickhouse_protocol import serve

    certificate = (options.certfile, options.keyfile) if options.certfile else None
    serve(options.port, options.path, (options.user, options.password), certificate)


if __name__ == "__main__":
    main()
