import dagster as dg
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.testing import Kit

feed = BrickFeed(name="orders", table="orders", key="id", bricks={"class": "number", "last": 79_999})


def test_orders(ucs: Kit) -> None:
    ucs.table("orders", {"id": [1, 2, 3], "amount": [5, 7, 9]})
    assert dg.materialize(ucs.assets(feed), resources=ucs.resources, partition_key="0.0.0.0").success
    assert [fields[b"amount"] for _, fields in ucs.redis.xrange("orders")] == [b"5", b"7", b"9"]


def test_the_company_s_own_definitions(ucs: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SHOP_CLICKHOUSE_URL", "WAREHOUSE_CLICKHOUSE_URL", "SHOP_REDIS_URL", "CACHE_REDIS_URL"):
        monkeypatch.setenv(variable, "embedded")
    from my_company.definitions import defs

    ucs.table("shipments", {"id": [1, 10_001], "order_id": [7, 8], "weight": [0.5, 1.5]})
    job = defs().resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(
        asset_selection=[dg.AssetKey("shipments")], tags=ucs.bricks("0.0.0.0", "0.0.0.5"), instance=ucs.instance
    ).success
    assert [fields[b"order"] for _, fields in ucs.redis.xrange("shipments")] == [b"7", b"8"]
