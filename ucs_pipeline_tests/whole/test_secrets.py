"""Passwords, and keys in a feed's SQL, are where they are used and nowhere else: the whole of it run, and searched."""

import gzip
import json
import secrets
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from ucs_pipeline.orchestration.names import range_tags
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit
from ucs_pipeline_tests.support.home import python

FEEDS = """
import os
from ucs_pipeline import BrickFeed
from ucs_pipeline_tests.support.connections import build_defs

key = os.environ["SQL_SECRET"]
same = {"bricks": {"class": "number", "last": 19_999}, "stream": {"timeout_s": 0.1}}
sealed = f"hex(encrypt('aes-256-ecb', toString(number), substring(SHA256('{key}'), 1, 32)))"
good = BrickFeed(
    name="good", table="numbers(20000)", key="number", columns={"number": "number", "sealed": sealed}, **same
)
refused = BrickFeed(name="refused", table=f"mysql('127.0.0.1:1', 'd', 't' x, 'u', '{key}')", key="id", **same)
broken = BrickFeed(name="broken", table=f"mysql('127.0.0.1:1' x, 'd', 't', 'u', '{key}", key="id", **same)
untried = good.model_copy(update={"name": "untried"})
defs = build_defs(good, refused, broken, untried)
"""

# Every way to fail to log in, and what the command line prints about a feed.
BY_HAND = """
import os, sys
from unittest import mock
import dagster as dg
import feeds
from ucs_pipeline.orchestration import assets
from ucs_pipeline.orchestration.checks.facts import collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline_tests.support.connections import connect_redis
from ucs_pipeline.cli.output import print_findings, print_verdict
from ucs_pipeline_tests.support.connections import open_source
from ucs_pipeline_tests.support.connections import open_stream

assets._RETRY_SECONDS = 0.01
names = {"dagster/asset_partition_range_start": "0.0.0.0", "dagster/asset_partition_range_end": "0.0.0.1"}

def run(feed, instance, **environment):
    with mock.patch.dict(os.environ, environment):
        job = feeds.defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey(feed)], tags=names, raise_on_error=False
        )
        print(feed, result.success)

with dg.DagsterInstance.get() as instance:
    facts = collect(feeds.good, open_source(feeds.good), open_stream(feeds.good, connect_redis("good")), instance,
                    held_only=False)
    print_verdict(feeds.good, facts.verdict)
    print_findings(findings(facts))
    for name in ("UCS_CLICKHOUSE_URL", "UCS_REDIS_URL"):
        for environment in ("WRONG", "AWAY", "NONSENSE"):
            run("untried", instance, **{name: os.environ[f"{environment}_{name}"]})
    run("broken", instance)
"""

STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
TOLD = """
{ assetNodes { description metadataEntries { label description __typename
      ... on TextMetadataEntry { text } ... on JsonMetadataEntry { jsonString }
      ... on TableSchemaMetadataEntry { schema { columns { description } } } }
    assetChecksOrError { ... on AssetChecks { checks { name description } } } }
  runsOrError { ... on Runs { results { runId status runConfigYaml tags { key value }
      eventConnection { events { __typename ... on MessageEvent { message }
        ... on ExecutionStepFailureEvent { error { message stack errorChain { error { message stack } } } }
        ... on MaterializationEvent { metadataEntries { label ... on TextMetadataEntry { text }
          ... on TableSchemaMetadataEntry { schema { columns { description } } } } } } } } } }
  workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on PythonError { message } } } } } }
"""


class Watch(threading.Thread):
    """Reads the command line of every process of this machine, continuously."""

    def __init__(self, but: set[int]) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self._but = {str(pid) for pid in but}
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.2):
            for directory in Path("/proc").iterdir():
                if directory.name.isdigit() and directory.name not in self._but:
                    try:
                        self.seen.add((directory / "cmdline").read_bytes())
                    except OSError:
                        continue  # it has ended

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.set()
        self.join()


def _secret(kind: str) -> tuple[str, str]:
    """A password with characters that an address has to escape, and a part of it that is the same in any form."""
    core = f"{kind}{secrets.token_hex(6)}"
    return f"/{core}@%:", core


