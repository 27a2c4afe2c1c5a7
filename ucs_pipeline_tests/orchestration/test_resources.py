"""Where a feed's table and stream are: resources that it names by their keys."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed, ClickHouseResource, RedisResource, build_defs
from ucs_pipeline.errors import FeedError, StreamError
from ucs_pipeline.orchestration.resources import open_feed, open_stream
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import write_table

BRICKS = {"class": "number", "first": 0, "last": 19_999}


@pytest.fixture
def other_redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "other").mkdir()
    with RedisServer(tmp_path / "other") as server:
        yield server


def _feed(name: str = "orders", **more: Any) -> BrickFeed:
    return BrickFeed(**{"name": name, "table": name, "key": "id", "bricks": BRICKS, **more})


def _run(defs: dg.Definitions, instance: dg.DagsterInstance, *keys: dg.AssetKey | str) -> dg.ExecuteInProcessResult:
    tags = {"dagster/asset_partition_range_start": "0.0.0.0", "dagster/asset_partition_range_end": "0.0.0.1"}
    job = defs.resolve_implicit_global_asset_job_def()
    chosen = [dg.AssetKey.from_user_string(key) if isinstance(key, str) else key for key in keys]
    return job.execute_in_process(instance=instance, asset_selection=chosen, tags=tags, raise_on_error=False)


def _command(server: ClickHouseServer, text: str) -> None:
    with ClickHouseResource(url=server.url).client() as client:
        client.command(text)


def _resources(redis_server: RedisServer) -> dict[str, object]:
    return {"clickhouse": ClickHouseResource(url="embedded"), "redis": RedisResource(url=redis_server.url)}


def test_two_tables_and_two_streams_of_one_name_are_on_servers_of_their_own(
    home: Path,
    instance: dg.DagsterInstance,
    redis_server: RedisServer,
    other_redis: RedisServer,
    clickhouse_http: ClickHouseServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_table(home, "orders", {"id": pa.array(range(15_000))})
    _command(
        clickhouse_http,
        "CREATE OR REPLACE TABLE orders ENGINE = MergeTree ORDER BY id AS SELECT number AS id FROM numbers(70)",
    )
    monkeypatch.setenv("WAREHOUSE_URL", clickhouse_http.url)
    monkeypatch.setenv("CACHE_URL", other_redis.url)
    near, far = _feed(), _feed("far", table="orders", stream={"name": "orders"}, clickhouse="warehouse", redis="cache")
    resources = {
        **_resources(redis_server),
        "warehouse": ClickHouseResource(url=dg.EnvVar("WAREHOUSE_URL")),
        "cache": RedisResource(url=dg.EnvVar("CACHE_URL")),
    }
    defs = build_defs(near, far, resources=resources)
    for feed in (near, far):
        assert _run(defs, instance, feed.name).success
    assert redis_server.client().xlen("orders") == 15_000
    assert other_redis.client().xlen("orders") == 70
    graph = defs.resolve_asset_graph()
    assert graph.get(dg.AssetKey("far")).parent_keys == {dg.AssetKey(["warehouse", "orders"])}
    assert graph.get(dg.AssetKey(["cache", "orders"])).parent_keys == {dg.AssetKey("far")}
    servers: dict[str, object] = {}
    for key in (["warehouse", "orders"], ["cache", "orders"], ["clickhouse", "orders"]):
        [record] = instance.fetch_observations(dg.AssetKey(key), limit=1).records
        assert record.asset_observation
        servers["/".join(key)] = record.asset_observation.metadata["server"].value
    assert servers["clickhouse/orders"] == "embedded"
    assert servers["cache/orders"] == other_redis.url.removeprefix("redis://")
    assert servers["warehouse/orders"] == clickhouse_http.url.rpartition("@")[2]


def test_the_resources_tab_and_a_run_show_no_password(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = RedisResource(url="redis://publisher:hunter2@127.0.0.1:1/0?sentinel_password=hunter3")
    same = RedisResource(url="redis://publisher:hunter4@127.0.0.1:1/0?sentinel_password=hunter3")
    assert "hunter" not in f"{written} {written!r} {written.server()!r} {written.address}"
    assert written.server().url == "redis://publisher:hunter2@127.0.0.1:1/0?sentinel_password=hunter3"
    assert same.server().url == "redis://publisher:hunter4@127.0.0.1:1/0?sentinel_password=hunter3"
    assert RedisResource(url=written.url).server() == written.server()
    for url in (
        "redis://:hunter2/#@h@127.0.0.1:1",
        "https://h:8443/?access_token=hunter2&b=c",
        "http://a:hunter2@h/d",
        "me:/hunter2@h",
    ):
        assert "hunter" not in f"{ClickHouseResource(url=url)} {ClickHouseResource(url=url).address}"
        assert ClickHouseResource(url=url).server().url == url
    monkeypatch.setenv("WAREHOUSE", "http://reader:hunter5@127.0.0.1:1/default")
    table = ClickHouseResource(url=dg.EnvVar("WAREHOUSE"))
    defs = build_defs(_feed(), resources={"clickhouse": table, "redis": written})
    job = defs.resolve_implicit_global_asset_job_def()
    assert "hunter" not in str(job.get_job_index().job_snapshot)
    result = _run(defs, instance, "orders")
    assert not result.success
    assert "hunter" not in "".join(str(event) for event in instance.all_logs(result.run_id))


def test_a_missing_variable_or_resource_is_named_and_no_other_server_is_taken(
    home: Path, instance: dg.DagsterInstance, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_URL", raising=False)
    write_table(home, "orders", {"id": pa.array(range(10))})
    defs = build_defs(
        _feed(),
        resources={
            "clickhouse": ClickHouseResource(url="embedded"),
            "redis": RedisResource(url=dg.EnvVar("NO_SUCH_URL")),
        },
    )
    with pytest.raises(dg.DagsterInvalidConfigError, match="NO_SUCH_URL"):
        _run(defs, instance, "orders")
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="resource with key 'redis' required by op 'orders'"):
        dg.Definitions.validate_loadable(
            build_defs(_feed(), resources={"clickhouse": ClickHouseResource(url="embedded")})
        )
    tables = {"warehouse": ClickHouseResource(url="embedded")}
    wrong = build_defs(_feed(redis="warehouse"), resources={**_resources(redis_server), **tables})
    failed = _run(wrong, instance, "orders")
    [event] = [event for event in failed.all_events if event.is_step_failure]
    said = event.step_failure_data.user_failure_data
    assert said
    assert str(said.description).startswith(
        "feed 'orders': resource 'warehouse' is a ClickHouseResource, expected a RedisResource. Add it to the "
    )
    with pytest.raises(FeedError, match=r"`clickhouse` and `redis` name one resource, 'one'. A feed needs one of each"):
        _feed(clickhouse="one", redis="one")
    with pytest.raises(StreamError, match=r"^`url` of resource 'cache' is empty. Expected"):
        open_stream(_feed(redis="cache"), SimpleNamespace(cache=RedisResource(url="")))
    assert not (home / ".ucs" / "redis").exists()


def test_messages_name_the_variable_or_the_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", "redis://127.0.0.1:1/0")
    resources = {
        "clickhouse": ClickHouseResource(url="http://127.0.0.1:1"),
        "redis": RedisResource(url=dg.EnvVar("CACHE_URL")),
    }
    with dg.build_resources(resources) as opened:
        source, stream = open_feed(_feed(), opened)
        with pytest.raises(StreamError, match=r"stream 'orders': Redis cannot be reached \(.*\)\. Check CACHE_URL and"):
            stream.state()
        with pytest.raises(Exception, match=r"feed 'orders': .*\. Check `url` of resource 'clickhouse' and the server"):
            source.shape()


@pytest.mark.usefixtures("home")
def test_settings_of_the_resource_hold_where_the_feed_does_not_say_otherwise() -> None:
    resource = ClickHouseResource(url="embedded", settings={"max_threads": 3, "max_block_size": 77})
    from ucs_pipeline.clickhouse.source import open_source

    asked: list[str] = []
    source = open_source(_feed(table="numbers(5)", key="number", settings={"max_threads": 2}), resource.server())
    run = source._engine.rows
    source._engine.rows = lambda query, *more: asked.append(query) or run(query, *more)  # type: ignore[method-assign,func-returns-value]
    source.shape()
    assert "max_threads = 2" in asked[-1]
    assert "max_block_size = 77" in asked[-1]
    with pytest.raises(FeedError, match="resource 'warehouse': settings: limit is fixed"):
        ClickHouseResource(url="embedded", settings={"limit": 3}).server("warehouse")


def test_assets_of_a_team_use_the_same_resources(
    instance: dg.DagsterInstance, redis_server: RedisServer, clickhouse_http: ClickHouseServer
) -> None:
    _command(clickhouse_http, "DROP TABLE IF EXISTS built")

    @dg.asset
    def built(clickhouse: ClickHouseResource) -> None:
        with clickhouse.client() as client:
            client.command("CREATE TABLE built ENGINE = MergeTree ORDER BY id AS SELECT number AS id FROM numbers(30)")

    @dg.asset(deps=[dg.AssetKey(["shop", "orders"])])
    def counted(redis: RedisResource) -> int:
        with redis.client() as client:
            return int(client.xlen("orders"))

    feed = _feed(table="built", table_asset="built", deps=["other"], key_prefix=["shop"], metadata={"team": "shop"})
    resources = {
        "clickhouse": ClickHouseResource(url=clickhouse_http.url),
        "redis": RedisResource(url=redis_server.url),
    }
    defs = dg.Definitions.merge(
        build_defs(feed, resources=resources),
        dg.Definitions(assets=[built, counted], executor=dg.in_process_executor),
    )
    graph = defs.resolve_asset_graph()
    assert graph.get(dg.AssetKey(["shop", "orders"])).parent_keys == {dg.AssetKey("built"), dg.AssetKey("other")}
    assert dg.AssetKey(["clickhouse", "built"]) not in graph.get_all_asset_keys()
    job = defs.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("built")]).success
    assert _run(defs, instance, "shop/orders").success
    done = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("counted")])
    assert done.output_for_node("counted") == 30
    # What the brick was made from is what there is: Dagster does not show it as out of sync.
    [record] = instance.fetch_materializations(dg.AssetKey(["shop", "orders"]), limit=1).records
    [table] = instance.fetch_materializations(dg.AssetKey("built"), limit=1).records
    assert record.asset_materialization
    assert (record.asset_materialization.tags or {})["dagster/input_event_pointer/built"] == str(table.storage_id)
