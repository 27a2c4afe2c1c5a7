"""The results of the checks for given facts, for any feed, accident and state of a stream."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ucs_pipeline.bricks.number import NumberBricks, name_of_ordinal
from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.cli.output import print_findings, print_verdict
from ucs_pipeline.clickhouse.source import BrickContent, TableStats
from ucs_pipeline.clickhouse.sql.keys import OUTSIDE
from ucs_pipeline.entries.display import bricks_are, fields_shown, ranges
from ucs_pipeline.entries.entry_id import START, EntryId, State
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.checks.facts import CheckInputs
from ucs_pipeline.orchestration.checks.finding import CHECKS, CheckResult
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.reading.verify import Difference, Verdict

NOTHING_OUTSIDE = dict.fromkeys(OUTSIDE, 0)


def _report(ordinal: int, rows: int) -> BrickReport:
    last = EntryId(ordinal, rows) if rows else None
    return BrickReport(ordinal, rows, None, None, EntryId(ordinal, 1) if rows else None, last, _hash(ordinal, rows))


def _hash(ordinal: int, rows: int) -> int:
    return (ordinal * 2**50 + rows) % 2**64 if rows else 0


def _facts(rows: list[int], published: int, trimmed: int, done: set[int]) -> CheckInputs:
    """A feed whose bricks have these numbers of rows, with this many published and trimmed from the start."""
    feed = Feed(name="f", table="t", key="id", bricks={"class": "number", "last": len(rows) * 10_000 - 1})
    ids = [EntryId(ordinal, row) for ordinal, count in enumerate(rows) for row in range(1, count + 1)]
    held = ids[trimmed:published]
    state = State(True, ids[published - 1] if published else START, len(held), held[0] if held else None)
    contents = {ordinal: BrickContent(count, _hash(ordinal, count)) for ordinal, count in enumerate(rows) if count}
    verdict = Verdict(state, state, rows=len(held), equal=len(held))
    records = {ordinal: _report(ordinal, rows[ordinal]) for ordinal in done}
    return CheckInputs(feed, records, verdict, TableStats(contents, NOTHING_OUTSIDE))


def _by_name(facts: CheckInputs) -> dict[str, CheckResult]:
    found = findings(facts)
    assert [finding.check for finding in found] == list(CHECKS)
    return {finding.check.name: finding for finding in found}


def _failed(facts: CheckInputs) -> set[str]:
    return {name for name, finding in _by_name(facts).items() if not finding.passed}


@st.composite
def _healthy(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    """Rows per brick, rows published, rows trimmed, bricks finished."""
    rows = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    published = draw(st.integers(0, sum(rows)))
    trimmed = draw(st.integers(0, published))
    whole = [ordinal for ordinal in range(len(rows)) if sum(rows[: ordinal + 1]) <= published]
    return rows, published, trimmed, draw(st.integers(0, len(whole)))


@settings(max_examples=300, deadline=None, database=None)
@given(_healthy(), st.data())
def test_whatever_is_published_trimmed_and_recorded_in_order_passes(
    healthy: tuple[list[int], int, int, int], data: st.DataObject
) -> None:
    rows, published, trimmed, finished = healthy
    facts = _facts(rows, published, trimmed, set(range(finished)))
    assert _failed(facts) == set()
    # A record lost on the way is a gap unless nothing after it is recorded, and nothing else.
    if finished > 1:
        lost = data.draw(st.integers(0, finished - 2))
        holed = replace(facts, records={o: r for o, r in facts.records.items() if o != lost})
        assert _failed(holed) == {"no_gaps"}
        assert _by_name(holed)["no_gaps"].offenders == [(name_of_ordinal(lost), rows[lost])]
        assert f"Launch {name_of_ordinal(lost)}. " in _by_name(holed)["no_gaps"].sentence


@settings(max_examples=300, deadline=None, database=None)
@given(_healthy(), st.data())
def test_a_stream_that_lost_its_end_is_told_exactly_which_bricks_to_launch(
    healthy: tuple[list[int], int, int, int], data: st.DataObject
) -> None:
    rows, published, _, finished = healthy
    recorded = sum(rows[:finished])
    if not recorded:
        return
    kept = data.draw(st.integers(0, recorded - 1))
    facts = _facts(rows, kept, 0, set(range(finished)))
    finding = _by_name(facts)["stream_not_behind"]
    lost = [o for o in range(finished) if rows[o] and sum(rows[: o + 1]) > kept]
    assert [offender[0] for offender in finding.offenders] == [name_of_ordinal(o) for o in lost]
    assert f"Launch {name_of_ordinal(lost[0])}...{name_of_ordinal(finished - 1)}," in finding.sentence
    assert _failed(facts) == {"stream_not_behind"}
    assert published >= recorded


def test_a_brick_without_a_record_that_was_lost_too_is_among_those_to_launch() -> None:
    facts = _facts([3, 3, 3, 3], 4, 0, {0, 3})
    assert "Launch 0.0.0.1...0.0.0.3," in _by_name(facts)["stream_not_behind"].sentence


@settings(max_examples=300, deadline=None, database=None)
@given(_healthy(), st.data())
def test_a_brick_that_changed_after_it_was_finished_is_named_with_both_sides(
    healthy: tuple[list[int], int, int, int], data: st.DataObject
) -> None:
    rows, published, trimmed, finished = healthy
    if not finished:
        return
    facts = _facts(rows, published, trimmed, set(range(finished)))
    ordinal = data.draw(st.integers(0, finished - 1))
    content = data.draw(
        st.builds(BrickContent, st.integers(0, 9), st.integers(0, 2**64 - 1)).filter(
            lambda c: c != facts.table(ordinal)
        )
    )
    changed = replace(facts, census=TableStats({**facts.census.bricks, ordinal: content}, NOTHING_OUTSIDE))
    found = _by_name(changed)
    assert {name for name, finding in found.items() if not finding.passed} == {"all_rows_arrived", "no_late_rows"}
    name = name_of_ordinal(ordinal)
    [offender] = found["no_late_rows"].offenders
    before = _hash(ordinal, rows[ordinal])
    assert offender == (name, rows[ordinal], content.rows, f"{before:016x}", f"{content.hash:016x}")
    assert found["no_late_rows"].figures["rows_late"] == max(0, content.rows - rows[ordinal])
    assert found["all_rows_arrived"].offenders[0][0] == name
    # A record from before there were content hashes has only its rows compared.
    old = {**facts.records, ordinal: replace(facts.records[ordinal], content_hash=None)}
    same = "no_late_rows" not in _failed(replace(changed, records=old))
    assert same == (content.rows == rows[ordinal])


def test_a_length_that_does_not_fit_the_record_is_found_unless_the_stream_moved() -> None:
    facts = _facts([5, 5, 5], 15, 2, {0, 1, 2})
    short = facts.verdict.begin._replace(length=12)
    verdict = replace(facts.verdict, begin=short, end=short, equal=12)
    assert facts.expected_length == 13
    assert _by_name(replace(facts, verdict=verdict))["all_rows_arrived"].offenders == [
        ("", "stream against record", "13 entries", "12 entries")
    ]
    moved = replace(verdict, end=short._replace(top=EntryId(2, 6)))
    assert _failed(replace(facts, verdict=moved)) == set()


def test_entries_of_something_else_are_found() -> None:
    facts = _facts([5, 5], 10, 0, {0, 1})
    state = State(True, EntryId(1, 900), 11, EntryId(0, 1))
    verdict = replace(facts.verdict, begin=state, end=state)
    assert [offender[1:] for offender in _by_name(replace(facts, verdict=verdict))["all_rows_arrived"].offenders] == [
        ("stream against record", "10 entries", "11 entries"),
        ("stream against table", "10 entries", "11 entries"),
    ]


def test_what_has_no_brick_is_printed_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    facts = _facts([5, 5], 10, 0, {0, 1})
    state = State(True, EntryId(9, 1), 11, EntryId(0, 1))
    strays = [(EntryId(9, 1), {b"who": b"me"})]
    print_findings(findings(replace(facts, verdict=replace(facts.verdict, begin=state, end=state, strays=strays))))
    shown = capsys.readouterr().out
    assert "    brick: none, compared: entry 9-1 against table, expected: no row, found: who=me\n" in shown
    assert "    compared: stream against table, expected: 10 entries, found: 11 entries\n" in shown


def test_what_is_not_printed_is_counted_without_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    facts = _facts([5, 5], 10, 0, {0, 1})
    state = State(True, EntryId(1, 900), 160, EntryId(0, 1))
    strays = [(EntryId(1, row), {b"who": b"me"}) for row in range(100, 200)]
    print_findings(findings(replace(facts, verdict=replace(facts.verdict, begin=state, end=state, strays=strays))))
    shown = capsys.readouterr().out
    assert shown.count("found: who=me\n") == 10
    assert "    and 140 more\n    compared: stream against record," in shown
    assert "    compared: stream against table, expected: 10 entries, found: 160 entries\n" in shown


def test_entries_that_differ_or_are_missing_are_shown_and_all_of_them_counted() -> None:
    facts = _facts([5, 5], 10, 0, {0, 1})
    differences = [Difference(EntryId(1, 2), {b"a": b"1"}, {b"a": b"2"}), Difference(EntryId(1, 3), {b"a": b"1"}, None)]
    verdict = replace(facts.verdict, equal=3, different=4, missing=3, differences=differences)
    finding = _by_name(replace(facts, verdict=verdict))["all_rows_arrived"]
    assert finding.offenders[:2] == [
        ("0.0.0.1", "entry 1-2 against table", "a=1", "a=2"),
        ("0.0.0.1", "entry 1-3 against table", "a=1", "not in the stream"),
    ]
    assert finding.more == 5 + 3
    assert "has 4 different entries and 3 foreign entries, and lacks 3." in finding.sentence


@pytest.mark.parametrize("place", OUTSIDE)
def test_rows_outside_the_list_are_counted_by_place(place: str) -> None:
    facts = _facts([5], 5, 0, {0})
    finding = _by_name(replace(facts, census=TableStats(facts.census.bricks, {**NOTHING_OUTSIDE, place: 3})))[
        "no_unassigned_rows"
    ]
    assert finding.offenders == [(place, 3)]
    assert finding.figures[f"rows_{place}"] == 3
    assert "rows not in a brick from 0.0.0.0 to 0.0.0.0" in finding.sentence


def test_rows_in_no_brick_are_said_by_number_and_kind() -> None:
    facts = _facts([5], 5, 0, {0})
    for counts, sentence in (
        ({"null": 5}, "table 't' has 5 rows not in a brick from 0.0.0.0 to 0.0.0.0 (5 with a NULL key). They"),
        (
            {"null": 7, "negative": 20, "beyond": 1_050},
            "0.0.0.0 (7 with a NULL key, 20 negative, 1,050 beyond the last brick). They are not published.",
        ),
    ):
        outside = replace(facts, census=TableStats(facts.census.bricks, {**NOTHING_OUTSIDE, **counts}))
        assert sentence in _by_name(outside)["no_unassigned_rows"].sentence


@pytest.mark.parametrize("unassigned", [0, 77])
def test_the_comparison_says_which_rows_it_is_about(unassigned: int, capsys: pytest.CaptureFixture[str]) -> None:
    facts = _facts([3_000], 3_000, 0, {0})
    print_verdict(facts.feed, facts.verdict, unassigned=unassigned)
    cells = [[cell.strip() for cell in line.split("\u2502")] for line in capsys.readouterr().out.splitlines()]
    assert ["", "rows in the feed's bricks", "3,000", ""] in cells
    assert (["", "rows in no brick", "77", ""] in cells) == (unassigned > 0)


def test_times_before_1970_are_called_that() -> None:
    bricks = {"class": "time", "first": "1970-01-01", "last": "1970-01-01"}
    facts = replace(_facts([5], 5, 0, {0}), feed=Feed(name="feed", table="t", key="k", bricks=bricks))
    early = replace(facts, census=TableStats(facts.census.bricks, {**NOTHING_OUTSIDE, "negative": 2}))
    assert "has 2 rows not in a brick" in _by_name(early)["no_unassigned_rows"].sentence


def test_a_feed_that_has_not_begun_passes() -> None:
    facts = _facts([5], 0, 0, set())
    assert _failed(facts) == set()


def test_bricks_in_sentences_are_ranges_and_few() -> None:
    bricks = Partitions(NumberBricks(), 0, 99)
    assert ranges(bricks, [3]) == "0.0.0.3"
    assert bricks_are(bricks, [3]) == "brick 0.0.0.3 is"
    assert bricks_are(bricks, [3, 4, 9]) == "bricks 0.0.0.3...0.0.0.4, 0.0.0.9 are"
    assert ranges(bricks, [3, 4, 5, 9]) == "0.0.0.3...0.0.0.5, 0.0.0.9"
    assert ranges(bricks, range(0, 20, 2)) == "0.0.0.0, 0.0.0.2, 0.0.0.4 and 7 more"


def test_a_long_entry_is_cut_off() -> None:
    assert fields_shown({b"a": b"1", b"b": b"\xff"}) == "a=1, b=\ufffd"
    assert len(fields_shown({b"a": b"x" * 1000})) == 200
