"""The replay of a period as docs/how-to/replay.md describes it, its consumer included, only faster."""

import re
import subprocess
import textwrap
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow.parquet as pq

from ucs_pipeline import BrickFeed
from ucs_pipeline.publishing.run import publish
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import open_source, open_stream
from ucs_pipeline_tests.support.home import PROJECT, python
from ucs_pipeline_tests.support.tables import write_flights

PACE = 200_000
"""A week in three seconds."""


def test_a_consumer_sees_every_flight_of_the_week_once_in_order_and_none_before_its_time(
    home: Path, redis_server: RedisServer
) -> None:
    page = (PROJECT / "docs" / "how-to" / "replay.md").read_text()
    [settings] = re.findall(r"```yaml\n.*?attributes:\n(.*?)```", page, re.DOTALL)
    [shown] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    consumer = textwrap.dedent(shown)
    assert "pace: 1000}" in settings
    feed = BrickFeed.resolve_from_yaml(settings.replace("pace: 1000}", f"pace: {PACE}}}"))
    expected, week = _flights(write_flights(home / ".ucs" / "tables"))
    watching = python(consumer, home)
    try:
        began = time.monotonic()
        stream = open_stream(feed, redis_server.client())
        list(publish(feed, open_source(feed), stream, feed.partitions.starts, lambda _: {}))
        assert time.monotonic() - began > week.total_seconds() / PACE - 0.1
        seen = _lines(watching, home / "process.log", len(expected))
    finally:
        watching.kill()
        watching.wait()
    assert seen == expected


def _flights(table: Path) -> tuple[list[str], timedelta]:
    """What the consumer has to print, and the time from the first to the last flight."""
    columns = ["id", "time_hour", "minute", "carrier", "origin", "dest"]
    # Midnight in New York.
    first, end = datetime(2013, 7, 8, 4, tzinfo=timezone.utc), datetime(2013, 7, 15, 4, tzinfo=timezone.utc)
    hours = [("time_hour", ">=", first), ("time_hour", "<", end)]
    rows = [list(row.values()) for row in pq.read_table(table, columns=columns, filters=hours).to_pylist()]
    week = sorted((hour + timedelta(minutes=minute), id_, hour, *names) for id_, hour, minute, *names in rows)
    lines, numbers = [], dict[datetime, int]()
    for due, _, hour, *names in week:
        numbers[hour] = numbers.get(hour, 0) + 1
        entry = f"{round(hour.timestamp() * 1000)}-{numbers[hour]}"
        lines.append(" ".join([entry, due.isoformat(timespec="milliseconds"), *names]))
    return lines, week[-1][0] - week[0][0]


def _lines(process: "subprocess.Popen[bytes]", log: Path, most: int) -> list[str]:
    """What a process has printed, once it is so many lines or the process has ended."""
    deadline = time.monotonic() + 30
    while process.poll() is None and log.read_text().count("\n") < most and time.monotonic() < deadline:
        time.sleep(0.02)
    return log.read_text().splitlines()
