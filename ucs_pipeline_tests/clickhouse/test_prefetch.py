"""Iterators in threads of their own: order, bounds, errors, and ends without a thread left behind."""

import threading
from collections.abc import Generator

import pytest

from ucs_pipeline.clickhouse.prefetch import Background, ClosedError


def test_items_come_in_order_and_then_the_end_again_and_again() -> None:
    with Background((n for n in range(500)), 2, "t") as numbers:
        assert list(numbers) == list(range(500))
        assert numbers.get() is None
        assert numbers.ready()


def test_the_thread_stays_a_bounded_number_of_items_ahead() -> None:
    made, third = [], threading.Event()

    def items() -> Generator[int, None, None]:
        for n in range(10):
            made.append(n)
            if n == 3:
                third.set()
            yield n

    with Background(items(), 2, "t") as numbers:
        assert numbers.get() == 0
        # Two are waiting, and the one after them is made but not handed over.
        assert third.wait(10)
        assert made == [0, 1, 2, 3]
        assert list(numbers) == list(range(1, 10))


def test_an_error_arises_after_the_items_before_it_and_stays() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise OSError("broken")

    with Background(items(), 5, "t") as numbers:
        assert numbers.get() == 1
        for _ in range(2):
            with pytest.raises(OSError, match="broken"):
                numbers.get()


def test_closing_wakes_whoever_waits_for_an_item() -> None:
    go, seen = threading.Event(), list[BaseException]()

    def items() -> Generator[int, None, None]:
        go.wait(10)
        yield 1

    def wait(numbers: Background[int]) -> None:
        try:
            numbers.get()
        except ClosedError as error:
            seen.append(error)

    with Background(items(), 1, "t") as numbers:
        waiting = threading.Thread(target=wait, args=(numbers,))
        waiting.start()
        numbers.close()
        waiting.join(10)
        assert len(seen) == 1
        go.set()
    with pytest.raises(ClosedError):
        numbers.get()


def test_leaving_early_closes_the_items_in_their_own_thread() -> None:
    closed_by: list[str] = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(1_000)
        finally:
            closed_by.append(threading.current_thread().name)

    with Background(items(), 1, "reader") as numbers:
        assert numbers.get() == 0
    assert closed_by == ["reader"]
    assert "reader" not in [thread.name for thread in threading.enumerate()]


def test_an_error_while_closing_neither_hangs_nor_kills_the_thread_loudly() -> None:
    def items() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            raise OSError("cannot be closed")

    with Background(items(), 1, "t") as numbers:
        assert numbers.get() == 1
    with pytest.raises(ClosedError):
        numbers.get()


def test_one_background_may_feed_another_and_both_end_when_the_last_is_left() -> None:
    def doubled(numbers: Background[int]) -> Generator[int, None, None]:
        for number in numbers:
            yield 2 * number

    first = Background((n for n in range(10**9)), 2, "first")
    with first, Background(doubled(first), 2, "second") as second:
        assert [second.get() for _ in range(3)] == [0, 2, 4]
        first.close()
    assert not {"first", "second"} & {thread.name for thread in threading.enumerate()}
