"""Arrow columns as memory buffers, and back.

Arrow's own ways between Python objects, NumPy and columns (`pa.array`, `pa.scalar`, `to_numpy`) import pandas to know
its missing values, which takes half a second of every run's start, and 40 MB.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_MEMORY = pa.system_memory_pool()


class Packed(NamedTuple):
    """One binary Arrow column seen as its bytes: row `i` is `data[offsets[i]:offsets[i + 1]]`."""

    data: memoryview
    offsets: npt.NDArray[np.int32]

    def rows(self, start: int, stop: int) -> memoryview:
        """Bytes of the rows from `start` up to `stop`, without a copy."""
        return self.data[self.offsets[start] : self.offsets[stop]]


def packed(column: pa.Array) -> Packed:
    """A binary column as its bytes, without a copy."""
    _, offsets, data = column.buffers()
    return Packed(memoryview(data), _window(offsets, np.dtype(np.int32), column.offset, len(column) + 1))


def binary(values: Sequence[bytes]) -> pa.Array:
    """A binary column of a few values."""
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.Array.from_buffers(
        pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    )


def numbers(column: pa.Array) -> npt.NDArray[np.unsignedinteger]:
    """A column of unsigned integers without NULLs, without a copy.

    Raises:
        ValueError: it is not such a column.
    """
    if column.null_count or not pa.types.is_unsigned_integer(column.type):
        raise ValueError(f"expected unsigned integers, got {column.type} with {column.null_count} NULLs")
    width = column.type.bit_width // 8
    return _window(column.buffers()[1], np.dtype(f"u{width}"), column.offset, len(column))


def digits(values: pa.Array) -> pa.Array:
    """Decimal digits of integers, as a binary column."""
    return pc.cast(pc.cast(values, pa.string()), pa.binary())


def integers(values: npt.NDArray[np.int64]) -> pa.Array:
    """A column of integers, without a copy."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def join(*parts: "pa.Array | bytes") -> pa.Array:
    """Binary columns joined row by row, the last part as separator. Plain bytes are the same in every row."""
    columns = [binary([part])[0] if isinstance(part, bytes) else part for part in parts]
    # The system's allocator returns large buffers after use; Arrow's own keeps them.
    return pc.binary_join_element_wise(*columns, memory_pool=_MEMORY)


def _window(buffer: pa.Buffer, dtype: "np.dtype[np.generic]", start: int, length: int) -> npt.NDArray[Any]:
    return np.frombuffer(buffer, dtype=dtype)[start : start + length]
