"""Rising sequences of ordinals, dense or not, that take no memory per brick."""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import overload


class RangeSequence(Sequence[int]):
    """Rising numbers as a few ranges, one after the other. A search takes the logarithm of the number of ranges."""

    def __init__(self, runs: Iterable[range]) -> None:
        """Takes rising ranges that do not overlap."""
        self.runs = tuple(run for run in runs if run)
        self._firsts = [run[0] for run in self.runs]
        self._before = list(accumulate(map(len, self.runs), initial=0))

    def __len__(self) -> int:
        return self._before[-1]

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> "RangeSequence": ...

    def __getitem__(self, index: "int | slice") -> "int | RangeSequence":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("only consecutive ordinals make a slice")
            pairs = zip(self.runs, self._before, strict=False)
            return RangeSequence(run[max(0, start - before) : max(0, stop - before)] for run, before in pairs)
        position = operator.index(index)
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError("no such ordinal")
        run = bisect_right(self._before, position) - 1
        return self.runs[run][position - self._before[run]]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.runs)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and any(value in run for run in self.runs[self._run(value) :][:1])

    def index(self, value: int, start: int = 0, stop: int | None = None) -> int:
        """Position of a number.

        Raises:
            ValueError: it is not there, or not between `start` and `stop`.
        """
        run = self._run(value)
        position = self._before[run] + self.runs[run].index(value)
        if position not in range(start, len(self) if stop is None else stop):
            raise ValueError(f"{value} is not in the sequence")
        return position

    def _run(self, value: int) -> int:
        return max(0, bisect_right(self._firsts, value) - 1)


def shifted(ordinals: Sequence[int], by: int) -> Sequence[int]:
    """The same ordinals, each raised by the same number."""
    if not by:
        return ordinals
    if isinstance(ordinals, range):
        return range(ordinals.start + by, ordinals.stop + by, ordinals.step)
    if isinstance(ordinals, RangeSequence):
        return RangeSequence(range(run.start + by, run.stop + by, run.step) for run in ordinals.runs)
    return [ordinal + by for ordinal in ordinals]


def between(ordinals: Sequence[int], first: int, last: int) -> Sequence[int]:
    """Those of rising ordinals that are not below `first` and not above `last`."""
    return ordinals[bisect_left(ordinals, first) : bisect_right(ordinals, last)]
