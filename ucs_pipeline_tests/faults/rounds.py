"""One round: a fresh stream, faults while it is published, and the check of what is there at the end."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice

from ucs_pipeline_tests.faults.check import Findings, check_any_order, check_deliveries, check_records, check_stream
from ucs_pipeline_tests.faults.consumer import Consumer
from ucs_pipeline_tests.faults.kinds import FULL, RUNS, Kind
from ucs_pipeline_tests.faults.links import entries_of
from ucs_pipeline_tests.faults.orders import done, read_record
from ucs_pipeline_tests.faults.producer import Producer
from ucs_pipeline_tests.faults.rigs import ALWAYS
from ucs_pipeline_tests.faults.shapes import Done, Entry
from ucs_pipeline_tests.faults.stage import MAIN, Stage, StuckError

_LAST_POSITION = 0.9
_NAP_SECONDS = 0.02
# The others may hit a publisher that is still busy with the fault before.
_AFTER_PROGRESS = 2 / 3
_EMBEDDED = 1 / 3
_CONSUMER_SECONDS = 30


def play(stage: Stage, place: str, faults: Sequence[Kind]) -> tuple[Counter[str], Findings]:
    """Plays a round; returns how many faults of each kind took place, and what was found."""
    rng = stage.rng
    shape = stage.next_shape()
    over_http = any(kind.needs_http for kind in faults)
    stage.begin(shape, ALWAYS if place in (RUNS, FULL) else place, embedded=not over_http and rng.random() < _EMBEDDED)
    injected: Counter[str] = Counter()
    found = Findings()
    records: dict[int, Done] = {}
    with ExitStack() as stack:
        consumer: Consumer | None = None
        producer: Producer | None = None
        if place == FULL:
            stage.cap()
        if stage.any_order:
            producer = stack.enter_context(Producer(stage.rig, stage.stream))
        if stage.rig.keeps:
            consumer = stack.enter_context(Consumer(stage.rig.server.port, stage.stream))
            stage.consumer = consumer
        try:
            if place == RUNS:
                records = _runs(stage, faults, injected)
            else:
                play_faults = _filling if place == FULL else _publishing
                play_faults(stage, faults, injected)
                records = {ordinal: done(report) for ordinal, report in read_record(stage.record).items()}
        except StuckError as error:
            stage.abandon()
            found.sentences.append(str(error))
        if producer:
            producer.close()
            found.add(_any_order(stage, consumer, records, trimmed=place == FULL))
        else:
            found.add(_in_order(stage, consumer, records, trimmed=place == FULL))
    found.sentences += stage.unexpected
    return injected, found


def _expected(stage: Stage) -> list[Entry]:
    """The previous writer's entries, as far as Redis kept them, and the table's rows."""
    old = stage.shape.old
    if old and not stage.rig.keeps:
        # Nobody publishes it again.
        [kept] = [*islice(entries_of(stage.rig.server.port, stage.stream), 1)] or [[]]
        old = [entry for entry in old if entry in kept]
    return [*old, *stage.shape.entries]


def _in_order(stage: Stage, consumer: Consumer | None, records: Mapping[int, Done], *, trimmed: bool) -> Findings:
    found, expected = Findings(), _expected(stage)
    if consumer:
        consumer.wait_for(len(expected), _CONSUMER_SECONDS)
        found.add(check_deliveries(consumer.delivered, expected))
    # Of a stream that was trimmed, its consumer has the whole.
    entries = [consumer.entries] if consumer and trimmed else entries_of(stage.rig.server.port, stage.stream)
    found.add(check_stream(entries, expected))
    found.add(check_records(records, stage.shape.done))
    return found


def _any_order(stage: Stage, consumer: Consumer | None, records: Mapping[int, Done], *, trimmed: bool) -> Findings:
    found = Findings()
    there = [entry for chunk in entries_of(stage.rig.server.port, stage.stream) for entry in chunk]
    if consumer and trimmed:
        consumer.wait_for_id(there[-1][0] if there else None, _CONSUMER_SECONDS)
        there = consumer.entries
    elif consumer:
        consumer.wait_for(len(there), _CONSUMER_SECONDS)
        found.add(check_deliveries(consumer.delivered, there))
    found.add(check_any_order(there, stage.shape.entries))
    found.add(
        check_records(
            *({start: done.without_ids() for start, done in each.items()} for each in (records, stage.shape.done))
        )
    )
    return found


def _publishing(stage: Stage, faults: Sequence[Kind], injected: Counter[str]) -> None:
    positions = sorted(stage.rng.random() * _LAST_POSITION for _ in faults)
    for number, (kind, position) in enumerate(zip(faults, positions, strict=True)):
        if number or not kind.before:
            target = round(position * stage.shape.rows)
            if stage.rng.random() < _AFTER_PROGRESS:
                target = max(target, (stage.rig.length(stage.stream) or 0) + 1)
            if target > stage.shape.at_first:
                stage.grow()
            if not stage.busy(MAIN):
                stage.publish(MAIN)
            if not stage.reach(target):
                break
            stage.nap(_NAP_SECONDS)
        injected[kind.name] += kind.inject(stage)
    _finish(stage)
    if not stage.rig.keeps:
        # What was there when it finished may have been lost since.
        stage.publish(MAIN)
        stage.settle()


def _filling(stage: Stage, faults: Sequence[Kind], injected: Counter[str]) -> None:
    stage.publish(MAIN)
    for kind in faults:
        injected[kind.name] += kind.inject(stage)
    _finish(stage)


def _finish(stage: Stage) -> None:
    stage.grow()
    if not stage.busy(MAIN):
        stage.publish(MAIN)
    stage.settle()


def _runs(stage: Stage, faults: Sequence[Kind], injected: Counter[str]) -> dict[int, Done]:
    grown = stage.rng.randint(0, len(faults))
    for number, kind in enumerate(faults):
        if number == grown:
            stage.grow()
        injected[kind.name] += kind.inject(stage)
    stage.grow()
    reply = stage.run_asset()
    if reply.error:
        stage.unexpected.append(reply.error)
    return dict(reply.records or {})
