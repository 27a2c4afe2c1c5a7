"""A feed in Dagster: events, records, refusals, and definitions."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.cli.demo_data import DATASETS, ROWS
from ucs_pipeline.errors import FeedError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.build import feeds_of
from ucs_pipeline.orchestration.names import range_tags, stream_key, table_key
from ucs_pipeline.project.feeds import feed_named
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.support.home import PROJECT, RUN_IN_PROCESS, make_home, python, run_bricks, write_table
from ucs_pipeline_tests.support.tables import write_flights


def _feed(name: str = "numbers", **more: object) -> Feed:
    settings: dict[str, object] = {"table": "numbers", "key": "n", "bricks": {"class": "number", "last": 59_999}}
    return BrickFeed(name=name, **{**settings, **more})


@pytest.fixture
def home(home: Path) -> Path:
    # Bricks 0, 1, 2 and 4 have rows; 3 and 5 have none.
    ids = [*range(25_000), 40_000, 40_001, 40_001]
    write_table(home, "numbers", {"n": pa.array(ids), "word": pa.array([f"w{n}" for n in ids])})
    return home


def _events(instance: dg.DagsterInstance, feed: str = "numbers") -> list[dg.AssetMaterialization]:
    records = instance.fetch_materializations(dg.AssetKey(feed), limit=1000, ascending=True).records
    return [record.asset_materialization for record in records if record.asset_materialization]


def _failure(result: dg.ExecuteInProcessResult) -> str:
    [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert data.user_failure_data
    return data.user_failure_data.description or ""


def test_every_brick_gets_one_event_in_order_with_its_figures(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    result = run_bricks(build_defs(_feed()), "numbers", instance, 0, 5)
    assert result.success
    events = _events(instance)
    assert [event.partition for event in events] == [f"0.0.0.{n}" for n in range(6)]
    figures: list[dict[str, Any]] = [{key: value.value for key, value in event.metadata.items()} for event in events]
    assert [figure["dagster/partition_row_count"] for figure in figures] == [10_000, 10_000, 5_000, 0, 3, 0]
    assert figures[1]["first_id"] == 10_000
    assert figures[1]["last_id"] == 19_999
    assert figures[1]["first_entry_id"] == "1-1"
    assert figures[4]["last_entry_id"] == "4-3"
    assert figures[4]["last_id"] == 40_001
    assert [figure.get("stream_length_before") for figure in figures] == [0, 10_000, 20_000, None, 25_000, None]
    assert [figure.get("stream_length_after") for figure in figures] == [10_000, 20_000, 25_000, None, 25_003, None]
    assert figures[0]["bytes"] > 10_000 * 50
    assert figures[0]["rows_per_second"] > 0
    assert figures[3]["note"] == "the brick has no rows"
    assert [line.data for line in figures[4]["first_entries"].records] == [
        {"field": "n", "4-1": "40000", "4-2": "40001", "4-3": "40001"},
        {"field": "word", "4-1": "w40000", "4-2": "w40001", "4-3": "w40001"},
    ]
    assert all(event.tags and event.tags["dagster/code_version"] == "1" for event in events)
    assert redis_server.client().xlen("numbers") == 25_003
    assert instance.get_materialized_partitions(dg.AssetKey("numbers")) == {event.partition for event in events}


def test_assets_and_checks_behind_a_feed_follow_it_in_the_same_run(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    seen: dict[str, int] = {}

    def look(name: str) -> None:
        seen[name] = redis_server.client().xlen("numbers")

    # Names before and after the feed's: what is not ordered runs in the order of names.
    bricks = dg.StaticPartitionsDefinition(_feed().partitions.names())

    @dg.asset(deps=["numbers"], partitions_def=bricks, backfill_policy=dg.BackfillPolicy.single_run())
    def each() -> None:
        look("each")

    @dg.asset(deps=["numbers"])
    def whole() -> None:
        look("whole")

    @dg.asset_check(asset="numbers")
    def a_check() -> dg.AssetCheckResult:
        look("check")
        return dg.AssetCheckResult(passed=True)

    defs = dg.Definitions.merge(build_defs(_feed()), dg.Definitions(assets=[each, whole], asset_checks=[a_check]))
    result = run_bricks(defs, "numbers", instance, 0, 5, together=("each", "whole"))
    assert result.success
    assert seen == {"each": 25_003, "whole": 25_003, "check": 25_003}
    assert [event.step_key for event in result.all_events if event.is_step_skipped] == []
    assert len(instance.get_materialized_partitions(dg.AssetKey("each"))) == 6
    assert [event.partition for event in _events(instance)] == _feed().partitions.names()


def test_the_undocumented_key_of_the_output_keeps_dagster_from_a_second_event_per_brick(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_bricks(build_defs(_feed()), "numbers", instance, 0, 1).success
    assert len(_events(instance)) == 2
    # Without it Dagster adds one for each brick of the run, which is why it is there.
    monkeypatch.setattr("ucs_pipeline.orchestration.assets._NO_FURTHER_EVENT", {})
    assert run_bricks(build_defs(_feed()), "numbers", instance, 0, 1).success
    assert len(_events(instance)) == 2 + 4


def test_an_asset_that_names_the_stream_and_would_not_wait_for_the_feed_is_refused(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    @dg.asset(deps=[dg.AssetKey(["redis", "numbers"])])
    def by_stream() -> None: ...

    @dg.asset(deps=[dg.AssetKey(["redis", "numbers"]), "numbers"])
    def by_both() -> None: ...

    defs = dg.Definitions.merge(build_defs(_feed()), dg.Definitions(assets=[by_stream, by_both]))
    result = run_bricks(defs, "numbers", instance, 0, 5, together=("by_stream",))
    assert "asset 'by_stream' is launched in the same run" in _failure(result)
    assert "Name the feed in its `deps` ('numbers')" in _failure(result)
    assert redis_server.client().xlen("numbers") == 0
    assert run_bricks(defs, "numbers", instance, 0, 5, together=("by_both",)).success


def test_running_finished_bricks_again_changes_nothing_and_says_so(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    defs = build_defs(_feed())
    assert run_bricks(defs, "numbers", instance, 0, 2).success
    before = redis_server.client().xrange("numbers")
    assert run_bricks(defs, "numbers", instance, 1, 1).success
    assert redis_server.client().xrange("numbers") == before
    again = _events(instance)[-1]
    assert again.partition == "0.0.0.1"
    assert again.metadata["note"].value == "already in the stream"
    assert again.metadata["dagster/partition_row_count"].value == 10_000
    assert again.metadata["first_entry_id"].value == "1-1"
    assert again.metadata["published"].value == 0


def test_a_range_beyond_the_next_brick_is_refused_before_any_row_moves(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    defs = build_defs(_feed())
    assert run_bricks(defs, "numbers", instance, 0, 0).success
    result = run_bricks(defs, "numbers", instance, 2, 4)
    assert not result.success
    assert "would leave a gap" in _failure(result)
    assert "Launch 0.0.0.1...0.0.0.4 instead" in _failure(result)
    assert redis_server.client().xlen("numbers") == 10_000
    assert [event.partition for event in _events(instance)] == ["0.0.0.0"]


@pytest.mark.parametrize(("first", "last"), [(3, 1), (None, None)], ids=["reversed", "none"])
def test_a_run_without_bricks_fails_in_one_sentence(
    instance: dg.DagsterInstance, first: int | None, last: int | None
) -> None:
    result = run_bricks(build_defs(_feed()), "numbers", instance, first, last)
    assert not result.success
    assert "the run names no bricks, or a range whose first brick comes after its last" in _failure(result)
    assert _events(instance) == []


def test_a_brick_name_that_does_not_exist_is_refused(instance: dg.DagsterInstance) -> None:
    with pytest.raises(dg.DagsterInvalidInvocationError, match=r"0\.0\.0\.77"):
        run_bricks(build_defs(_feed()), "numbers", instance, 77, 77)


def test_a_missing_table_fails_in_one_sentence_and_is_not_tried_again(instance: dg.DagsterInstance) -> None:
    result = run_bricks(build_defs(_feed(table="nowhere")), "numbers", instance, 0, 0)
    assert "feed 'numbers': ClickHouse refused the query with UNKNOWN_TABLE" in _failure(result)
    assert "Check the feed's `table`" in _failure(result)


def test_a_server_that_is_away_is_tried_twice_more(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucs_pipeline.orchestration.assets._RETRY_SECONDS", 0.01)
    monkeypatch.setenv("UCS_REDIS_URL", "redis://127.0.0.1:1/0")
    result = run_bricks(build_defs(_feed()), "numbers", instance, 0, 0)
    assert [event.event_type_value for event in result.all_node_events].count("STEP_UP_FOR_RETRY") == 2
    assert "Redis cannot be reached" in _failure(result)


def test_a_brick_reported_as_done_by_hand_does_not_count_as_published(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    # What the button "Report materialization" in the UI does.
    instance.report_runless_asset_event(dg.AssetMaterialization(dg.AssetKey("numbers"), partition="0.0.0.0"))
    result = run_bricks(build_defs(_feed()), "numbers", instance, 1, 1)
    assert "publishing 0.0.0.1 now would leave a gap" in _failure(result)
    assert redis_server.client().xlen("numbers") == 0
    assert run_bricks(build_defs(_feed()), "numbers", instance, 0, 1).success
    assert redis_server.client().xlen("numbers") == 20_000


def test_every_run_has_its_feed_and_its_bricks_as_tags(instance: dg.DagsterInstance) -> None:
    result = run_bricks(build_defs(_feed()), "numbers", instance, 0, 2)
    run = instance.get_run_by_id(result.run_id)
    assert run
    assert run.tags.items() >= {("ucs/feed", "numbers"), ("ucs/bricks", "0.0.0.0...0.0.0.2")}


def test_a_run_of_two_feeds_is_found_by_each(instance: dg.DagsterInstance) -> None:
    defs = build_defs(_feed("bids"), _feed("asks"), _feed("other"))
    result = run_bricks(defs, "bids", instance, 0, 2, together=("asks",))
    assert result.success
    for name in ("bids", "asks"):
        [run] = instance.get_runs(dg.RunsFilter(tags={f"ucs.feed/{name}": "yes"}))
        assert run.run_id == result.run_id
        assert run.tags["ucs/feed"] == "asks, bids"
        about = next(spec.description for spec in defs.resolve_all_asset_specs() if spec.key == dg.AssetKey(name))
        assert f"(../runs?q[0]=tag%3Aucs.feed%2F{name}%3Dyes)" in (about or "")
    assert instance.get_runs(dg.RunsFilter(tags={"ucs.feed/other": "yes"})) == []


def test_definitions_load_without_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("UCS_CLICKHOUSE_URL", "http://127.0.0.1:1")
    [feed] = feeds_of(build_defs(_feed()))
    assert feed == _feed()


def test_two_feeds_on_one_stream_are_refused() -> None:
    with pytest.raises(FeedError, match="2 feeds are writing to stream 'one' \\('a' and 'b'\\)"):
        build_defs(_feed("a", stream={"name": "one"}), _feed("b", stream={"name": "one"}))


def test_two_feeds_share_one_table_asset() -> None:
    graph = build_defs(_feed("a"), _feed("b")).resolve_asset_graph()
    tables = [key for key in graph.get_all_asset_keys() if key.path[0] == "clickhouse"]
    assert tables == [dg.AssetKey(["clickhouse", "numbers"])]


@pytest.mark.parametrize("names", [("a.b", "a_b"), ("file('a.parquet')", "file('a_parquet')"), ("`a b`", "`a_b`")])
def test_two_tables_never_share_an_asset(names: tuple[str, str]) -> None:
    one, other = (_feed(name, table=table) for name, table in zip("ab", names, strict=True))
    assert table_key(one) != table_key(other)
    dg.Definitions.validate_loadable(build_defs(one, other))


@pytest.mark.parametrize("names", [("a:b", "a_b"), ("a:b", "a.b"), ("a.b", "a_b"), ("{a}", "a")])
def test_two_streams_never_share_an_asset(names: tuple[str, str]) -> None:
    one, other = (_feed(name, stream={"name": stream}) for name, stream in zip("ab", names, strict=True))
    assert stream_key(one) != stream_key(other)
    dg.Definitions.validate_loadable(build_defs(one, other))


def test_group_owners_and_tags_are_on_the_asset_and_freshness_only_where_a_feed_asks_for_it() -> None:
    settings = {"group": "sales", "owners": ["team:data"], "tags": {"domain": "orders"}, "fresh_within_s": 600}
    graph = build_defs(_feed("live", **settings), _feed("other")).resolve_asset_graph()
    live, other = (graph.get(dg.AssetKey(name)) for name in ("live", "other"))
    assert (live.group_name, live.owners, live.tags["domain"]) == ("sales", ["team:data"], "orders")
    policy = live.freshness_policy_or_from_metadata
    assert isinstance(policy, dg.FreshnessPolicy)
    assert "600" in str(policy)
    assert other.freshness_policy_or_from_metadata is None


def test_the_fields_of_an_entry_are_the_columns_of_the_asset() -> None:
    asset = build_defs(_feed(columns={"a": "n", "b": "upper(word)"}, constants={"c": "x"})).get_assets_def("numbers")
    schema: dg.TableSchema = asset.metadata_by_key[dg.AssetKey("numbers")]["dagster/column_schema"]
    assert [(column.name, column.description) for column in schema.columns] == [
        ("a", "from `n`"),
        ("b", "from `upper(word)`"),
        ("c", "the constant `x`"),
    ]


def test_a_feed_that_takes_every_column_says_so() -> None:
    asset = build_defs(_feed(constants={"c": "x"})).get_assets_def("numbers")
    key = dg.AssetKey("numbers")
    assert "Every column of the table is a field of an entry, next to `c`: `x`." in asset.descriptions_by_key[key]
    assert "dagster/column_schema" not in asset.metadata_by_key[key]


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("brick", "A brick's entries are `XRANGE numbers <n> <n>`, where"),
        (
            "block",
            "A block's entries are `XRANGE numbers <first> <last>`, from its `first_entry_id` to its `last_entry_id`",
        ),
    ],
)
def test_the_description_says_how_to_read_a_partition(level: str, said: str) -> None:
    asset = build_defs(_feed(bricks={"class": "number", "last": 10**8, "level": level})).get_assets_def("numbers")
    assert said in asset.descriptions_by_key[dg.AssetKey("numbers")]


def test_a_table_leads_to_a_feed_and_a_feed_to_its_stream() -> None:
    graph = build_defs(_feed("a"), _feed("b", stream={"name": "to:b"})).resolve_asset_graph()
    parents = {
        node.key.to_user_string(): {key.to_user_string() for key in node.parent_keys} for node in graph.asset_nodes
    }
    assert parents == {
        "clickhouse/numbers": set(),
        "a": {"clickhouse/numbers"},
        "b": {"clickhouse/numbers"},
        "redis/a": {"a"},
        "redis/to/b": {"b"},
    }


def test_the_asset_graph_is_the_one_on_record() -> None:
    # The feeds that a project adds to those of the demo are not on record.
    defs = build_defs(*(feed_named(name) for name in DATASETS))
    graph = defs.resolve_asset_graph()
    assets = {
        node.key.to_user_string(): {
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "upstream": sorted(key.to_user_string() for key in node.parent_keys),
            "executable": node.is_materializable,
            "partitions": len(node.partitions_def.get_partition_keys()) if node.partitions_def else None,
            "pools": sorted(node.pools or ()),
            "bricks per run": node.backfill_policy.max_partitions_per_run if node.backfill_policy else None,
            "code version": node.code_version,
        }
        for node in graph.asset_nodes
    }
    seen = {
        "assets": assets,
        "checks": sorted(f"{key.asset_key.to_user_string()}: {key.name}" for key in graph.asset_check_keys),
        "jobs": sorted(job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")),
        "schedules": sorted(schedule.name for schedule in defs.schedules or ()),
        "sensors": sorted(sensor.name for sensor in defs.sensors or ()),
    }
    assert seen == json.loads((Path(__file__).parent / "asset_graph.json").read_text())


def test_the_bricks_module_does_not_import_dagster() -> None:
    text = "import sys, ucs_pipeline.bricks.number; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], cwd=PROJECT, check=False).returncode == 0


def test_a_killed_run_keeps_its_finished_bricks_and_the_next_run_completes_the_stream(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path)
    write_flights(home / ".ucs" / "tables")
    client = redis_server.client()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as instance:
        # Capacity for about half of the rows, so that the run cannot be done before it is killed.
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 12_000_000)
        try:
            process = python(RUN_IN_PROCESS, home, UCS_REDIS_URL=redis_server.url)
            while not (done := instance.get_materialized_partitions(dg.AssetKey("flights"))):
                assert process.poll() is None, (home / "process.log").read_text()
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        finally:
            client.config_set("maxmemory", 0)
        reached = client.xlen("flights")
        done = instance.get_materialized_partitions(dg.AssetKey("flights"))
        assert 0 < len(done) < 34
        assert len(done) * 10_000 <= reached < ROWS
        assert python(RUN_IN_PROCESS, home, UCS_REDIS_URL=redis_server.url).wait() == 0
        assert len(instance.get_materialized_partitions(dg.AssetKey("flights"))) == 34
    assert client.xlen("flights") == ROWS
    ids = [entry_id.decode() for entry_id, _ in client.xrange("flights")]
    assert ids == [f"{n // 10_000}-{n % 10_000 + 1}" for n in range(ROWS)]


def test_a_chunk_that_starts_before_its_turn_waits_for_the_one_at_work(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    # Dagster's own queue of runs starts the chunks of a backfill together.
    defs = build_defs(_feed())
    job = defs.resolve_implicit_global_asset_job_def()
    backfill = {"dagster/backfill": "chunks"}
    first = instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.STARTED,
        tags={**backfill, **range_tags("0.0.0.0", "0.0.0.1")},
        asset_selection=frozenset({dg.AssetKey("numbers")}),
    )
    with ThreadPoolExecutor() as threads:
        second = threads.submit(run_bricks, defs, "numbers", instance, 2, 2, **backfill)
        try:
            while not instance.get_runs(dg.RunsFilter(tags=backfill)) or not _waits(instance, first.run_id):
                assert not second.done(), second.result().all_events
                time.sleep(0.1)
            assert run_bricks(defs, "numbers", instance, 0, 1).success
        finally:
            # Until then the second one waits.
            instance.report_run_canceled(first)
        assert second.result().success
    assert [event.partition for event in _events(instance)] == ["0.0.0.0", "0.0.0.1", "0.0.0.2"]
    # Without an earlier running run, it is refused as usual.
    redis_server.client().flushall()
    assert "would leave a gap" in _failure(run_bricks(defs, "numbers", instance, 2, 2, **backfill))


def _waits(instance: dg.DagsterInstance, run_id: str) -> bool:
    runs = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": "chunks"}))
    logs = [entry.user_message for run in runs for entry in instance.all_logs(run.run_id)]
    return f"run {run_id} publishes earlier bricks. This run waits for it." in logs
