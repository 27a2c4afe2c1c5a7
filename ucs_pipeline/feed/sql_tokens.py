"""SQL split at quotes, comments and brackets. Pure; invalid SQL keeps all of its text."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

Kind = Literal["literal", "name", "blank", "sign"]

# ClickHouse takes curly quotes for straight ones.
_TOKEN = re.compile(
    r"""
    (?P<literal>'(?:[^'\\]|\\.|'')*(?:'|\\?\Z)|\u2018[^\u2019]*(?:\u2019|\Z)|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z))
    |(?P<name>\w+|`(?:[^`\\]|\\.|``)*(?:`|\\?\Z)|"(?:[^"\\]|\\.|"")*(?:"|\\?\Z)|\u201c[^\u201d]*(?:\u201d|\Z))
    |(?P<blank>\s+|--[^\n]*|\#[\ !][^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<sign>.)
    """,
    re.DOTALL | re.VERBOSE,
)
_QUOTE = re.compile(r"['`\"\u2018\u201c]|\$\w*\$")
_CLOSING = {"\u2018": "\u2019", "\u201c": "\u201d"}
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"and", "or", "not", "null", "true", "false", "nan", "inf"}


class Token(NamedTuple):
    """A literal, a name or word, a blank or comment, or a sign. An unclosed quote takes the rest."""

    kind: Kind
    text: str

    @property
    def content(self) -> str:
        """What is between the quotes, escapes as they are written; all of it if there are none."""
        quote = _QUOTE.match(self.text)
        if quote is None:
            return self.text
        return self.text[quote.end() :].removesuffix(_CLOSING.get(quote[0], quote[0]))


class Group(NamedTuple):
    """What is between two brackets. An unclosed one holds the rest."""

    opening: str
    parts: "list[Token | Group]"
    closing: str


Parts = Sequence[Token | Group]


def tree(sql: str) -> Parts:
    """The parts of a text, in order."""
    levels = [Group("", [], "")]
    for found in _TOKEN.finditer(sql):
        kinds: tuple[Kind, ...] = ("literal", "name", "blank", "sign")
        token = Token(next(kind for kind in kinds if found[kind] is not None), found[0])
        if token.kind == "sign" and token.text in _BRACKETS:
            levels.append(Group(token.text, [], _BRACKETS[token.text]))
        elif token.kind == "sign" and token.text == levels[-1].closing:
            group = levels.pop()
            levels[-1].parts.append(group)
        else:
            levels[-1].parts.append(token)
    while len(levels) > 1:
        group = levels.pop()
        levels[-1].parts.append(group._replace(closing=""))
    return levels[0].parts


def split(parts: Parts) -> Iterator[Parts]:
    """The pieces between commas."""
    piece: list[Token | Group] = []
    for part in parts:
        if isinstance(part, Token) and part.text == ",":
            yield piece
            piece = []
        else:
            piece.append(part)
    yield piece


def text(parts: Parts) -> str:
    """The text that has these parts."""
    return "".join(
        part.text if isinstance(part, Token) else part.opening + text(part.parts) + part.closing for part in parts
    )


def contents(parts: Parts) -> Iterator[str]:
    """What is in every literal and name."""
    for part in parts:
        if isinstance(part, Group):
            yield from contents(part.parts)
        elif part.kind in ("literal", "name"):
            yield part.content


def columns_named(sql: str, known: Collection[str]) -> list[str]:
    """The columns that an expression uses, in order.

    Empty if it is not certain: the text has a word that is no column, such as AS or the argument of a lambda.
    """
    found: list[str] = []
    return list(dict.fromkeys(found)) if _all_known(tree(sql), known, found) else []


def _all_known(parts: Parts, known: Collection[str], found: list[str]) -> bool:
    """Whether every word is a column, a constant or the name of a function. Adds columns to `found`."""
    kept = [part for part in parts if isinstance(part, Group) or part.kind != "blank"]
    edge = Token("sign", ",")
    for before, part, after in zip([edge, *kept], kept, [*kept[1:], edge], strict=False):
        if isinstance(part, Group):
            if part.opening == "{" or not _all_known(part.parts, known, found):
                return False
        elif part.kind == "sign":
            lambdas = part.text == "-" and after == Token("sign", ">")
            every_column = part.text == "*" and before == edge
            member = part.text == "." and not (_is_number(before) and _is_number(after))
            if lambdas or every_column or member or part.text == ";":
                return False
        elif part.kind == "name" and not _is_number(part):
            if isinstance(after, Group) and after.opening == "(":
                # Columns by a pattern, or a query of its own.
                if part.content.lower() in ("columns", "in", "exists"):
                    return False
            elif part.text.lower() in _WORDS:
                if part.text in known:
                    return False
            elif part.content not in known or (isinstance(after, Token) and after.kind == "literal"):
                return False
            else:
                found.append(part.content)
    return True


def _is_number(part: Token | Group) -> bool:
    return isinstance(part, Token) and part.kind == "name" and part.text[0].isdigit()
