"""Tables of several shapes for the benchmarks, as Parquet files, and feeds over them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.support.tables import write_flights

STREAM = "flights"
_ROW_GROUP = 100_000


@dataclass(frozen=True)
class Shape:
    """Rows of one kind."""

    about: str
    columns: dict[str, str]
    """Field of an entry -> column of the flights or SQL expression."""
    constants: dict[str, str] = field(default_factory=dict)
    step: int = 1
    """Ids from one row to the next."""

    def feed(self, path: Path, rows: int) -> Feed:
        """A feed over a file of `write_rows`."""
        return Feed(
            name=STREAM,
            table=f"file('{path}')",
            key=f"id * {self.step}" if self.step > 1 else "id",
            bricks={"class": "number", "first": 0, "last": rows * self.step - 1},
            columns=self.columns,
            constants=self.constants,
            stream={"max_len": 100_000_000},
        )


_FLIGHT: dict[str, Any] = {
    "columns": {
        "id": "id",
        "rec_id": "id",
        "task_for": "carrier",
        "before": "origin",
        "after": "dest",
        "dep_delay": "dep_delay",
        "time_hour": "time_hour",
    },
    "constants": {"function_type": "ucs_worker"},
}
SHAPES = {
    "flights": Shape("8 fields, 260 bytes: the demo's", **_FLIGHT),
    "narrow": Shape("3 fields, 100 bytes", {"id": "id", "task_for": "carrier", "after": "dest"}),
    "wide": Shape("30 fields, 900 bytes", {f"field_{n}": f"id + {n}" for n in range(30)}),
    "long": Shape("3 fields, 4 KB", {"id": "id", "a": "repeat(hex(id), 150)", "b": "repeat(hex(id + 1), 150)"}),
    "nulls": Shape("8 fields, most of them NULL", {f"f{n}": f"if(id % 8 = {n}, id, NULL)" for n in range(8)}),
    "numbers": Shape("8 fields, random numbers", {f"f{n}": f"cityHash64(id, {n})" for n in range(8)}),
    "sparse": Shape("the demo's, 4 rows to a brick", **_FLIGHT, step=2_500),
}


def write_rows(directory: Path, rows: int) -> Path:
    """Parquet file of the demo's flights, repeated with rising ids until there are `rows` of them."""
    path = directory / f"flights_{rows}.parquet"
    whole, start = pq.read_table(write_flights(directory)), 0
    index = whole.schema.get_field_index("id")
    with pq.ParquetWriter(path, whole.schema) as file:
        while start < rows:
            part = whole.slice(0, min(whole.num_rows, rows - start))
            ids = pc.add(part.column("id"), pa.scalar(start, part.schema.field(index).type))
            file.write_table(part.set_column(index, part.schema.field(index), ids), _ROW_GROUP)
            start += part.num_rows
    return path
