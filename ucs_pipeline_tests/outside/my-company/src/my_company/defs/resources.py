import dagster as dg

from ucs_pipeline import ClickHouseResource, RedisResource


@dg.definitions
def resources() -> dg.Definitions:
    return dg.Definitions(
        resources={
            "clickhouse": ClickHouseResource(url=dg.EnvVar("SHOP_CLICKHOUSE_URL")),
            "warehouse": ClickHouseResource(url=dg.EnvVar("WAREHOUSE_CLICKHOUSE_URL")),
            "redis": RedisResource(url=dg.EnvVar("SHOP_REDIS_URL")),
            "cache": RedisResource(url=dg.EnvVar("CACHE_REDIS_URL")),
        }
    )
