"""Partitions coarser than bricks: blocks, parts and shards, and bricks of another width."""

import time
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import FeedError, StreamError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.orchestration.checks.facts import collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline.orchestration.materializations import ROWS
from ucs_pipeline.orchestration.sensors.next_bricks import Request, next_bricks
from ucs_pipeline.orchestration.sensors.snapshot import situation_of
from ucs_pipeline.publishing.run import publish
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, open_source, open_stream, opened, read_brick
from ucs_pipeline_tests.support.home import run_bricks, write_table

FIRST = 2 * 10**10
"""Bricks of ten ids: the feed's first one is 2.0.0.0, and a block has 10,000 ids."""
IDS = [FIRST + n for n in range(35_000) if n // 10_000 != 1 or n > 19_990]


def _feed(**more: Any) -> Feed:
    bricks = {"class": "number", "first": FIRST, "last": FIRST + 49_999, "width": 10, "level": "block"}
    return BrickFeed(name="ids", **{"table": "ids", "key": "n", "bricks": bricks, **more})


@pytest.fixture
def home(home: Path) -> Path:
    _write(home, IDS)
    return home


def _write(home: Path, ids: list[int]) -> None:
    write_table(home, "ids", {"n": pa.array(ids)})


def _facts_are_well(feed: Feed, instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    facts = collect(feed, open_source(feed), open_stream(feed, redis_server.client()), instance, held_only=False)
    assert facts.verdict.agrees
    assert [finding.sentence for finding in findings(facts) if not finding.passed] == []


def test_a_million_million_ids_are_a_hundred_thousand_blocks() -> None:
    began = time.process_time()
    feed = _feed(bricks={"class": "number", "last": 10**12 - 1, "level": "block"})
    names = feed.partitions.names()
    assert time.process_time() - began < 2
    assert (len(names), names[0], names[-1]) == (100_000, "0.0.0", "0.99.999")
    assert len(feed.ordinals) == 10**8
    assert feed.partitions.end(feed.partitions.start_named("0.1.0")) == 1_000_999
    with pytest.raises(FeedError, match=r"make 100,000,000 bricks, .* Choose a coarser `level`"):
        _feed(bricks={"class": "number", "last": 10**12 - 1})


@pytest.mark.parametrize(
    ("bricks", "names"),
    [
        ({"class": "number", "first": 5, "last": 10**7, "level": "block"}, ["0.0.0", "0.0.1"]),
        ({"class": "number", "last": 10**10, "level": "part"}, ["0.0", "0.1"]),
        ({"class": "number", "last": 10**13, "level": "shard"}, ["0", "1"]),
        ({"class": "number", "last": 10**13, "level": "shard", "width": 10**5}, ["0"]),
        ({"class": "time", "first": "2012-02-28", "last": "2012-02-28", "level": "block"}, ["2012.02.28"]),
        ({"class": "time", "first": "2012-12-31", "last": "2013-01-01", "level": "part"}, ["2012.12", "2013.01"]),
        ({"class": "time", "first": "2012-12-31", "last": "2013-01-01", "level": "shard"}, ["2012", "2013"]),
        ({"class": "text", "last": "0.1.0.0", "level": "part"}, ["0.0", "0.1"]),
        ({"class": "text", "base": 100, "digit": "integer", "last": "1.0.0.0", "level": "shard"}, ["0", "1"]),
    ],
)  # fmt: skip
def test_partitions_are_named_by_what_the_names_of_their_bricks_begin_with(
    bricks: dict[str, Any], names: list[str]
) -> None:
    partitions = _feed(bricks=bricks).partitions
    assert partitions.names() == names
    for start, name in zip(partitions.starts, names, strict=True):
        assert partitions.start_named(name) == start
        assert partitions.start(partitions.end(start)) == start
        assert partitions.name(partitions.end(start)) == name
        following = partitions.next(start)
        assert following is None or partitions.after(partitions.end(start)) == following


def test_blocks_are_published_under_the_ids_of_their_bricks(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    feed, client = _feed(), redis_server.client()
    defs = build_defs(feed)
    assert run_bricks(defs, "ids", instance, "2.0.0", "2.0.1").success
    assert run_bricks(defs, "ids", instance, "2.0.2", "2.0.4").success
    found = [(EntryId.parse(entry).ordinal, int(fields[b"n"])) for entry, fields in client.xrange("ids")]
    assert found == [(n // 10, n) for n in IDS]
    records = instance.fetch_materializations(dg.AssetKey("ids"), limit=10, ascending=True).records
    events = [(record.partition_key, record.asset_materialization) for record in records]
    assert [name for name, _ in events] == [f"2.0.{n}" for n in range(5)]
    rows = [event.metadata[ROWS].value for _, event in events if event]
    assert rows == [10_000, 9, 10_000, 5_000, 0]
    assert events[3][1]
    assert events[3][1].metadata["bounds"].value == f"{FIRST + 30_000} <= id < {FIRST + 40_000}"
    assert events[3][1].metadata["last_entry_id"].value == f"{(FIRST + 34_999) // 10}-10"
    _facts_are_well(feed, instance, redis_server)
    frame = read_brick(feed, "2.0.1", client)
    assert list(frame["n"]) == [str(n) for n in IDS if FIRST + 10_000 <= n < FIRST + 20_000]
    length = client.xlen("ids")
    assert run_bricks(defs, "ids", instance, "2.0.0", "2.0.4").success
    assert client.xlen("ids") == length


def test_a_block_resumes_at_the_row_after_the_top_and_a_hole_is_refused(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    feed, client = _feed(), redis_server.client()
    limited = _feed(stream={"max_len": 12_345, "timeout_s": 0.2})
    stream = open_stream(limited, client)
    with pytest.raises(StreamError, match="is full"):
        list(publish(limited, open_source(limited), stream, limited.partitions.starts, lambda _: {}))
    assert client.xlen("ids") == 12_345
    result = run_bricks(build_defs(feed), "ids", instance, "2.0.3", "2.0.3")
    [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert data.user_failure_data
    assert "Launch 2.0.2...2.0.3 instead" in (data.user_failure_data.description or "")
    assert run_bricks(build_defs(feed), "ids", instance, "2.0.0", "2.0.4").success
    assert client.xlen("ids") == len(IDS)
    _facts_are_well(feed, instance, redis_server)


def test_lost_blocks_are_named_and_published_again(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    feed, client = _feed(), redis_server.client()
    assert run_bricks(build_defs(feed), "ids", instance, "2.0.0", "2.0.4").success
    kept = client.xrange("ids", count=10_009 + 5)
    client.delete("ids")
    for entry, fields in kept:
        client.xadd("ids", fields, id=entry)
    facts = collect(feed, open_source(feed), open_stream(feed, client), instance, held_only=True)
    failed = {finding.check.name: finding for finding in findings(facts) if not finding.passed}
    assert "Launch 2.0.2...2.0.4" in failed["stream_not_behind"].sentence
    assert run_bricks(build_defs(feed), "ids", instance, "2.0.2", "2.0.4").success
    assert client.xlen("ids") == len(IDS)
    _facts_are_well(feed, instance, redis_server)


def test_the_sensor_publishes_blocks_that_are_sealed_and_follows_an_open_one(
    home: Path, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    def look(feed: Feed) -> Request | str:
        [asset] = [found for found in build_defs(feed).assets or () if isinstance(found, dg.AssetsDefinition)]
        return next_bricks(feed, situation_of(feed, asset, instance, opened()), 100)

    hold, follow = _feed(), _feed(tail="follow")
    starts = hold.partitions.starts
    assert look(hold) == Request(starts[0], starts[2])
    assert look(follow) == Request(starts[0], starts[3], open=True)
    assert run_bricks(build_defs(hold), "ids", instance, "2.0.0", "2.0.2").success
    sealed = f"The newest id is {FIRST + 34_999:,}; an id of {FIRST + 40_000:,} or more seals it."
    assert f"brick 2.0.3 is not sealed. {sealed}" in str(look(hold))
    assert look(follow) == Request(starts[3], starts[3], open=True)
    list(publish(follow, open_source(follow), open_stream(follow, redis_server.client()), [starts[3]], lambda _: {}))
    assert "brick 2.0.3 is not sealed, and all its 5,000 rows are in the stream" in str(look(follow))
    _write(home, [*IDS, FIRST + 35_000])
    assert look(follow) == Request(starts[3], starts[3], open=True)


def test_blocks_are_adopted(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    feed, client = _feed(), redis_server.client()
    found = adopt(feed, "2.0.1", open_source(feed), open_stream(feed, client), instance)
    assert (found.bricks, found.rows) == (2, 10_009)
    assert found.top.ordinal == (FIRST + 19_999) // 10
    assert run_bricks(build_defs(feed), "ids", instance, "2.0.0", "2.0.4").success
    assert client.xlen("ids") == len(IDS) - 10_009
    _facts_are_well(feed, instance, redis_server)


def test_days_and_text_shards_are_published_too(
    home: Path, instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    hours = [1364598000 + 3600 * n for n in range(72)]
    write_table(home, "times", {"t": pa.array(hours)})
    write_table(home, "words", {"w": pa.array([f"word {n}" for n in range(5000)])})
    days = BrickFeed(
        name="days",
        table="times",
        key="t",
        bricks={
            "class": "time",
            "first": "2013-03-30",
            "last": "2013-04-01",
            "zone": "Europe/Berlin",
            "level": "block",
        },
    )
    words = BrickFeed(
        name="words",
        table="words",
        key="w",
        bricks={"class": "text", "base": 100, "digit": "integer", "level": "shard"},
        stream={"id_offset": 10**9},
    )
    defs = build_defs(days, words)
    assert run_bricks(defs, "days", instance, "2013.03.30", "2013.04.01").success
    records = instance.fetch_materializations(dg.AssetKey("days"), limit=10, ascending=True).records
    figures = [record.asset_materialization.metadata[ROWS].value for record in records if record.asset_materialization]
    # The day on which clocks go forward has 23 hours; the last row is of the day after.
    assert figures == [24, 23, 24]
    assert run_bricks(defs, "words", instance, "0", "99").success
    assert redis_server.client().xlen("words") == 5000
    for feed in (days, words):
        facts = collect(feed, open_source(feed), open_stream(feed, redis_server.client()), instance, held_only=False)
        failed = [finding.sentence for finding in findings(facts) if not finding.passed]
        assert len(failed) == (feed is days), failed
        assert facts.verdict.agrees
