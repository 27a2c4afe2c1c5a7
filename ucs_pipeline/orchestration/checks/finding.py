"""One check of a feed, and its outcome. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ucs_pipeline.errors import counted

if TYPE_CHECKING:
    from ucs_pipeline.orchestration.checks.facts import CheckInputs


class Check(NamedTuple):
    """One of the checks of a feed."""

    name: str
    description: str
    serious: bool
    """Whether a failure breaks the feed's guarantee, and is not only about its table."""
    code: str
    """Ends the message of a failure; see `docs/reference/messages.md`."""


ALL_ROWS_ARRIVED = Check(
    "all_rows_arrived",
    "Every materialized brick has the rows and the content in the table that were recorded when it was published, and "
    "the entries that are still in the stream equal the table, byte for byte.",
    True,
    "UCS-CHECK-ROWS",
)


NO_GAPS = Check("no_gaps", "Every brick below the newest materialized one is materialized.", True, "UCS-CHECK-GAPS")


NO_LATE_ROWS = Check(
    "no_late_rows",
    "No materialized brick has grown or changed in the table since it was published.",
    False,
    "UCS-CHECK-LATE",
)


NO_UNASSIGNED_ROWS = Check(
    "no_unassigned_rows",
    "Every row's key is in a brick of the feed: none is NULL, negative or outside the brick range.",
    False,
    "UCS-CHECK-UNASSIGNED",
)


STREAM_NOT_BEHIND = Check(
    "stream_not_behind", "The stream reaches the last recorded entry: Redis has lost nothing.", True, "UCS-CHECK-BEHIND"
)


CHECKS = (ALL_ROWS_ARRIVED, NO_GAPS, NO_LATE_ROWS, NO_UNASSIGNED_ROWS, STREAM_NOT_BEHIND)


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check."""

    check: Check
    sentence: str
    """What was found, what was expected and, if that is not the same, what to do."""
    figures: Mapping[str, int | str]
    columns: Sequence[str]
    """Names of an offender's parts."""
    offenders: Sequence[Sequence[int | str]]
    """The problems, in order; the first ones if they are many."""
    more: int = 0
    """Offenders beyond those."""
    warning: str | None = None

    @property
    def message(self) -> str:
        """The text and, if the check failed, its code."""
        return self.sentence if self.passed else f"{self.sentence} [{self.check.code}]"

    @property
    def passed(self) -> bool:
        """Whether the check passed."""
        return not self.offenders


def finished(facts: "CheckInputs") -> str:
    """The start of a message about finished bricks."""
    number, unit = len(facts.records), facts.feed.partitions.unit
    return f"feed {facts.feed.name!r}: {counted(number, unit)} {'is' if number == 1 else 'are'} materialized"
