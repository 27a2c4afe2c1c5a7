"""The scripts that this project replaces: bricks as DataFrames, then dicts, then `xadd` row by row or in pipelines."""

import os
from collections.abc import Iterator
from typing import Any

import pandas as pd

from ucs_pipeline.bricks.number import BRICK
from ucs_pipeline.clickhouse.embedded import embedded_connection
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.support.connections import CLICKHOUSE_URL

_PIPELINE = 1_000


def add_row_by_row(client: Any, feed: Feed, rows: int) -> int:
    """One XADD, one answer. Returns how many rows were added."""
    added = 0
    for records in _bricks(feed, rows):
        for record in records:
            client.xadd(feed.stream_name, record)
        added += len(records)
    return added


def add_in_pipelines(client: Any, feed: Feed, rows: int) -> int:
    """A thousand XADDs, then a thousand answers. Returns how many rows were added."""
    added = 0
    for records in _bricks(feed, rows):
        for start in range(0, len(records), _PIPELINE):
            with client.pipeline(transaction=False) as pipeline:
                for record in records[start : start + _PIPELINE]:
                    pipeline.xadd(feed.stream_name, record)
                pipeline.execute()
        added += len(records)
    return added


def _bricks(feed: Feed, rows: int) -> Iterator[list[dict[Any, str]]]:
    """The first bricks, up to about so many rows."""
    chosen = {**(feed.columns or {}), **{name: f"'{value}'" for name, value in feed.constants.items()}}
    select = ", ".join(f"{expression} AS `{name}`" for name, expression in chosen.items())
    left = rows
    for ordinal in feed.ordinals:
        if left <= 0:
            return
        within = f"{feed.key} >= {ordinal * BRICK} AND {feed.key} < {(ordinal + 1) * BRICK}"
        frame = _frame(f"SELECT {select} FROM {feed.table} WHERE {within} ORDER BY {feed.key}")
        yield [
            {name: str(value) for name, value in record.items() if value is not None}
            for record in frame.astype(object).where(frame.notna(), None).to_dict("records")
        ]
        left -= len(frame)


def _frame(query: str) -> pd.DataFrame:
    frame: pd.DataFrame
    if url := os.environ.get(CLICKHOUSE_URL):
        import clickhouse_connect

        with clickhouse_connect.get_client(dsn=url) as client:
            frame = client.query_df(query)
    else:
        frame = embedded_connection().query(query, "DataFrame")
    return frame
