"""Metrics over HTTP: prometheus_client's own server and application, with a collector that queries at each scrape."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import dagster as dg
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.metrics import FeedFigures, feed_figures, gauges, rows_behind
from ucs_pipeline.orchestration.status import redis_problems

_FRESH_SECONDS = 1.0
"""Scrapes so close together get the same figures."""

Feeds = Sequence[tuple[Sequence[Feed], object]]
"""Feeds of each code location, and an object with their resources as attributes."""


class Lag(NamedTuple):
    """Rows of a table that are not in the stream."""

    rows: int
    since: float
    """Unix time of the last check that found none; of the first check, if there was no such one."""


class TableChecks(threading.Thread):
    """Counts the rows that are not in the streams, at an interval, in a thread of its own: a scrape never waits."""

    def __init__(self, feeds: Feeds, every: float, log: Callable[[str], None]) -> None:
        super().__init__(name="ucs-table-checks", daemon=True)
        self._feeds, self._every, self._log = feeds, every, log
        self._ended = threading.Event()
        self.found: dict[str, tuple[Feed, Lag | None, float]] = {}
        """The result of the newest check, by the feed's name, and its time; None if it failed."""

    def run(self) -> None:
        """Checks until `end` is called."""
        since: dict[str, float] = {}
        while True:
            for feeds, resources in self._feeds:
                for feed in feeds:
                    now = time.time()
                    try:
                        rows = rows_behind(feed, resources)
                    except UcsError as error:
                        self._log(str(error))
                        self.found[feed.name] = feed, None, now
                        continue
                    if not rows or feed.name not in since:
                        since[feed.name] = now
                    self.found[feed.name] = feed, Lag(rows, since[feed.name]), now
                    if self._ended.is_set():
                        return
            if self._ended.wait(self._every):
                return

    def end(self) -> None:
        """Ends the checks, after the query that is running."""
        self._ended.set()
        self.join(5)

    def gauges(self) -> list[GaugeMetricFamily]:
        """The latest results."""
        about = {
            "ucs_table_up": "1 if the newest check of the table succeeded, 0 if not.",
            "ucs_table_checked_timestamp_seconds": "Unix time of the newest check of the table.",
            "ucs_lag_rows": "Rows in the table that are not in the stream, at the newest check.",
            "ucs_lag_seconds": "Seconds since the last check that found all rows in the stream; 0 if the newest did.",
        }
        families = {
            name: GaugeMetricFamily(name, documentation, labels=["feed", "stream"])
            for name, documentation in about.items()
        }
        for feed, lag, checked in list(self.found.values()):
            labels = [feed.name, feed.stream_name]
            families["ucs_table_up"].add_metric(labels, int(lag is not None))
            families["ucs_table_checked_timestamp_seconds"].add_metric(labels, checked)
            if lag is not None:
                families["ucs_lag_rows"].add_metric(labels, lag.rows)
                families["ucs_lag_seconds"].add_metric(labels, time.time() - lag.since if lag.rows else 0)
        return [family for family in families.values() if family.samples]


class FeedCollector(Collector):
    """Queries Dagster and Redis at a scrape. Concurrent scrapes wait for one answer, and get the same one."""

    def __init__(
        self, feeds: Feeds, instance: dg.DagsterInstance, log: Callable[[str], None], tables: TableChecks | None = None
    ) -> None:
        self._feeds, self._instance, self._log, self._tables = feeds, instance, log, tables
        self._lock = threading.Lock()
        self._until, self._found = 0.0, list[GaugeMetricFamily]()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The gauges of all feeds."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = self._ask()
                self._until = time.monotonic() + _FRESH_SECONDS
            return [*self._found, *(self._tables.gauges() if self._tables else ())]

    def _ask(self) -> list[GaugeMetricFamily]:
        up = GaugeMetricFamily("ucs_dagster_up", "1 if Dagster's storage could be read, 0 if not.")
        figures: list[FeedFigures] = []
        try:
            for feeds, resources in self._feeds:
                figures += feed_figures(feeds, self._instance, resources)
        except Exception as error:  # each storage of Dagster has errors of its own, and the server outlives them
            self._log(_storage_problem(error))
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *gauges(figures)]


def problems(feeds: Feeds, instance: dg.DagsterInstance) -> list[str]:
    """Why Dagster's storage or a Redis does not answer, a message each."""
    found = []
    try:
        instance.get_run_records(limit=1)
        instance.get_asset_keys(limit=1)
    except Exception as error:  # as above
        found.append(_storage_problem(error))
    return found + [problem for some, resources in feeds for problem in redis_problems(some, resources)]


def _storage_problem(error: Exception) -> str:
    # The text of a database's error may have its URL.
    return f"Dagster's storage cannot be read ({type(error).__name__})"


def address(text: str) -> tuple[str, int]:
    """The host and the port in `host:port` or `[host]:port`.

    Raises:
        UcsError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise UcsError(f"Cannot listen on {text!r}. Expected HOST:PORT, such as 127.0.0.1:9465 or [::1]:9465.")
    return host, int(port)


class MetricsServer:
    """Answers `/metrics` and `/health`, once it serves."""

    def __init__(self, listen: str, collector: Collector, health: Callable[[], Sequence[str]]) -> None:
        """Listens.

        Raises:
            UcsError: the address is none, or cannot be listened on.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        metrics, (host, port) = make_wsgi_app(registry), address(listen)

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/metrics":
                return metrics(environ, start_response)  # type: ignore[no-any-return]
            if environ["PATH_INFO"] == "/health":
                found = health()
                status, lines = ("503 Service Unavailable", found) if found else ("200 OK", ["ok"])
            else:
                status, lines = "404 Not Found", ["expected /metrics or /health"]
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return ["".join(f"{line}\n" for line in lines).encode()]

        try:
            family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            # The class sets the address family.
            kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
            self._server: WSGIServer = make_server(str(place[0]), port, application, kind, _Quiet)
        except OSError as error:
            raise UcsError(f"Cannot listen on {listen} ({error.strerror or error}). Choose another address.") from None

    @property
    def url(self) -> str:
        """Its address."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def serve(self) -> None:
        """Answers until an exception ends it, such as that of a signal."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()

    def end(self) -> None:
        """Ends `serve` in another thread."""
        self._server.shutdown()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base
        pass
