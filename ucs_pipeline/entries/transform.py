"""A feed's own Python function between table and stream: a DataFrame in, a DataFrame out, a batch of rows at a time.

Its columns become the fields of the entries. After that, the text of values and the protocol's bytes are made column by
column in Arrow, without a Python object per row.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ucs_pipeline.entries.resp import bulk
from ucs_pipeline.errors import SourceError, counted

if TYPE_CHECKING:
    import pandas as pd

_CRLF = b"\r\n"


class Transform:
    """The function that a feed names."""

    def __init__(self, name: str, constants: Mapping[str, str]) -> None:
        """`name`: `package.module:function`; `constants`: fields with the same value in every entry, after its columns.

        Raises:
            SourceError: there is no such function.
        """
        self._name = name
        self._constants = constants
        module, _, function = name.partition(":")
        try:
            found = getattr(import_module(module), function)
        except Exception as error:
            # Not only ImportError: a module may raise anything when it is imported.
            raise SourceError(
                f"transform {name!r} cannot be imported ({type(error).__name__}: {error}). Expected "
                "package.module:function, importable where the feed runs.",
                "UCS-TRANSFORM",
            ) from error
        if not callable(found):
            raise SourceError(f"transform {name!r} is a {type(found).__name__}, expected a function.", "UCS-TRANSFORM")
        self._function: Callable[[pd.DataFrame], pd.DataFrame] = found

    def apply(self, batch: pa.RecordBatch, fields: Mapping[str, str], brick: str) -> pa.RecordBatch:
        """A batch of the scan with the payload that the function makes of its raw columns.

        Args:
            batch: a batch with the columns of `ucs_pipeline.clickhouse.sql.queries.scan`, raw ones included.
            fields: the names that the function sees, to names of the raw columns.
            brick: name of its first brick, for messages.

        Raises:
            SourceError: the function fails, or what it returns cannot become one entry per row.
        """
        frame = self._frame(batch, fields, brick)
        try:
            result = self._function(frame.copy(deep=False))
        except Exception as error:
            raise self._wrong(brick, f"it failed with {type(error).__name__}: {error}") from error
        columns = self._columns(result, frame.index, brick)
        payload, arguments = _payload(columns, self._constants)
        rest = {name: batch.column(name) for name in ("key", "ordinal", "hash")}
        return pa.RecordBatch.from_pydict({**rest, "arguments": arguments, "payload": payload})

    def _frame(self, batch: pa.RecordBatch, fields: Mapping[str, str], brick: str) -> "pd.DataFrame":
        import pandas as pd

        arrays = {name: batch.column(raw) for name, raw in fields.items()}
        for name, column in arrays.items():
            if pa.types.is_binary(column.type):
                try:
                    arrays[name] = pc.cast(column, pa.string())
                except pa.ArrowInvalid:
                    key = batch.column("key")[_first_broken(column)].as_py()
                    shown = key.decode(errors="replace") if isinstance(key, bytes) else key
                    raise SourceError(
                        f"brick {brick}: column {name!r} of the row with key {shown} is not UTF-8, and a transform is "
                        f"given text. Set `columns` with {name}: hex(...), base64Encode(...) or toValidUTF8(...) of "
                        "it.",
                        "UCS-ROW",
                    ) from None
        # Arrow's types keep integers exact, and NULL and nan apart.
        frame: pd.DataFrame = pa.table(arrays).to_pandas(types_mapper=pd.ArrowDtype)
        return frame

    def _columns(self, result: Any, index: "pd.Index[Any]", brick: str) -> dict[str, pa.Array]:
        import pandas as pd

        if not isinstance(result, pd.DataFrame):
            raise self._wrong(brick, f"it returned a {type(result).__name__}, expected a DataFrame")
        if len(result) != len(index):
            raise self._wrong(
                brick, f"it returned {counted(len(result), 'row')} for {len(index):,}, expected one a row"
            )
        if not result.index.equals(index):
            raise self._wrong(brick, "it returned the rows with another index, expected the same order")
        names = [str(name) for name in result.columns]
        doubled = [name for position, name in enumerate(names) if name in names[:position] or name in self._constants]
        if doubled:
            raise self._wrong(brick, f"it returned field {doubled[0]!r} twice, or the field is a constant too")
        columns = {}
        for position, name in enumerate(names):
            try:
                columns[name] = _text(pa.array(result.iloc[:, position], from_pandas=True))
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise self._wrong(brick, f"column {name!r} cannot be written as text ({error})") from error
        return columns

    def _wrong(self, brick: str, what: str) -> SourceError:
        return SourceError(f"transform {self._name!r}: brick {brick}: {what}. Fix the function.", "UCS-TRANSFORM")


def _first_broken(column: pa.Array) -> int:
    """Index of the first value that is no UTF-8. There must be one."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pc.cast(column[low:middle], pa.string())
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def _text(column: "pa.Array | pa.ChunkedArray") -> pa.Array:
    """The text of values, in ClickHouse's forms."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _text(column.dictionary_decode())
    if pa.types.is_timestamp(kind):
        whole = pc.cast(pc.cast(column, pa.timestamp(kind.unit, "UTC")), pa.timestamp(kind.unit))
        return pc.cast(pc.binary_join_element_wise(pc.strftime(whole, "%Y-%m-%dT%H:%M:%S"), "+00:00", ""), pa.binary())
    if pa.types.is_nested(kind) or pa.types.is_duration(kind):
        raise TypeError(f"it has type {kind}")
    text = column if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else pc.cast(column, pa.string())
    if pa.types.is_floating(kind):
        text = pc.replace_substring(text, "e+", "e")
    return pc.cast(text, pa.binary())


def _payload(columns: Mapping[str, pa.Array], constants: Mapping[str, str]) -> tuple[pa.Array, pa.Array]:
    """Each row's fields as protocol bytes, and how many fields and values they are; NULL leaves its field out."""
    parts: list[pa.Array | bytes] = []
    nulls: Any = pa.scalar(0, pa.uint32())
    for name, text in columns.items():
        lengths = pc.cast(pc.cast(pc.binary_length(text), pa.string()), pa.binary())
        field = pc.binary_join_element_wise(bulk(name.encode()) + b"$", lengths, _CRLF, text, _CRLF, b"")
        parts.append(pc.fill_null(field, b""))
        nulls = pc.add(nulls, pc.cast(pc.is_null(text), pa.uint32()))
    tail = b"".join(bulk(name.encode()) + bulk(value.encode()) for name, value in constants.items())
    most = pa.scalar(2 * (len(columns) + len(constants)), pa.uint32())
    arguments = pc.subtract(most, pc.multiply(nulls, pa.scalar(2, pa.uint32())))
    return pc.binary_join_element_wise(*parts, tail, b""), arguments
