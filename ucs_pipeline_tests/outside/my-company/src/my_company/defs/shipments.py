import dagster as dg

from ucs_pipeline import BrickFeed, build_defs

shipments = BrickFeed(
    name="shipments",
    table="shipments",
    key="id",
    bricks={"class": "number", "last": 59_999},
    columns={"order": "order_id", "weight": "weight"},
    max_bricks_per_run=4,
    clickhouse="warehouse",
    redis="cache",
)


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs(shipments)
