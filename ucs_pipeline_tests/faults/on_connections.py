"""Faults of connections: bytes that stop half-way. Each returns whether it took place."""

from ucs_pipeline_tests.faults.proxy import Way
from ucs_pipeline_tests.faults.stage import MAIN, Stage
from ucs_pipeline_tests.servers.clickhouse_http import NO_FAULTS

_WAIT_SECONDS = 15
_BATCH_ROWS = 16_384


def cut_to_redis(stage: Stage) -> bool:
    """The connection ends after a random byte of what the publisher sends."""
    return _cut(stage, Way.TO_SERVER, stage.rng.randint(1, 60_000))


def cut_from_redis(stage: Stage) -> bool:
    """The connection ends after a random byte of what Redis answers."""
    # A publisher that only adds rows hears a few bytes of each thousand; one that compares hears the rows.
    return _cut(stage, Way.TO_CLIENT, round(20_000 ** stage.rng.random()))


def scan_cut(stage: Stage) -> bool:
    """ClickHouse's answer ends in the middle, with or without a proper end of the HTTP body."""
    if stage.rng.random() < 0.5:
        return _scan_broken(stage, "cut_after_bytes", stage.rng.randint(0, 2 * _rows_left(stage)))
    return _scan_broken(stage, "cut_clean_after_batches", stage.rng.randint(1, 1 + _rows_left(stage) // _BATCH_ROWS))


def scan_exception(stage: Stage) -> bool:
    """ClickHouse breaks its answer off with an exception."""
    return _scan_broken(stage, "exception_after_batches", stage.rng.randint(0, _rows_left(stage) // _BATCH_ROWS))


def _cut(stage: Stage, way: Way, bytes_: int) -> bool:
    cut = stage.proxy.cut(way, bytes_, reset=stage.rng.random() < 0.5)
    stage.until(lambda: cut.made.is_set() or stage.idle, _WAIT_SECONDS)
    stage.proxy.spare()
    return cut.made.is_set()


def _scan_broken(stage: Stage, switch: str, value: int) -> bool:
    stage.clickhouse.fault(**{switch: value})
    if stage.busy(MAIN):
        # The table is far ahead of the stream: only a publisher that has to begin again reads it now.
        stage.proxy.drop()
    else:
        stage.publish(MAIN)
    stage.until(lambda: _taken(stage, switch) or not stage.busy(MAIN), _WAIT_SECONDS)
    happened = _taken(stage, switch)
    stage.clickhouse.clear_faults()
    return happened


def _taken(stage: Stage, switch: str) -> bool:
    return stage.clickhouse.fault()[switch] == NO_FAULTS[switch]


def _rows_left(stage: Stage) -> int:
    # Another producer's entries count as well.
    return max(0, stage.shape.rows - (stage.rig.length(stage.stream) or 0))
