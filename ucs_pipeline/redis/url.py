"""Redis URLs with several nodes: a master that Sentinels watch, or a cluster. Pure."""

import re
from dataclasses import dataclass
from typing import Any

from redis.connection import parse_url

ADDRESS = "the Redis URL"
"""The URL's name in messages if its setting is not known."""

Address = tuple[str, int]
"""Host and port."""

_MANY = re.compile(r"(rediss?)\+(sentinel|cluster)://((?:[^/?#]*@)?)([^/?#@]+)(?:/([^?#]*))?(?:\?([^#]*))?")
_SENTINEL_PORT, _REDIS_PORT = 26379, 6379


@dataclass(frozen=True)
class Nodes:
    """Several nodes, and which of their servers to use."""

    addresses: list[Address]
    """The Sentinels or, without a master, some nodes of a cluster."""
    master: str | None
    """The Sentinels' name of the master."""
    tls: bool
    options: dict[str, Any]
    """Of a connection to a Redis server, as redis-py names them: login, database, timeouts, certificates."""
    sentinel_login: dict[str, str]


def parse_nodes(url: str) -> Nodes | None:
    """The parts of a URL with several nodes; None for another kind of URL.

    Raises:
        ValueError: it is invalid. The text may quote a part of a password.
    """
    match = _MANY.fullmatch(url)
    if match is None:
        return None
    scheme, kind, login, hosts, path, query = match.groups(default="")
    watched = kind == "sentinel"
    master, _, database = path.partition("/") if watched else ("", "", path)
    # redis-py parses the rest as the URL of one server.
    parse: Any = parse_url
    each = [parse(f"{scheme}://{login}{host}/{int(database or 0)}?{query}") for host in hosts.split(",")]
    port = _SENTINEL_PORT if watched else _REDIS_PORT
    addresses = [(str(options.pop("host", "")), int(options.pop("port", port))) for options in each]
    options: dict[str, Any] = each[0]
    options.pop("connection_class", None)
    secrets = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    found = Nodes(
        addresses,
        master or None,
        scheme == "rediss",
        options,
        {name: value for name, value in secrets.items() if value is not None},
    )
    if not all(host for host, _ in addresses) or watched != bool(master):
        raise ValueError("a node without a host, or Sentinels without the name of a master")
    if not watched and (found.options.get("db") or found.sentinel_login):
        raise ValueError("a cluster has no other database than 0, and no Sentinels")
    return found
