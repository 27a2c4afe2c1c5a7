"""Rows as Redis protocol bytes: XADD requests, and the entries in XRANGE's reply.

Everything here works on whole Arrow columns; no Python object is made per row. Protocol: RESP2.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import hiredis
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ucs_pipeline.entries.arrow import Packed, binary, digits, integers, join, numbers, packed
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.entries.resp import bulk
from ucs_pipeline.errors import SourceError

_CRLF = b"\r\n"
_MAX_BYTES = 1 << 26
# The protocol's prefix of an id by its length: two numbers of at most twenty digits and a dash.
_ID_HEADS = binary([b"$%d\r\n" % length for length in range(2 * 20 + 2)])


class BrickSlice(NamedTuple):
    """Consecutive rows of one brick inside `Entries`."""

    start: int
    """Index of the first row in the entries."""
    stop: int
    """Index after the last row."""
    first: EntryId

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def last(self) -> EntryId:
        """Id of the last row."""
        return self.id(self.stop - 1)

    def id(self, index: int) -> EntryId:
        """Id of a row."""
        return EntryId(self.first.ordinal, self.first.row + index - self.start)


class Entries:
    """Consecutive rows in stream order, with the bytes that add them and the bytes that prove that they were added."""

    def __init__(self, stream: bytes, batch: pa.RecordBatch, first_row: int) -> None:
        self.count: int = batch.num_rows
        self._stream = stream
        self._batch = batch
        self._payload = batch.column("payload")
        self._arguments = batch.column("arguments")
        self._keys = batch.column("key")
        self._hashes = numbers(batch.column("hash"))
        self._ordinals = batch.column("ordinal")
        self.segments = _segments(numbers(self._ordinals), first_row)
        self._starts = [segment.start for segment in self.segments]

    def id(self, index: int) -> EntryId:
        """Id of a row."""
        return self.segments[bisect_right(self._starts, index) - 1].id(index)

    def within(self, start: int, stop: int) -> Iterator[BrickSlice]:
        """The rows from `start` up to `stop`, in one segment per brick."""
        if start < stop:
            for position in range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop)):
                segment = self.segments[position]
                low = max(segment.start, start)
                yield BrickSlice(low, min(segment.stop, stop), segment.id(low))

    def key(self, index: int) -> int | bytes:
        """Key of a row: an integer, or text."""
        key: int | bytes = self._keys[index].as_py()
        return key

    def content_hash(self, start: int, stop: int) -> int:
        """Sum modulo 2^64 of the content hashes of the rows from `start` up to `stop`."""
        return int(self._hashes[start:stop].sum(dtype=np.uint64))

    def up_to(self, last: EntryId) -> int:
        """Index after the last row whose id is not above `last`."""
        position = bisect_right(self.segments, last, key=lambda segment: segment.first) - 1
        if position < 0:
            return 0
        segment = self.segments[position]
        below = last.row - segment.first.row + 1 if segment.first.ordinal == last.ordinal else segment.rows
        return segment.start + min(below, segment.rows)

    def size(self, start: int, stop: int) -> int:
        """Bytes of the requests of the rows from `start` up to `stop`."""
        offsets = self.requests.offsets
        return int(offsets[stop]) - int(offsets[start])

    def head(self, stop: int) -> "Entries":
        """The rows before `stop`, one at least."""
        return type(self)(self._stream, self._batch.slice(0, stop), self.segments[0].first.row)

    def longer(self, size: int, start: int) -> Iterator[int]:
        """Indexes of the rows from `start` on whose fields take more bytes than `size`."""
        sizes = np.diff(packed(self._payload).offsets[start:])
        yield from (np.flatnonzero(sizes > size) + start).tolist()

    def lengths(self, index: int) -> list[tuple[bytes, int]]:
        """Names of a row's fields and the bytes of their values, which are not copied."""
        data, position = packed(self._payload).rows(index, index + 1), 0
        ends: list[tuple[int, int]] = []
        while position < len(data):
            head = bytes(data[position : position + 24]).index(_CRLF)
            length = int(bytes(data[position + 1 : position + head]))
            ends.append((position + head + 2, length))
            position += head + length + 4
        return [
            (bytes(data[at : at + name]), value) for (at, name), (_, value) in zip(ends[::2], ends[1::2], strict=True)
        ]

    def fields(self, start: int, stop: int) -> dict[EntryId, dict[bytes, bytes]]:
        """Fields of the rows from `start` up to `stop`, by id. Objects for display: not for the row path."""
        reader = hiredis.Reader()
        reader.feed(bytes(self.requests.rows(start, stop)))
        return {
            self.id(index): dict(zip(arguments[3::2], arguments[4::2], strict=True))
            for index, arguments in enumerate(iter(reader.gets, False), start)
        }

    @cached_property
    def requests(self) -> Packed:
        """One `XADD <stream> <id> <field> <value>...` per row."""
        head = b"\r\n$4\r\nXADD\r\n" + bulk(self._stream)
        return self._rows(self._per_count(b"*", 3, head))

    @cached_property
    def views(self) -> Packed:
        """The bytes of each row in the reply to XRANGE."""
        return self._rows(b"*2\r\n", self._per_count(b"*", 0, _CRLF))

    @cached_property
    def _ids(self) -> pa.Array:
        lengths = [segment.rows for segment in self.segments]
        firsts = np.array([segment.first.row - segment.start for segment in self.segments], dtype=np.int64)
        rows = np.arange(self.count, dtype=np.int64) + np.repeat(firsts, lengths)
        return join(digits(self._ordinals), digits(integers(rows)), b"-")

    @cached_property
    def _id_heads(self) -> pa.Array:
        return _ID_HEADS.take(pc.binary_length(self._ids))

    def _rows(self, head: "pa.Array | bytes", between: "pa.Array | bytes" = b"") -> Packed:
        return packed(join(head, self._id_heads, self._ids, _CRLF, between, self._payload, b""))

    def _per_count(self, lead: bytes, plus: int, tail: bytes) -> "pa.Array | bytes":
        # The count of arguments differs from row to row only where NULLs leave fields out.
        counts = self._arguments
        low, high = pc.min_max(counts).values()
        low, high = low.as_py(), high.as_py()
        if low == high:
            return lead + b"%d" % (low + plus) + tail
        heads = binary([lead + b"%d" % (count + plus) + tail for count in range(low, high + 1)])
        return heads.take(integers(numbers(counts).astype(np.int64) - low))


