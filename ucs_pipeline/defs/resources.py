"""Where the tables and the streams of this project are: on the servers that the environment names, or embedded."""

import os

import dagster as dg

from ucs_pipeline import ClickHouseResource, RedisResource


def _url(variable: str) -> str:
    return dg.EnvVar(variable) if os.environ.get(variable) else "embedded"


@dg.definitions
def resources() -> dg.Definitions:
    """One ClickHouse and one Redis, by the keys that feeds use if they name no other."""
    return dg.Definitions(
        resources={
            "clickhouse": ClickHouseResource(url=_url("UCS_CLICKHOUSE_URL")),
            "redis": RedisResource(url=_url("UCS_REDIS_URL")),
        }
    )
