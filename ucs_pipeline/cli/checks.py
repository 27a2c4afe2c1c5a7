"""`ucs check`, `ucs status`, `ucs metrics` and `ucs verify`."""

import dataclasses
import json
import sys
from contextlib import ExitStack

import click
import dagster as dg

from ucs_pipeline.cli.output import print_findings, print_statuses, print_verdict
from ucs_pipeline.errors import counted
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.operations.metrics import FeedFigures, feed_figures, prometheus_text
from ucs_pipeline.orchestration._dagster import disable_dagster_warnings
from ucs_pipeline.orchestration.checks.facts import collect
from ucs_pipeline.orchestration.checks.findings import findings
from ucs_pipeline.orchestration.resources import open_feed
from ucs_pipeline.orchestration.status import feed_statuses
from ucs_pipeline.project.feeds import feed_named, resources_of, use_project_home
from ucs_pipeline.project.files import check as check_feeds
from ucs_pipeline.project.locations import locations


@click.command()
def check() -> None:
    """Check the settings of every feed of the code location. Connects to nothing."""
    with disable_dagster_warnings():
        feeds, mistakes = check_feeds()
    for mistake in mistakes:
        click.echo(mistake)
    if mistakes:
        sys.exit(2)
    click.echo(
        f"{counted(len(feeds), 'feed')} {'is' if len(feeds) == 1 else 'are'} valid: {', '.join(feeds) or 'none'}"
    )


@click.command()
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
    """Show the progress of every feed: materialized bricks, entries in its stream, entries to be read by consumers."""
    use_project_home()
    if form == "prometheus" and not as_json:
        _print_metrics()
        return
    found = []
    with dg.DagsterInstance.get() as instance:
        for location in locations():
            with location.each_resource(feed.redis for feed in location.feeds) as resources:
                found += feed_statuses(location.feeds, instance, resources)
    if as_json or form == "json":
        click.echo(json.dumps([dataclasses.asdict(feed) for feed in found], indent=2))
    else:
        print_statuses(found)


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Serve the metrics at http://HOST:PORT/metrics, and /health, until SIGTERM or Ctrl-C.",
)
@click.option(
    "--table-every",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="With --listen: at this interval, count the rows of each table that are not in the stream. Left out, no table "
    "is queried, and ucs_lag_rows and ucs_lag_seconds are not there.",
)
def metrics(listen: str | None, table_every: float | None) -> None:
    """Print or serve metrics of every feed as Prometheus reads them."""
    if table_every and not listen:
        raise click.UsageError("--table-every needs --listen")
    use_project_home()
    if listen:
        _serve(listen, table_every)
    else:
        _print_metrics()


def _print_metrics() -> None:
    found: list[FeedFigures] = []
    with dg.DagsterInstance.get() as instance:
        for location in locations():
            with location.each_resource(feed.redis for feed in location.feeds) as resources:
                found += feed_figures(location.feeds, instance, resources)
    click.echo(prometheus_text(found), nl=False)
    # Problems are no metrics. Each is printed once, even if it concerns every feed.
    for problem in dict.fromkeys(figures.status.problem for figures in found if figures.status.problem):
        click.echo(f"ucs: {problem}", err=True)


def _serve(listen: str, table_every: float | None) -> None:
    # Imports an HTTP server, which no other command needs.
    from ucs_pipeline.operations.metrics_server import FeedCollector, MetricsServer, TableChecks, address, problems

    def log(problem: str) -> None:
        click.echo(f"ucs: {problem}", err=True)

    try:
        address(listen)
        with ExitStack() as opened:
            instance = opened.enter_context(dg.DagsterInstance.get())
            feeds = []
            for location in locations():
                keys = {
                    key for feed in location.feeds for key in (feed.redis, *([feed.clickhouse] * bool(table_every)))
                }
                feeds.append((location.feeds, opened.enter_context(location.each_resource(keys))))
            tables = TableChecks(feeds, table_every, log) if table_every else None
            collector = FeedCollector(feeds, instance, log, tables)
            server = MetricsServer(listen, collector, lambda: problems(feeds, instance))
            if tables:
                opened.callback(tables.end)
                tables.start()
            click.echo(f"serving {server.url}/metrics and {server.url}/health")
            server.serve()
    except KeyboardInterrupt:
        return


@click.command()
@click.argument("feed")
def verify(feed: str) -> None:
    """Compare every row of FEED with its entry in the stream, and run its checks.

    Exits with 0 only if table and stream agree and every check passes.
    """
    use_project_home()
    well, whole = True, feed_named(feed)
    with dg.DagsterInstance.get() as instance, resources_of(whole) as resources:
        for chosen in streams_of(whole):
            source, stream = open_feed(chosen, resources)
            warning = source.warning()
            facts = collect(chosen, source, stream, instance, held_only=False)
            found = findings(facts, warning)
            print_verdict(chosen, facts.verdict, unassigned=sum(facts.census.unassigned.values()))
            print_findings(found)
            well &= facts.verdict.agrees and all(finding.passed for finding in found)
    sys.exit(0 if well else 1)
