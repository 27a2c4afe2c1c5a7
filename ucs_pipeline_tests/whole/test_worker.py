"""The worker that docs/tutorial.md shows: what it does when it is killed and started again."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ucs_pipeline.publishing.run import publish
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import open_stream
from ucs_pipeline_tests.support.home import PROJECT, python
from ucs_pipeline_tests.support.tables import Table, source_of

ROWS = 20_000


def test_the_tutorial_s_worker_misses_no_row_and_repeats_at_most_the_one_it_was_killed_at(
    home: Path, redis_server: RedisServer
) -> None:
    page = (PROJECT / "docs" / "tutorial.md").read_text()
    [worker] = re.findall(r"<!-- tutorial worker.py -->\n```python\n(.*?)```", page, re.DOTALL)
    client, log = redis_server.client(), home / "process.log"
    table = Table("id UInt32, customer String, total String", f"SELECT number, 'c', '1.5' FROM numbers({ROWS})")
    feed = table.feed(ROWS - 1, stream={"name": "orders"})
    half, rest = feed.ordinals[:1], feed.ordinals[1:]
    with python(worker, home) as process:
        # It makes the group, before there is anything to read.
        _wait(lambda: client.exists("orders"), process)
        list(publish(feed, source_of(feed), open_stream(feed, client), half, lambda _: {}))
        _wait(lambda: len(_lines(log)) >= 1_000, process)
        process.kill()
    handled = _lines(log)
    log.unlink()
    list(publish(feed, source_of(feed), open_stream(feed, client), rest, lambda _: {}))
    with python(worker, home) as process:
        _wait(lambda: _left(client) == 0, process)
        process.kill()
    handled += _lines(log)
    assert list(dict.fromkeys(handled)) == [f"{n // 10_000}-{n % 10_000 + 1}" for n in range(ROWS)]
    assert len(handled) <= ROWS + 1


def _lines(log: Path) -> list[str]:
    return [line.partition(" ")[0] for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _left(client: Any) -> int:
    """Entries that the group has not acknowledged."""
    [group] = client.xinfo_groups("orders")
    return int(group["lag"]) + int(group["pending"])


def _wait(condition: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
