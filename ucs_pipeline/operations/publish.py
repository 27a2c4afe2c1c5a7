"""Publishes bricks of a feed in this process. Dagster records the runs like those of the feed's sensor."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import dagster as dg

from ucs_pipeline import errors
from ucs_pipeline.errors import StreamFullError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.feed.shards import streams_of
from ucs_pipeline.operations.abandoned import end_abandoned, marked_running
from ucs_pipeline.operations.confirmed import following
from ucs_pipeline.orchestration._dagster import on_warning
from ucs_pipeline.orchestration.materializations import noted_in_stream
from ucs_pipeline.orchestration.names import MAX_RETRIES_TAG, feed_key
from ucs_pipeline.orchestration.sensors.feed_sensor import request_tags
from ucs_pipeline.orchestration.sensors.next_bricks import Request, next_bricks
from ucs_pipeline.orchestration.sensors.snapshot import situation_of

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how much of a total is done, under a name; returns a function that sets the amount."""

Span = tuple[int, int]
"""Starts of a feed's first and last partition to publish; of a sharded feed, partitions of the whole feed."""


class Deployment(NamedTuple):
    """Where feeds run."""

    repository: dg.RepositoryDefinition
    """Their assets."""
    resources: object
    """An object with their resources as attributes."""
    instance: dg.DagsterInstance
    """Records their runs."""

    def asset(self, feed: Feed) -> dg.AssetsDefinition:
        """The asset of a feed with one stream."""
        return self.repository.assets_defs_by_key[feed_key(feed)]


@dataclass(frozen=True)
class Published:
    """The result of publishing."""

    feed: Feed
    """The feed that was asked for."""
    bricks: int
    """Partitions of the runs, including those that were in the stream before."""
    rows: int
    """Rows that the runs added to the stream."""
    seconds: float
    """Time that the runs took."""
    runs: tuple[str, ...] = ()
    """Ids of the runs."""
    reason: str | None = None
    """The reason why there is no further brick to publish; None if bricks were named."""
    in_stream: int = 0
    """Of `bricks`, those whose rows were all in the stream before."""


def publish(
    feed: Feed,
    at: Deployment,
    span: Span | None = None,
    most: int | None = None,
    *,
    replay: bool = False,
    bar: Bar | None = None,
    say: Callable[[str], None] | None = None,
) -> Published:
    """Publishes bricks of a feed, in runs of at most `max_bricks_per_run`; of a sharded feed one shard after another.

    Args:
        feed: the feed, or one of its shards.
        at: where it runs.
        span: what to publish; left out, the bricks that the feed's sensor would publish next.
        most: at most so many of those that come next, of each shard.
        replay: for an any-order feed, publishes bricks that are done once more.
        bar: shows how many rows of a run are in Redis.
        say: called with a message each time a run waits, or will be tried again.

    Raises:
        UcsError: a run was refused or failed, or the next bricks cannot be determined. It is raised after the other
            shards.
        KeyboardInterrupt: the run was stopped.
    """
    end_abandoned(at.instance)
    started = time.monotonic()
    bricks, in_stream, rows, runs = 0, 0, 0, list[str]()
    reasons, failures = list[str](), list[UcsError]()
    for part in streams_of(feed):
        try:
            wanted = requests(part, at, span, most, part.max_bricks_per_run)
            while isinstance(request := following_one(wanted), Request):
                result = run_request(part, at, request, replay=replay, bar=bar, say=say)
                bricks += len(part.partitions.between(request.first, request.last))
                in_stream += _in_stream(result)
                rows += _rows_added(result)
                runs.append(result.run_id)
            reasons += filter(None, [request])
        except UcsError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    reason = " ".join(reasons) or None
    return Published(feed, bricks, rows, time.monotonic() - started, tuple(runs), reason, in_stream)


def requests(
    feed: Feed, at: Deployment, span: Span | None, most: int | None, per_run: int
) -> Generator[Request, None, str | None]:
    """The partitions to publish of a feed with one stream, each request determined after the previous one is published.

    Args:
        feed: the feed.
        at: where it runs.
        span: the named partitions; None for those that come next.
        most: at most so many of the partitions that come next.
        per_run: at most so many partitions in one request.

    Returns:
        The reason why there is no further request; None with `span`.

    Raises:
        StreamFullError: bricks come next, and the stream is full.
        UcsError: the table or the stream cannot be read.
    """
    if span:
        wanted = feed.partitions.between(*span)
        for position in range(0, len(wanted), per_run):
            chunk = wanted[position : position + per_run]
            yield Request(chunk[0], chunk[-1])
        return None if wanted else f"feed {feed.name!r}: none of these bricks belongs to stream {feed.stream_name!r}."
    asset = at.asset(feed)
    while most is None or most > 0:
        seen = situation_of(feed, asset, at.instance, at.resources, asked=True)
        found = next_bricks(feed, seen, per_run if most is None else min(per_run, most))
        if isinstance(found, str):
            if seen.full and isinstance(next_bricks(feed, replace(seen, full=None), 1), Request):
                raise StreamFullError(f"feed {feed.name!r}: stream {feed.stream_name!r} is full. {seen.full}")
            return found
        yield found
        if found.open:
            # New rows may come as fast as they are published.
            return None
        if most is not None:
            most -= len(feed.partitions.between(found.first, found.last))
    return None


