"""What is before a feed, and what is behind it."""

import dagster as dg

from ucs_pipeline import ClickHouseResource, RedisResource


@dg.asset
def orders_table(clickhouse: ClickHouseResource) -> None:
    with clickhouse.client() as client:
        client.command("CREATE OR REPLACE TABLE orders (id UInt64, amount UInt32) ENGINE = MergeTree ORDER BY id")
        client.command("INSERT INTO orders SELECT number * 1000, number * 5 FROM numbers(80)")


@dg.asset(deps=["orders"])
def orders_seen(redis: RedisResource) -> dg.MaterializeResult[None]:
    with redis.client("orders") as client:
        return dg.MaterializeResult(metadata={"entries": int(client.xlen("orders"))})
