"""Connections to Redis, made by redis-py, and the meaning of Redis' errors for a publisher."""

import os
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    TryAgainError,
)
from redis.retry import Retry

from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.home import EMBEDDED
from ucs_pipeline.redis.discovery import WrongServerError, found
from ucs_pipeline.redis.embedded_server import embedded_redis_url
from ucs_pipeline.redis.url import ADDRESS, Nodes, parse_nodes

URL_VARIABLE = "UCS_REDIS_URL"

_TIMEOUT_SECONDS = 30
_PROBE_SECONDS = 2
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_MOVING = "the Redis cluster is moving the stream's slot. Wait until it has moved."
TRANSIENT = {
    "OOM": "Redis is out of memory (maxmemory). Let the consumers catch up and trim, or raise maxmemory.",
    "LOADING": "Redis is loading its data from disk. Wait until it has loaded.",
    "BUSY": "Redis is busy with a script. Wait, or end the script with SCRIPT KILL.",
    "UNBLOCKED": "this Redis became a replica. Wait for the failover.",
    "READONLY": f"this Redis is a read-only replica. Point {ADDRESS} at the primary.",
    "MASTERDOWN": "this Redis is a replica that lost its primary. Wait for the failover.",
    "TRYAGAIN": _MOVING,
    "ASK": _MOVING,
    "CLUSTERDOWN": "the Redis cluster is down. Check its nodes.",
    "MISCONF": "Redis cannot save to disk and refuses writes. Check its log.",
    "NOREPLICAS": "Redis has fewer replicas than its min-replicas-to-write. Repair the replication.",
}
_OUR_CODES = {
    "OOM": "UCS-REDIS-FULL",
    "NOREPLICAS": "UCS-REPLICAS",
    "NOPERM": "UCS-RIGHTS",
    "NOAUTH": "UCS-LOGIN",
    "WRONGPASS": "UCS-LOGIN",
    "MOVED": "UCS-URL",
}
"""Codes of Redis errors that differ from the code of their class."""
_CODES: dict[type[redis.RedisError], str] = {
    redis.BusyLoadingError: "LOADING",
    redis.ReadOnlyError: "READONLY",
    redis.OutOfMemoryError: "OOM",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
    MovedError: "MOVED",
    AskError: "ASK",
    ClusterCrossSlotError: "CROSSSLOT",
    redis.exceptions.NoPermissionError: "NOPERM",
}
_DISCARDED = "EXECABORT Transaction discarded because of: "
_WAIT_REFUSED = "WAIT cannot be used with replica instances"
UNKNOWN_IN_SCRIPT = "command called from script"
"""The error of Redis and Valkey for an unknown command, without its name: `Unknown [Redis] command called from
script`."""
_SCRIPT_USER = "The user executing the script"
_RIGHTS = "docs/how-to/connect.md lists all of its rights"
PERMANENT = {
    "WRONGTYPE": "the key holds another type, expected a stream. Choose another stream name, or delete the key.",
    "MOVED": f"the stream is on another node of a Redis cluster. Name the cluster in {ADDRESS}, as "
    "redis+cluster://host:port,host:port.",
    "CROSSSLOT": "the stream's name has braces that put its companion keys into another slot of the Redis cluster. "
    "Choose another stream name.",
    "NOPERM": "the Redis user lacks a right to the key or the command. Grant both to the user: " + _RIGHTS,
    "NOAUTH": f"Redis requires a password. Give it in {ADDRESS}.",
    "WRONGPASS": f"Redis refused the login: user or password is wrong. Correct it in {ADDRESS}.",
}


@dataclass(frozen=True)
class RedisServer:
    """Where a Redis is."""

    url: str = field(repr=False)
    """As redis-py reads it, of Sentinels or a cluster as `redis.url` does, or `embedded`."""
    name: str = ADDRESS
    """The URL's name in messages: the setting that holds it."""


class _AtServer(redis.Redis):
    """A client made from a URL: to correct the connection, change the URL."""

    server: RedisServer


def where(client: "redis.Redis") -> str:
    """The setting to change if the connection of a client is wrong."""
    return client.server.name if isinstance(client, _AtServer) else "the client's settings"


