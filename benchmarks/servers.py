"""Servers that benchmarks read from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.support.connections import CLICKHOUSE_URL


@contextmanager
def clickhouse_over_http() -> Iterator[None]:
    """The tests' own ClickHouse behind HTTP, which feeds of this process, and of those it starts, read from."""
    with ClickHouseServer() as server:
        os.environ[CLICKHOUSE_URL] = server.url
        try:
            yield
        finally:
            del os.environ[CLICKHOUSE_URL]
