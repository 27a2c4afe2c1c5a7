"""`ucs demo`: publishes real data through the project's Dagster instance, and compares tables and streams."""

import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

import click
import dagster as dg

from ucs_pipeline.cli.demo_data import DATASETS, Dataset, load_data, write_data
from ucs_pipeline.cli.output import console, print_verdict, row_bar
from ucs_pipeline.clickhouse.embedded import tables_dir
from ucs_pipeline.errors import UcsError, counted
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.home import EMBEDDED
from ucs_pipeline.operations.publish import Deployment, run_request
from ucs_pipeline.orchestration.materializations import recorded
from ucs_pipeline.orchestration.resources import clickhouse_server, open_feed, redis_server
from ucs_pipeline.orchestration.sensors.next_bricks import Request
from ucs_pipeline.project.feeds import feed_named, location_of, resources_of, use_project_home
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.ordered.plan import known
from ucs_pipeline.reading.verify import verify
from ucs_pipeline.stream.stream import OrderedStream


@click.command()
def demo() -> None:
    """Publish 336,776 real flights, the weather and the planes through Dagster, and compare tables and streams.

    Reads the embedded ClickHouse engine, or the server at UCS_CLICKHOUSE_URL. Writes to the embedded redis-server, or
    to the server at UCS_REDIS_URL. Exits with 0 only if tables and streams agree.
    """
    sys.exit(0 if run_demo() else 1)


def run_demo() -> bool:
    """Publishes the demo's feeds, reads them back and prints the comparisons. True if tables and streams agree."""
    if find_spec("ucs_pipeline.definitions") is None:
        raise UcsError(
            "The demo is not in the installed package. Clone the repository and run `uv run ucs demo` there.",
            "UCS-EMBEDDED",
        )
    use_project_home()
    feeds = [feed_named(name) for name in DATASETS]
    agree = True
    with dg.DagsterInstance.get() as instance, resources_of(feeds[0]) as resources:
        at = Deployment(location_of(feeds[0]).repository, resources, instance)
        for feed in feeds:
            agree &= _run(feed, at)
        _print_next_steps(feeds[0], redis_server(feeds[0], resources).url)
    return agree


def _run(feed: Feed, at: Deployment) -> bool:
    data = DATASETS[feed.table]
    _prepare_table(data, clickhouse_server(feed, at.resources).url)
    table, stream = open_feed(feed, at.resources)
    before, seconds = _publish(feed, stream, at)
    with row_bar("comparing", data.rows) as compared:
        verdict = verify(feed, table, stream, compared)
    partitions = counted(len(feed.partitions.starts), feed.partitions.unit)
    figures = [("partitions", f"{partitions}, {len(before):,} published before" if before else partitions)]
    if seconds is not None:
        rows = verdict.rows - sum(report.rows for report in before)
        figures += [("seconds", f"{seconds:.1f}"), ("rows per second", f"{rows / seconds:,.0f}")]
    print_verdict(feed, verdict, *figures)
    return verdict.agrees


def _prepare_table(data: Dataset, url: str) -> None:
    if url != EMBEDDED:
        if load_data(data, url):
            console.print(f"created table {data.name} on the ClickHouse server")
        return
    write_data(data, tables_dir())


def _publish(feed: Feed, stream: OrderedStream, at: Deployment) -> tuple[Sequence[BrickReport], float | None]:
    """Runs the feed's asset over its missing bricks. Returns the others, and seconds if it ran."""
    bricks = feed.partitions
    before = known(feed, bricks.starts, stream.state(), recorded(at.instance, feed, bricks.starts))
    if len(before) == len(bricks.starts):
        console.print(f"nothing to do: all {len(before)} {bricks.unit}s are in stream {feed.stream_name!r} already")
        return before, None
    wanted = bricks.starts[len(before) :]
    started = time.monotonic()
    run_request(feed, at, Request(wanted[0], wanted[-1]), bar=row_bar)
    return before, time.monotonic() - started


def _print_next_steps(feed: Feed, url: str) -> None:
    # Without redis-cli, which the embedded server's wheel does not have.
    console.print(f"show entries:        uv run ucs read {feed.name} --rows 3", markup=False)
    if url == EMBEDDED:
        console.print("stop its server:     uv run ucs stop", markup=False)
    console.print("open the UI:         DAGSTER_HOME=$PWD uv run dagster dev", markup=False)
    console.print(f"then open            http://127.0.0.1:3000/assets/{feed.name}", markup=False)
