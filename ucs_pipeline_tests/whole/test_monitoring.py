"""The dashboard and the alerts ask for metrics and labels that `ucs metrics` has."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import yaml  # type: ignore[import-untyped]

from ucs_pipeline import BrickFeed
from ucs_pipeline.operations.metrics_server import FeedCollector, TableChecks
from ucs_pipeline_tests.servers.many_workers import wait_until
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, opened
from ucs_pipeline_tests.support.home import PROJECT, run_bricks, write_table

DASHBOARD, ALERTS = PROJECT / "deploy" / "grafana" / "ucs.json", PROJECT / "deploy" / "prometheus" / "alerts.yaml"


def _texts(part: Any, names: Iterable[str]) -> Iterable[str]:
    """Texts below these names, at any depth."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name in names and isinstance(value, str):
                yield value
            else:
                yield from _texts(value, names)
    elif isinstance(part, list):
        for value in part:
            yield from _texts(value, names)


@pytest.fixture
def metrics(instance: dg.DagsterInstance, home: Path, redis_server: RedisServer) -> dict[str, set[str]]:
    """Labels of every metric, by name: of feeds that have something to tell in each."""
    write_table(home, "hours", {"at": pa.array([0, 3600], pa.timestamp("s", "UTC"))})
    bricks = {"class": "time", "first": "1970-01-01", "last": "1970-01-01T23"}
    feed = BrickFeed(name="hours", table="hours", key="at", bricks=bricks, tail="live")
    first, third = "1970.01.01.00", "1970.01.01.02"
    assert run_bricks(build_defs(feed), "hours", instance, first, first).success
    assert not run_bricks(build_defs(feed), "hours", instance, third, third).success
    redis_server.client().xgroup_create("hours", "readers", "0")
    tables = TableChecks([([feed], opened())], 60, lambda _: None)
    tables.start()
    wait_until(lambda: tables.found, str, 120)
    tables.end()
    families = FeedCollector([([feed], opened())], instance, lambda _: None, tables).collect()
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_every_query_names_metrics_and_labels_that_exist(metrics: dict[str, set[str]]) -> None:
    dashboard, alerts = json.loads(DASHBOARD.read_text()), yaml.safe_load(ALERTS.read_text())
    queries = list(_texts([dashboard, alerts], ["expr", "query"]))
    asked = {name for query in queries for name in re.findall(r"\bucs_\w+", query)}
    assert asked <= metrics.keys()
    # Metrics without a panel repeat other metrics.
    assert metrics.keys() - asked == {
        "ucs_stream_top_brick",
        "ucs_stream_top_row",
        "ucs_table_checked_timestamp_seconds",
    }
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"\bucs_\w+", target["expr"]):
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= metrics[name]
    for rule in alerts["groups"][0]["rules"]:
        for name in re.findall(r"\bucs_\w+", rule["expr"]):
            assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= metrics[name]


def test_the_panels_do_not_cover_each_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (at["x"] + column, at["y"] + row)
        for at in (panel["gridPos"] for panel in panels)
        for column in range(at["w"])
        for row in range(at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in panels}) == len(panels)
