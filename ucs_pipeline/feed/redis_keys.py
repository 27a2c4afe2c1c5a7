"""Names of the keys beside a stream, which a Redis cluster keeps in the same slot as the stream. Pure."""


def beside(stream: str, name: str) -> str:
    """A key of that name beside a stream.

    Redis hashes what is between the first opening brace and the closing one after it, or the whole name where nothing
    is.
    """
    return f"{stream}:{name}" if _has_tag(stream) else f"{{{stream}}}:{name}"


def has_neighbours(stream: str) -> bool:
    """Whether `beside` can name keys in the stream's slot: a hash tag cannot hold a closing brace."""
    return _has_tag(stream) or "}" not in stream


def fencing_token_key(stream: str) -> str:
    """Names the current publisher of an ordered stream."""
    return beside(stream, "writer")


def parked_key(stream: str) -> str:
    """Where a closed guard moves the stream aside to."""
    return beside(stream, "writer:aside")


def ledger_key(stream: str, feed: str) -> str:
    """What an any-order feed has put into the stream."""
    return beside(stream, f"ledger:{feed}")


MARKS = "ucs:ledger:"
"""What the names of consumer groups begin with that nobody reads with: see `mark_name`."""


def mark_name(feed: str) -> str:
    """Name of the consumer group by which the ledger of an any-order feed knows its stream: see `ledger_mark`."""
    return MARKS + feed


def _has_tag(stream: str) -> bool:
    start = stream.find("{")
    return start >= 0 and stream.find("}", start) > start + 1
