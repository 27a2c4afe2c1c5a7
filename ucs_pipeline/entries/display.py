"""Bricks, contents and entries in messages and tables."""

from collections.abc import Iterable, Mapping, Sequence

from ucs_pipeline.bricks.partitions import Partitions
from ucs_pipeline.errors import counted

_CHARACTERS = 200
_RANGES = 3


def ranges(partitions: Partitions, starts: Iterable[int]) -> str:
    """Rising starts as brick names and `first...last` ranges, the first few."""
    names = list(partitions.spans(starts))
    more = len(names) - _RANGES
    return ", ".join(names[:_RANGES]) + (f" and {more:,} more" if more > 0 else "")


def bricks_are(partitions: Partitions, starts: Sequence[int]) -> str:
    """The same as the beginning of a sentence: `brick 0.0.0.3 is`, `bricks 0.0.0.3...0.0.0.5, 0.0.0.9 are`."""
    one = len(starts) == 1
    return f"{'brick' if one else 'bricks'} {ranges(partitions, starts)} {'is' if one else 'are'}"


def content_shown(rows: int, content_hash: int | None) -> str:
    """Rows and content hash of a brick."""
    return f"{counted(rows, 'row')}, content {hash_shown(content_hash)}"


def hash_text(content_hash: int) -> str:
    """The recorded form of a content hash: 16 hex digits."""
    return f"{content_hash:016x}"


def hash_shown(content_hash: int | None) -> str:
    """A content hash that may not have been recorded."""
    return "not recorded" if content_hash is None else hash_text(content_hash)


def fields_shown(fields: Mapping[bytes, bytes]) -> str:
    """An entry's fields, cut off where they get long."""
    pairs = ((name.decode(errors="replace"), value.decode(errors="replace")) for name, value in fields.items())
    text = printable(", ".join(f"{name}={value}" for name, value in pairs))
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def printable(text: str) -> str:
    """A text from a table or a stream, its non-printable characters escaped.

    Otherwise it could control the terminal, or begin a new line in a log.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
