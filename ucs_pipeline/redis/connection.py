"""Connections to Redis, made by redis-py, and what Redis' own errors mean for a publisher."""

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
_MOVING = "the Redis cluster is moving the stream's slot"
TRANSIENT = {
    "OOM": "Redis is out of memory (maxmemory): let consumers catch up and trim, or raise maxmemory",
    "LOADING": "Redis is loading its data from disk",
    "BUSY": "Redis is busy with a script",
    "UNBLOCKED": "this Redis became a replica",
    "READONLY": f"this Redis is a read-only replica: point {ADDRESS} at the primary",
    "MASTERDOWN": "this Redis is a replica that lost its primary",
    "TRYAGAIN": _MOVING,
    "ASK": _MOVING,
    "CLUSTERDOWN": "the Redis cluster is down",
    "MISCONF": "Redis cannot save to disk and refuses writes: see its log",
    "NOREPLICAS": "Redis has fewer replicas than its min-replicas-to-write",
}
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
UNKNOWN_IN_SCRIPT = "Unknown Redis command called from script"
"""What Redis says of a command that it does not have, without its name."""
_SCRIPT_USER = "The user executing the script"
_RIGHTS = "docs/how-to/connect.md lists all that it needs, under Redis rights"
PERMANENT = {
    "WRONGTYPE": "the key holds another type, expected a stream: choose another stream name, or delete the key",
    "MOVED": f"the stream is on another node of a Redis cluster: name the cluster in {ADDRESS}, as "
    "redis+cluster://host:port,host:port",
    "CROSSSLOT": "the stream's name has braces, with which its companion keys get another slot of the Redis cluster: "
    "choose another stream name",
    "NOPERM": "the Redis user may not do this: grant it the keys and the command; " + _RIGHTS,
    "NOAUTH": f"Redis wants a password: give it in {ADDRESS}",
    "WRONGPASS": f"user or password is wrong: check {ADDRESS}",
}


@dataclass(frozen=True)
class RedisServer:
    """Where a Redis is."""

    url: str = field(repr=False)
    """As redis-py reads it, of Sentinels or a cluster as `redis.url` does, or `embedded`."""
    name: str = ADDRESS
    """What messages call the URL: where it is written."""


class _AtServer(redis.Redis):
    """A client made from a URL, so that what is wrong with its connection is put right there."""

    server: RedisServer


def where(client: "redis.Redis") -> str:
    """What to change if the connection of a client is wrong."""
    return client.server.name if isinstance(client, _AtServer) else "the client's settings"


def redis_url() -> str:
    """`UCS_REDIS_URL`, or else the URL of the project's embedded server, which is started if need be."""
    return os.environ.get(URL_VARIABLE) or embedded_redis_url()


def connect_redis(server: RedisServer, stream: str) -> "redis.Redis":
    """A client for a stream's keys.

    Connects at the first command. redis-py's own retries are off: it would send a write again without knowing whether
    the first one arrived.

    Raises:
        StreamError: the URL is none, or the stream's keys cannot be together in its cluster.
    """
    return connect_each(server, [stream])[0]


def connect_each(server: RedisServer, streams: Sequence[str]) -> list["redis.Redis"]:
    """The same for several streams: one client for all or, where they are in a cluster, one for each."""
    if not server.url:
        raise StreamError(f"{server.name} is empty: write redis://user:password@host:6379/0 there, or {EMBEDDED!r}")
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
            # Connects to nothing; options that redis-py does not know show here.
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError, redis.RedisError):
        # What went wrong is left out: it may quote a part of the password.
        raise StreamError(
            f"{server.name} is not a Redis URL; expected redis://user:password@host:6379/0, rediss://..., "
            "unix:///path?db=0, redis+sentinel://user:password@host:26379,host:26379/master/0 or "
            "redis+cluster://user:password@host:6379,host:6379, with other characters than letters and digits "
            "percent-encoded in user and password, and only options of redis-py after a question mark"
        ) from None
    for name in _FILES:
        path = clients[0].connection_pool.connection_kwargs.get(name) if clients else None
        if path and not os.access(path, os.R_OK):
            raise StreamError(f"{name} in {server.name} names {path}, expected a file that can be read")
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
    """The error a Redis error reply stands for: one that may pass, or one that will not."""
    # An EXEC that is refused itself, after its commands were accepted, says why behind a preface.
    reason = message.removeprefix(_DISCARDED)
    # A missing right is worded in another way inside a script.
    code = "NOPERM" if _SCRIPT_USER in reason else reason.split(" ", 1)[0]
    if _WAIT_REFUSED in reason:
        code = "READONLY"
    if unknown := re.search(r"unknown command '?`?([\w|]+)", reason, re.IGNORECASE):
        return no_command(unknown[1].upper())
    if UNKNOWN_IN_SCRIPT in reason:
        return StreamError(
            f"A script of ucs calls a command that this Redis does not have ({reason}). Use another server."
        )
    if denied := re.search(r"permissions to run the '([^']+)' command", reason):
        command, right = denied[1].replace("|", " ").upper(), f"+{denied[1]}"
        return StreamError(f"the Redis user may not run {command}: grant it {right}; {_RIGHTS} ({message})")
    if code in TRANSIENT:
        return StreamUnavailableError(f"{TRANSIENT[code]} ({message})")
    if code in PERMANENT:
        return StreamError(f"{PERMANENT[code]} ({message})")
    return StreamError(f"Redis refused: {message}")


