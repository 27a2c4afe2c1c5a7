"""Where publishing starts: decisions on known facts."""

import pytest

from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.ordered.plan import Plan, gap, known, loss, plan

FEED = Feed(name="feed", table="t", key="id", bricks={"class": "number", "first": 20_000, "last": 99_999})


def _record(ordinal: int, rows: int) -> BrickReport:
    last = EntryId(ordinal, rows) if rows else None
    return BrickReport(ordinal, rows, 0, 0, EntryId(ordinal, 1) if rows else None, last)


def _state(ordinal: int, row: int) -> State:
    return State(True, EntryId(ordinal, row), row)


def _known(wanted: range, state: State, *records: BrickReport) -> list[int]:
    return [record.ordinal for record in known(FEED, wanted, state, {record.ordinal: record for record in records})]


def test_recorded_bricks_below_the_top_are_done_until_the_first_that_is_not_recorded() -> None:
    records = [_record(n, 10) for n in (2, 3, 5)]
    assert _known(range(2, 7), _state(6, 1), *records) == [2, 3]
    assert _known(range(5, 7), _state(6, 1), *records) == [5]
    assert _known(range(4, 7), _state(6, 1), *records) == []


def test_a_record_that_the_stream_has_not_seen_does_not_count() -> None:
    assert _known(range(2, 4), _state(2, 9), _record(2, 10)) == []
    assert _known(range(2, 4), State(False, START, 0), _record(2, 10), _record(3, 0)) == []
    assert _known(range(2, 4), _state(2, 10), _record(2, 10), _record(3, 0)) == [2]


def test_a_top_brick_with_more_rows_than_recorded_is_looked_at_again() -> None:
    assert _known(range(2, 3), _state(2, 10), _record(2, 10)) == [2]
    assert _known(range(2, 3), _state(2, 11), _record(2, 10)) == []


def test_what_redis_lost_is_said_of_one_brick_and_of_several() -> None:
    records = {n: _record(n, 10) for n in (3, 4)}
    [one, two] = [loss(FEED, range(2, 5), _state(*top), records) or "" for top in ((3, 10), (3, 9))]
    assert "ends at 3-10, but brick 0.0.0.4 is recorded. Redis lost entries" in one
    assert "ends at 3-9, but bricks 0.0.0.3...0.0.0.4 are recorded. Redis lost entries" in two


def test_a_new_stream_is_read_from_the_feeds_first_brick() -> None:
    assert plan(FEED, range(5, 7), _state(0, 0), None) == Plan(START, 2, 5, 6)


def test_a_recorded_top_is_not_read_again_and_an_unrecorded_one_is() -> None:
    top = _state(4, 10)
    assert plan(FEED, range(5, 7), top, _record(4, 10)) == Plan(top.top, 5, 5, 6)
    assert plan(FEED, range(5, 7), top, _record(4, 9)) == Plan(top.top, 4, 5, 6, top_unknown=True)
    assert plan(FEED, range(5, 7), top, None) == Plan(top.top, 4, 5, 6, top_unknown=True)


def test_a_range_before_the_top_is_read_from_its_own_start() -> None:
    assert plan(FEED, range(3, 5), _state(7, 1), None) == Plan(EntryId(7, 1), 3, 3, 4, top_unknown=True)


@pytest.mark.parametrize(("ordinal", "side"), [(0, "before"), (1, "before"), (10, "beyond"), (2**63, "beyond")])
def test_a_top_outside_the_feed_is_refused(ordinal: int, side: str) -> None:
    with pytest.raises(
        StreamError, match=f"{side} the feed's bricks 0.0.0.2 to 0.0.0.9.*another `stream.name`"
    ) as caught:
        plan(FEED, range(2, 4), _state(ordinal, 1), None)
    assert not isinstance(caught.value, StreamUnavailableError)


def test_the_refusal_of_a_hole_names_the_range_to_launch() -> None:
    text = str(gap(FEED, EntryId(3, 11), Plan(EntryId(3, 10), 3, 5, 6)))
    assert "'feed' ends at 3-10 (brick 0.0.0.3)" in text
    assert text.endswith("Launch 0.0.0.3...0.0.0.6 instead. [UCS-GAP]")