class UnnumberedEntries(Entries):
    """Rows whose ids Redis assigns. An id here is a row's position in its brick."""

    @cached_property
    def requests(self) -> Packed:
        """One `XADD <stream> * <field> <value>...` per row."""
        head = b"\r\n$4\r\nXADD\r\n" + bulk(self._stream) + bulk(b"*")
        return packed(join(self._per_count(b"*", 3, head), self._payload, b""))


def encode(stream: bytes, batches: Iterator[pa.RecordBatch], kind: type[Entries] = Entries) -> Iterator[Entries]:
    """Entries of an ordered scan, numbered from 1 in every brick.

    Batches have the columns of `clickhouse.sql.queries.scan`. The scan must start at the beginning of a brick.

    Raises:
        SourceError: the scan is not in the order of the bricks.
    """
    ordinal, rows = -1, 0
    for whole in batches:
        for batch in _bounded(whole):
            ordinals = numbers(batch.column("ordinal"))
            first = int(ordinals[0])
            if first < ordinal or bool((ordinals[1:] < ordinals[:-1]).any()):
                raise SourceError(
                    f"The rows for stream {stream.decode(errors='replace')!r} are not in the order of the bricks (near "
                    f"brick number {first}). The table's engine ignores ORDER BY: report it."
                )
            entries = kind(stream, batch, rows + 1 if first == ordinal else 1)
            ordinal, rows = entries.segments[-1].last
            yield entries


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    # Memory follows bytes, not rows: a batch of long values is cut into parts of few bytes, or of one row.
    offsets = packed(batch.column("payload")).offsets
    start = 0
    while start < batch.num_rows:
        fitting = int(np.searchsorted(offsets, int(offsets[start]) + _MAX_BYTES, side="right")) - 1
        stop = max(start + 1, fitting)
        yield batch.slice(start, stop - start)
        start = stop


def _segments(ordinals: npt.NDArray[np.unsignedinteger], first_row: int) -> list[BrickSlice]:
    starts = [0, *(np.flatnonzero(ordinals[1:] != ordinals[:-1]) + 1).tolist()]
    stops = [*starts[1:], len(ordinals)]
    return [
        BrickSlice(start, stop, EntryId(int(ordinals[start]), first_row if start == 0 else 1))
        for start, stop in zip(starts, stops, strict=True)
    ]