def no_command(names: str) -> StreamError:
    """The error of a server that does not have a command."""
    return StreamError(
        f"This Redis, or a proxy in front of it, does not have the command {names}. Use a server that has it, or "
        "remove its `rename-command`."
    )


def not_allowed(error: redis.RedisError) -> bool:
    """Whether Redis, or a proxy before it, does not give this user a command: by its rights, or because it has none."""
    text = str(error).lower()
    return isinstance(error, redis.exceptions.NoPermissionError) or (
        isinstance(error, redis.ResponseError) and ("unknown command" in text or "unknown subcommand" in text)
    )


def translate(error: Exception, client: "redis.Redis") -> StreamError:
    """The error a redis-py or socket exception of a client stands for."""
    found = _meaning(error, client.server.url if isinstance(client, _AtServer) else "")
    return type(found)(str(found).replace(ADDRESS, where(client)))


def _meaning(error: Exception, url: str) -> StreamError:
    # redis-py strips the code of some replies into the class of the exception.
    if isinstance(error, redis.AuthenticationError):
        return StreamError(f"Redis refused the login: user or password is wrong or missing; check {ADDRESS}")
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return classify(f"{code} {error}")
    if isinstance(error, redis.ResponseError):
        return classify(str(error))
    if isinstance(error, WrongServerError):
        return StreamUnavailableError(f"another server has the stream by now ({error})")
    return (
        _tls(error, url)
        or (_other_protocol(url) if url else None)
        or StreamUnavailableError(f"Redis cannot be reached ({error}); check {ADDRESS} and the server")
    )


def _other_protocol(url: str) -> StreamError | None:
    """The error for a port that speaks TLS where the URL does not, or the reverse; None if it does not show."""
    try:
        parse: Any = redis.connection.parse_url
        options = parse(url)
        address, wants_tls = (options["host"], options.get("port", 6379)), "connection_class" in options
        # A Redis without TLS answers this at once, with or without a password; one with TLS hangs up.
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
    return StreamError(f"the port in {ADDRESS} answers {wrong}: write {right}... there, or name another port")


def _tls(error: BaseException | None, url: str) -> StreamError | None:
    """The error that stands for what TLS has against a connection, where that is why it broke."""
    # What Redis has against a client certificate it says after the handshake, and then closes the connection: the first
    # command may find it closed before it is heard.
    closed = (ConnectionResetError, BrokenPipeError) if url.startswith("rediss") else ()
    while error is not None and not isinstance(error, (ssl.SSLError, *closed)):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return StreamError(
            f"the certificate of Redis is not trusted ({error.verify_message}): expected one for the host's name, "
            f"signed by the CA in ssl_ca_certs; check both in {ADDRESS}"
        )
    reason = str(error.reason) if isinstance(error, ssl.SSLError) else ""
    if "ALERT" in reason:
        return StreamError(
            f"Redis refused the TLS connection ({reason}): expected a client certificate that it trusts; check "
            f"ssl_certfile and ssl_keyfile in {ADDRESS}"
        )
    if isinstance(error, ssl.SSLError) and error.library == "X509":
        return StreamError(
            f"a certificate cannot be used ({reason}): check ssl_certfile, ssl_keyfile and ssl_ca_certs in {ADDRESS}"
        )
    return StreamUnavailableError(
        f"the TLS connection to Redis broke ({error}); if it does not come back, Redis may expect a client certificate "
        f"that it trusts (ssl_certfile and ssl_keyfile in {ADDRESS})"
    )
