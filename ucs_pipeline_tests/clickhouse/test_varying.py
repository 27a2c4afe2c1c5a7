"""Values that are not of their row alone are refused before a row moves."""

from typing import Any

import pytest

from ucs_pipeline.errors import SourceError
from ucs_pipeline_tests.support.tables import Table, source_of


@pytest.fixture(scope="module")
def table() -> Table:
    made = Table(
        "id UInt64, price UInt64, tags Array(UInt8), "
        "chance UInt64 ALIAS price + rand(), seen DateTime DEFAULT now(), double UInt64 ALIAS price * 2",
        "(id, price, tags) SELECT number, number * 2, [1, 2] FROM numbers(100)",
        order_by="id",
    )
    made.run(f"CREATE VIEW {made.name}_numbered AS SELECT *, row_number() OVER (ORDER BY id) AS n FROM {made.name}")
    made.run(f"CREATE VIEW {made.name}_drawn AS SELECT id, rand() AS n FROM {made.name}")
    made.run(f"CREATE VIEW {made.name}_behind AS SELECT id, n + 1 AS more FROM {made.name}_drawn")
    made.run("CREATE FUNCTION IF NOT EXISTS ucs_drawn AS (x) -> x + rand()")
    made.run("CREATE FUNCTION IF NOT EXISTS ucs_plain AS (x) -> x + 1")
    return made


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"columns": {"step": "price - lagInFrame(price) OVER (ORDER BY id)"}}, "field 'step' uses lagInFrame as a"),
        ({"columns": {"n": "row_number() OVER ()"}}, "field 'n' uses row_number as a window function"),
        ({"columns": {"n": "sum(price) OVER (ORDER BY id)"}}, "field 'n' uses sum as a window function"),
        ({"columns": {"at": "now64()"}}, "field 'at' uses now64, whose value may differ each time"),
        ({"columns": {"at": "NOW()"}}, "field 'at' uses now,"),
        ({"columns": {"n": "rowNumberInBlock()"}}, "field 'n' uses rowNumberInBlock,"),
        ({"columns": {"n": "generateUUIDv4()"}}, "field 'n' uses generateUUIDv4,"),
        ({"columns": {"n": "arrayMap(x -> x + rand64(), tags)"}}, "field 'n' uses rand64,"),
        ({"columns": {"n": "if(price > 1, concat('a', toString(randConstant())), 'b')"}}, "uses randConstant,"),
        ({"columns": {"n": "ucs_drawn(price)"}}, "its SQL uses rand,"),
        ({"columns": {"n": "chance"}}, "ALIAS column 'chance' uses rand,"),
        ({"columns": {"n": "id IN (SELECT rand())"}}, "field 'n' uses rand,"),
        ({"where": "seen < today()", "columns": {"id": "id"}}, "its `where` uses today,"),
        ({"where": "rand() % 2", "columns": {"id": "id"}}, "its `where` uses rand,"),
        ({"key": "id + toUInt64(rand() % 2)", "columns": {"id": "id"}}, "its `key` uses rand,"),
    ],
)
def test_a_value_that_depends_on_other_rows_or_on_the_moment_is_refused(
    settings: dict[str, Any], sentence: str, table: Table
) -> None:
    with pytest.raises(SourceError, match="feed 'feed': ") as refusal:
        source_of(table.feed(9_999, **settings)).shape()
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("view", ["_drawn", "_behind"])
def test_a_view_that_draws_its_values_is_refused_and_so_is_one_over_it(view: str, table: Table) -> None:
    feed = table.feed(9_999).model_copy(update={"table": table.name + view})
    with pytest.raises(SourceError, match="its SQL uses rand, whose value may differ"):
        source_of(feed).shape()


@pytest.mark.parametrize(
    "settings",
    [
        {"columns": {"id": "id", "tag": "arrayJoin(tags)"}},
        {"columns": {"double": "double", "seen": "seen", "plain": "ucs_plain(price)"}},
        {"columns": {"of": "id IN (SELECT number + row_number() OVER () FROM numbers(5))"}},
        {"columns": {"most": "(SELECT max(number) FROM numbers(5))", "now": "'now()'"}},
        {"where": "(id, price) IN (SELECT id, max(price) FROM {name} GROUP BY id)", "columns": {"id": "id"}},
    ],
)
def test_what_is_the_rows_own_is_taken(settings: dict[str, Any], table: Table) -> None:
    if "where" in settings:
        settings = {**settings, "where": settings["where"].format(name=table.name)}
    assert source_of(table.feed(9_999, **settings)).count(0, 0)


def test_a_column_of_a_view_that_is_not_selected_may_be_drawn(table: Table) -> None:
    feed = table.feed(9_999, columns={"id": "id"}).model_copy(update={"table": f"{table.name}_drawn"})
    assert source_of(feed).count(0, 0) == {0: 100}


def test_a_window_function_in_a_view_sees_the_whole_table(table: Table) -> None:
    feed = table.feed(9_999).model_copy(update={"table": f"{table.name}_numbered", "columns": {"n": "n"}})
    whole = [batch.column("payload").to_pylist() for batch in source_of(feed).scan(0, 0)]
    assert sum(map(len, whole)) == 100
    late = source_of(feed.model_copy(update={"where": "id >= 50"}))
    assert next(batch.column("payload")[0].as_py() for batch in late.scan(0, 0)) == whole[0][50]


def test_a_default_that_was_never_stored_is_refused_until_it_is() -> None:
    table = Table("id UInt64", "SELECT number FROM numbers(10)", order_by="id")
    table.run(
        f"ALTER TABLE {table.name} ADD COLUMN seen DateTime64(9) DEFAULT now64(9), ADD COLUMN plain UInt8 DEFAULT 1"
    )
    with pytest.raises(
        SourceError, match=r"column 'seen' is not stored in 1 part of table \S+, and its default uses now64"
    ):
        source_of(table.feed(9_999)).shape()
    assert source_of(table.feed(9_999, columns={"id": "id", "plain": "plain"})).count(0, 0) == {0: 10}
    table.run(f"ALTER TABLE {table.name} MATERIALIZE COLUMN seen SETTINGS mutations_sync = 2")
    assert source_of(table.feed(9_999)).count(0, 0) == {0: 10}
