"""A feed that has published and is given other bricks: refused exactly if they number its rows in another way."""

import importlib.resources
import zoneinfo
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.errors import StreamError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.assets import brick_event
from ucs_pipeline.orchestration.runs.numbering_guard import refuse_renumbered
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.support.home import run_bricks, write_table

NUMBERS = {"class": "number", "width": 10, "last": 99_999}
HOURS = {"class": "time", "first": "2013-03-01", "last": "2013-04-30T23", "zone": "Europe/Berlin"}
TEXTS = {"class": "text", "base": 10, "digit": "integer"}
MORE_TEXTS = {**TEXTS, "base": 100, "level": "part"}


@pytest.fixture
def stream(redis_server: RedisServer) -> OrderedStream:
    return OrderedStream("rows", redis_server.client())


def _feed(bricks: dict[str, Any], **more: object) -> Feed:
    return BrickFeed(**{"name": "rows", "table": "rows", "key": "n", "bricks": bricks, **more})


def _record(instance: dg.DagsterInstance, feed: Feed, number: int) -> None:
    """Records the partitions at the front of the list, and as many at its end, as done."""
    for start in {*feed.partitions.starts[:number], *feed.partitions.starts[-number:]}:
        instance.report_runless_asset_event(brick_event(feed, BrickReport(start, 0, None, None, None, None), {}))


@pytest.mark.parametrize("order", ["strict", "any"])
@pytest.mark.parametrize("ordinal", [1, 3], ids=["recorded", "new"])
def test_a_run_with_half_the_width_is_refused_before_a_row_moves(
    instance: dg.DagsterInstance, redis_server: RedisServer, home: Path, ordinal: int, order: str
) -> None:
    # The stream's top would pass for that of all rows up to 15 instead of 30.
    write_table(home, "rows", {"n": pa.array(range(60))})
    stream = {"order": order}
    assert run_bricks(build_defs(_feed(NUMBERS, stream=stream)), "rows", instance, 0, 2).success
    before = redis_server.client().xrange("rows")
    narrow = _feed({**NUMBERS, "width": 5}, stream=stream)
    result = run_bricks(build_defs(narrow), "rows", instance, ordinal, ordinal)
    [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert data.user_failure_data
    assert data.user_failure_data.description == (
        "feed 'rows': brick 0.0.0.2 was recorded as 20 <= id < 30, and the feed's `bricks` now make it 10 <= id < 15. "
        "Published rows cannot be renumbered. Set `bricks` back, or give the feed another name and another stream. "
        "[UCS-NUMBERING]"
    )
    assert redis_server.client().xrange("rows") == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (NUMBERS, {**NUMBERS, "width": 100}),
        (NUMBERS, {**NUMBERS, "width": 100, "level": "block"}),
        ({**NUMBERS, "level": "block"}, {**NUMBERS, "width": 100}),
        (NUMBERS, HOURS),
        (NUMBERS, TEXTS),
        (HOURS, {**HOURS, "zone": "UTC"}),
        (HOURS, {**HOURS, "zone": "UTC", "level": "block"}),
        (HOURS, NUMBERS),
        (TEXTS, MORE_TEXTS),
        (MORE_TEXTS, TEXTS),
        (TEXTS, {**TEXTS, "digit": "sum"}),
        ({**TEXTS, "level": "shard"}, {**TEXTS, "base": 1000, "level": "shard"}),
    ],
)
def test_bricks_that_number_rows_anew_are_refused(
    instance: dg.DagsterInstance, stream: OrderedStream, before: dict[str, Any], after: dict[str, Any]
) -> None:
    _record(instance, _feed(before), 3)
    # A report by hand in the UI has no bounds.
    for _ in range(25):
        instance.report_runless_asset_event(dg.AssetMaterialization("rows", partition="0.0.0.0"))
    with pytest.raises(StreamError, match="cannot be renumbered"):
        refuse_renumbered(instance, _feed(after), stream)


