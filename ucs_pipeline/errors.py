"""Errors a user can act on: one sentence that says what was found, what was expected and what to do."""


class UcsError(Exception):
    """Base of every error this package raises on purpose. Its text is one plain sentence."""


class BrickError(UcsError, ValueError):
    """An id, a brick name or a range that the numbering standard does not have."""


class FeedError(UcsError, ValueError):
    """A feed whose settings cannot work. Raised while definitions load, without connecting anywhere."""


class SourceError(UcsError):
    """The table cannot be read: no server, no table, no column, or a scan that failed half-way."""


class SourceUnavailableError(SourceError):
    """ClickHouse cannot answer right now, or broke a scan off. Reading again is safe."""


class StreamError(UcsError):
    """The stream cannot be written as asked. Publishing again without a change would fail again."""


class OutOfTurnError(StreamError):
    """The bricks are not the next ones. Publishing them works once those before them are in the stream."""


class StreamUnavailableError(StreamError):
    """Redis cannot take rows right now (down, loading, full, read-only). Publishing again later is safe."""


class StreamFullError(StreamUnavailableError):
    """The stream is at its cap and nobody made room for too long. Publishing again later is safe."""
