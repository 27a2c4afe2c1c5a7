"""The progress of every feed: its record in Dagster, its stream, and the backlog of its consumers."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import redis
from dagster import AssetPartitionStatus

from ucs_pipeline.entries.entry_id import EntryId, State
from ucs_pipeline.errors import StreamError, UcsError
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.materializations import rows_by_brick
from ucs_pipeline.orchestration.names import FEED_TAG, feed_key
from ucs_pipeline.orchestration.resources import redis_server
from ucs_pipeline.redis.connection import connect_each, translate
from ucs_pipeline.stream.stream import RedisStream, reading_groups


@dataclass(frozen=True)
class Group:
    """A consumer group of a stream."""

    name: str
    pending: int
    """Entries delivered to its consumers, and not acknowledged."""
    undelivered: int | None
    """Entries in the stream that it has not received yet; None if Redis does not know."""


@dataclass(frozen=True)
class StreamStatus:
    """The contents of a stream."""

    length: int
    top: str | None
    """The last ID; None if there is no stream."""
    groups: list[Group] = field(default_factory=list)


@dataclass(frozen=True)
class FeedStatus:
    """The progress of a feed."""

    feed: str
    stream: str
    bricks: int
    """Bricks of the feed."""
    done: int
    """Of those, recorded as done."""
    failed: int
    """Of those, tried and failed since they were last done."""
    in_progress: int
    """Of those, in queued or running runs."""
    next_brick: str | None
    """The first one that is not done; None if all are."""
    rows: int
    """Rows of the bricks that are done."""
    max_len: int
    order: str
    """Whether an entry id is the row's position (strict) or the time it was added (any)."""
    redis: StreamStatus | None
    """The stream in Redis; None if it cannot be read."""
    problem: str | None
    """Why it cannot be read."""


def feed_statuses(feeds: Sequence[Feed], instance: dg.DagsterInstance, resources: object) -> list[FeedStatus]:
    """The progress of the feeds. Waits once for a Redis that does not answer.

    `resources` has the feeds' resources as attributes.
    """
    streams: dict[str, StreamStatus | str] = {}
    for key in {feed.redis for feed in feeds}:
        streams |= _streams([feed for feed in feeds if feed.redis == key], resources)
    return [_status(feed, instance, streams[feed.name]) for feed in feeds]


def _streams(feeds: Sequence[Feed], resources: object) -> dict[str, StreamStatus | str]:
    """The streams of feeds with one Redis, by the feeds' names; for one that cannot be read, the reason."""
    try:
        clients = connect_each(redis_server(feeds[0], resources), [feed.stream_name for feed in feeds])
    except UcsError as error:
        return dict.fromkeys((feed.name for feed in feeds), str(error))
    problems = {client: _problem(client) for client in dict.fromkeys(clients)}
    return {
        feed.name: problems[client] or _stream(RedisStream(feed.stream_name, client))
        for feed, client in zip(feeds, clients, strict=True)
    }


def redis_problems(feeds: Sequence[Feed], resources: object) -> list[str]:
    """Why a Redis of the feeds does not answer, a message for each."""
    found = []
    for key in sorted({feed.redis for feed in feeds}):
        some = [feed for feed in feeds if feed.redis == key]
        try:
            clients = connect_each(redis_server(some[0], resources), [feed.stream_name for feed in some])
            problems = [_problem(client) for client in dict.fromkeys(clients)]
        except UcsError as error:
            problems = [str(error)]
        found += [f"resource {key!r}: {problem}" for problem in dict.fromkeys(problems) if problem]
    return found


def _problem(client: "redis.Redis") -> str | None:
    """Why a server does not answer."""
    try:
        # An error about rights proves that it answers.
        with suppress(redis.exceptions.NoPermissionError):
            client.ping()
    except UcsError as error:
        return str(error)
    except redis.RedisError as error:
        return str(translate(error, client))
    return None


def publishing(instance: dg.DagsterInstance) -> int:
    """How many runs of feeds are running."""
    running = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return sum(FEED_TAG in run.tags for run in running)


def _status(feed: Feed, instance: dg.DagsterInstance, stream: StreamStatus | str) -> FeedStatus:
    names, key = feed.partitions.names(), feed_key(feed)
    partitions = dg.StaticPartitionsDefinition(names)
    # A brick that is being published again counts as done, unlike in its status.
    done = instance.get_materialized_partitions(key)
    statuses = instance.get_status_by_partition(key, names, partitions) or {}
    rows = rows_by_brick(instance, feed)
    return FeedStatus(
        feed.name,
        feed.stream_name,
        len(names),
        sum(name in done for name in names),
        sum(status is AssetPartitionStatus.FAILED for status in statuses.values()),
        sum(status is AssetPartitionStatus.IN_PROGRESS for status in statuses.values()),
        next((name for name in names if name not in done), None),
        sum(rows.get(name, 0) for name in names),
        feed.stream.max_len,
        feed.stream.order,
        stream if isinstance(stream, StreamStatus) else None,
        stream if isinstance(stream, str) else None,
    )


def _stream(stream: RedisStream) -> StreamStatus | str:
    try:
        state = stream.state()
        if not state.exists:
            return StreamStatus(0, None)
        return StreamStatus(state.length, str(state.top), [_group(group, state) for group in reading_groups(stream)])
    except StreamError as error:
        return str(error)
    except redis.RedisError as error:
        return str(stream.failure(error))


def _group(group: dict[str, Any], state: State) -> Group:
    delivered = EntryId.parse(group["last-delivered-id"])
    # Redis counts this since version 7, but not if entries were deleted from the middle.
    undelivered: int | None = group.get("lag")
    if delivered >= state.top or state.first is None:
        undelivered = 0
    elif delivered < state.first:
        undelivered = state.length
    return Group(group["name"].decode(errors="backslashreplace"), group["pending"], undelivered)
