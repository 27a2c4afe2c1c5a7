"""What the command line prints."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.checks.finding import CheckResult
from ucs_pipeline.orchestration.status import FeedStatus, Group
from ucs_pipeline.reading.verify import Verdict

_SHOWN = 10
_WIDEST = 10_000
_WIDEST_STATUS = 120

console = Console(highlight=False, soft_wrap=True)


def print_verdict(feed: Feed, verdict: Verdict, *more: tuple[str, str], unassigned: int = 0) -> None:
    """Prints a comparison of table and stream, below rows that the caller gives.

    `unassigned`: rows of the table that are in no brick. The comparison does not cover them.
    """
    table = Table(
        title=f"{feed.name}: table {feed.redacted.table} -> stream {feed.stream_name}",
        title_justify="left",
        show_header=False,
    )
    table.add_column(justify="left")
    table.add_column(justify="right")
    figures = [
        *more,
        ("rows in the feed's bricks", f"{verdict.rows:,}"),
        *([("rows in no brick", f"{unassigned:,}")] if unassigned else []),
        ("equal in the stream", f"{verdict.equal:,}"),
        ("different", f"{verdict.different:,}"),
        ("missing", f"{verdict.missing:,}"),
        ("not published yet", f"{verdict.unpublished:,}"),
        ("trimmed since", f"{verdict.trimmed:,}"),
        *([("deleted by workers", f"{verdict.deleted:,}")] if verdict.deleted else []),
        ("foreign entries", _extra(verdict)),
    ]
    for name, value in figures:
        table.add_row(name, value)
    verdict_text = "[green]table and stream agree[/]" if verdict.agrees else "[red]table and stream DO NOT agree[/]"
    table.add_row("verdict", verdict_text)
    console.print(table)
    for difference in verdict.differences[:_SHOWN]:
        console.print(f"  {difference}", markup=False)


def _extra(verdict: Verdict) -> str:
    if verdict.extra is not None:
        return f"{verdict.extra:,}"
    if verdict.shared:
        return "unknown: other clients may write"
    return "unknown: a previous writer has entries" if verdict.end.others else "unknown: the stream changed"


def print_table(table: Table, widest: int = _WIDEST) -> None:
    """Prints a table: no wider than the terminal or, if the output is none, as wide as its text, up to `widest`."""
    if not console.is_terminal:
        table.width = min(full_width(table), widest)
    console.print(table)


def full_width(table: Table) -> int:
    """Characters a line of the table takes if nothing is wrapped or cut."""
    return console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum


def print_findings(found: Sequence[CheckResult]) -> None:
    """Prints the message of each check, and the first few of its problems."""
    for finding in found:
        console.print(
            f"[green]pass[/] {finding.check.name}" if finding.passed else f"[red]FAIL[/] {finding.check.name}"
        )
        console.print(f"  {finding.message}", markup=False)
        # Totals are about the whole stream, and so about no brick.
        rows = [offender for offender in finding.offenders if offender[0] != ""]
        lines = [_line(finding.columns, offender) for offender in rows[:_SHOWN]]
        if more := len(rows) - len(lines) + finding.more:
            lines.append(f"and {more:,} more")
        lines += [_line(finding.columns, offender) for offender in finding.offenders if offender[0] == ""]
        for line in lines:
            console.print(f"    {line}", markup=False)
        if finding.warning:
            console.print(f"  {finding.warning}", markup=False)


def _line(columns: Sequence[str], offender: Sequence[int | str]) -> str:
    return ", ".join(f"{column}: {part}" for column, part in zip(columns, offender, strict=True) if part != "")


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how much of a total is done, from the first step on: an error comes before it."""
    with ExitStack() as shown:
        progress = Progress(console=console)
        task = progress.add_task(what, total=total)

        def done(number: int) -> None:
            if number and not progress.live.is_started:
                shown.enter_context(progress)
            progress.update(task, completed=number)

        yield done


@contextmanager
def row_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many rows of a total are done, and how long that takes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda rows: progress.update(task, completed=rows)


def print_line(text: str) -> None:
    """Prints a text as it is, above a bar if there is one."""
    console.print(text, markup=False, highlight=False)


def print_statuses(statuses: Sequence[FeedStatus]) -> None:
    """Prints one row per feed."""
    # Few columns with several lines each fit into 80 characters.
    table = Table(show_lines=True)
    for name in ("feed", "bricks", "rows recorded", "stream", "consumer groups"):
        table.add_column(name, overflow="fold")
    for status in statuses:
        bricks = [f"{status.done:,} of {status.bricks:,} done", f"next: {status.next_brick or 'none'}"]
        if status.failed:
            bricks.append(f"{status.failed:,} failed")
        stream = [status.stream, *_stream_lines(status)]
        groups = [_backlog(group) for group in status.redis.groups] if status.redis else []
        cells = (status.feed, "\n".join(bricks), f"{status.rows:,}", "\n".join(stream), "\n".join(groups))
        table.add_row(*map(Text, cells))
    print_table(table, _WIDEST_STATUS)


def _stream_lines(status: FeedStatus) -> list[str]:
    if status.redis is None:
        return [str(status.problem)]
    if status.redis.top is None:
        return ["no entries yet"]
    return [f"{status.redis.length:,} of {status.max_len:,} entries", f"last ID: {status.redis.top}"]


def _backlog(group: Group) -> str:
    undelivered = "?" if group.undelivered is None else f"{group.undelivered:,}"
    return f"{group.name}:\n  {group.pending:,} pending\n  {undelivered} to come"