def test_other_rules_of_the_zone_are_refused_with_what_to_do(
    instance: dg.DagsterInstance, stream: OrderedStream, tmp_path: Path
) -> None:
    _record(instance, _feed(HOURS), 3)
    (tmp_path / "Europe").mkdir()
    other = importlib.resources.files("tzdata.zoneinfo.Asia") / "Kolkata"
    (tmp_path / "Europe" / "Berlin").write_bytes(other.read_bytes())
    try:
        zoneinfo.reset_tzpath([str(tmp_path)])
        zoneinfo.ZoneInfo.clear_cache()
        with pytest.raises(
            StreamError, match="If nobody changed it, the time zone database has other rules"
        ) as refusal:
            refuse_renumbered(instance, _feed(HOURS), stream)
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
    assert f"other rules for Europe/Berlin (found in {tmp_path})" in str(refusal.value)
    assert "+02:00 <= time" in str(refusal.value)
    assert "+05:30 <= time" in str(refusal.value)
    refuse_renumbered(instance, _feed(HOURS), stream)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (NUMBERS, NUMBERS),
        (NUMBERS, {**NUMBERS, "last": 999_999}),
        (NUMBERS, {**NUMBERS, "last": 100}),
        (NUMBERS, {**NUMBERS, "first": 50_000}),
        (NUMBERS, {**NUMBERS, "level": "block"}),
        ({**NUMBERS, "level": "block"}, {**NUMBERS, "level": "block", "first": 50_000}),
        ({**NUMBERS, "level": "block"}, {**NUMBERS, "level": "block", "last": 20_000}),
        ({**NUMBERS, "level": "block"}, {**NUMBERS, "level": "part"}),
        (HOURS, {**HOURS, "last": "2014-12-31T23", "level": "part"}),
        ({**HOURS, "level": "block"}, {**HOURS, "first": "2013-04-20", "level": "block"}),
        ({**HOURS, "level": "shard"}, HOURS),
        (TEXTS, {**TEXTS, "level": "shard"}),
        ({**TEXTS, "level": "part"}, TEXTS),
        (MORE_TEXTS, {**MORE_TEXTS, "level": "shard"}),
    ],
)
def test_other_lists_and_levels_of_the_same_bricks_are_not(
    instance: dg.DagsterInstance, stream: OrderedStream, before: dict[str, Any], after: dict[str, Any]
) -> None:
    _record(instance, _feed(before), 3)
    refuse_renumbered(instance, _feed(after), stream)
    refuse_renumbered(instance, _feed(after, stream={"id_offset": 7}), stream)


@pytest.mark.parametrize("bricks", [NUMBERS, {**NUMBERS, "level": "block"}], ids=["bricks", "blocks"])
@pytest.mark.parametrize(("before", "after"), [(5_000, 0), (5_000, 1_000), (0, 5_000), (1_000, 5_000)])
def test_another_id_offset_on_the_stream_of_the_record_is_refused_and_on_another_stream_is_not(
    instance: dg.DagsterInstance, stream: OrderedStream, home: Path, bricks: dict[str, Any], before: int, after: int
) -> None:
    # Emptied by its workers, it shows only its top: with a lower offset, that of rows that were never published.
    write_table(home, "rows", {"n": pa.array(range(60))})
    was, now = (_feed(bricks, stream={"id_offset": offset}) for offset in (before, after))
    name = was.partitions.name(was.partitions.starts[0])
    assert run_bricks(build_defs(was), "rows", instance, name, name).success
    stream.client.xtrim("rows", maxlen=0, approximate=False)
    top = stream.state().top
    result = run_bricks(build_defs(now), "rows", instance, name, name)
    [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert data.user_failure_data
    assert f"recorded up to entry {top} of stream 'rows', whose last ID is {top}. With" in str(
        data.user_failure_data.description
    )
    assert stream.state().top == top
    refuse_renumbered(instance, was, stream)
    # The rows of a run that was killed before they were recorded.
    stream.client.xadd("rows", {"n": "60"}, id=f"{top.ordinal + 1}-1")
    for feed in (was, now)[: 1 if after < before else 2]:
        refuse_renumbered(instance, feed, stream)
    if after < before:
        with pytest.raises(StreamError, match="Set the offset back, or give the feed another stream"):
            refuse_renumbered(instance, now, stream)
    stream.client.delete("rows")
    refuse_renumbered(instance, now, stream)


def test_an_offset_is_no_way_past_a_foreign_entry_once_bricks_are_published(
    instance: dg.DagsterInstance, stream: OrderedStream, home: Path
) -> None:
    write_table(home, "rows", {"n": pa.array(range(60))})
    was, raised = _feed(NUMBERS), _feed(NUMBERS, stream={"id_offset": 100_000})
    first, second = was.partitions.names()[:2]
    assert run_bricks(build_defs(was), "rows", instance, first, first).success
    stream.client.xadd("rows", {"who": "knows"}, id="70000-7")
    for feed, text in ((was, "or delete the stream and publish all bricks again. ["), (raised, "Set the offset back")):
        result = run_bricks(build_defs(feed), "rows", instance, second, second)
        [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        assert data.user_failure_data
        assert text in str(data.user_failure_data.description)
    stream.client.delete("rows")
    stream.client.xadd("rows", {"who": "knows"}, id="70000-7")
    result = run_bricks(build_defs(was), "rows", instance, first, second)
    [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert data.user_failure_data
    assert "set `stream.id_offset` to 70001 or more" in str(data.user_failure_data.description)
