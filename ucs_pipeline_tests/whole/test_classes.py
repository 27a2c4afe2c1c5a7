"""Feeds of time and text bricks from table to stream, and feeds that continue a previous writer's stream."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.text import TextBricks
from ucs_pipeline.bricks.time import TimeBricks
from ucs_pipeline.clickhouse.client import EmbeddedEngine
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.entries.batches import cut
from ucs_pipeline.entries.encode import encode
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import FeedError, StreamError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.operations.adopt import adopt
from ucs_pipeline.orchestration.checks.facts import collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline.publishing.backpressure import Backpressure
from ucs_pipeline.publishing.ordered.transfer import _moment
from ucs_pipeline.publishing.rate_limit import RateLimiter
from ucs_pipeline.publishing.run import publish
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import build_defs, open_source, open_stream, read_brick
from ucs_pipeline_tests.support.home import run_bricks, write_table
from ucs_pipeline_tests.support.tables import Table, source_of

BERLIN = TimeBricks("Europe/Berlin")
BEGIN = datetime(2013, 10, 26, 22, tzinfo=timezone.utc)
HOURS = 25
"""Of Sunday, 27 October 2013 in Berlin; the third and fourth are one brick."""
ROWS_AN_HOUR = 40


def _times() -> list[datetime]:
    # Nothing happens from 10 to 11 o'clock.
    times = [BEGIN + timedelta(minutes=90 * n / ROWS_AN_HOUR * 60 / 90) for n in range(HOURS * ROWS_AN_HOUR)]
    return [at for at in times if BERLIN.get_brick_name(at) != "2013.10.27.10"]


def _hours(**more: Any) -> Feed:
    settings: dict[str, Any] = {
        "table": "hours",
        "key": "at",
        "bricks": {"class": "time", "first": "2013-10-27", "last": "2013-10-27", "zone": "Europe/Berlin"},
    }
    return BrickFeed(name="hours", **{**settings, **more})


def _words(**more: Any) -> Feed:
    settings: dict[str, Any] = {
        "table": "words",
        "key": "word",
        "bricks": {"class": "text", "first": "2.0.0.0", "last": "2.0.2.9"},
    }
    return BrickFeed(name="words", **{**settings, **more})


@pytest.fixture
def home(home: Path) -> Path:
    times = _times()
    # Neither time nor text comes in the order of the bricks.
    columns = {"at": pa.array(times[::-1], pa.timestamp("ms", "UTC")), "n": pa.array(range(len(times)))}
    write_table(home, "hours", columns)
    write_table(home, "words", {"word": pa.array([f"word {n}" for n in range(30_000)])})
    write_table(home, "numbers", {"n": pa.array(range(35_000))})
    return home


def _all_is_well(feed: Feed, instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    facts = collect(feed, open_source(feed), open_stream(feed, redis_server.client()), instance, held_only=False)
    assert facts.verdict.agrees
    assert [finding.sentence for finding in findings(facts) if not finding.passed] == []


def _reason(result: dg.ExecuteInProcessResult) -> str:
    [data] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert data.user_failure_data
    return data.user_failure_data.description or ""


def test_hours_are_published_under_their_own_milliseconds(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    feed = _hours()
    assert run_bricks(build_defs(feed), "hours", instance, "2013.10.27.00", "2013.10.27.23").success
    rows: dict[int, int] = {}
    expected = []
    for at in _times():
        ordinal = BERLIN.ordinal_of_key(at)
        rows[ordinal] = rows.get(ordinal, 0) + 1
        expected.append((f"{ordinal}-{rows[ordinal]}".encode(), at.isoformat(timespec="milliseconds").encode()))
    client = redis_server.client()
    assert [(entry, fields[b"at"]) for entry, fields in client.xrange("hours")] == expected
    # What a consumer asks for by time: from noon on in UTC.
    noon = int(datetime(2013, 10, 27, 12, tzinfo=timezone.utc).timestamp() * 1000)
    assert client.xrange("hours", noon)[0][0] == f"{noon}-1".encode()
    assert len(read_brick(feed, "2013.10.27.02", client)) == 2 * ROWS_AN_HOUR
    assert len(read_brick(feed, "2013.10.27.03", client)) == ROWS_AN_HOUR
    assert len(read_brick(feed, "2013.10.27.10", client)) == 0
    _all_is_well(feed, instance, redis_server)
    events = instance.fetch_materializations(dg.AssetKey("hours"), limit=100, ascending=True).records
    found = {event.partition_key: event.asset_materialization for event in events}
    assert list(found) == [f"2013.10.27.{hour:02}" for hour in range(24)]
    event = found["2013.10.27.02"]
    assert event
    assert event.metadata["bounds"].value == "2013-10-27T02:00:00+02:00 <= time < 2013-10-27T03:00:00+01:00"
    assert event.metadata["first_time"].value == "2013-10-27T00:00:00.000+00:00"


def test_time_bricks_resume_inside_a_brick_and_refuse_a_hole(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    feed = _hours()
    stream = open_stream(feed, redis_server.client())
    limited = _hours(stream={"max_len": ROWS_AN_HOUR * 3 // 2, "timeout_s": 0.2})
    with pytest.raises(StreamError, match="is full"):
        list(publish(limited, open_source(limited), stream, limited.partitions.starts, lambda _: {}))
    assert stream.state().top == EntryId(feed.partitions.starts[1], ROWS_AN_HOUR // 2)
    reason = _reason(run_bricks(build_defs(feed), "hours", instance, "2013.10.27.05", "2013.10.27.06"))
    assert "brick 2013.10.27.01, which comes before 2013.10.27.05" in reason
    assert "Launch 2013.10.27.01...2013.10.27.06 instead" in reason
    defs = build_defs(feed)
    assert run_bricks(defs, "hours", instance, "2013.10.27.00", "2013.10.27.11").success
    # The empty hour is done, so the next run begins after it.
    assert run_bricks(defs, "hours", instance, "2013.10.27.12", "2013.10.27.23").success
    _all_is_well(feed, instance, redis_server)
    length = stream.state().length
    assert run_bricks(defs, "hours", instance, "2013.10.27.00", "2013.10.27.23").success
    assert stream.state().length == length == len(_times())


def test_portions_of_time_bricks_leave_nothing_out(home: Path) -> None:
    assert home
    feed = _hours()

    class Small(EmbeddedEngine):
        sorted_rows = 100

    entries = list(encode(b"s", Source(feed, Small()).scan(feed.partitions.first, feed.partitions.last)))
    assert sum(part.count for part in entries) == len(_times())
    assert [segment.first.ordinal for part in entries for segment in part.segments] == sorted(
        {BERLIN.ordinal_of_key(at) for at in _times()}
    )


@pytest.mark.parametrize(
    ("column", "value", "bricks"),
    [
        ("DateTime64(3, 'UTC')", "toDateTime64({}, 3, 'UTC')", {}),
        ("DateTime", "toDateTime({})", {}),
        ("Int64", "({}) * 1000", {"unit": "ms"}),
        ("Int128", "{}", {}),
    ],
)
def test_a_replay_goes_as_fast_as_the_times_say(
    column: str, value: str, bricks: dict[str, Any], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten minutes, a row every two seconds, with nothing from the fourth to the sixth.
    rows = f"SELECT {value.format('1382832000 + number * 2')} FROM numbers(300) WHERE intDiv(number, 30) NOT IN (4, 5)"
    table = Table(f"at {column}", rows)
    chosen = {"class": "time", "first": "2013-10-27", "last": "2013-10-27", **bricks}
    feed = table.feed(0, key="at", bricks=chosen, stream={"pace": 400})
    stream = open_stream(feed, redis_server.client())
    start = feed.partitions.starts[0]
    [entries] = encode(b"feed", source_of(feed).scan(start, start))
    clock, sent = [1_000.0], list[tuple[float, int]]()
    monkeypatch.setattr("ucs_pipeline.publishing.rate_limit.time.monotonic", lambda: clock[0])

    def pause(seconds: float) -> None:
        clock[0] += seconds

    flow = RateLimiter(feed.stream, Backpressure(stream, feed.stream, 0, pause, print), pause, _moment(feed))
    for part in flow.admit(cut(entries, 0, entries.count)):
        if part:
            sent.append((clock[0] - 1_000, part.stop))
    reached = {wanted: min(at for at, rows in sent if rows >= wanted) for wanted in (60, 120, 121, 240)}
    # 600 seconds at 400 times real time are 1.5 of them; the rows of one tenth go together.
    expected = {60: 118 / 400, 120: 238 / 400, 121: 360 / 400, 240: 598 / 400}
    assert all(-0.1 <= reached[rows] - expected[rows] <= 0.001 for rows in expected), reached


def test_a_pace_needs_times() -> None:
    with pytest.raises(FeedError, match=r"stream\.pace needs keys that are times, and bricks\.class is text"):
        _words(stream={"pace": 10})


def test_text_bricks_come_in_the_order_of_bricks_and_then_of_keys(
    instance: dg.DagsterInstance, redis_server: RedisServer
) -> None:
    feed = _words()
    assert run_bricks(build_defs(feed), "words", instance, "2.0.0.0", "2.0.1.9").success
    assert run_bricks(build_defs(feed), "words", instance, "2.0.2.0", "2.0.2.9").success
    keys = [(TextBricks().ordinal_of_key(word), word) for word in (f"word {n}" for n in range(30_000))]
    wanted = sorted((ordinal, word.encode()) for ordinal, word in keys if 2000 <= ordinal < 2030)
    found = redis_server.client().xrange("words")
    assert [(EntryId.parse(entry).ordinal, fields[b"word"]) for entry, fields in found] == wanted
    assert len(wanted) > 60
    facts = collect(feed, open_source(feed), open_stream(feed, redis_server.client()), instance, held_only=True)
    assert facts.verdict.agrees
    failed = {finding.check.name: finding.figures for finding in findings(facts) if not finding.passed}
    assert set(failed) == {"no_unassigned_rows"}
    assert failed["no_unassigned_rows"]["rows_assigned"] == len(wanted)
    last = instance.fetch_materializations(dg.AssetKey("words"), limit=1).records[0].asset_materialization
    assert last
    assert last.metadata["bounds"].value == "2.0.2.9 <= digits of md5 <= 2.0.2.9 (base 10, digit sum)"


# Continuing a previous writer's stream

OLD = 5
OFFSET = 10**13


def _numbers(**stream: Any) -> Feed:
    bricks = {"class": "number", "last": 39_999}
    return BrickFeed(name="numbers", table="numbers", key="n", bricks=bricks, stream={"id_offset": OFFSET, **stream})


@pytest.fixture
def old(redis_server: RedisServer) -> list[bytes]:
    """Ids of a previous writer's entries in the stream, as Redis assigns them."""
    client = redis_server.client()
    return [client.xadd("numbers", {"old": n}) for n in range(OLD)]


