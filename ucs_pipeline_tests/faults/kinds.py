"""The kinds of faults: where each can be injected, and how often it is, compared with the others."""

from collections.abc import Callable
from typing import NamedTuple

from ucs_pipeline_tests.faults import on_connections, on_publishers, on_redis
from ucs_pipeline_tests.faults.rigs import ALWAYS, EVERYSEC, NONE, REPLICA
from ucs_pipeline_tests.faults.stage import Stage

RUNS = "runs in Dagster"
"""Where the faults of Dagster runs are injected; every other place is a rig."""

FULL = "a short stream and a slow group"
"""Where the stream has a low cap, and the publisher removes what the group has acknowledged."""

EVERYWHERE = (ALWAYS, EVERYSEC, NONE, REPLICA)


class Kind(NamedTuple):
    """One kind of fault."""

    name: str
    title: str
    places: tuple[str, ...]
    """Where it can be injected."""
    inject: Callable[[Stage], bool]
    """Injects one in the middle of publishing; whether it took place."""
    share: int = 2
    before: bool = False
    """Whether it can also be injected before a publisher starts, and then starts one."""
    needs_http: bool = False
    """Whether the table must be read over HTTP."""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("publisher-killed", "publisher killed with SIGKILL", EVERYWHERE, on_publishers.publisher_killed),
        Kind(
            "publisher-frozen",
            "publisher frozen, another takes over, woken",
            EVERYWHERE,
            on_publishers.publisher_frozen,
        ),
        Kind("two-at-once", "two publishers at once", EVERYWHERE, on_publishers.two_at_once, before=True),
        Kind("redis-killed", "Redis killed and restarted, appendfsync always", (ALWAYS,), on_redis.redis_killed),
        Kind(
            "last-second-lost",
            "Redis killed, its last second lost, appendfsync everysec",
            (EVERYSEC,),
            on_redis.last_second_lost,
        ),
        Kind("stream-lost", "Redis killed and restarted, no persistence", (NONE,), on_redis.redis_killed),
        Kind(
            "frozen-over-a-loss",
            "publisher frozen while the stream is lost and begun again",
            (NONE,),
            on_redis.frozen_over_a_loss,
        ),
        Kind(
            "stale-replica",
            "replica promoted that lacks the last rows",
            (REPLICA,),
            on_redis.stale_replica_promoted,
            share=1,
        ),
        Kind("cut-to-redis", "connection cut at a random byte to Redis", EVERYWHERE, on_connections.cut_to_redis),
        Kind("cut-from-redis", "connection cut at a random byte from Redis", EVERYWHERE, on_connections.cut_from_redis),
        Kind(
            "scan-cut",
            "ClickHouse connection cut in mid-scan",
            EVERYWHERE,
            on_connections.scan_cut,
            before=True,
            needs_http=True,
        ),
        Kind(
            "scan-exception",
            "ClickHouse exception in mid-scan",
            EVERYWHERE,
            on_connections.scan_exception,
            before=True,
            needs_http=True,
        ),
        Kind("out-of-memory", "Redis out of memory for a moment", EVERYWHERE, on_redis.out_of_memory),
        Kind("no-replicas", "Redis short of replicas for a moment", EVERYWHERE, on_redis.lack_of_replicas),
        Kind("clients-killed", "CLIENT KILL of all connections", EVERYWHERE, on_redis.clients_killed),
        Kind("stream-full", "stream full, its consumer group standing still", (FULL,), on_redis.stream_full),
        Kind("run-killed", "Dagster run killed between rows and event", (RUNS,), on_publishers.run_killed, share=1),
        Kind("disk-full", "Dagster's disk full", (RUNS,), on_publishers.disk_full, share=1),
    )
}
"""Every kind, by name."""
