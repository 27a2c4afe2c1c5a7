"""Errors a user can act on: what happened, why and what to do, in two or three sentences, and a stable code."""

import re

_CODE = re.compile(r" \[(UCS-[A-Z-]+)\]$")


class UcsError(Exception):
    """Base of every error this package raises on purpose. Its text ends with its code, such as `[UCS-GAP]`."""

    code: str = "UCS-ARGUMENT"
    """The code of the situation; `docs/reference/messages.md` explains it. Each class has a default."""

    def __init__(self, text: str, code: str | None = None) -> None:
        """`code`: if it is neither that of the class nor the one at the end of the text."""
        self.code = code or code_in(text) or self.code
        super().__init__(f"{without_code(text)} [{self.code}]")

    @property
    def text(self) -> str:
        """The message without its code."""
        return without_code(str(self))


def code_in(text: str) -> str | None:
    """The code that a message ends with."""
    found = _CODE.search(text)
    return found[1] if found else None


def without_code(text: str) -> str:
    """A message without the code that it ends with."""
    return _CODE.sub("", text)


def counted(number: int, what: str) -> str:
    """A number and its noun: `1 brick`, `2 bricks`, `2 entries`."""
    return f"{number:,} {what if number == 1 else what[:-1] + 'ies' if what.endswith('ry') else what + 's'}"


class BrickError(UcsError, ValueError):
    """An id, a brick name or a range that is invalid in the numbering standard."""

    code = "UCS-BRICK-NAME"


class FeedError(UcsError, ValueError):
    """A feed whose settings cannot work. Raised while definitions load, without connecting anywhere."""

    code = "UCS-SETTING"


class SourceError(UcsError):
    """The table cannot be read: no server, no table, no column, or a scan that failed half-way."""

    code = "UCS-TABLE"


class SourceUnavailableError(SourceError):
    """ClickHouse cannot answer now, or a scan ended early. Reading again is safe."""

    code = "UCS-CLICKHOUSE-UNAVAILABLE"


class StreamError(UcsError):
    """The stream cannot be written as asked. Publishing again without a change fails again."""

    code = "UCS-REDIS-REFUSED"


class OutOfTurnError(StreamError):
    """The bricks are not the next ones. Publishing them succeeds once those before them are in the stream."""

    code = "UCS-GAP"


class StreamUnavailableError(StreamError):
    """Redis cannot take rows now (down, loading, full, read-only). Publishing again later is safe."""

    code = "UCS-REDIS-UNAVAILABLE"


class StreamFullError(StreamUnavailableError):
    """The stream is at its cap, and no entries were trimmed for too long. Publishing again later is safe."""

    code = "UCS-STREAM-FULL"
