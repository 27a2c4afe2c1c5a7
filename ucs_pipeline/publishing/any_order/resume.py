"""Compares the table with the ledger: nothing is published after rows that differ."""

from collections.abc import Mapping

from ucs_pipeline.entries.batches import PartitionSlice
from ucs_pipeline.entries.display import content_shown
from ucs_pipeline.entries.encode import Entries
from ucs_pipeline.errors import StreamError, counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.stream.ledger import LedgerEntry, ResumePoint


class ResumeCheck:
    """Skips the rows that are in the stream, partition by partition, and compares their content with the ledger's."""

    def __init__(self, feed: Feed, openings: Mapping[int, ResumePoint]) -> None:
        """`openings`: resume points by start."""
        self._feed = feed
        self._openings = openings
        self._seen: dict[int, tuple[int, int]] = {}

    def there(self, entries: Entries, rows: PartitionSlice) -> int:
        """How many of these rows, the next ones of their partition, are in the stream.

        Raises:
            StreamError: they differ from the ledger, or are more than when the partition was finished.
        """
        account = self._openings[rows.partition].account
        seen, content = self._seen.get(rows.partition, (0, 0))
        number = min(account.rows - seen, rows.number)
        content = (content + entries.content_hash(rows.start, rows.start + number)) % 2**64
        self._seen[rows.partition] = seen + number, content
        if number and seen + number == account.rows and content != account.content_hash:
            raise self._changed(rows.partition, account, f"content {content_shown(account.rows, content)}")
        if account.done and number < rows.number:
            raise self._changed(rows.partition, account, "more rows")
        return number

    def finished(self, before: int | None = None) -> list[int]:
        """The partitions that are complete in the stream, but open in the ledger; those up to one, or all.

        Raises:
            StreamError: the table has fewer rows of one than the ledger.
        """
        found = []
        for start, (_, account) in self._openings.items():
            if start == before:
                break
            seen, _ = self._seen.get(start, (0, 0))
            if seen < account.rows:
                raise self._changed(start, account, counted(seen, "row"))
            if account.rows and not account.done:
                found.append(start)
        return found

    def _changed(self, start: int, account: LedgerEntry, found: str) -> StreamError:
        part, way_out = "first ", "publish to another `stream.name`"
        if account.done:
            part, way_out = "", "launch the brick with `replay: true`, which publishes all its rows once more"
        return StreamError(
            f"feed {self._feed.name!r}: brick {self._feed.partitions.name(start)} changed after it was published. The "
            f"table has {found}, expected the {part}{content_shown(account.rows, account.content_hash)} that stream "
            f"{self._feed.stream_name!r} has by its ledger. Restore the table's rows, or {way_out}.",
            "UCS-BRICK-CHANGED",
        )
