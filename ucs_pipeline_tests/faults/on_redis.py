"""Faults of Redis: servers that die, lose what they had or refuse. Each returns whether it took place."""

import re
import subprocess

from ucs_pipeline_tests.faults.on_publishers import let_the_other_go_on, stopped
from ucs_pipeline_tests.faults.stage import MAIN, OTHER, Stage


def redis_killed(stage: Stage) -> bool:
    """SIGKILL, and a restart on what is on disk."""
    stage.rig.server.kill()
    stage.nap(0.3)
    stage.rig.server.start()
    return True


def last_second_lost(stage: Stage) -> bool:
    """SIGKILL, and a restart on a file without its last, unsynced part."""
    # SIGKILL alone takes nothing that Redis wrote: the kernel has it. A power cut takes what was not synced yet.
    server = stage.rig.server
    [file] = server.directory.glob("appendonlydir/*.incr.aof")
    synced = file.stat().st_size
    stage.nap(0.3)
    server.kill()
    written = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(stage.rng.randint(synced, written))
    if stage.any_order:
        # Redis itself would cut a transaction in half, and join that to the next one at the start after this one.
        subprocess.run(["redis-check-aof", "--fix", file], input=b"y\n", stdout=subprocess.DEVNULL, check=True)
    server.start()
    return True


def frozen_over_a_loss(stage: Stage) -> bool:
    """A publisher stands still while the stream is lost and another one begins it again."""
    if stage.busy(OTHER):
        return False
    with stopped(stage.worker(MAIN)):
        redis_killed(stage)
        stage.publish(OTHER)
        let_the_other_go_on(stage)
    return True


def stale_replica_promoted(stage: Stage) -> bool:
    """The primary is killed, and a replica promoted that had stopped listening before."""
    rig = stage.rig
    if rig.replica is None:
        # Publishing stands still meanwhile, or it would be over before the replica is there.
        with stopped(stage.worker(MAIN)):
            rig.add_replica()
    stage.nap(0.05)
    if stage.rng.random() < 0.5:
        rig.detach_replica()
        stage.nap(0.3)
        rig.promote_replica()
    else:
        _freeze_and_promote(stage)
    stage.point_at_server()
    return True


def out_of_memory(stage: Stage) -> bool:
    """`maxmemory` at or near what is used."""
    [used] = re.findall(rb"used_memory:(\d+)", stage.rig.command("INFO", "memory"))
    limit = stage.rng.choice([1, int(used) + stage.rng.randint(0, 500_000)])
    return _configured(stage, "maxmemory", limit)


def lack_of_replicas(stage: Stage) -> bool:
    """`min-replicas-to-write` above what there is."""
    return _configured(stage, "min-replicas-to-write", 2)


def stream_full(stage: Stage) -> bool:
    """The consumer group stands still until the stream is full, and a while longer."""
    assert stage.consumer
    with stage.consumer.standing_still():
        full = stage.until(lambda: stage.at(stage.max_len) or not stage.busy(MAIN)) and stage.busy(MAIN)
        stage.nap(0.3)
    return full


def clients_killed(stage: Stage) -> bool:
    """CLIENT KILL of every connection that is not a replica's."""
    return bool(stage.rig.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))


def _freeze_and_promote(stage: Stage) -> None:
    rig = stage.rig
    assert rig.replica is not None
    with stopped(rig.replica):
        stage.nap(0.3)
        rig.server.kill()
    rig.detach_replica()
    rig.promote_replica()


def _configured(stage: Stage, setting: str, value: int) -> bool:
    stage.rig.command("CONFIG", "SET", setting, value)
    try:
        stage.nap(0.3)
    finally:
        stage.rig.command("CONFIG", "SET", setting, 0)
    return True
