"""Metrics for Prometheus, from a real Dagster instance and a real Redis, read by Prometheus's own parser."""

import time
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ucs_pipeline import BrickFeed
from ucs_pipeline.cli.demo_data import DATASETS
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.metrics import prometheus_text
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, feed_figures
from ucs_pipeline_tests.support.home import make_home, run_bricks, run_ucs, write_table

BRICKS = {"class": "number", "last": 59_999}
FEED = BrickFeed(name="numbers", table="numbers", key="n", bricks=BRICKS, stream={"name": 'to "all"\\'})
LABELS = {"feed": "numbers", "stream": 'to "all"\\'}


@pytest.fixture(autouse=True)
def _table(home: Path) -> None:
    write_table(home, "numbers", {"n": pa.array(range(25_000))})


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    families = list(text_string_to_metric_families(text))
    assert all(family.type == "gauge" and family.documentation for family in families)
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return [(s.name, dict(s.labels), s.value) for family in families for s in family.samples]


def _figures(instance: dg.DagsterInstance, feed: Feed = FEED) -> dict[str, float]:
    return {name: value for name, _, value in _samples(prometheus_text(feed_figures([feed], instance)))}


def test_a_feed_at_work_is_told_in_gauges(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    defs = build_defs(FEED)
    assert run_bricks(defs, "numbers", instance, 0, 1).success
    assert not run_bricks(defs, "numbers", instance, 4, 4).success
    tags = {"dagster/asset_partition_range_start": "0.0.0.2", "dagster/asset_partition_range_end": "0.0.0.3"}
    job, numbers = defs.resolve_implicit_global_asset_job_def(), frozenset([dg.AssetKey("numbers")])
    instance.create_run_for_job(job, asset_selection=numbers, tags=tags, status=dg.DagsterRunStatus.STARTED)
    client = redis_server.client()
    client.xgroup_create(LABELS["stream"], 'the "first"\ngroup', "0")
    client.xreadgroup('the "first"\ngroup', "a", {LABELS["stream"]: ">"}, count=8)
    samples = _samples(prometheus_text(feed_figures([FEED], instance)))
    grouped = {**LABELS, "group": 'the "first"\ngroup'}
    failures = [sample for sample in samples if sample[0] == "ucs_last_failure_timestamp_seconds"]
    [(_, labels, ended)] = failures
    assert labels.pop("code") in ("OutOfTurnError", "UCS-GAP")
    assert labels == LABELS
    assert 0 < ended <= time.time()
    apart = ("ucs_group_lag", "ucs_last_failure_timestamp_seconds")
    assert [sample for sample in samples if sample[0] not in apart] == [
        ("ucs_bricks", LABELS, 6),
        ("ucs_bricks_done", LABELS, 2),
        ("ucs_bricks_failed", LABELS, 1),
        ("ucs_bricks_in_progress", LABELS, 2),
        ("ucs_rows_recorded", LABELS, 20_000),
        ("ucs_stream_max_entries", LABELS, 10_000_000),
        ("ucs_stream_up", LABELS, 1),
        ("ucs_stream_entries", LABELS, 20_000),
        ("ucs_stream_top_brick", LABELS, 1),
        ("ucs_stream_top_row", LABELS, 10_000),
        ("ucs_group_pending", grouped, 8),
    ]
    # Redis 6.2 does not count what it has delivered.
    assert [sample for sample in samples if sample[0] == "ucs_group_lag"] in ([], [("ucs_group_lag", grouped, 19_992)])


def test_what_cannot_be_told_is_left_out(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    assert _figures(instance) == {
        "ucs_bricks": 6,
        "ucs_bricks_done": 0,
        "ucs_bricks_failed": 0,
        "ucs_bricks_in_progress": 0,
        "ucs_rows_recorded": 0,
        "ucs_stream_max_entries": 10_000_000,
        "ucs_stream_up": 1,
        "ucs_stream_entries": 0,
    }
    redis_server.client().set(LABELS["stream"], "a string")
    found = _figures(instance)
    assert found["ucs_stream_up"] == 0
    assert "ucs_stream_entries" not in found


def test_each_gauge_is_described_once_for_all_feeds(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    redis_server.client().xadd("letters", {"n": 0}, "0-1")
    letters = BrickFeed(name="letters", table="letters", key="n", bricks=BRICKS)
    text = prometheus_text(feed_figures([letters, FEED], instance))
    assert text.count("# HELP ucs_bricks Bricks (partitions) of the feed.\n# TYPE ucs_bricks gauge\n") == 1
    assert 'ucs_stream_entries{feed="letters",stream="letters"} 1.0\n' in text
    assert 'ucs_stream_entries{feed="numbers",stream="to \\"all\\"\\\\"} 0.0\n' in text
    assert text.endswith("\n")


def test_the_command_prints_metrics(tmp_path: Path, redis_server: RedisServer) -> None:
    home = make_home(tmp_path)
    code, output = run_ucs("metrics", home=home, UCS_REDIS_URL=redis_server.url)
    assert code == 0, output
    assert run_ucs("status", "--format", "prometheus", home=home, UCS_REDIS_URL=redis_server.url) == (0, output)
    assert ("ucs_bricks", {"feed": "flights", "stream": "flights"}, 34) in _samples(output)
    assert run_ucs("status", "--format", "json", home=home, UCS_REDIS_URL=redis_server.url) == run_ucs(
        "status", "--json", home=home, UCS_REDIS_URL=redis_server.url
    )


def test_a_redis_that_is_away_is_said_once_beside_the_metrics(tmp_path: Path) -> None:
    url = "redis://:secret@127.0.0.1:1"
    code, output = run_ucs("status", "--format", "prometheus", home=make_home(tmp_path), UCS_REDIS_URL=url)
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("ucs: ")]
    assert len(lines) == 1
    assert "Redis cannot be reached" in lines[0]
    assert "secret" not in output
    metrics = "\n".join(line for line in output.splitlines() if line not in lines)
    up = {labels["feed"]: value for name, labels, value in _samples(metrics) if name == "ucs_stream_up"}
    assert up.keys() >= DATASETS.keys()
    assert set(up.values()) == {0}
