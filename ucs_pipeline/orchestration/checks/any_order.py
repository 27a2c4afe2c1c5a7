"""Results of checks that differ for an any-order feed. Pure."""

from typing import TYPE_CHECKING

from ucs_pipeline.entries.display import content_shown, ranges
from ucs_pipeline.orchestration.checks.finding import NO_GAPS, STREAM_NOT_BEHIND, CheckResult, finished

if TYPE_CHECKING:
    from ucs_pipeline.orchestration.checks.facts import CheckInputs


def gaps_allowed(facts: "CheckInputs") -> CheckResult:
    """Counts bricks that were left out, which is allowed."""
    figures: dict[str, int | str] = {"bricks_recorded": len(facts.records), "bricks_missing": len(facts.gaps)}
    text = f"{finished(facts)}. {len(facts.gaps):,} before the newest are not, which an any-order feed allows."
    return CheckResult(NO_GAPS, text, figures, ("brick", "rows in the table"), ())


def ledger_not_behind(facts: "CheckInputs") -> CheckResult:
    """Finds recorded bricks that differ from the ledger."""
    feed, accounts = facts.feed, facts.accounts or {}
    wrong = [
        ordinal
        for ordinal, record in sorted(facts.records.items())
        if record.rows and (ordinal not in accounts or not accounts[ordinal].done)
    ]
    figures: dict[str, int | str] = {
        "bricks_in_ledger": len(accounts),
        "rows_in_ledger": sum(account.rows for account in accounts.values()),
        "bricks_lost": len(wrong),
    }
    ledger = f"the ledger of stream {feed.stream_name!r}"
    if not wrong:
        text = f"{finished(facts)}, and {ledger} has them all."
    else:
        text = (
            f"{finished(facts)}, but {ledger} lacks {len(wrong):,} of them. Redis lost entries, or the stream was "
            f"deleted. Launch {ranges(feed.partitions, wrong)}, which publishes the missing rows."
        )
    offenders = [
        (
            feed.partitions.name(ordinal),
            facts.records[ordinal].rows,
            content_shown(accounts[ordinal].rows, accounts[ordinal].content_hash) if ordinal in accounts else "nothing",
        )
        for ordinal in wrong
    ]
    return CheckResult(STREAM_NOT_BEHIND, text, figures, ("brick", "rows recorded", "in the ledger"), offenders)
