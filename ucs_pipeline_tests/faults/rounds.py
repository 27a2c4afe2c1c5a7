"""One round: a fresh stream, faults while it is published, and the check of what is there at the end."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

from ucs_pipeline_tests.faults.check import Findings, check_deliveries, check_records, check_stream
from ucs_pipeline_tests.faults.consumer import Consumer
from ucs_pipeline_tests.faults.kinds import FULL, RUNS, Kind
from ucs_pipeline_tests.faults.links import entries_of
from ucs_pipeline_tests.faults.orders import done, read_record
from ucs_pipeline_tests.faults.rigs import ALWAYS
from ucs_pipeline_tests.faults.shapes import Done
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
    shape = rng.choice(stage.shapes)
    over_http = any(kind.needs_http for kind in faults)
    stage.begin(shape, ALWAYS if place in (RUNS, FULL) else place, embedded=not over_http and rng.random() < _EMBEDDED)
    injected: Counter[str] = Counter()
    found = Findings()
    records: dict[int, Done] = {}
    with ExitStack() as stack:
        consumer: Consumer | None = None
        if place == FULL:
            stage.cap()
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
        if consumer:
            consumer.wait_for(len(shape.entries), _CONSUMER_SECONDS)
            found.add(check_deliveries(consumer.delivered, shape.entries))
    # Of a stream that was trimmed, its consumer has the whole.
    entries = [consumer.entries] if consumer and place == FULL else entries_of(stage.rig.server.port, stage.stream)
    found.add(check_stream(entries, shape.entries))
    found.add(check_records(records, shape.done))
    found.sentences += stage.unexpected
    return injected, found


def _publishing(stage: Stage, faults: Sequence[Kind], injected: Counter[str]) -> None:
    positions = sorted(stage.rng.random() * _LAST_POSITION for _ in faults)
    for number, (kind, position) in enumerate(zip(faults, positions, strict=True)):
        if number or not kind.before:
            if not stage.busy(MAIN):
                stage.publish(MAIN)
            target = round(position * len(stage.shape.rows))
            if stage.rng.random() < _AFTER_PROGRESS:
                target = max(target, (stage.rig.length(stage.stream) or 0) + 1)
            if not stage.reach(target):
                break
            stage.nap(_NAP_SECONDS)
        injected[kind.name] += kind.inject(stage)
    if not stage.busy(MAIN):
        stage.publish(MAIN)
    stage.settle()
    if not stage.rig.keeps:
        # What was there when it finished may have been lost since.
        stage.publish(MAIN)
        stage.settle()


def _filling(stage: Stage, faults: Sequence[Kind], injected: Counter[str]) -> None:
    stage.publish(MAIN)
    for kind in faults:
        injected[kind.name] += kind.inject(stage)
    stage.settle()


def _runs(stage: Stage, faults: Sequence[Kind], injected: Counter[str]) -> dict[int, Done]:
    for kind in faults:
        injected[kind.name] += kind.inject(stage)
    reply = stage.run_asset()
    if reply.error:
        stage.unexpected.append(reply.error)
    return dict(reply.records or {})
