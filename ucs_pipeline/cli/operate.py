"""`ucs adopt`, `ucs prune` and `ucs stop`."""

import sys
from datetime import datetime, timedelta, timezone

import click
import dagster as dg

from ucs_pipeline.cli.output import bar, console
from ucs_pipeline.errors import UcsError, counted
from ucs_pipeline.feed.feed import last_whole_in
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.operations.adopt import adopt as adopt_bricks
from ucs_pipeline.operations.prune import prune as prune_runs
from ucs_pipeline.orchestration.resources import open_feed
from ucs_pipeline.orchestration.status import publishing
from ucs_pipeline.project.feeds import all_feeds, feed_named, resources_of, use_project_home
from ucs_pipeline.redis.embedded_server import stop_embedded_redis


@click.command()
@click.argument("feed")
@click.argument("last_brick")
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    help="Rows of the brick after LAST_BRICK, in key order, that were handled too. Left out, the entries decide.",
)
def adopt(feed: str, last_brick: str, rows: int | None) -> None:
    """Continue after a previous writer: record the bricks of FEED up to LAST_BRICK without publishing them.

    LAST_BRICK is a name (0.0.0.299) or, for number bricks, a plain number (299). The stream of FEED begins after
    LAST_BRICK: a new stream or, with `stream.id_offset`, the stream of the previous writer, whose entries are compared
    with the table. If the command was stopped, or the stream was lost, run the command again.
    """
    use_project_home()
    whole = feed_named(feed)
    start = last_whole_in(whole, last_brick)
    bricks = len(whole.partitions.between(whole.partitions.first, start))
    # A shard that none of the bricks is assigned to has nothing to adopt.
    parts = [(part, adopted[-1]) for part in streams_of(whole) if (adopted := part.partitions.between(0, start))]
    if rows and len(parts) > 1:
        raise UcsError(
            f"feed {whole.name!r} has {len(parts)} stream shards, and `--rows` is about one. Adopt each shard by its "
            f"name, such as {parts[0][0].name}."
        )
    if sys.stdin.isatty():
        names = " and ".join(repr(part.stream_name) for part, _ in parts)
        click.confirm(
            f"Record {counted(bricks, whole.partitions.unit)} of feed {whole.name!r} without publishing them, and "
            f"begin stream {names} after {whole.partitions.name(start)}?",
            abort=True,
        )
    for chosen, last in parts:
        total = len(chosen.partitions.between(0, last))
        with (
            dg.DagsterInstance.get() as instance,
            resources_of(chosen) as resources,
            bar("recording bricks", total) as recorded,
        ):
            found = adopt_bricks(
                chosen,
                chosen.partitions.name(last),
                *open_feed(chosen, resources),
                instance,
                recorded,
                rows,
            )
        half, unit = chosen.partitions.next(last), chosen.partitions.unit
        where = f"after {found.top}"
        if half is not None and found.top.ordinal >= half:
            where += f", row {found.top.row:,} of brick {chosen.partitions.brick_name(found.top.ordinal)}"
        console.print(
            f"recorded {counted(found.bricks, unit)} with {counted(found.rows, 'row')} ({found.before:,} recorded "
            f"before); stream {chosen.stream_name!r} continues {where}",
            markup=False,
        )


@click.command()
@click.option(
    "--days",
    default=30,
    show_default=True,
    type=click.IntRange(min=1),
    help="Keep runs that ended in the last DAYS days.",
)
@click.option("--dry-run", is_flag=True, help="Only print how many runs would be deleted.")
def prune(days: int, dry_run: bool) -> None:
    """Delete old runs of the feeds and their files. Runs that hold the latest record of a brick or a check stay."""
    use_project_home()
    before = datetime.now(tz=timezone.utc) - timedelta(days=days)
    with dg.DagsterInstance.get() as instance:
        found = prune_runs(all_feeds(), instance, before, dry_run=dry_run)
    click.echo(
        f"{'would delete' if dry_run else 'deleted'} {counted(found.deleted, 'run')} that ended before "
        f"{before:%Y-%m-%d %H:%M} UTC; kept {found.kept:,} with records of bricks or checks"
    )


@click.command()
def stop() -> None:
    """Stop the embedded redis-server. Its data stays; the next command starts it again."""
    if not stop_embedded_redis():
        click.echo("no embedded redis-server is running")
        return
    click.echo("stopped the embedded redis-server")
    use_project_home()
    with dg.DagsterInstance.get() as instance:
        runs = publishing(instance)
    if runs:
        click.echo(
            f"{counted(runs, 'run')} {'is' if runs == 1 else 'are'} publishing, and will wait for it for "
            "`stream.timeout_s` seconds. `ucs status` starts it again."
        )
