"""`ucs read`: what the stream holds."""

import sys

import click

from ucs_pipeline.cli.entry_tables import print_brick, print_entries, write_csv, write_entries
from ucs_pipeline.feed.feed import start_in
from ucs_pipeline.feed.shards import stream_with
from ucs_pipeline.orchestration._dagster import disable_dagster_warnings
from ucs_pipeline.project.feeds import feed_named
from ucs_pipeline.project.readers import read_brick


@click.command()
@click.argument("feed")
@click.argument("brick", required=False)
@click.option("--rows", default=20, show_default=True, type=click.IntRange(min=0), help="Show at most this many rows.")
@click.option("--csv", "as_csv", is_flag=True, help="Write all rows to stdout as CSV instead; NULL is \\N.")
def read(feed: str, brick: str | None, rows: int, as_csv: bool) -> None:
    """Show the entries of BRICK in the stream of FEED; without BRICK, all entries of FEED in the order of its table.

    Stream shards are merged up to the first missing row. An any-order feed is shown in the order of its stream, unless
    other clients write to the stream.
    """
    with disable_dagster_warnings():
        chosen = feed_named(feed)
    if brick is None:
        if as_csv:
            write_entries(chosen, sys.stdout.buffer)
        else:
            print_entries(chosen, rows)
        return
    frame = read_brick(chosen, brick)
    if as_csv:
        write_csv(frame, sys.stdout.buffer)
    else:
        start = start_in(chosen, brick)
        print_brick(frame, brick, stream_with(chosen, start).stream_name, rows, None if chosen.any_order else start)
