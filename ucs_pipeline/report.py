"""What the command line prints."""

from rich.console import Console
from rich.table import Table

from ucs_pipeline.feed import BrickFeed
from ucs_pipeline.verify import Verdict

console = Console(highlight=False, soft_wrap=True)


def print_verdict(feed: BrickFeed, verdict: Verdict, *more: tuple[str, str]) -> None:
    """Prints a comparison of table and stream, after some rows of the caller's own."""
    table = Table(
        title=f"{feed.name}: table {feed.table} -> stream {feed.stream_name}", title_justify="left", show_header=False
    )
    table.add_column(justify="left")
    table.add_column(justify="right")
    figures = [
        *more,
        ("rows in the table", f"{verdict.rows:,}"),
        ("equal in the stream", f"{verdict.equal:,}"),
        ("different", f"{verdict.different:,}"),
        ("missing", f"{verdict.missing:,}"),
        ("trimmed since", f"{verdict.trimmed:,}"),
        ("entries of something else", f"{verdict.extra:,}"),
    ]
    for name, value in figures:
        table.add_row(name, value)
    verdict_text = "[green]table and stream agree[/]" if verdict.agrees else "[red]table and stream DO NOT agree[/]"
    table.add_row("verdict", verdict_text)
    console.print(table)
    for example in verdict.examples:
        console.print(f"  {example}", markup=False)