@pytest.fixture
def redis_with_password(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, str]]:
    password, core = _secret("redis")
    with RedisServer(tmp_path_factory.mktemp("guarded"), {"requirepass": password}) as server:
        yield server, core


@pytest.fixture
def clickhouse_with_password() -> Iterator[tuple[ClickHouseServer, str]]:
    password, core = _secret("house")
    with ClickHouseServer(password=password) as server:
        yield server, core


def test_no_secret_is_in_anything_that_is_shown_or_kept(
    tmp_path: Path,
    redis_with_password: tuple[RedisServer, str],
    clickhouse_with_password: tuple[ClickHouseServer, str],
) -> None:
    (redis, redis_core), (clickhouse, house_core) = redis_with_password, clickhouse_with_password
    sql_core, wrong_core = _secret("sqlkey")[1], _secret("wrong")[1]
    wrong = quote(f"/{wrong_core}@%:", safe="")
    environment = {
        "UCS_CLICKHOUSE_URL": clickhouse.url,
        "SQL_SECRET": sql_core,
        "PYTHONPATH": str(tmp_path),
        "WRONG_UCS_CLICKHOUSE_URL": f"http://tester:{wrong}@127.0.0.1:{clickhouse.port}/default",
        "AWAY_UCS_CLICKHOUSE_URL": f"http://tester:{wrong}@127.0.0.1:1/default",
        "NONSENSE_UCS_CLICKHOUSE_URL": f"tester:/{wrong_core}@127.0.0.1",
        "WRONG_UCS_REDIS_URL": f"redis://:{wrong}@127.0.0.1:{redis.port}/0",
        "AWAY_UCS_REDIS_URL": f"rediss://user:{wrong}@127.0.0.1:1/0",
        "NONSENSE_UCS_REDIS_URL": f"redis://user:/{wrong_core}@127.0.0.1",
    }
    servers = Cockpit(tmp_path, redis.url, FEEDS, **environment)
    with Watch({redis.pid, clickhouse.pid}) as watch, servers as cockpit:
        runs = {feed: cockpit.launch_run(feed, **range_tags("0.0.0.0", "0.0.0.1")) for feed in ("good", "refused")}
        ended = {feed: _status(cockpit, run) for feed, run in runs.items()}
        by_hand = python(BY_HAND, tmp_path, UCS_REDIS_URL=redis.url, **environment)
        assert by_hand.wait(120) == 0, (tmp_path / "process.log").read_text()
        told = json.dumps(cockpit.ask(TOLD))
        debug = [_download(cockpit, run) for run in runs.values()]
    assert ended == {"good": "SUCCESS", "refused": "FAILURE"}

    kept = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    # What is searched is what it is about.
    whole = b"".join(kept.values())
    printed = kept[tmp_path / "process.log"].decode()
    assert printed.count("untried False") == 6
    assert "table and stream agree" in printed
    for words in ("AUTHENTICATION_FAILED", "SYNTAX_ERROR", "Redis refused the login", "Redis cannot be reached"):
        assert words.encode() in whole
    assert "mysql('127.0.0.1:1', 'd', '[HIDDEN]', 'u', '[HIDDEN]')" in told
    assert "SYNTAX_ERROR" in told
    # Servers, runs, and what saves the output of steps.
    for program in (b"dagster_webserver", b"spawn_main", b"compute_logs"):
        assert any(program in line for line in watch.seen)

    for core in (redis_core, house_core, sql_core, wrong_core):
        assert [str(path) for path, text in kept.items() if core.encode() in text] == []
        assert core not in told
        assert not any(core.encode() in text for text in debug)
        assert [line for line in watch.seen if core.encode() in line] == []


def _status(cockpit: Cockpit, run: str) -> str:
    while (status := str(cockpit.ask(STATUS, id=run)["runOrError"]["status"])) not in ("SUCCESS", "FAILURE"):
        threading.Event().wait(0.3)
    return status


def _download(cockpit: Cockpit, run: str) -> bytes:
    with urllib.request.urlopen(f"{cockpit.url}/download_debug/{run}") as response:
        return gzip.decompress(response.read())
