"""A real Redis Cluster, and a real master that a Sentinel watches, on free ports, with short timeouts."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis
from redis.crc import key_slot
from typing_extensions import Self

from ucs_pipeline_tests.servers.lifetime import Started
from ucs_pipeline_tests.servers.ports import HeldPort
from ucs_pipeline_tests.servers.redis_server import RedisServer

SLOTS = 16_384
NO_TLS: Mapping[str, str | int] = MappingProxyType({})


def wait_until(condition: Callable[[], Any]) -> None:
    """Waits until a condition holds; what a server answers meanwhile that is an error is no."""
    deadline = time.monotonic() + 30
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


class _Servers(Started):
    def __init__(self, directory: Path, tls: Mapping[str, str | int]) -> None:
        """`tls`: certificates, as options of a server; with them, servers talk TLS with each other."""
        self.servers: list[RedisServer] = []
        self._directory = directory
        self._tls = tls
        self._ports: list[HeldPort] = []

    def _add(self, name: str, options: Mapping[str, str | int], *arguments: str) -> RedisServer:
        """Starts one server more."""
        directory = self._directory / name
        directory.mkdir()
        tls = {**self._tls, "tls-port": self._port(), "tls-replication": "yes"} if self._tls else {}
        server = RedisServer(directory, {**options, **tls}, arguments=arguments)
        self.servers.append(server)
        return server.start()

    def _port(self) -> int:
        """A second port for one of the servers."""
        self._ports.append(HeldPort())
        return self._ports[-1].number

    def address(self, server: RedisServer) -> str:
        """Where others reach a server."""
        return f"127.0.0.1:{server.options.get('tls-port', server.port)}"

    @property
    def scheme(self) -> str:
        """What the URL begins with."""
        return "rediss" if self._tls else "redis"

    def close(self) -> None:
        """Ends the servers."""
        for each in (*self.servers, *self._ports):
            each.close()


class RedisCluster(_Servers):
    """Three masters with a third of the slots each, and a replica of the one that has a key's slot."""

    def __init__(self, directory: Path, key: str, tls: Mapping[str, str | int] = NO_TLS) -> None:
        super().__init__(directory, tls)
        self.key = key

    @property
    def url(self) -> str:
        """URL that names two of the masters."""
        return f"{self.scheme}+cluster://{self.address(self.servers[0])},{self.address(self.servers[1])}"

    def start(self) -> Self:
        """Starts the servers and makes them one cluster."""
        buses = [self._port() for _ in range(4)]
        for number, bus in enumerate(buses):
            options: dict[str, str | int] = {
                "cluster-enabled": "yes",
                "cluster-config-file": "nodes.conf",
                "cluster-port": bus,
                # While the cluster is made, a node that is slow to answer is neither forgotten nor replaced.
                "cluster-node-timeout": 15_000,
                "cluster-replica-validity-factor": 0,
                "repl-ping-replica-period": 1,
                "repl-diskless-sync-delay": 0,
                **({"tls-cluster": "yes"} if self._tls else {}),
            }
            self._add(f"node{number}", options)
        clients = [server.client() for server in self.servers]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER MEET", *self.address(self.servers[0]).split(":"), buses[0])
        for number, client in enumerate(clients[:3]):
            first, end = SLOTS * number // 3, SLOTS * (number + 1) // 3
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
        self.owner = self.servers[key_slot(self.key.encode()) * 3 // SLOTS]
        self.replica = self.servers[3]
        wait_until(lambda: all(client.cluster("info")["cluster_known_nodes"] == "4" for client in clients))
        wait_until(lambda: self.replica.client().cluster("replicate", self.node_id(self.owner)))
        wait_until(lambda: all(client.cluster("info")["cluster_state"] == "ok" for client in clients))
        wait_until(lambda: _linked(self.replica))
        for server, client in zip(self.servers, clients, strict=True):
            server.options["cluster-node-timeout"] = 1000
            client.config_set("cluster-node-timeout", 1000)
        return self

    def node_id(self, server: RedisServer) -> str:
        """Name of a node."""
        with server.client() as client:
            found: bytes = client.execute_command("CLUSTER MYID")
            return found.decode()

    def begin_move(self, target: RedisServer) -> None:
        """Begins to move the key's slot; requests for missing keys are redirected to the other node."""
        slot = key_slot(self.key.encode())
        target.client().execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self.node_id(self.owner))
        self.owner.client().execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self.node_id(target))

    def end_move(self, target: RedisServer) -> None:
        """Moves what the slot holds, as `redis-cli --cluster reshard` does, and sets its new owner."""
        slot, source = key_slot(self.key.encode()), self.owner.client()
        for key in source.cluster("getkeysinslot", slot, 100):
            source.migrate("127.0.0.1", target.port, key, 0, 20_000)
        name = self.node_id(target)
        for server in (target, self.owner, *(each for each in self.servers[:3])):
            server.client().execute_command("CLUSTER SETSLOT", slot, "NODE", name)
        self.owner = target


class WatchedRedis(_Servers):
    """A master with two replicas, and a Sentinel that promotes one of them."""

    def __init__(self, directory: Path, tls: Mapping[str, str | int] = NO_TLS) -> None:
        super().__init__(directory, tls)

    @property
    def url(self) -> str:
        """URL that names a Sentinel that is not there, and one that is."""
        return f"{self.scheme}+sentinel://127.0.0.1:1,{self.address(self.sentinel)}/prime/0"

    def start(self) -> Self:
        """Starts the servers, and waits until the Sentinel knows the replicas."""
        options: dict[str, str | int] = {"repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1}
        self.master = self._add("master", options)
        host, port = self.address(self.master).split(":")
        self.replicas = [self._add(name, {**options, "replicaof": f"{host} {port}"}) for name in ("one", "other")]
        conf = self._directory / "sentinel.conf"
        conf.write_text(
            f"sentinel monitor prime {host} {port} 1\n"
            "sentinel down-after-milliseconds prime 500\n"
            "sentinel failover-timeout prime 2000\n"
        )
        wait_until(lambda: all(map(_linked, self.replicas)))
        self.sentinel = self._add("sentinel", {}, str(conf), "--sentinel")
        sentinel = self.sentinel.client()
        wait_until(lambda: len(sentinel.sentinel_slaves("prime")) == len(self.replicas))
        return self


def _linked(replica: RedisServer) -> bool:
    return bool(replica.client().info("replication")["master_link_status"] == "up")
