"""`ucs demo`: the main job on real data, through the project's own Dagster instance, and the proof that it worked."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
import dagster as dg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ucs_pipeline.cli.demo_data import DATASETS, Dataset, load_data, write_data
from ucs_pipeline.cli.output import console, print_verdict
from ucs_pipeline.clickhouse.embedded import tables_dir
from ucs_pipeline.clickhouse.source import Source
from ucs_pipeline.errors import UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.materializations import recorded
from ucs_pipeline.orchestration.names import feed_key
from ucs_pipeline.orchestration.resources import clickhouse_server, open_feed, redis_server
from ucs_pipeline.project.feeds import feed_named, location_of, resources_of, use_project_home
from ucs_pipeline.publishing.ordered.plan import known
from ucs_pipeline.reading.verify import verify
from ucs_pipeline.redis.connection import EMBEDDED
from ucs_pipeline.redis.embedded_server import embedded_redis_url
from ucs_pipeline.stream.stream import OrderedStream


@click.command()
def demo() -> None:
    """Publish 336,776 real flights, the weather and the planes through Dagster, and prove that they arrived.

    Reads the embedded ClickHouse engine, or the server at UCS_CLICKHOUSE_URL; writes to the embedded redis-server,
    or to the one at UCS_REDIS_URL. Exits with 0 only if table and stream agree.
    """
    sys.exit(0 if run_demo() else 1)


def run_demo() -> bool:
    """Publishes the demo's feeds, reads them back and prints the comparisons. True if tables and streams agree."""
    use_project_home()
    feeds = [feed_named(name) for name in DATASETS]
    agree = True
    with dg.DagsterInstance.get() as instance, resources_of(feeds[0]) as resources:
        for feed in feeds:
            agree &= _run(feed, resources, instance)
        _say_what_next(feeds[0], redis_server(feeds[0], resources).url)
    return agree


def _run(feed: Feed, resources: object, instance: dg.DagsterInstance) -> bool:
    data = DATASETS[feed.table]
    _prepare_table(data, clickhouse_server(feed, resources).url)
    table, stream = open_feed(feed, resources)
    seconds = _publish(feed, table, stream, instance)
    with _bar("comparing", data.rows) as progress:
        verdict = verify(feed, table, stream, lambda rows: progress.update(progress.task_ids[0], completed=rows))
    figures = [("partitions", f"{len(feed.partitions.starts):,} {feed.partitions.unit}s")]
    if seconds is not None:
        figures += [("seconds", f"{seconds:.1f}"), ("rows per second", f"{verdict.rows / seconds:,.0f}")]
    print_verdict(feed, verdict, *figures)
    return verdict.agrees


def _prepare_table(data: Dataset, url: str) -> None:
    if url != EMBEDDED:
        if load_data(data, url):
            console.print(f"created table {data.name} on the ClickHouse server")
        return
    write_data(data, tables_dir())


def _publish(feed: Feed, table: Source, stream: OrderedStream, instance: dg.DagsterInstance) -> float | None:
    """Runs the feed's asset over all its bricks. Returns seconds, or None if there was nothing to do."""
    bricks = feed.partitions
    done = len(known(feed, bricks.starts, stream.state(), recorded(instance, feed, bricks.starts)))
    if done == len(bricks.starts):
        console.print(f"nothing to do: all {done} {bricks.unit}s are in stream {feed.stream_name!r} already")
        return None
    wanted = bricks.starts[done:]
    more = f"s {bricks.name(wanted[0])} to" if len(wanted) > 1 else ""
    console.print(f"publishing {bricks.unit}{more} {bricks.name(wanted[-1])}")
    total = sum(table.count(bricks.first, bricks.last).values())
    started = time.monotonic()
    with _bar("publishing", total) as progress, _following(stream, progress):
        result = run_range(feed, wanted, instance)
    if not result.success:
        raise UcsError(_reason(result))
    return time.monotonic() - started


def run_range(feed: Feed, wanted: Sequence[int], instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """One run of the feed's asset over consecutive bricks, in this process."""
    return (
        location_of(feed)
        .repository.get_implicit_global_asset_job_def()
        .execute_in_process(
            instance=instance,
            asset_selection=[feed_key(feed)],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
            tags={
                "dagster/asset_partition_range_start": feed.partitions.name(wanted[0]),
                "dagster/asset_partition_range_end": feed.partitions.name(wanted[-1]),
            },
        )
    )


def _reason(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.error and data.error.cls_name == "DagsterExecutionInterruptedError":
                raise KeyboardInterrupt
            if data.user_failure_data and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error:
                return data.error.message.strip()
    return f"run {result.run_id} failed; see it in the UI"


@contextmanager
def _bar(what: str, total: int) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        progress.add_task(what, total=total)
        yield progress


@contextmanager
def _following(stream: OrderedStream, progress: Progress) -> Iterator[None]:
    """Shows the stream's length as it grows: what the bar shows is in Redis."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.1):
            progress.update(progress.task_ids[0], completed=stream.state().length)

    thread = threading.Thread(target=follow, name="ucs-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        progress.update(progress.task_ids[0], completed=stream.state().length)


def _say_what_next(feed: Feed, url: str) -> None:
    if url == EMBEDDED:
        socket = embedded_redis_url().removeprefix("unix://")
        console.print(f"look at the stream:  redis-cli -s {socket} XRANGE {feed.stream_name} - + COUNT 1", markup=False)
        console.print("stop its server:     uv run ucs stop", markup=False)
    console.print("open the UI:         DAGSTER_HOME=$PWD uv run dagster dev", markup=False)
    console.print(f"then look at         http://127.0.0.1:3000/assets/{feed.name}", markup=False)