def following_one(wanted: Generator[Request, None, str | None]) -> Request | str | None:
    """The next of some requests; after the last one, the reason why there is none."""
    try:
        return next(wanted)
    except StopIteration as stop:
        reason: str | None = stop.value
        return reason


def run_request(
    feed: Feed,
    at: Deployment,
    request: Request,
    *,
    replay: bool = False,
    bar: Bar | None = None,
    say: Callable[[str], None] | None = None,
) -> dg.ExecuteInProcessResult:
    """One run over consecutive partitions of a feed with one stream, in this process.

    Raises:
        UcsError: the run failed. Dagster has recorded it.
        KeyboardInterrupt: the run was stopped. Dagster has recorded that it failed.
    """
    job = at.repository.get_implicit_global_asset_job_def()
    # Dagster's events are in its records; on the terminal they would hide the error message.
    quiet = {"console": {"config": {"log_level": "CRITICAL"}}}
    config: dict[str, Any] = {"loggers": quiet if "console" in job.loggers else {}}
    if replay:
        config |= replay_config(feed, at)
    progress = following(feed, at.resources, request, bar, replay=replay) if bar else nullcontext()
    with progress, _recorded_end(at.instance) as run_id:
        if say:
            on_warning(at.instance, run_id, say)
        result = job.execute_in_process(
            run_config=config,
            instance=at.instance,
            asset_selection=[feed_key(feed)],
            raise_on_error=False,
            run_id=run_id,
            # A daemon cannot launch it again, so the run must not ask for that.
            tags={**request_tags(feed, request), MAX_RETRIES_TAG: "0"},
        )
    if not result.success:
        raise _failure(result)
    return result


def replay_config(feed: Feed, at: Deployment) -> dict[str, Any]:
    """The run config that makes an any-order feed publish finished bricks again."""
    return {"ops": {at.asset(feed).op.name: {"config": {"replay": True}}}}


@contextmanager
def _recorded_end(instance: dg.DagsterInstance) -> Iterator[str]:
    """The id of a new run. Dagster's records have its end when this process leaves the block."""
    with marked_running() as run_id:
        try:
            yield run_id
        finally:
            run = instance.get_run_by_id(run_id)
            # Stopped between two steps of Dagster, which then records nothing.
            if run and not run.is_finished:
                instance.report_run_failed(run, "The process of the run was stopped.")


def _failure(result: dg.ExecuteInProcessResult) -> BaseException:
    """The error of a failed run's asset."""
    for event in result.all_events:
        data = (
            event.step_failure_data if event.is_step_failure else event.job_failure_data if event.is_failure else None
        )
        if data is None or data.error is None:
            continue
        causes = [data.error]
        while causes[-1].cause:
            causes.append(causes[-1].cause)
        names = [cause.cls_name or "" for cause in causes]
        if {"DagsterExecutionInterruptedError", "KeyboardInterrupt"} & {*names}:
            return KeyboardInterrupt()
        kinds: Iterator[type[UcsError]] = (getattr(errors, name) for name in names if hasattr(errors, name))
        failed = getattr(data, "user_failure_data", None)
        text = failed.description if failed and failed.description else data.error.message.strip()
        return next(kinds, UcsError)(text)
    return UcsError(f"Run {result.run_id} failed. Open it in the Dagster UI.", "UCS-RUN")


def _rows_added(result: dg.ExecuteInProcessResult) -> int:
    """Rows that a run added to the stream."""
    of_bricks, of_run = 0, 0
    for event in result.all_events:
        if event.is_step_materialization:
            of_bricks += _published(event.step_materialization_data.materialization)
        elif event.is_asset_observation:
            # An open brick has no other event. If the run was tried again, this is its last attempt only.
            of_run += _published(event.asset_observation_data.asset_observation)
    return max(of_bricks, of_run)


def _in_stream(result: dg.ExecuteInProcessResult) -> int:
    """Bricks of a run whose rows were all in the stream before."""
    events = (e.step_materialization_data.materialization for e in result.all_events if e.is_step_materialization)
    return sum(noted_in_stream(event) for event in events)


def _published(event: dg.AssetMaterialization | dg.AssetObservation) -> int:
    found = event.metadata.get("published")
    return found.value if isinstance(found, dg.IntMetadataValue) and found.value else 0
