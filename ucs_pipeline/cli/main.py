"""The command `ucs`. Each command imports what it needs, so that `ucs --help` answers at once."""

import os
import sys
from typing import NoReturn

import click

from ucs_pipeline import __version__
from ucs_pipeline.errors import UcsError


@click.group()
@click.version_option(__version__)
def ucs() -> None:
    """Moves ClickHouse tables into Redis streams, brick by brick, exactly once, in order."""


@ucs.command()
def demo() -> None:
    """Publish 336,776 real flights, the weather and the planes through Dagster, and prove that they arrived.

    Reads the embedded ClickHouse engine, or the server at UCS_CLICKHOUSE_URL; writes to the embedded redis-server,
    or to the one at UCS_REDIS_URL. Exits with 0 only if table and stream agree.
    """
    from ucs_pipeline.cli.demo import run_demo

    sys.exit(0 if run_demo() else 1)


@ucs.command()
def check() -> None:
    """Check every feed in ucs_pipeline/defs, and say what is wrong with each. Connects to nothing."""
    from ucs_pipeline.orchestration._dagster import disable_dagster_warnings
    from ucs_pipeline.project.files import check as check_feeds

    with disable_dagster_warnings():
        feeds, mistakes = check_feeds()
    for mistake in mistakes:
        click.echo(mistake)
    if mistakes:
        sys.exit(2)
    click.echo(f"{len(feeds)} {'feed is' if len(feeds) == 1 else 'feeds are'} right: {', '.join(feeds) or 'none'}")


@ucs.command()
@click.argument("feed")
def verify(feed: str) -> None:
    """Compare every row of FEED with its entry in the stream, and run its checks. Exits with 0 only if all is well."""
    import dagster as dg

    from ucs_pipeline.cli.output import print_findings, print_verdict
    from ucs_pipeline.clickhouse.source import open_source
    from ucs_pipeline.feed.shards import streams_of
    from ucs_pipeline.orchestration.checks.facts import collect
    from ucs_pipeline.orchestration.checks.findings import findings
    from ucs_pipeline.project.feeds import feed_named, use_project_home
    from ucs_pipeline.redis.connection import connect_redis
    from ucs_pipeline.stream.stream import open_stream

    use_project_home()
    well = True
    with dg.DagsterInstance.get() as instance:
        for chosen in streams_of(feed_named(feed)):
            source, stream = open_source(chosen), open_stream(chosen, connect_redis(chosen.stream_name))
            warning = source.warning()
            facts = collect(chosen, source, stream, instance, held_only=False)
            found = findings(facts, warning)
            print_verdict(chosen, facts.verdict, unassigned=sum(facts.census.unassigned.values()))
            print_findings(found)
            well &= facts.verdict.agrees and all(finding.passed for finding in found)
    sys.exit(0 if well else 1)


