"""Resources that are invalid or not set up: each is named."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from ucs_pipeline import RedisResource
from ucs_pipeline.orchestration._dagster import resource_class
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import run_ucs

_FEEDS = """
import dagster as dg

from ucs_pipeline import BrickFeed, ClickHouseResource, RedisResource, build_defs

def feed(name, **more):
    return BrickFeed(name=name, table="numbers(3)", key="number", bricks={{"class": "number", "last": 9_999}}, **more)

defs = build_defs(
    feed("orders"),
    feed("returns", clickhouse="warehouse", redis="cache"),
    resources={{{}}},
)
"""
_REDIS = '"redis": RedisResource(url=dg.EnvVar("SHOP_REDIS_URL")), "cache": RedisResource(url=dg.EnvVar("CACHE_URL"))'
_TABLES = '"clickhouse": ClickHouseResource(url="embedded"), "warehouse": ClickHouseResource(url=dg.EnvVar("DWH_URL"))'
ALL = f"{_TABLES}, {_REDIS}"
OTHER_KIND = ALL.replace('ClickHouseResource(url="embedded")', 'RedisResource(url="embedded")')


def write(home: Path, resources: str) -> str:
    """Path of a code location with two feeds on servers of their own."""
    path = home / "company.py"
    path.write_text(_FEEDS.format(resources))
    return str(path)


@pytest.mark.parametrize("command", [["verify", "orders"], ["publish", "orders", "0"], ["read", "orders"]])
def test_a_command_names_the_variable_that_is_not_set(home: Path, command: Sequence[str]) -> None:
    code, said = run_ucs("-f", write(home, ALL), *command, home=home)
    assert code == 2
    assert "environment variable SHOP_REDIS_URL, which is not set. Set it" in said
    assert said.count("\n") == 1 + ("dagster.yaml" in said)


def test_a_command_needs_the_variables_of_its_feed_only(home: Path, redis_server: RedisServer) -> None:
    location = write(home, ALL)
    for command in (["publish", "orders", "0"], ["verify", "orders"], ["read", "orders"]):
        code, said = run_ucs("-f", location, *command, home=home, SHOP_REDIS_URL=redis_server.url)
        assert code == 0, said
    # Neither the other feed's servers nor its own table are asked, and no warning is printed.
    text = write(home, ALL.replace('url="embedded"', 'url=dg.EnvVar("SHOP_CLICKHOUSE_URL")'))
    code, said = run_ucs("-f", text, "read", "orders", home=home, SHOP_REDIS_URL=redis_server.url)
    assert (code, "the first 3 rows" in said, "Warning" in said) == (0, True, False)


@pytest.mark.parametrize("command", [["check"], ["verify", "orders"]])
def test_a_command_names_a_resource_that_is_missing_or_of_another_kind(home: Path, command: Sequence[str]) -> None:
    code, said = run_ucs("-f", write(home, _REDIS), *command, home=home)
    assert (code, "resource 'clickhouse' of feed 'orders' is missing. Add it to the definitions" in said) == (2, True)
    code, said = run_ucs("-f", write(home, OTHER_KIND), *command, home=home, SHOP_REDIS_URL="redis://127.0.0.1:1")
    assert code == 2
    assert "feed 'orders': resource 'clickhouse' is a RedisResource, expected a ClickHouseResource" in said


def test_a_definition_of_a_resource_tells_its_class() -> None:
    resource = RedisResource(url="embedded")
    definitions = dg.Definitions(resources={"redis": resource}).get_repository_def().get_top_level_resources()
    assert resource_class(definitions["redis"]) is RedisResource
    assert resource_class(dg.ResourceDefinition.hardcoded_resource(1)) is None
