"""Compares a stream, its records and what a consumer got with the table."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline_tests.faults.shapes import OTHERS, Done, Entry


@dataclass
class Findings:
    """Errors. All zero and empty if there are none."""

    checked: int = 0
    """Entries compared with the table."""
    lost: int = 0
    """Rows of the table that no entry holds."""
    doubled: int = 0
    """Entries that hold a row once more than the table has it."""
    disordered: int = 0
    """Entries that hold a row under another id than its own."""
    changed: int = 0
    """Entries that hold no row of the table."""
    disagreeing: int = 0
    """Bricks whose record is missing, or differs from the table."""
    sentences: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost + self.doubled + self.disordered + self.changed + self.disagreeing or self.sentences)

    def add(self, other: "Findings") -> None:
        """Takes over what another check found."""
        self.checked += other.checked
        self.lost += other.lost
        self.doubled += other.doubled
        self.disordered += other.disordered
        self.changed += other.changed
        self.disagreeing += other.disagreeing
        self.sentences += other.sentences

    def numbers(self) -> str:
        """The counts, in words."""
        return (
            f"entries checked {self.checked:,}, lost {self.lost}, doubled {self.doubled}, "
            f"disordered {self.disordered}, changed {self.changed}, records disagreeing {self.disagreeing}"
        )


def check_stream(chunks: Iterable[list[Entry]], expected: Sequence[Entry]) -> Findings:
    """Compares a whole stream with what it must hold: ids, fields, values, number and order."""
    found = Findings(checked=len(expected))
    kept: list[Entry] = []
    equal, position = True, 0
    for chunk in chunks:
        equal = equal and chunk == expected[position : position + len(chunk)]
        position += len(chunk)
        kept += chunk
    if not equal or position != len(expected):
        _explain(found, kept, expected)
    return found


def _explain(found: Findings, entries: Sequence[Entry], expected: Sequence[Entry]) -> None:
    rows = {entry_id: tuple(fields) for entry_id, fields in expected}
    waiting = Counter(rows.values())
    known = set(waiting)
    elsewhere = []
    for entry_id, fields in entries:
        row = tuple(fields)
        if rows.get(entry_id) == row:
            waiting[row] -= 1
        else:
            elsewhere.append((entry_id, row))
    for entry_id, row in elsewhere:
        if row not in known:
            found.changed += 1
            what = "is no row of the table"
        elif waiting[row]:
            waiting[row] -= 1
            found.disordered += 1
            what = "holds a row that belongs elsewhere"
        else:
            found.doubled += 1
            what = "holds a row that another entry holds already"
        if len(found.sentences) < 5:
            found.sentences.append(f"entry {entry_id.decode()} {what}: {row}")
    found.lost += waiting.total()
    if found.lost:
        held = {entry_id for entry_id, _ in entries}
        missing = [entry_id.decode() for entry_id in rows if entry_id not in held]
        found.sentences.append(f"{found.lost} rows are in no entry; missing ids begin with {missing[:3]}")


def check_any_order(entries: Iterable[Entry], expected: Sequence[Entry]) -> Findings:
    """Compares a stream of any order with what it must hold: the rows of each brick in their order.

    Entries of another producer may be anywhere.
    """
    found = Findings(checked=len(expected))
    there, wanted = _by_brick(fields for _, fields in entries), _by_brick(fields for _, fields in expected)
    for brick in sorted(there.keys() | wanted.keys()):
        rows, right = there.get(brick, []), wanted.get(brick, [])
        if rows == right:
            continue
        more, fewer = Counter(rows) - Counter(right), Counter(right) - Counter(rows)
        found.lost += fewer.total()
        found.changed += sum(number for row, number in more.items() if row not in set(right))
        found.doubled += sum(number for row, number in more.items() if row in set(right))
        found.disordered += not (more or fewer)
        found.sentences.append(f"brick {brick} has {len(rows):,} rows, expected {len(right):,} in their order")
    return found


def _by_brick(entries: Iterable[Sequence[bytes]]) -> dict[int, list[tuple[bytes, ...]]]:
    found: dict[int, list[tuple[bytes, ...]]] = {}
    for fields in entries:
        if fields[0] != OTHERS:
            found.setdefault(int(fields[1]) // BRICK, []).append(tuple(fields))
    return found


def check_deliveries(delivered: Sequence[bytes], expected: Sequence[Entry]) -> Findings:
    """Compares the ids a consumer got, in the order in which it first got each, with those of the table."""
    found = Findings()
    wanted = [entry_id for entry_id, _ in expected]
    if delivered == wanted:
        return found
    present, known = set(delivered), set(wanted)
    found.lost = len(known - present)
    found.changed = len(present - known)
    rank = {entry_id: position for position, entry_id in enumerate(wanted)}
    ranks = [rank[entry_id] for entry_id in delivered if entry_id in rank]
    found.disordered = sum(later < earlier for earlier, later in itertools.pairwise(ranks))
    found.sentences.append(
        f"the consumer missed {found.lost} entries, got {found.changed} that are not the table's and "
        f"{found.disordered} too late"
    )
    return found


def check_records(records: Mapping[int, Done], expected: Mapping[int, Done]) -> Findings:
    """Compares what is recorded about finished bricks with the table."""
    wrong = sorted(
        ordinal for ordinal in records.keys() | expected.keys() if records.get(ordinal) != expected.get(ordinal)
    )
    sentences = [
        f"brick {ordinal}: recorded is {records.get(ordinal)}, expected {expected.get(ordinal)}"
        for ordinal in wrong[:3]
    ]
    return Findings(disagreeing=len(wrong), sentences=sentences)