@ucs.command()
@click.option(
    "--format",
    "form",
    default="table",
    show_default=True,
    type=click.Choice(["table", "json", "prometheus"]),
    help="Print a table, one JSON list, or metrics as Prometheus reads them.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def status(form: str, as_json: bool) -> None:
    """Show where every feed is: bricks done, what its stream holds, what its consumers have yet to read."""
    import dataclasses
    import json

    import dagster as dg

    from ucs_pipeline.cli.output import print_statuses
    from ucs_pipeline.orchestration.status import feed_statuses
    from ucs_pipeline.project.feeds import all_feeds, use_project_home

    use_project_home()
    with dg.DagsterInstance.get() as instance:
        found = feed_statuses(all_feeds(), instance)
    if as_json or form == "json":
        click.echo(json.dumps([dataclasses.asdict(feed) for feed in found], indent=2))
    elif form == "prometheus":
        from ucs_pipeline.operations.metrics import prometheus_text

        click.echo(prometheus_text(found), nl=False)
        # Texts are no metrics. Each is said once, though it may be that of every feed.
        for problem in dict.fromkeys(feed.problem for feed in found if feed.problem):
            click.echo(f"ucs: {problem}", err=True)
    else:
        print_statuses(found)


@ucs.command()
@click.argument("feed")
@click.argument("brick", required=False)
@click.option("--rows", default=20, show_default=True, type=click.IntRange(min=0), help="Rows to show, at most.")
@click.option("--csv", "as_csv", is_flag=True, help="Write all rows to stdout as CSV instead; NULL is \\N.")
def read(feed: str, brick: str | None, rows: int, as_csv: bool) -> None:
    """Show the entries of BRICK in the stream of FEED; without BRICK, all of FEED in the order of its table.

    The streams of a feed with several are merged, as far as no row is missing between two of them. An any-order feed is
    shown in the order of its stream, unless others write to it as well.
    """
    from ucs_pipeline.cli.entry_tables import print_brick, print_entries, write_csv, write_entries
    from ucs_pipeline.feed.feed import start_in
    from ucs_pipeline.feed.shards import stream_with
    from ucs_pipeline.project.feeds import feed_named, use_project_home
    from ucs_pipeline.reading.brick import read_brick

    use_project_home()
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


@ucs.command()
@click.argument("feed")
@click.argument("last_brick")
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    help="Rows of the brick after LAST_BRICK, by key, that were handled too. Left out, they are found by the entries.",
)
def adopt(feed: str, last_brick: str, rows: int | None) -> None:
    """Take over from another program: record the bricks of FEED up to LAST_BRICK as done without publishing them.

    LAST_BRICK is a name (0.0.0.299) or, of number bricks, the plain number (299). The stream of FEED begins after them:
    a new one or, with `stream.id_offset`, that of the other program, whose entries are compared with the table. Broken
    off, or after the stream was lost, run it again.
    """
    import dagster as dg

    from ucs_pipeline.cli.output import bar, console
    from ucs_pipeline.clickhouse.source import open_source
    from ucs_pipeline.feed.feed import last_whole_in
    from ucs_pipeline.feed.shards import streams_of
    from ucs_pipeline.operations.adopt import adopt as adopt_bricks
    from ucs_pipeline.project.feeds import feed_named, use_project_home
    from ucs_pipeline.redis.connection import connect_redis
    from ucs_pipeline.stream.stream import open_stream

    use_project_home()
    whole = feed_named(feed)
    start = last_whole_in(whole, last_brick)
    bricks = len(whole.numbering.between(whole.numbering.first, start))
    # A shard that none of the bricks is dealt to has nothing to adopt.
    parts = [(part, adopted[-1]) for part in streams_of(whole) if (adopted := part.numbering.between(0, start))]
    if rows and len(parts) > 1:
        raise UcsError(
            f"feed {whole.name!r} has {len(parts)} shards, and `--rows` is about one: adopt each by its own name, such "
            f"as {parts[0][0].name}"
        )
    if sys.stdin.isatty():
        names = " and ".join(repr(part.stream_name) for part, _ in parts)
        click.confirm(
            f"Record {bricks:,} bricks of feed {whole.name!r} as done, without publishing them, and begin stream "
            f"{names} after {whole.numbering.name(start)}?",
            abort=True,
        )
    for chosen, last in parts:
        total = len(chosen.numbering.between(0, last))
        with dg.DagsterInstance.get() as instance, bar("recording bricks", total) as recorded:
            found = adopt_bricks(
                chosen,
                chosen.numbering.name(last),
                open_source(chosen),
                open_stream(chosen, connect_redis(chosen.stream_name)),
                instance,
                recorded,
                rows,
            )
        half = chosen.numbering.next(last)
        where = f"after {found.top}"
        if half is not None and found.top.ordinal >= half:
            where += f", row {found.top.row:,} of brick {chosen.numbering.brick_name(found.top.ordinal)}"
        console.print(
            f"recorded {found.bricks:,} bricks with {found.rows:,} rows ({found.before:,} were recorded before); "
            f"stream {chosen.stream_name!r} goes on {where}",
            markup=False,
        )


@ucs.command()
@click.option(
    "--days", default=30, show_default=True, type=click.IntRange(min=1), help="Keep runs that ended since so many days."
)
@click.option("--dry-run", is_flag=True, help="Only say how many runs would be deleted.")
def prune(days: int, dry_run: bool) -> None:
    """Delete old runs of the feeds, and the files they left. Runs that a brick is recorded by stay."""
    from datetime import UTC, datetime, timedelta

    import dagster as dg

    from ucs_pipeline.operations.prune import prune as prune_runs
    from ucs_pipeline.project.feeds import all_feeds, use_project_home

    use_project_home()
    before = datetime.now(tz=UTC) - timedelta(days=days)
    with dg.DagsterInstance.get() as instance:
        found = prune_runs(all_feeds(), instance, before, dry_run=dry_run)
    click.echo(
        f"{'would delete' if dry_run else 'deleted'} {found.deleted:,} runs that ended before {before:%Y-%m-%d %H:%M} "
        f"UTC; kept {found.kept:,}, by which bricks or checks are recorded"
    )


@ucs.command()
def stop() -> None:
    """Stop the embedded redis-server. Its data stays; the next command starts it again."""
    import dagster as dg

    from ucs_pipeline.orchestration.status import publishing
    from ucs_pipeline.project.feeds import use_project_home
    from ucs_pipeline.redis.embedded_server import stop_embedded_redis

    if not stop_embedded_redis():
        click.echo("no embedded redis-server is running")
        return
    click.echo("stopped the embedded redis-server")
    use_project_home()
    with dg.DagsterInstance.get() as instance:
        runs = publishing(instance)
    if runs:
        click.echo(
            f"{runs:,} run{'s are' if runs > 1 else ' is'} publishing, and will wait for it for as long as "
            "`stream.timeout_s` says; `ucs status` starts it again"
        )


def main() -> NoReturn:
    """Entry point: a user's mistake ends with one sentence and exit code 2, never with a traceback."""
    # What Dagster keeps, rows and logs among it, is its owner's.
    os.umask(0o077)
    try:
        # Without a command, click would take the help for what is wrong.
        ucs(sys.argv[1:] or ["--help"], prog_name="ucs", standalone_mode=False)
    except click.Abort:  # what click makes of Ctrl-C
        click.echo("ucs: stopped; what is in the stream stays, and the same command goes on from there", err=True)
        sys.exit(130)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        click.echo(f"{context.command_path if context else 'ucs'}: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except UcsError as error:
        click.echo(f"ucs: {error}", err=True)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
