"""What ClickHouse's errors mean: those that pass, and those that do not."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ucs_pipeline.errors import SourceError, SourceUnavailableError
from ucs_pipeline.home import data_dir

ADDRESS = "the ClickHouse URL"
"""The URL's name in messages while its setting is not known."""


Redact = Callable[[str], str]
"""Removes a feed's secrets from a text that may repeat its SQL."""


_CODE = re.compile(r"Code: (\d+)\. (?:DB::Exception: )?(.*)", re.DOTALL)


_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)")


_ERRNO = re.compile(r": , errno: \d+, strerror: ")


# ClickHouse's message for any file that it cannot read: the structure is not what is missing.
_BESIDE_THE_POINT = re.compile(
    r": The table structure cannot be extracted from .*|\. You can specify the \w+ manually.*"
)


_UNREACHABLE = re.compile(r"Caused by \w+\(\W?(.*?)\W?\)\) executing")


_FILE_HINT = (
    "check the path in the feed's `table`. A path that does not begin with / is relative to the directory in which the "
    "command or Dagster was started or, on a server, to its user_files_path"
)


_TOO_LONG = "Max query size exceeded"
_TOO_LONG_HINT = (
    "list fewer columns in the feed's `columns`, or let the user change max_query_size, max_ast_elements and "
    "max_expanded_ast_elements, or raise them in its profile"
)
_HINTS = {
    "CANNOT_STAT": _FILE_HINT,
    "FILE_DOESNT_EXIST": _FILE_HINT,
    "CANNOT_EXTRACT_TABLE_STRUCTURE": "check the path or address in the feed's `table`, and the file there",
    "UNKNOWN_TABLE": "check the feed's `table`",
    "UNKNOWN_DATABASE": "check the database in the feed's `table` and in " + ADDRESS,
    "UNKNOWN_IDENTIFIER": "check the feed's `key`, `columns` and `where` against the table's columns",
    "UNKNOWN_FUNCTION": "check the functions in the feed's `key`, `columns` and `where`",
    "SYNTAX_ERROR": "check the SQL expressions in the feed's `key`, `columns` and `where`",
    "TOO_BIG_AST": _TOO_LONG_HINT,
    "AUTHENTICATION_FAILED": f"check user and password in {ADDRESS}",
    "ACCESS_DENIED": "grant the user SELECT on the table",
    "READONLY": "set readonly to 0 or 2 in the user's profile",
    "SETTING_CONSTRAINT_VIOLATION": "let the user change this setting, which its profile constrains",
    "UNKNOWN_SETTING": "check the feed's `settings`",
    "QUOTA_EXCEEDED": "raise the user's quota, or set `stream.timeout_s` above the quota's interval",
}


_OUR_CODES = {
    "AUTHENTICATION_FAILED": "UCS-LOGIN",
    **dict.fromkeys(("ACCESS_DENIED", "READONLY", "SETTING_CONSTRAINT_VIOLATION"), "UCS-RIGHTS"),
}


def _embedded_hints() -> dict[str, str]:
    """As `_HINTS`, of the embedded engine."""
    no_table = (
        f"check the feed's `table`: the tables of the embedded engine are the files {data_dir() / 'tables'}/<table>"
        f".parquet. For the tables of a server, name the server in {ADDRESS}"
    )
    return {**_HINTS, "UNKNOWN_TABLE": no_table, "UNKNOWN_DATABASE": no_table}


