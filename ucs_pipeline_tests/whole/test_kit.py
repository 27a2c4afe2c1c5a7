"""The kit for tests of feeds, and the page that shows it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from ucs_pipeline import BrickFeed, build_defs
from ucs_pipeline.testing import Kit, kit
from ucs_pipeline_tests.support.home import PROJECT

ROWS = {"id": [1, 2, 10_000], "word": ["a", None, "c"]}


def feed(**more: object) -> BrickFeed:
    """A feed of two bricks."""
    settings = {"table": "orders", "key": "id", "bricks": {"class": "number", "last": 19_999}, **more}
    return BrickFeed(name="orders", **settings)


@pytest.fixture
def ucs() -> object:
    """The fixture of the kit, by its function."""
    with kit() as found:
        yield found


def run(ucs: Kit, one: BrickFeed) -> bool:
    """Publishes both bricks in one run."""
    tags = ucs.bricks("0.0.0.0", "0.0.0.1")
    return dg.materialize(ucs.assets(one), resources=ucs.resources, tags=tags, instance=ucs.instance).success


@pytest.mark.parametrize("kind", ["columns", "Arrow", "pandas", "Parquet"])
def test_a_table_of_any_kind_reaches_the_stream(ucs: Kit, kind: str, tmp_path: Path) -> None:
    table = pa.table(ROWS)
    pq.write_table(table, tmp_path / "rows.parquet")
    ucs.table(
        "orders", {"columns": ROWS, "Arrow": table, "pandas": pd.DataFrame(ROWS)}.get(kind, tmp_path / "rows.parquet")
    )
    assert run(ucs, feed())
    assert ucs.redis.xrange("orders") == [
        (b"0-1", {b"id": b"1", b"word": b"a"}),
        (b"0-2", {b"id": b"2"}),
        (b"1-1", {b"id": b"10000", b"word": b"c"}),
    ]
    assert ucs.verify(feed()).agrees


def test_a_table_is_replaced_and_a_difference_found(ucs: Kit) -> None:
    ucs.table("orders", {"id": [1, 10_000], "word": ["a", "b"]})
    assert run(ucs, feed())
    ucs.table("orders", {"id": [1, 10_000], "word": ["a", "x"]})
    verdict = ucs.verify(feed())
    assert (verdict.equal, verdict.different, verdict.agrees) == (1, 1, False)


def test_a_feed_s_own_resource_keys_are_there(ucs: Kit) -> None:
    ucs.table("orders", ROWS)
    one = feed(clickhouse="warehouse", redis="cache")
    assert run(ucs, one)
    assert ucs.verify(one).agrees


def test_a_client_of_the_embedded_engine_sees_the_tables_before_any_feed_is_read() -> None:
    code = """
from ucs_pipeline import ClickHouseResource
from ucs_pipeline.testing import kit
with kit() as ucs:
    ucs.table("orders", {"id": [1, 2, 3]})
    with ClickHouseResource(url="embedded").client() as client:
        print(client.query("SELECT count() FROM orders").result_rows)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("[(3,)]\n", "")


def test_a_feed_s_sensor_is_asked_with_the_kit(ucs: Kit) -> None:
    ucs.table("orders", ROWS)
    [sensor] = [found for found in build_defs(feed()).sensors or () if found.name == "orders_sensor"]
    defs = build_defs(feed(), resources=ucs.resources)
    with dg.build_sensor_context(instance=ucs.instance, resources=ucs.resources, definitions=defs) as context:
        [request] = sensor.evaluate_tick(context).run_requests or ()
    assert request.tags["ucs/bricks"] == "0.0.0.0...0.0.0.0"


def test_one_kit_after_another_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "/as/before")
    with kit() as first:
        first.table("orders", ROWS)
        assert run(first, feed())
        socket = first.redis.connection_pool.connection_kwargs["path"]
    assert not first.home.exists()
    assert os.environ["DAGSTER_HOME"] == "/as/before"
    with redis.Redis(unix_socket_path=socket) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    with kit() as second:
        assert second.redis.keys() == []
        assert second.instance.get_materialized_partitions(dg.AssetKey("orders")) == set()
        assert not dg.materialize(
            second.assets(feed()), resources=second.resources, partition_key="0.0.0.0", raise_on_error=False
        ).success


_KILLED = """
import os, signal
from ucs_pipeline.testing import kit
with kit() as ucs:
    print(ucs.redis.connection_pool.connection_kwargs["path"], ucs.redis.ping(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_test_process_that_is_killed_leaves_no_server() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _KILLED], capture_output=True, text=True, cwd=PROJECT)
    path, answered = done.stdout.split()
    assert answered == "True"
    home = Path(path).parents[2]
    assert home.name.startswith("ucs-")
    deadline = time.monotonic() + 60
    while home.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with redis.Redis(unix_socket_path=path) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_the_kit_needs_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; from ucs_pipeline.testing import kit; print(callable(kit))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.stdout == "True\n", done.stderr


def test_the_page_s_examples_are_true(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "how-to" / "test-a-feed.md").read_text()
    assert len(re.sub(r"```.*?```", "", page, flags=re.DOTALL).split()) < 500
    examples = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.DOTALL)
    assert len(examples) == page.count("```python")
    for name, text in examples:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    python = [sys.executable, "-W", "ignore"]
    tested = subprocess.run([*python, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True)
    assert "3 passed" in tested.stdout, tested.stdout
    by_hand = subprocess.run([*python, "by_hand.py"], cwd=tmp_path, capture_output=True, text=True)
    assert by_hand.stdout == "True\n", by_hand.stderr
