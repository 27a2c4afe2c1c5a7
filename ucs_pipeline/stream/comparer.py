"""Rows of the table compared with the entries of the same ids, as bytes."""

import hiredis
from typing_extensions import Self

from ucs_pipeline.entries.encode import Entries
from ucs_pipeline.entries.resp import command
from ucs_pipeline.redis.connection import classify
from ucs_pipeline.redis.raw_connection import RawConnection
from ucs_pipeline.stream.stream import OrderedStream


class StreamComparer:
    """Compares rows with the entries of the same ids, as bytes, over a connection of its own."""

    def __init__(self, stream: OrderedStream) -> None:
        self._stream = stream
        self._wire = RawConnection(stream.client)
        self._key = stream.name.encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._wire.close()

    def holds(self, entries: Entries, start: int, stop: int) -> bool:
        """Whether the stream holds exactly these rows, byte for byte."""
        first, last = entries.id(start), entries.id(stop - 1)
        self._wire.send([command(b"XRANGE", self._key, str(first).encode(), str(last).encode())])
        expected = b"".join((b"*%d\r\n" % (stop - start), entries.views.rows(start, stop)))
        answer = self._wire.expect(expected)
        if isinstance(answer, hiredis.ReplyError):
            raise self._stream.named(classify(str(answer)))
        if not answer:
            # A different reply may be of any size: it is not read here, but in pages on another connection.
            self._wire.close()
            self._wire = RawConnection(self._stream.client)
        return answer
