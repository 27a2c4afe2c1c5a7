"""Compares the table with the stream: nothing is published after rows that differ."""

from ucs_pipeline.entries.batches import Batch
from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.ordered.plan import Plan, changed, differs
from ucs_pipeline.stream.comparer import StreamComparer
from ucs_pipeline.stream.stream import OrderedStream


class PrefixCheck:
    """Compares the rows up to a stream's last ID, in order. Trimmed entries cannot be compared."""

    def __init__(self, feed: Feed, stream: OrderedStream, comparer: StreamComparer, course: Plan) -> None:
        self._feed = feed
        self._stream = stream
        self._comparer = comparer
        self._top = course.top
        self._first, self._end = course.scan_from, course.last
        self._last: EntryId | None = None

    def check(self, transaction: Batch) -> None:
        """Compares rows with the entries of the same ids.

        Raises:
            StreamError: an entry differs from its row, or a brick has another number of rows.
            StreamUnavailableError: Redis lost entries meanwhile.
        """
        entries, start, stop = transaction.entries, transaction.start, transaction.stop
        if not self._comparer.holds(entries, start, stop):
            self._compare_each(transaction)
        for segment in entries.within(start, stop):
            if self._last and self._last.ordinal != segment.first.ordinal:
                self._check_rows(self._last)
            self._last = segment.last

    def finish(self) -> None:
        """Checks the last brick; to be called before anything is published.

        Raises:
            StreamError: the table has fewer rows up to the stream's last ID than the stream.
        """
        if self._last:
            self._check_rows(self._last)
        reached = self._last.ordinal if self._last else -1
        scanned = self._first <= self._top.ordinal <= self._end
        if self._top.row and scanned and reached != self._top.ordinal:
            raise changed(self._feed, self._top.ordinal, 0, self._top.row)

    def _check_rows(self, last: EntryId) -> None:
        there = self._top.row if last.ordinal == self._top.ordinal else self._stream.last_row(last.ordinal)
        if there == last.row:
            return
        # Workers trim, and delete from the middle (XACKDEL), while rows are compared.
        state = self._stream.state()
        if there > last.row or state.top < self._top or not state.may_have_had(last):
            self._refuse_less()
            raise changed(self._feed, last.ordinal, last.row, there)

    def _refuse_less(self) -> None:
        """Raises if entries were lost, so that they do not count as changed rows.

        Raises:
            StreamUnavailableError: the stream's last ID is lower than when it was read.
        """
        # If two servers are promoted one after the other, a connection may still lead to the first.
        self._stream.reconnect()
        if (top := self._stream.state().top) < self._top:
            raise self._stream.lost(self._top, top)

    def _compare_each(self, transaction: Batch) -> None:
        table = transaction.entries.fields(transaction.start, transaction.stop)
        for entry_id, fields in self._stream.walk(*transaction.ids):
            if (row := table.get(entry_id)) != fields:
                raise differs(self._feed, entry_id, fields, row)
