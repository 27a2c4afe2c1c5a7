"""The progress lines of a run."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.progress_log import Progress
from ucs_pipeline.publishing.run import publish
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import open_source, open_stream
from ucs_pipeline_tests.support.home import write_table


def _said(redis_server: RedisServer, wanted: slice, **bricks: Any) -> list[str]:
    feed = Feed(
        name="ids",
        table="ids",
        key="n",
        bricks={"class": "number", "last": 29_999, "width": 10, **bricks},
        stream={"id_offset": 5},
    )
    starts = feed.partitions.starts[wanted]
    lines: list[str] = []
    progress = Progress(feed, starts, lines.append, seconds=-1)
    stream = open_stream(feed, redis_server.client())
    assert list(publish(feed, open_source(feed), stream, starts, lambda _: {}, watch=progress.watch))
    return lines


@pytest.fixture(autouse=True)
def _table(home: Path) -> None:
    write_table(home, "ids", {"n": pa.array(range(20_000))})


def test_a_run_says_how_far_it_is_inside_a_coarse_partition(redis_server: RedisServer) -> None:
    lines = _said(redis_server, slice(None), level="block")
    assert lines[0].startswith("block 1 of 3 (0.0.0, at brick 0.0.0.102), "), lines[0]
    assert " rows/s, about " in lines[0]
    assert lines[-1].startswith("block 2 of 3 (0.0.1, at brick 0.0.1.999), ")
    assert len(lines) >= 20_000 // 1024


def test_bricks_that_are_compared_on_the_way_count_as_the_first_one(redis_server: RedisServer) -> None:
    _said(redis_server, slice(0, 1000))
    lines = _said(redis_server, slice(1000, 2000))
    assert lines[0].startswith("brick 1 of 1,000 (0.0.1.0), 0 rows/s"), lines[0]
    assert lines[-1].startswith("brick 1,000 of 1,000 (0.0.1.999), ")
