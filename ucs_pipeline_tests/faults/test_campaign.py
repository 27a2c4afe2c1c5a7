"""The fault campaign in small: every kind of fault once or twice, and a checker that sees what is wrong."""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ucs_pipeline_tests.faults import __main__ as command
from ucs_pipeline_tests.faults.campaign import run, shared_out
from ucs_pipeline_tests.faults.check import Findings, check_any_order, check_deliveries, check_records, check_stream
from ucs_pipeline_tests.faults.feeds import FEEDS
from ucs_pipeline_tests.faults.kinds import KINDS, Kind
from ucs_pipeline_tests.faults.links import entries_of
from ucs_pipeline_tests.faults.rigs import NONE
from ucs_pipeline_tests.faults.shapes import OTHERS, Done, Entry, Shape
from ucs_pipeline_tests.faults.stage import Stage
from ucs_pipeline_tests.servers.redis_server import RedisServer

ROWS = 40_000
SOME = 20_000
SHAPE = Shape("twins", 15_000)

GROUPS = {
    "publishers": ["publisher-killed", "publisher-frozen", "two-at-once"],
    "a Redis that keeps its data": ["redis-killed", "out-of-memory", "no-replicas", "clients-killed"],
    "a Redis that loses data": ["last-second-lost", "stream-lost", "frozen-over-a-loss", "stale-replica"],
    "connections": ["cut-to-redis", "cut-from-redis", "scan-cut", "scan-exception"],
    "back-pressure": ["stream-full"],
    "Dagster": ["run-killed", "disk-full"],
}


QUICK = [
    *("publisher-killed", "publisher-frozen", "two-at-once", "clients-killed"),
    *("cut-to-redis", "cut-from-redis", "scan-cut", "stream-lost", "out-of-memory"),
]
FEEDS_OF = {"back-pressure": ["hours"], "Dagster": ["days"]}
NUMBERS = ["dense", "sparse", "twins"]
OTHER_KINDS = [kind for kind in FEEDS if kind not in NUMBERS]


def test_every_kind_is_in_a_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(KINDS)


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_lost_doubled_or_disordered(group: str, tmp_path: Path) -> None:
    counts = Counter(dict.fromkeys(GROUPS[group], 1))
    outcome = run(counts, 7, tmp_path, rows=ROWS, seconds=400, feeds=FEEDS_OF.get(group, NUMBERS))
    assert outcome.findings.sentences == []
    assert outcome.findings == Findings(checked=outcome.rounds * ROWS)
    assert outcome.injected == counts


def test_nothing_is_lost_doubled_or_disordered_on_any_kind_of_feed(tmp_path: Path) -> None:
    # One fault a round, so that each feed meets one.
    counts = Counter(dict.fromkeys(QUICK, 1))
    outcome = run(counts, 3, tmp_path, rows=SOME, seconds=500, feeds=OTHER_KINDS, others=0)
    assert outcome.findings.sentences == []
    assert outcome.findings == Findings(checked=outcome.findings.checked)
    assert outcome.findings.checked >= outcome.rounds * SOME
    assert outcome.injected == counts
    assert set(outcome.by_feed) == set(OTHER_KINDS)


