"""Turns of phrase that the project does not use, and the texts that must be without them."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

_BANNED = re.compile(
    r"""(?ix)\b(
    whoever | by[ ]which | of[ ]which | (says?|said)[ ]as[ ]much | (go|goes|going|gone|went)[ ]on | anew
    | cockpit | (puts?|sets?)[ ](that[ ]|it[ ]|things[ ])?right | holes? | foresaw | dealt | besides? | for[ ]ever
    | work(s|ed)[ ]out | kin | looks? | looked | looking | aloud | hush | stray | fenced? | gates? | old[ ]programs?
    | green | rooms? | at[ ]a[ ]glance | broken?[ ]off | breaks[ ]off | at[ ]work | held[ ]against | says? | said
    | saying | speaks? | (be|is|are)[ ]told | tells | in[ ]one[ ]sentence
    )\b | \bb'""",
)
_CODE = re.compile(
    r"```.*?```|<!--.*?-->|`[^`\n]+`|\]\([^)]*\)"  # code, marks and links of Markdown
    r"|\[/?(?:green|red)?\]|^\s*say: ",  # colors of the terminal, a parameter
    re.DOTALL | re.MULTILINE,
)


def banned(text: str) -> list[str]:
    """The banned turns of a text, with the words around them; code in backticks does not count."""
    text = " ".join(_CODE.sub(" ", text).split())
    return [text[max(0, found.start() - 40) : found.end() + 40] for found in _BANNED.finditer(text)]


def written(source: Path, *, strings: bool) -> Iterator[tuple[int, str]]:
    """Docstrings and comments of a Python file, by line; with `strings`, its other texts as well."""
    text = source.read_text()
    tree = ast.parse(text)
    constants = {id(node): node for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for name, node in constants.items():
        if isinstance(node.value, str) and (strings or name in docstrings):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
