"""Names of the keys next to a stream, in the same slot of a Redis cluster. Pure."""


def companion_key(stream: str, name: str) -> str:
    """A key of that name next to a stream.

    Redis hashes the text between the first opening brace and the next closing one, or else the whole name.
    """
    return f"{stream}:{name}" if _has_tag(stream) else f"{{{stream}}}:{name}"


def has_neighbours(stream: str) -> bool:
    """Whether `companion_key` can name keys in the stream's slot: a hash tag cannot hold a closing brace."""
    return _has_tag(stream) or "}" not in stream


def fencing_token_key(stream: str) -> str:
    """Names the current publisher of an ordered stream."""
    return companion_key(stream, "writer")


def parked_key(stream: str) -> str:
    """The name that a closed guard moves the stream to."""
    return companion_key(stream, "writer:aside")


def ledger_key(stream: str, feed: str) -> str:
    """The ledger of an any-order feed."""
    return companion_key(stream, f"ledger:{feed}")


MARKS = "ucs:ledger:"
"""Prefix of the consumer groups without readers: see `mark_name`."""


def mark_name(feed: str) -> str:
    """Name of the consumer group that ties the ledger of an any-order feed to its stream: see `ledger_mark`."""
    return MARKS + feed


def _has_tag(stream: str) -> bool:
    start = stream.find("{")
    return start >= 0 and stream.find("}", start) > start + 1