def test_a_feed_with_an_offset_goes_on_above_what_is_there(
    instance: dg.DagsterInstance, redis_server: RedisServer, old: list[bytes]
) -> None:
    feed = _numbers()
    assert run_bricks(build_defs(feed), "numbers", instance, 0, 1).success
    assert run_bricks(build_defs(feed), "numbers", instance, 2, 3).success
    client = redis_server.client()
    assert client.xlen("numbers") == OLD + 35_000
    assert [entry for entry, _ in client.xrange("numbers", count=OLD)] == old
    assert client.xrange("numbers", OFFSET, count=1) == [(b"%d-1" % OFFSET, {b"n": b"0"})]
    assert read_brick(feed, "0.0.0.3", client).index[0] == f"{OFFSET + 3}-1"
    records = instance.fetch_materializations(dg.AssetKey("numbers"), limit=10).records
    events = {record.partition_key: record.asset_materialization for record in records}
    assert events["0.0.0.3"]
    assert events["0.0.0.3"].metadata["last_entry_id"].value == f"{OFFSET + 3}-5000"
    _all_is_well(feed, instance, redis_server)
    # When the previous writer's entries are trimmed, nothing of the feed is.
    client.xtrim("numbers", minid=f"{OFFSET}-0", approximate=False)
    _all_is_well(feed, instance, redis_server)
    client.xtrim("numbers", minid=f"{OFFSET + 1}-0", approximate=False)
    _all_is_well(feed, instance, redis_server)


