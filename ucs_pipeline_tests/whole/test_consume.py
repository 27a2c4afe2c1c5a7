"""The recipes of docs/how-to/consume.md: their code is taken from the page, and workers are killed in the middle."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
import yaml  # type: ignore[import-untyped]

from ucs_pipeline import BrickFeed
from ucs_pipeline_tests.servers.many_workers import wait_until
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import publish
from ucs_pipeline_tests.support.home import PROJECT, write_table

PAGE = (PROJECT / "docs" / "how-to" / "consume.md").read_text()
ROWS = 400
PATIENCE_S = 120


def block(name: str) -> str:
    [found] = re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """With a stream of flights, two bricks."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as found:
        for n in range(ROWS):
            carrier = "AA" if n % 3 else "UA"
            found.xadd("flights", {"id": n, "carrier": carrier}, f"{n // 200}-{n % 200 + 1}")
        yield found


def _python(tmp_path: Path, url: str, *lines: str) -> "subprocess.Popen[bytes]":
    """A process with the page's functions, and then these lines."""
    head = f"import os, sqlite3, redis\nclient = redis.Redis.from_url({url!r}, decode_responses=True)\n"
    functions = "\n".join(block(name) for name in ("worker", "idempotent", "missed", "router"))
    script = tmp_path / "recipe.py"
    script.write_text(head + functions + "\n" + "\n".join(map(textwrap.dedent, lines)))
    return subprocess.Popen([sys.executable, str(script)], cwd=tmp_path)


def _killed(process: "subprocess.Popen[bytes]", when: Callable[[], object]) -> None:
    try:
        wait_until(when, str, PATIENCE_S, 0.001)
    finally:
        process.kill()
        process.wait()


def test_a_group_survives_dead_workers_and_work_is_done_once(
    tmp_path: Path, client: Any, redis_server: RedisServer
) -> None:
    with closing(sqlite3.connect(tmp_path / "work.db")) as database:
        database.execute("CREATE TABLE handled (entry_id TEXT PRIMARY KEY)")
        database.execute("CREATE TABLE results (id INTEGER, carrier TEXT)")
        database.commit()

        def results() -> int:
            return int(database.execute("SELECT count(*) FROM results").fetchone()[0])

        def worker(name: str, *before: str) -> "subprocess.Popen[bytes]":
            loop = block("loop").replace('"workers", name)', f'"workers", {name!r}, idle_ms=100)')
            return _python(
                tmp_path, redis_server.url, "database = sqlite3.connect('work.db', timeout=60)", *before, loop
            )

        # The first dies after its work and before XACK; the second somewhere; the third finishes.
        dies = "client.xack = lambda *_: os._exit(9)"
        assert worker("one", dies).wait(PATIENCE_S) == 9
        assert (results(), client.xpending("flights", "workers")["pending"]) == (1, 100)
        _killed(worker("two"), lambda: results() > 50)
        _killed(worker("three"), lambda: client.xinfo_groups("flights")[0]["pending"] == 0 and results() == ROWS)
        found = [row for (row,) in database.execute("SELECT id FROM results ORDER BY id")]
    assert found == list(range(ROWS))


def test_the_commands_hand_over_what_a_dead_worker_left(client: Any, redis_server: RedisServer) -> None:
    commands = block("commands").replace(" 60000 ", " 0 ").replace("redis-cli", f"redis-cli -p {redis_server.port}")
    done = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True, check=True, env=os.environ)
    created, *_, acknowledged = done.stdout.split("\n")[:-1]
    assert (created, acknowledged) == ("OK", "2")
    taken = done.stdout[done.stdout.rindex("0-0") :]
    assert re.findall(r"^0-\d$", taken, re.MULTILINE) == ["0-0", "0-2", "0-3"]
    assert client.xpending("flights", "workers")["pending"] == 0


def test_what_was_trimmed_before_a_group_read_it_is_found(client: Any) -> None:
    scope: dict[str, Any] = {}
    exec(block("missed"), scope)  # noqa: S102 - the page's own
    missed = scope["missed"]
    client.xgroup_create("flights", "workers", "0")
    assert missed(client, "flights", "workers") is None
    client.xreadgroup("workers", "one", {"flights": ">"}, count=50)
    assert missed(client, "flights", "workers") is None
    client.xtrim("flights", minid="0-51", approximate=False)
    assert missed(client, "flights", "workers") is None
    client.xtrim("flights", minid="0-100", approximate=False)
    assert missed(client, "flights", "workers") == ("0-50", "0-100")
    client.xtrim("flights", minid="1-1", approximate=False)
    assert missed(client, "flights", "workers") == ("0-50", "1-1")
    client.xtrim("flights", maxlen=0, approximate=False)
    assert missed(client, "flights", "workers") == ("0-50", "1-200")
    client.xgroup_setid("flights", "workers", "$")
    assert missed(client, "flights", "workers") is None


def test_an_entry_is_one_json_body(home: Path, redis_server: RedisServer) -> None:
    columns = {"id": pa.array([120_000], pa.uint32()), "carrier": pa.array(["9E"]), "dest": pa.array(["ORD"])}
    write_table(home, "flights", columns)
    bricks = {"class": "number", "last": 129_999}
    publish(BrickFeed(name="flights", table="flights", key="id", bricks=bricks, **yaml.safe_load(block("json"))), 0, 12)
    [(_, fields)] = redis_server.client().xrange("flights")
    assert {name: json.loads(body) for name, body in fields.items()} == {
        b"body": {"id": 120_000, "carrier": "9E", "dest": "ORD"}
    }


def test_a_router_that_is_killed_adds_no_entry_twice(tmp_path: Path, client: Any, redis_server: RedisServer) -> None:
    client.xgroup_create("flights", "router", "0")
    lines = "while True:\n    route(client, 'flights', 'carrier')"
    # Once after it has added an entry and before XACK, then twice somewhere.
    dies = "client.xack = lambda *_: os._exit(9)"
    assert _python(tmp_path, redis_server.url, dies, lines).wait(PATIENCE_S) == 9

    def routed() -> int:
        return int(client.xlen("flights:AA") + client.xlen("flights:UA"))

    for reached in (100, 250, ROWS):
        _killed(_python(tmp_path, redis_server.url, lines), lambda: routed() >= reached)  # noqa: B023 - called at once
    every = client.xrange("flights")
    for carrier in ("AA", "UA"):
        assert client.xrange(f"flights:{carrier}") == [entry for entry in every if entry[1]["carrier"] == carrier]
