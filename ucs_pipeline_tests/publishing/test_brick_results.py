"""The pace that a brick is reported with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucs_pipeline.publishing.brick_results import Throughput


def test_bricks_that_are_proved_together_share_their_time() -> None:
    pace = Throughput(100.0)
    assert pace.seconds(10_000, 100.5) == 0.5
    assert pace.seconds(10_000, 101.0) == 0.5
    assert pace.seconds(10_000, 101.000_001) == pytest.approx(1 / 3, rel=1e-5)
    assert pace.seconds(5_000, 101.5) == pytest.approx(5_000 / 25_000)


def test_a_brick_slower_than_a_second_has_its_own_time() -> None:
    pace = Throughput(0.0)
    assert [pace.seconds(10, now) for now in (2.0, 62.0, 65.0)] == [2.0, 60.0, 3.0]


def test_bricks_without_new_rows_take_no_time_from_the_others() -> None:
    pace = Throughput(0.0)
    found = [pace.seconds(rows, now) for rows, now in ((10, 0.25), (0, 0.25), (0, 0.5), (30, 0.5))]
    assert found == [0.25, 0, 0, 0.375]


@given(st.lists(st.tuples(st.integers(0, 20_000), st.floats(0.001, 3)), min_size=1, max_size=60))
def test_in_the_first_second_the_pace_is_that_since_the_start(bricks: list[tuple[int, float]]) -> None:
    pace, now, total = Throughput(0.0), 0.0, 0
    for rows, later in bricks:
        now += later
        total += rows
        seconds = pace.seconds(rows, now)
        assert (seconds > 0) is (rows > 0)
        if rows and now < 1:
            assert rows / seconds == pytest.approx(total / now)