def test_an_offset_that_is_too_low_or_missing_is_refused_with_the_one_to_choose(
    instance: dg.DagsterInstance, redis_server: RedisServer, old: list[bytes]
) -> None:
    least = EntryId.parse(old[-1]).ordinal + 1
    for feed in (_numbers(id_offset=1000), _numbers(id_offset=0)):
        reason = _reason(run_bricks(build_defs(feed), "numbers", instance, 0, 1))
        assert f"set `stream.id_offset` to {least} or more to continue after them" in reason
        with pytest.raises(StreamError, match=f"set `stream.id_offset` to {least} or more"):
            adopt(feed, "0.0.0.1", open_source(feed), open_stream(feed, redis_server.client()), instance)
    assert redis_server.client().xlen("numbers") == OLD


def test_adopting_on_the_old_stream_leaves_its_entries_and_goes_on_after_the_adopted_bricks(
    instance: dg.DagsterInstance, redis_server: RedisServer, old: list[bytes]
) -> None:
    feed, client = _numbers(), redis_server.client()
    stream = open_stream(feed, client)
    # The previous writer wrote something else than the rows.
    for _ in range(2):
        found = adopt(feed, "0.0.0.1", open_source(feed), stream, instance, rows=0)
        assert found.top == EntryId(OFFSET + 1, 2**64 - 1)
    assert client.xlen("numbers") == OLD
    _verdict_of_adopted(feed, instance, redis_server, 20_000)
    assert run_bricks(build_defs(feed), "numbers", instance, 0, 3).success
    assert client.xlen("numbers") == OLD + 15_000
    assert [entry for entry, _ in client.xrange("numbers", count=OLD)] == old
    assert client.xrange("numbers", OFFSET, count=1)[0][0] == b"%d-1" % (OFFSET + 2)
    _all_is_well(feed, instance, redis_server)
    with pytest.raises(UcsError, match=r"brick 0\.0\.0\.1 was trimmed, or adopted without being published"):
        read_brick(feed, "0.0.0.1", client)
    with pytest.raises(StreamError, match="is in use"):
        adopt(feed, "0.0.0.2", open_source(feed), stream, instance)


def _verdict_of_adopted(feed: Feed, instance: dg.DagsterInstance, redis_server: RedisServer, rows: int) -> None:
    facts = collect(feed, open_source(feed), open_stream(feed, redis_server.client()), instance, held_only=False)
    assert (facts.verdict.trimmed, facts.verdict.missing, facts.verdict.equal) == (rows, 0, 0)
    assert facts.verdict.unpublished == 15_000
    assert all(finding.passed for finding in findings(facts))


def test_a_time_feed_may_have_an_offset_too(instance: dg.DagsterInstance, redis_server: RedisServer) -> None:
    feed = _hours(stream={"id_offset": OFFSET, "name": "numbers"})
    redis_server.client().xadd("numbers", {"old": 1})
    assert run_bricks(build_defs(feed), "hours", instance, "2013.10.27.00", "2013.10.27.23").success
    first = redis_server.client().xrange("numbers", OFFSET, count=1)[0][0]
    assert EntryId.parse(first) == EntryId(OFFSET + int(BEGIN.timestamp() * 1000), 1)
    _all_is_well(feed, instance, redis_server)