def redis_url() -> str:
    """`UCS_REDIS_URL`, or else the URL of the project's embedded server, which is started if necessary."""
    return os.environ.get(URL_VARIABLE) or embedded_redis_url()


def connect_redis(server: RedisServer, stream: str) -> "redis.Redis":
    """A client for a stream's keys.

    Connects at the first command. redis-py's own retries are off: it would send a write again without knowing whether
    the first one arrived.

    Raises:
        StreamError: the URL is invalid, or the stream's keys cannot be in one slot of its cluster.
    """
    return connect_each(server, [stream])[0]


def connect_each(server: RedisServer, streams: Sequence[str]) -> list["redis.Redis"]:
    """Clients for several streams: one for all or, in a cluster, one for each."""
    if not server.url:
        raise StreamError(
            f"{server.name} is empty. Expected redis://user:password@host:6379/0, or {EMBEDDED!r}.", "UCS-URL"
        )
    if server.url == EMBEDDED:
        try:
            server = replace(server, url=embedded_redis_url())
        except StreamError as error:
            raise type(error)(str(error).replace(ADDRESS, server.name)) from None
    try:
        nodes = parse_nodes(server.url)
        clients = [
            _client(server, nodes, stream) for stream in (streams if nodes and not nodes.master else streams[:1])
        ]
        for client in clients:
            # Connects to nothing, but fails for options that redis-py does not know.
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, redis.RedisError):
        # The cause is left out: it may quote a part of the password.
        raise StreamError(
            f"{server.name} is not a Redis URL. Expected redis://user:password@host:6379/0, rediss://..., "
            "unix:///path?db=0, redis+sentinel://user:password@host:26379,host:26379/master/0 or "
            "redis+cluster://user:password@host:6379,host:6379. Percent-encode all but letters and digits in user and "
            "password, and put only options of redis-py after a question mark.",
            "UCS-URL",
        ) from None
    for name in _FILES:
        path = clients[0].connection_pool.connection_kwargs.get(name) if clients else None
        if path and not os.access(path, os.R_OK):
            raise StreamError(f"{name} in {server.name} names {path}, which is no file that can be read.", "UCS-URL")
    return clients if len(clients) == len(streams) else clients * len(streams)


def _client(server: RedisServer, nodes: Nodes | None, stream: str) -> "redis.Redis":
    options: dict[str, Any] = {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": _TIMEOUT_SECONDS,
        "socket_connect_timeout": _TIMEOUT_SECONDS,
    }
    pool: redis.ConnectionPool
    if nodes is None:
        pool = redis.ConnectionPool.from_url(server.url, **options)
    else:
        pool = found(nodes, stream, options, server.name)
    client = _AtServer.from_pool(pool)
    assert isinstance(client, _AtServer)
    client.server = server
    return client


def classify(message: str) -> StreamError:
    """The error for a Redis error reply: one that may pass, or one that does not."""
    # An EXEC that is refused after its commands were accepted has the reason after a prefix.
    reason = message.removeprefix(_DISCARDED)
    # A missing right is worded in another way inside a script.
    code = "NOPERM" if _SCRIPT_USER in reason else reason.split(" ", 1)[0]
    if _WAIT_REFUSED in reason:
        code = "READONLY"
    if UNKNOWN_IN_SCRIPT in reason:
        return StreamError(
            f"A script of ucs calls a command that this Redis does not have ({reason}). Use another server."
        )
    if unknown := re.search(r"unknown command '?`?([\w|]+)", reason, re.IGNORECASE):
        return no_command(unknown[1].upper())
    if denied := re.search(r"permissions to run the '([^']+)' command", reason):
        command, right = denied[1].replace("|", " ").upper(), f"+{denied[1]}"
        return StreamError(
            f"the Redis user may not run {command}. Grant {right} to the user: {_RIGHTS} ({message})", "UCS-RIGHTS"
        )
    if code in TRANSIENT:
        return StreamUnavailableError(f"{TRANSIENT[code]} ({message})", _OUR_CODES.get(code))
    if code in PERMANENT:
        return StreamError(f"{PERMANENT[code]} ({message})", _OUR_CODES.get(code))
    return StreamError(f"Redis refused a command: {message.rstrip('.')}.")


