"""Connections that find their server each time: the master that Sentinels name, or a stream's node of a cluster."""

from collections.abc import Callable
from copy import copy
from typing import Any

import redis
from redis.exceptions import ClusterDownError, MovedError
from redis.utils import str_if_bytes

from ucs_pipeline.errors import StreamError
from ucs_pipeline.redis.url import Address, Nodes

_LOOK_SECONDS = 5


class WrongServerError(redis.ConnectionError):
    """The server is no longer the right one. A new connection leads there."""


class DiscoveredConnection(redis.Connection):
    """A connection to the server that `find` returns."""

    def __init__(self, *, find: Callable[[], Address], **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._find = find

    def _connect(self) -> Any:
        self.host, self.port = self._find()
        return super()._connect()  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """As redis-py's; leaves a server that is no longer the right one, and finds it again at the next command."""
        try:
            return super().read_response(*args, **options)
        except (MovedError, redis.ReadOnlyError) as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise WrongServerError(str(error)) from error


class DiscoveredTlsConnection(DiscoveredConnection, redis.SSLConnection):
    """The same with TLS."""


def found(nodes: Nodes, stream: str, options: dict[str, Any], name: str) -> redis.ConnectionPool:
    """Connections to the server that has a stream.

    Args:
        nodes: Sentinels or some nodes of a cluster.
        stream: name of the stream.
        options: of every connection, unless the nodes have their own.
        name: the URL's name in messages.
    """
    kind = DiscoveredTlsConnection if nodes.tls else DiscoveredConnection
    find = SentinelResolver(nodes, options, name) if nodes.master else ClusterResolver(nodes, stream, options)
    return redis.ConnectionPool(connection_class=kind, find=find, **{**options, **nodes.options})


def client_for(stream: str, client: "redis.Redis") -> "redis.Redis":
    """A client for another stream than that of a client: the same one, unless they are in a cluster."""
    pool: Any = client.connection_pool
    find = pool.connection_kwargs.get("find")
    if not isinstance(find, ClusterResolver):
        return client
    options = {**pool.connection_kwargs, "find": find.of(stream)}
    other = copy(client)
    other.connection_pool = redis.ConnectionPool(connection_class=pool.connection_class, **options)
    return other


class _Resolver:
    """Asks some nodes in turn, the last one that answered first."""

    def __init__(self, nodes: Nodes, options: dict[str, Any]) -> None:
        self._nodes = nodes
        self._options: dict[str, Any] = {
            **options,
            **nodes.options,
            "connection_class": redis.SSLConnection if nodes.tls else redis.Connection,
            "socket_timeout": _LOOK_SECONDS,
            "socket_connect_timeout": _LOOK_SECONDS,
        }
        self._known: list[Address] = []

    def _ask(self, address: Address, command: str, *arguments: str) -> Any:
        host, port = address
        pool = redis.ConnectionPool(host=host, port=port, **self._options)
        with redis.Redis.from_pool(pool) as client:
            return client.execute_command(command, *arguments)


class SentinelResolver(_Resolver):
    """Finds the master that Sentinels watch."""

    def __init__(self, nodes: Nodes, options: dict[str, Any], name: str) -> None:
        super().__init__(nodes, options)
        self._name = name
        login = {"username": None, "password": None, "db": 0, **nodes.sentinel_login}
        self._options |= login

    def __call__(self) -> Address:
        master, failure, unknown = self._nodes.master, None, False
        for sentinel in (*self._known, *self._nodes.addresses):
            try:
                found = self._ask(sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME", str(master))
            except redis.AuthenticationError:
                raise StreamError(
                    f"A Sentinel refused the login. Check sentinel_username and sentinel_password in {self._name}.",
                    "UCS-LOGIN",
                ) from None
            except (redis.ConnectionError, redis.TimeoutError) as error:
                failure = error
                continue
            if found:
                self._known = [sentinel]
                return str_if_bytes(found[0]), int(found[1])
            unknown = True
        if unknown:
            raise StreamError(f"The Sentinels in {self._name} know no master {master!r}. Check its name.", "UCS-URL")
        raise redis.ConnectionError(f"no Sentinel names a master {master!r}: {failure}") from failure


class ClusterResolver(_Resolver):
    """Finds the node of a cluster that has the slot of a stream: any node names the node that has it."""

    def __init__(self, nodes: Nodes, stream: str, options: dict[str, Any]) -> None:
        super().__init__(nodes, options)
        self._stream = stream

    def of(self, stream: str) -> "ClusterResolver":
        """The same for another stream."""
        other = copy(self)
        other._stream, other._known = stream, []
        return other

    def __call__(self) -> Address:
        failure: Exception = redis.ConnectionError("its nodes point at each other")
        queue, asked = [*self._known, *self._nodes.addresses], set()
        while queue:
            node = queue.pop(0)
            if node in asked:
                continue
            asked.add(node)
            try:
                # Every user of this project may run this: it needs no rights on the cluster.
                self._ask(node, "XINFO STREAM", self._stream)
            except MovedError as elsewhere:
                # A node that does not know the other's host leaves it out: it is the same one.
                queue.insert(0, (elsewhere.host or node[0], elsewhere.port))
                continue
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError, ClusterDownError) as error:
                failure = error
                continue
            except redis.ResponseError:
                # With any other reply, that there is no stream or that it moves (ASK), it is the right node.
                pass
            self._known = [node]
            return node
        raise failure
