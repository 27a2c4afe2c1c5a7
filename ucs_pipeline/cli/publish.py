"""`ucs publish`: bricks of a feed, from cron or by hand."""

import sys

import click

from ucs_pipeline.cli.output import console, print_line, row_bar
from ucs_pipeline.errors import counted
from ucs_pipeline.project import publish as by_name

NOTHING_TO_DO = 3
"""Exit code if no brick comes next now."""


@click.command()
@click.argument("feed")
@click.argument("bricks", required=False, metavar="[FIRST[...LAST]]")
@click.option("--next", "most", type=click.IntRange(min=1), help="Publish at most this many of the next partitions.")
@click.option("--replay", is_flag=True, help="For an any-order feed: publish materialized bricks once more.")
@click.option("--launch", is_flag=True, help="Create a backfill for Dagster's daemon, as the UI does.")
def publish(feed: str, bricks: str | None, most: int | None, replay: bool, launch: bool) -> None:
    """Publish bricks of FEED. Dagster records them as it records the runs of the feed's sensor.

    FIRST and LAST are names (0.0.0.12...0.0.0.33) or, for number bricks, plain numbers (12...33). Without FIRST, the
    command publishes all sealed bricks that come next.

    Exits with 0 if the bricks are in the stream, 2 if the bricks are refused, 3 if there is nothing to do now, and 75
    if ClickHouse or Redis is unavailable or the stream is full.
    """
    first, dots, last = (bricks or "").partition("...")
    if bricks and not (first and (last or not dots)):
        raise click.UsageError(f"{bricks!r} is not a brick range. Expected FIRST...LAST.", click.get_current_context())
    named = (first or None, last or None)
    if launch:
        _launch(feed, *named, most, replay=replay)
        return
    bar, say = (row_bar, print_line) if console.is_terminal else (None, None)
    done = by_name.publish(feed, *named, most, replay=replay, bar=bar, say=say)
    if not done.runs:
        click.echo(done.reason)
        sys.exit(NOTHING_TO_DO)
    unit, stream = done.feed.partitions.unit, done.feed.stream_name
    if done.rows:
        before = f"; {counted(done.in_stream, unit)} already in stream {stream!r}" if done.in_stream else ""
        bricks, rows = counted(done.bricks - done.in_stream, unit), counted(done.rows, "row")
        text = f"published {bricks} with {rows} in {done.seconds:.1f} s{before}"
    else:
        text = f"nothing to add: {counted(done.bricks, unit)} already in stream {stream!r}, or without rows"
    click.echo(f"feed {feed!r}: {text}")


def _launch(feed: str, first: str | None, last: str | None, most: int | None, *, replay: bool) -> None:
    made = by_name.launch(feed, first, last, most, replay=replay)
    if not made.backfills:
        click.echo(made.reason)
        sys.exit(NOTHING_TO_DO)
    for backfill, bricks in made.backfills.items():
        click.echo(f"feed {feed!r}: launched backfill {backfill} of {bricks}; in the UI: /runs/b/{backfill}")