def test_nothing_is_lost_or_doubled_in_any_order_beside_another_producer(tmp_path: Path) -> None:
    names = ["publisher-killed", "two-at-once", "redis-killed", "out-of-memory", "frozen-over-a-loss", "cut-to-redis"]
    counts = Counter(dict.fromkeys([*names, "stream-full", "run-killed"], 1))
    outcome = run(counts, 7, tmp_path, rows=ROWS // 2, seconds=400, feeds=NUMBERS, order="any")
    assert outcome.findings.sentences == []
    assert outcome.findings == Findings(checked=outcome.rounds * ROWS // 2)
    assert outcome.injected == counts


def _lose(entries: list[Entry]) -> None:
    del entries[7_000]


def _lose_the_last(entries: list[Entry]) -> None:
    del entries[-1]


def _double(entries: list[Entry]) -> None:
    entries.append([b"9-1", entries[20][1]])


def _swap(entries: list[Entry]) -> None:
    entries[9][1], entries[9_000][1] = entries[9_000][1], entries[9][1]


def _change(entries: list[Entry]) -> None:
    entries[6_000][1] = [*entries[6_000][1][:-1], b"x"]


def _add(entries: list[Entry]) -> None:
    entries.append([b"9-1", [b"who", b"somebody else"]])


def _move(entries: list[Entry]) -> None:
    entries[-1][0] = b"9-1"


def _close_the_gap(entries: list[Entry]) -> None:
    # The three last rows move up by one, into the place of the fourth.
    rows = [fields for _, fields in entries[-3:]]
    for entry, fields in zip(entries[-4:-1], rows, strict=True):
        entry[1] = fields
    del entries[-1]


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (_lose, Findings(lost=1)),
        (_lose_the_last, Findings(lost=1)),
        (_double, Findings(doubled=1)),
        (_swap, Findings(disordered=2)),
        (_change, Findings(changed=1, lost=1)),
        (_add, Findings(changed=1)),
        (_move, Findings(disordered=1)),
        # The last four rows are two pairs, so that only one of the moved ones differs from what belongs there.
        (_close_the_gap, Findings(lost=1, disordered=1)),
    ],
)
def test_the_check_of_a_stream_sees(
    tamper: Callable[[list[Entry]], None], found: Findings, redis_server: RedisServer
) -> None:
    entries = [[entry_id, list(fields)] for entry_id, fields in SHAPE.entries]
    tamper(entries)
    with redis_server.client().pipeline(transaction=False) as pipeline:
        for entry_id, fields in entries:
            pipeline.execute_command("XADD", "feed", entry_id, *fields)
        pipeline.execute()
    seen = check_stream(entries_of(redis_server.port, "feed"), SHAPE.entries)
    assert seen.sentences
    assert not seen.clean
    assert replace(seen, checked=0, sentences=[]) == found


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (_lose, Findings(lost=1)),
        (_double, Findings(doubled=1)),
        (_change, Findings(changed=1, lost=1)),
        (lambda entries: entries.sort(key=lambda entry: -(int(entry[1][1]) // 10_000)), Findings()),
        (lambda entries: entries.insert(5_000, entries.pop(0)), Findings(disordered=1)),
        (lambda entries: entries.insert(5_000, [b"1-1", [OTHERS, b"somebody else"]]), Findings()),
    ],
)
def test_the_check_of_a_stream_of_any_order_sees(tamper: Callable[[list[Entry]], None], found: Findings) -> None:
    entries = [[entry_id, list(fields)] for entry_id, fields in SHAPE.entries]
    tamper(entries)
    seen = check_any_order(entries, SHAPE.entries)
    assert replace(seen, checked=0, sentences=[]) == found
    assert seen.clean == (found == Findings())


def test_the_check_of_an_untouched_stream_sees_nothing() -> None:
    half = len(SHAPE.entries) // 2
    assert check_stream([SHAPE.entries[:half], SHAPE.entries[half:]], SHAPE.entries) == Findings(checked=15_000)
    assert check_stream([], SHAPE.entries).lost == 15_000


def test_the_check_of_a_consumer_sees_what_it_missed_and_got_late() -> None:
    ids = [entry_id for entry_id, _ in SHAPE.entries]
    assert check_deliveries(ids, SHAPE.entries).clean
    assert check_deliveries(ids[:100] + ids[101:], SHAPE.entries).lost == 1
    assert check_deliveries([*ids, b"9-1"], SHAPE.entries).changed == 1
    assert check_deliveries([ids[1], ids[0], *ids[2:]], SHAPE.entries).disordered == 1


def test_the_check_of_records_sees_what_disagrees() -> None:
    first = SHAPE.done[0]
    assert check_records(SHAPE.done, SHAPE.done).clean
    assert check_records({**SHAPE.done, 0: first._replace(rows=first.rows - 1)}, SHAPE.done).disagreeing == 1
    assert check_records({**SHAPE.done, 99: Done(0, None, None, None, None)}, SHAPE.done).disagreeing == 1
    assert check_records({}, SHAPE.done).disagreeing == len(SHAPE.done)


def test_faults_are_shared_out_over_all_kinds() -> None:
    assert shared_out(500, list(KINDS.values())).total() == 500
    assert set(shared_out(len(KINDS), list(KINDS.values())).values()) == {1}


def test_the_command_ends_with_1_when_a_row_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def delete_a_row(stage: Stage) -> bool:
        return bool(stage.rig.command("XDEL", stage.stream, "0-1"))

    monkeypatch.setitem(KINDS, "row-deleted", Kind("row-deleted", "a row deleted", (NONE,), delete_a_row))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(
        sys, "argv", ["faults", "--faults", "1", "--rows", str(ROWS), "--kinds", "row-deleted", "--feeds", "dense"]
    )
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "faults injected 1, kinds 1, entries checked 40,000, lost 1, doubled 0, disordered 0, changed 0" in shown
    assert "missing ids begin with ['0-1']" in shown
    assert "seed 1" in shown
