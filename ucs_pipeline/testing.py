"""Tests of feeds on real servers: ClickHouse's engine in the process, and a redis-server for the test.

In a `conftest.py`, `pytest_plugins = ["ucs_pipeline.testing"]` gives tests the fixture `ucs`, a `Kit`. Without pytest,
`with kit() as ucs:` gives the same.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from ucs_pipeline.clickhouse.embedded import tables_dir
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.home import EMBEDDED
from ucs_pipeline.orchestration.build import build_defs
from ucs_pipeline.orchestration.names import range_tags
from ucs_pipeline.orchestration.resources import ClickHouseResource, RedisResource, open_feed, resource_keys
from ucs_pipeline.reading.verify import Verdict, verify
from ucs_pipeline.redis.embedded_server import stop_embedded_redis

if TYPE_CHECKING:
    import pandas as pd

_AFTER_A_CRASH = """
import shutil, sys
sys.stdin.read()
from ucs_pipeline.redis.embedded_server import stop_embedded_redis
stop_embedded_redis()
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def write_table(directory: Path, name: str, rows: "Mapping[str, Any] | pa.Table | pd.DataFrame | str | Path") -> None:
    """Writes `<name>.parquet`; see `Kit.table`."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.parquet"
    if isinstance(rows, str | Path):
        shutil.copy(rows, path)
    elif isinstance(rows, pa.Table):
        pq.write_table(rows, path)
    elif isinstance(rows, Mapping):
        pq.write_table(pa.table(dict(rows)), path)
    else:
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), path)


class Kit:
    """Tables, streams and Dagster's records of one test; `kit` makes it."""

    bricks = staticmethod(range_tags)
    """The `tags` of a run over all bricks from the first to the last, as of backfills, sensors and schedules."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        self.home = home
        """Dagster's home: a temporary directory, to which DAGSTER_HOME is set."""
        self.instance = instance
        """Dagster's records of the test, in memory."""
        self.resources: dict[str, ClickHouseResource | RedisResource] = {
            "clickhouse": ClickHouseResource(url=EMBEDDED),
            "redis": RedisResource(url=EMBEDDED),
        }
        """The embedded servers, by the keys of the feeds given to `assets`; at first by the default keys."""

    @cached_property
    def redis(self) -> Any:
        """A redis.Redis on the test's server, which is started on first use; it answers in bytes.

        Untyped, because redis-py types every reply as a union over all settings.
        """
        return RedisResource(url=EMBEDDED).client()

    def table(self, name: str, rows: "Mapping[str, Any] | pa.Table | pd.DataFrame | str | Path") -> None:
        """Makes a table, or replaces it.

        Args:
            name: its name in the feed.
            rows: columns by name, an Arrow table, a DataFrame, or the path of a Parquet file.
        """
        write_table(tables_dir(), name, rows)

    def assets(self, *feeds: Feed) -> list[Any]:
        """The assets of feeds, as `dg.materialize` takes them, with those of tables and streams, without checks.

        Raises:
            FeedError: as `build_defs`.
        """
        for feed in feeds:
            self.resources[feed.clickhouse] = ClickHouseResource(url=EMBEDDED)
            self.resources[feed.redis] = RedisResource(url=EMBEDDED)
        return list(build_defs(*feeds).assets or ())

    def verify(self, feed: Feed) -> Verdict:
        """Compares every row of a feed's table with its entry in the stream, as `ucs verify` does."""
        with dg.build_resources({key: self.resources[key] for key in sorted(resource_keys(feed))}) as resources:
            return verify(feed, *open_feed(feed, resources))


@contextmanager
def kit() -> Iterator[Kit]:
    """Servers and records for a test of feeds; afterwards the redis-server is stopped and all files are deleted.

    ClickHouse's engine stays, since a process has one; its tables are deleted. Sets DAGSTER_HOME meanwhile: `embedded`
    as the URL of a resource means these servers, in this process and its children.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ucs-") as home,
        patch.dict(os.environ, DAGSTER_HOME=home),
        _cleared_after_a_crash(home),
        dg.DagsterInstance.ephemeral(home) as instance,
    ):
        try:
            yield Kit(Path(home), instance)
        finally:
            stop_embedded_redis()


@contextmanager
def _cleared_after_a_crash(home: str) -> Iterator[None]:
    """Stops the redis-server and deletes its files when this process ends without leaving the block."""
    command = [sys.executable, "-c", _AFTER_A_CRASH, home]
    # A session of its own, so Ctrl-C reaches only the tests. Its pipe closes with this process in any case.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.kill()


# Only the fixture needs pytest.
with suppress(ImportError):
    import pytest

    @pytest.fixture
    def ucs() -> Iterator[Kit]:
        """Tables, streams and Dagster's records of the test; see `Kit`."""
        with kit() as found:
            yield found