def no_command(names: str) -> StreamError:
    """The error of a server that does not have a command."""
    return StreamError(
        f"This Redis, or a proxy in front of it, does not have the command {names}. Use a server that has it, or "
        "remove its `rename-command`."
    )


def not_allowed(error: redis.RedisError) -> bool:
    """Whether Redis, or a proxy, refuses this user a command, or does not have it."""
    text = str(error).lower()
    return isinstance(error, redis.exceptions.NoPermissionError) or (
        isinstance(error, redis.ResponseError) and ("unknown command" in text or "unknown subcommand" in text)
    )


def translate(error: Exception, client: "redis.Redis") -> StreamError:
    """The error for a redis-py or socket exception of a client."""
    found = _meaning(error, client.server.url if isinstance(client, _AtServer) else "")
    return type(found)(str(found).replace(ADDRESS, where(client)))


def _meaning(error: Exception, url: str) -> StreamError:
    # For some replies redis-py replaces the code with a class of exceptions.
    if isinstance(error, redis.AuthenticationError):
        return StreamError(
            f"Redis refused the login: user or password is wrong or missing. Correct it in {ADDRESS}.", "UCS-LOGIN"
        )
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return classify(f"{code} {error}")
    if isinstance(error, redis.ResponseError):
        return classify(str(error))
    if isinstance(error, WrongServerError):
        return StreamUnavailableError(f"another server has the stream now ({error}). Wait for the failover.")
    return (
        _tls(error, url)
        or (_other_protocol(url) if url else None)
        or StreamUnavailableError(f"Redis cannot be reached ({error}). Check {ADDRESS} and the server.")
    )


def _other_protocol(url: str) -> StreamError | None:
    """The error for a port with TLS and a URL without, or the reverse; None if that is not certain."""
    try:
        parse: Any = redis.connection.parse_url
        options = parse(url)
        address, wants_tls = (options["host"], options.get("port", 6379)), "connection_class" in options
        # A Redis without TLS answers this at once, with or without a password; one with TLS closes the connection.
        with socket.create_connection(address, _PROBE_SECONDS) as plain:
            plain.sendall(b"PING\r\n")
            speaks_plain = plain.recv(1) in (b"+", b"-")
    except ConnectionResetError:
        speaks_plain = False
    except (OSError, ValueError, KeyError):
        return None
    if speaks_plain:
        wrong, right = "without TLS", "redis://"
    else:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection(address, _PROBE_SECONDS) as bare, context.wrap_socket(bare):
                wrong, right = "with TLS", "rediss://"
        except OSError:
            return None
    if speaks_plain != wants_tls:
        return None
    return StreamError(
        f"the port in {ADDRESS} answers {wrong}. Begin the URL with {right}, or name another port.", "UCS-URL"
    )


def _tls(error: BaseException | None, url: str) -> StreamError | None:
    """The error for a connection that TLS broke."""
    # Redis reports an invalid client certificate after the handshake, and then closes the connection: the first command
    # may find it closed before the report is read.
    closed = (ConnectionResetError, BrokenPipeError) if url.startswith("rediss") else ()
    while error is not None and not isinstance(error, (ssl.SSLError, *closed)):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return StreamError(
            f"the certificate of Redis is not trusted ({error.verify_message}). Expected one for the host's name, "
            f"signed by the CA in ssl_ca_certs. Check both in {ADDRESS}.",
            "UCS-TLS",
        )
    reason = str(error.reason) if isinstance(error, ssl.SSLError) else ""
    if "ALERT" in reason:
        return StreamError(
            f"Redis refused the TLS connection ({reason}). It expects a client certificate that it trusts. Check "
            f"ssl_certfile and ssl_keyfile in {ADDRESS}.",
            "UCS-TLS",
        )
    if isinstance(error, ssl.SSLError) and error.library == "X509":
        return StreamError(
            f"a certificate cannot be used ({reason}). Check ssl_certfile, ssl_keyfile and ssl_ca_certs in {ADDRESS}.",
            "UCS-TLS",
        )
    return StreamUnavailableError(
        f"the TLS connection to Redis broke ({error}). If the error comes back, Redis may expect a client certificate: "
        f"check ssl_certfile and ssl_keyfile in {ADDRESS}."
    )
