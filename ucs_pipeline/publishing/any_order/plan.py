"""Which partitions of an any-order feed are in the stream, and where publishing the others begins. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from ucs_pipeline.entries.display import bricks_are
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.stream.ledger import LedgerEntry, ResumePoint


@dataclass
class LedgerPlan:
    """What to do with the partitions of a request."""

    known: list[BrickReport] = field(default_factory=list)
    """Those that are recorded as done and are in the ledger."""
    groups: list[dict[int, ResumePoint]] = field(default_factory=list)
    """The others by start, consecutive ones together: in each group those that have rows in the stream come first."""
    more: bool = False
    """Whether some of them must be published again after that."""
    lost: str | None = None
    """The message if the ledger has less than is recorded."""


class Replay:
    """A request to publish partitions again.

    Each partition is replayed exactly once per request, also after interruptions. So two concurrent requests make two
    copies, one after the other: a replay of a partition begins only after the previous one, and an interrupted one is
    finished first, for its own request. The request finishes an interrupted first publication as its own.
    """

    def __init__(self, request: str) -> None:
        """`request`: id of the request."""
        # Tags of runs are free text, and the ledger has a space and a comma between two of them.
        self._request = quote(request, safe="")

    def opening(self, account: LedgerEntry | None) -> ResumePoint | None:
        """Where publishing a partition for this request begins; None if it is done, or another request comes first."""
        if account is None:
            return ResumePoint(b"", LedgerEntry(requests=(self._request,)))
        if self._request in account.requests:
            return None
        if account.done:
            return ResumePoint(account.head, account.again(self._request))
        return None if account.requests else ResumePoint(account.head, account._replace(requests=(self._request,)))

    def waits(self, account: LedgerEntry | None) -> bool:
        """Whether another request's replay of a partition must finish before this one begins."""
        return account is not None and not account.done and self._request not in account.requests


def ledger_plan(
    feed: Feed,
    wanted: Sequence[int],
    accounts: Mapping[int, LedgerEntry],
    records: Mapping[int, BrickReport],
    replay: Replay | None = None,
) -> LedgerPlan:
    """Plans a pass over the partitions `wanted`.

    Args:
        feed: the feed.
        wanted: starts of the partitions, consecutive.
        accounts: entries of the ledger.
        records: partitions that are recorded as done.
        replay: the request to publish them again, if any.
    """
    plan = LedgerPlan()
    lost: list[int] = []
    last: int | None = None
    for start in wanted:
        account, record = accounts.get(start), records.get(start)
        opening = replay.opening(account) if replay else None
        if opening is None and record and is_known(record, account):
            plan.known.append(record)
            continue
        if record and is_lost(record, account):
            lost.append(start)
        if opening is None:
            opening = ResumePoint(account.head, account) if account else ResumePoint(b"", LedgerEntry())
            plan.more |= replay is not None and replay.waits(account)
        if last is None or feed.partitions.next(last) != start or _has_to_be_first(opening, plan.groups[-1]):
            plan.groups.append({})
        plan.groups[-1][start] = opening
        last = start
    if lost:
        plan.lost = (
            f"feed {feed.name!r}: {bricks_are(feed.partitions, lost)} recorded, and the ledger of stream "
            f"{feed.stream_name!r} has fewer rows. Redis lost entries, or the stream was deleted. The run publishes "
            "the missing rows again."
        )
    return plan


def is_known(record: BrickReport, account: LedgerEntry | None) -> bool:
    """Whether the ledger matches the record of a partition. A partition without an entry may have had no rows."""
    if account is None:
        return record.adopted or not record.rows
    same = record.content_hash in (None, account.content_hash)
    return account.done and same and (record.rows, record.replay) == (account.rows, account.replay)


def is_lost(record: BrickReport, account: LedgerEntry | None) -> bool:
    """Whether the ledger has fewer rows of a partition than its record."""
    if account is None:
        return not record.adopted and record.rows > 0
    return (account.replay, account.rows) < (record.replay, record.rows)


def _has_to_be_first(opening: ResumePoint, group: Mapping[int, ResumePoint]) -> bool:
    """Whether a partition has rows in the stream, and so cannot follow a partition with rows to publish."""
    return opening.account.rows > 0 and any(not other.account.done for other in group.values())
