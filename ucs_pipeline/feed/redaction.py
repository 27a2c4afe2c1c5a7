"""SQL for display: without what may be a password, a key or a token.

A table function can carry a login (`mysql('host', 'db', 't', 'user', 'password')`), and so can an expression
(`decrypt('aes-256-gcm', …, 'key')`). Queries are sent unchanged; text that is shown, recorded or logged is redacted
here first. For a function that reads elsewhere, or is unknown, only what cannot be a secret is shown: addresses, names
of tables, formats, structures. Pure: text in, text out.
"""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple
from urllib.parse import unquote

from ucs_pipeline.feed.sql_tokens import Group, Parts, Token, contents, split, tree
from ucs_pipeline.feed.sql_tokens import text as text_of

HIDDEN = "[HIDDEN]"
"""Replaces a secret, here and in ClickHouse's own messages."""

_OPEN = {
    # None of these carries a login.
    *("file", "filecluster", "numbers", "numbers_mt", "zeros", "zeros_mt", "one", "generateseries", "generate_series"),
    *("generaterandom", "values", "null", "format", "view", "viewexplain", "viewifpermitted", "merge", "dictionary"),
    *("cluster", "clusterallreplicas", "mergetreeindex", "mergetreeprojection", "loop", "sqlite", "primes"),
}
_PLACES = {
    # How many of the first arguments cannot be a secret.
    **dict.fromkeys(("mysql", "postgresql", "mongodb"), 4),
    **dict.fromkeys(("remote", "remotesecure", "redis", "arrowflight"), 3),
    **dict.fromkeys(("azureblobstorage", "azureblobstoragecluster"), 3),
    **dict.fromkeys(("url", "s3", "gcs", "oss", "cosn", "hdfs", "deltalake", "hudi", "iceberg", "paimon"), 1),
    **dict.fromkeys(("urlcluster", "s3cluster", "hdfscluster", "ytsaurus"), 2),
    **dict.fromkeys(("odbc", "jdbc", "executable"), 0),
    # Their columns may be shown in any position.
    **dict.fromkeys(
        (_CIPHERS := ("encrypt", "decrypt", "trydecrypt", "aes_encrypt_mysql", "aes_decrypt_mysql", "hmac")), 1
    ),
}
_FAMILIES = ("iceberg", "deltalake", "hudi", "paimon")
_OPTIONS = {
    *("format", "structure", "compression", "compression_method", "url", "uri", "filename", "host", "port", "database"),
    *("db", "schema", "table", "collection", "user", "username", "use_insecure_imds_request", "no_sign_request"),
}
_HARMLESS = re.compile(
    r"auto|none|gzip|gz|deflate|br|brotli|xz|lzma|zst|zstd|lz4|bz2|snappy|NOSIGN"
    r"|(?:TabSeparated|TSV|CSV|CustomSeparated|JSON|BSON|Native|RowBinary|Parquet|Arrow|Avro|ORC|One|Npy|RawBLOB"
    r"|LineAsString|Regexp|Template|Values|Protobuf|CapnProto|MsgPack|MySQLDump|DWARF|Form|Markdown)"
    r"(?:With|And|Names|Types|Strict|Compact|Columns|EachRow|Each|Strings|Object|Metadata|Progress|Stream|Confluent"
    r"|Raw|Lines|List|Single|AsString|IgnoreSpaces|Defaults)*"
)
_STRUCTURE = re.compile(
    r"(?:\s*(?:\w+|`[^`]+`)\s+(?:U?Int\d+|Float\d+|BFloat16|Decimal\d*|String|FixedString|Date(?:Time)?\d*|Time\d*|Bool"
    r"|UUID|IPv[46]|Enum\d*|Nullable|LowCardinality|Array|Tuple|Map|Nested|JSON|Variant|Dynamic)"
    r"(?:\((?:[\w\s,.()/]|'[\w/ +-]*')*\))?\s*(?:,|\Z))+"
)
_LOGIN = re.compile(r"(?<=://)[^/?#\s]*(?=@)")
# A single question mark in a path is a wildcard.
_QUERY = re.compile(r"(?:\?[^?]*[=&]|;).*", re.DOTALL)
_VALUES = re.compile(r"(?:^[^:=&;]*:|=)([^&;]*)")
_CLAUSES = {*("select", "where", "prewhere", "group", "order", "having", "limit", "union", "on", "using", "settings")}
_TABLE_FOLLOWS = {"from", "join"}
_LONGEST_ECHO = 400
_SHORT = 3


class Redacted(NamedTuple):
    """A text as it may be shown, and what is left out of it."""

    text: str
    secrets: frozenset[str]


def shown_table(table: str, may_be: Collection[str] = ()) -> Redacted:
    """A feed's `table` as it may be shown. A plain table, and a function that reads files, are unchanged.

    `may_be`: texts that are secrets inside quotes or comments; outside they are names.
    """
    return _shown(table, may_be, table=True)


def shown_expression(sql: str, may_be: Collection[str] = ()) -> Redacted:
    """An SQL expression as it may be shown."""
    return _shown(sql, may_be, table=False)


def shown_address(value: str, may_be: Collection[str] = ()) -> Redacted:
    """A text that may be an address, without a login in it."""
    reader = _Reader(may_be)
    return Redacted(reader.without_login(value), frozenset(reader.secrets))