# Errors that pass: limits on concurrent use, connections, replicas that catch up, locks.
TRANSIENT = {
    *("TIMEOUT_EXCEEDED", "TOO_SLOW", "TOO_MANY_SIMULTANEOUS_QUERIES", "QUERY_SLOT_ACQUISITION_TIMEOUT"),
    *("QUOTA_EXCEEDED", "RECEIVED_ERROR_TOO_MANY_REQUESTS", "USER_SESSION_LIMIT_EXCEEDED", "SERVER_OVERLOADED"),
    *("MEMORY_LIMIT_EXCEEDED", "MEMORY_RESERVATION_KILLED", "MEMORY_RESERVATION_FAILED", "CANNOT_ALLOCATE_MEMORY"),
    *("MEMORY_RESERVATION_ACQUISITION_TIMEOUT", "RESOURCE_LIMIT_EXCEEDED", "NOT_ENOUGH_SPACE", "CANNOT_SCHEDULE_TASK"),
    *("NO_FREE_CONNECTION", "SOCKET_TIMEOUT", "NETWORK_ERROR", "ALL_CONNECTION_TRIES_FAILED", "DNS_ERROR"),
    *("CANNOT_READ_FROM_SOCKET", "CANNOT_WRITE_TO_SOCKET", "EXCHANGE_PEER_DISCONNECTED", "SESSION_REFUSED"),
    *("TCP_CONNECTION_LIMIT_REACHED", "HTTP_CONNECTION_LIMIT_REACHED", "EXTERNAL_SERVER_IS_NOT_RESPONDING"),
    *("ABORTED", "QUERY_WAS_CANCELLED", "QUERY_WAS_CANCELLED_BY_CLIENT", "THREAD_WAS_CANCELED", "ASYNC_LOAD_CANCELED"),
    *("KEEPER_EXCEPTION", "NO_ZOOKEEPER", "UNEXPECTED_ZOOKEEPER_ERROR", "REPLICA_IS_NOT_IN_QUORUM"),
    *("ALL_REPLICAS_ARE_STALE", "NO_ACTIVE_REPLICAS", "NO_AVAILABLE_REPLICA", "TOO_FEW_LIVE_REPLICAS"),
    *("NO_REMOTE_SHARD_AVAILABLE", "SHARD_HAS_NO_CONNECTIONS", "TOO_MANY_UNAVAILABLE_SHARDS", "REPLICA_STATUS_CHANGED"),
    *("TABLE_IS_BEING_RESTARTED", "DEADLOCK_AVOIDED", "PART_IS_TEMPORARILY_LOCKED", "PART_IS_LOCKED"),
    *("SESSION_IS_LOCKED", "FILE_CHANGED_DURING_READ", "S3_OBJECT_CHANGED_DURING_READ"),
}


def _broken_off(reason: object, tail: bytes, hide: Redact) -> SourceError:
    """The error behind a body that ended too early."""
    causes = reason.args if isinstance(reason, Exception) else ()
    seen = tail + b"".join(getattr(cause, "partial", b"") for cause in causes)
    position = seen.find(b"Code: ")
    if position >= 0 and b"DB::Exception" in seen[position:]:
        return _refusal(seen[position:].decode(errors="replace"), hide)
    what = first_line(hide(str(causes[0] if causes else reason)))
    return SourceUnavailableError(
        f"the scan ended early ({what}): ClickHouse or the network stopped it. Try again, and if the error comes back, "
        "check the server's log."
    )


def _refusal(words: str, hide: Redact, hints: Mapping[str, str] = MappingProxyType(_HINTS)) -> SourceError:
    # Before the text is cut: both halves of a secret cut in two would stay.
    message = hide(words)
    match = _CODE.search(message)
    if match is None:
        found = _UNREACHABLE.search(message)
        return SourceUnavailableError(
            f"ClickHouse cannot be read ({first_line(found[1] if found else message)}). Check {ADDRESS} and the server."
        )
    names = _NAME.findall(match[2])
    name = names[-1] if names else f"code {match[1]}"
    # The engine reports this as an SQL error at the position where it stopped.
    hint = _TOO_LONG_HINT if _TOO_LONG in match[2] else hints.get(name)
    text = f"ClickHouse refused the query with {name}: {first_line(match[2]).removesuffix('?')}."
    kind = SourceUnavailableError if name in TRANSIENT else SourceError
    return kind(f"{text} {hint[0].upper()}{hint[1:]}." if hint else text, _OUR_CODES.get(name))


def first_line(message: str) -> str:
    """The reason in a message of ClickHouse, without its prefix and suffix."""
    # After a line that ends with a colon, the reason is on the next one.
    line = re.sub(r":\s*\n\s*", ": ", message.strip()).splitlines()[0] if message.strip() else "no message"
    line = re.sub(r"\s*\(?\([A-Z0-9_]+\)\s*(\(version .*)?$", "", line)
    line = _ERRNO.sub(": ", _BESIDE_THE_POINT.sub("", line))
    return re.split(r"DB::\w*Exception: ", line)[-1][:400].rstrip(". :")