def hider(secrets: Collection[str]) -> Callable[[str], str]:
    """Removes these secrets from a text, such as an error of ClickHouse that repeats the query."""
    forms = {form for secret in secrets for form in (secret, _unescaped(secret), unquote(secret)) if form}
    longest = sorted(forms, key=len, reverse=True)

    def hide(text: str) -> str:
        for secret in longest:
            # A very short one is part of many words, so only its literal is removed.
            text = text.replace(secret, HIDDEN) if len(secret) > _SHORT else text.replace(f"'{secret}'", f"'{HIDDEN}'")
        for secret in longest:
            text = _without_beginning(text, secret)
        return text

    return hide


def _shown(sql: str, may_be: Collection[str], *, table: bool) -> Redacted:
    reader = _Reader(may_be)
    text = reader.read(tree(sql), table=table)
    return Redacted(text, frozenset(reader.secrets))


class _Reader:
    """Writes redacted SQL, and collects what it leaves out."""

    def __init__(self, may_be: Collection[str]) -> None:
        self.secrets: set[str] = set()
        self._may_be = sorted(filter(None, may_be), key=len, reverse=True)

    def read(self, parts: Parts, *, table: bool = False) -> str:
        """The text of some parts. `table`: a table comes first, so an unknown function may be a table function."""
        written, before = "", ""
        expected = listed = table
        reaching = False
        for part in parts:
            if isinstance(part, Group):
                call = bool(before) and part.opening == "(" and before.lower() not in _TABLE_FOLLOWS | _CLAUSES
                inner = self._arguments(before, part.parts, reaching) if call else self.read(part.parts, table=expected)
                written += part.opening + inner + part.closing
                before, expected = "", False
            elif part.kind == "blank":
                written += self.without_login(part.text)
            elif part.kind == "name":
                written += part.text
                word = part.text.lower()
                reaching, expected = expected, word in _TABLE_FOLLOWS
                listed = expected or (listed and word not in _CLAUSES)
                before = part.text
            else:
                written += self.without_login(part.text) if part.kind == "literal" else part.text
                before, expected = "", part.text == "," and listed
        return written

    def without_login(self, text: str) -> str:
        """The text without the user and password of an address in it, and without what may be a secret."""
        for secret in self._may_be:
            # A very short one is part of many texts.
            if secret in text and (len(secret) > _SHORT or text.strip("'") == secret):
                text = text.replace(secret, self._hide(secret))
        return _LOGIN.sub(lambda found: self._hide(found[0]), text)

    def _arguments(self, function: str, parts: Parts, reaching: bool) -> str:
        name = function.strip('`"\u201c\u201d').lower()
        places = _places(name, reaching)
        if places is None:
            return self.read(parts)
        return ",".join(
            self._argument(piece, place < places, columns=place < places or name in _CIPHERS)
            for place, piece in enumerate(split(parts))
        )

    def _argument(self, piece: Parts, safe: bool, *, columns: bool) -> str:
        significant = [n for n, part in enumerate(piece) if isinstance(part, Group) or part.kind != "blank"]
        if not significant:
            return text_of(piece)
        first, end = significant[0], significant[-1] + 1
        core = [piece[n] for n in significant]
        return text_of(piece[:first]) + self._value(piece[first:end], core, safe, columns) + text_of(piece[end:])

    def _value(self, piece: Parts, core: Parts, safe: bool, columns: bool) -> str:
        head = core[0]
        if isinstance(head, Token) and len(core) == 1:
            if _HARMLESS.fullmatch(head.content) or _STRUCTURE.fullmatch(head.content):
                return head.text
            if safe and head.kind == "literal":
                return self._address(head)
        if isinstance(head, Token) and head.kind == "name" and len(core) > 1:
            following = core[1]
            if isinstance(following, Group) and len(core) == 2:
                return self.read(piece, table=True)
            if isinstance(following, Token) and following.text == "=":
                start = piece.index(following) + 1
                known = head.content.lower() in _OPTIONS
                return text_of(piece[:start]) + self._argument(piece[start:], known, columns=known)
        if columns and all(isinstance(part, Token) and (part.kind == "name" or part.text == ".") for part in core):
            return text_of(piece)
        for content in contents(piece):
            self._hide(content)
        return f"'{HIDDEN}'"

    def _address(self, token: Token) -> str:
        content = token.content
        if "://" in content:
            start = content.index("://")
            shown = self.without_login(content)
            shown = shown[:start] + _QUERY.sub(lambda found: found[0][0] + self._hide(found[0][1:]), shown[start:])
        elif "=" in content or ";" in content:
            shown = self._hide(content)
        else:
            login, at, rest = content.rpartition("@")
            shown = (self._hide(login) if at else "") + at + self.without_login(rest)
        return token.text.replace(content, shown) if content else token.text

    def _hide(self, secret: str) -> str:
        self.secrets.add(secret)
        # The password in a login, and each value in what follows an address, by itself as well.
        self.secrets.update(found for found in _VALUES.findall(secret) if found)
        return HIDDEN


def _places(function: str, reaching: bool) -> int | None:
    """How many of a function's first arguments may be shown; None if all may be."""
    if function in _OPEN:
        return None
    if function in _PLACES:
        return _PLACES[function]
    if function.startswith(_FAMILIES):
        return 2 if function.endswith("cluster") else 1
    return 0 if reaching else None


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text.replace("''", "'"), flags=re.DOTALL)


def _without_beginning(text: str, secret: str) -> str:
    # ClickHouse truncates the query in its errors, possibly in the middle of a secret.
    for length in range(min(len(secret) - 1, _LONGEST_ECHO), 3, -1):
        beginning = secret[:length]
        text = text.replace(f"{beginning}...", f"{HIDDEN}...")
        if text.endswith(beginning):
            text = text.removesuffix(beginning) + HIDDEN
    return text
