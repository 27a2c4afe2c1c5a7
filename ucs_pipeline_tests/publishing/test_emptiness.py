"""A run without rows from a table that has some warns, with the likely error."""

import pytest

from ucs_pipeline.feed.feed import Feed
from ucs_pipeline.orchestration.materializations import metadata
from ucs_pipeline.publishing.brick_results import BrickReport
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.tables import Table, source_of

HOURS = {"class": "time", "first": "2013-01-01", "last": "2013-01-01T03"}


@pytest.fixture(scope="module")
def table() -> Table:
    """One row, of 01:00 on the first of January 2013, in milliseconds."""
    return Table("id UInt64, t UInt64", "VALUES (1, 1357002000000)", order_by="id")


def _published(feed: Feed, redis: RedisServer) -> tuple[list[BrickReport], list[str]]:
    said: list[str] = []
    stream = OrderedStream(feed.stream_name, redis.client())
    return list(publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {}, said.append)), said


@pytest.mark.parametrize("order", ["strict", "any"])
def test_a_key_in_another_unit_is_named_in_the_log_and_beside_the_bricks(
    order: str, table: Table, redis_server: RedisServer
) -> None:
    feed = table.feed(0, key="t", bricks=HOURS, stream={"order": order})
    reports, said = _published(feed, redis_server)
    assert [report.rows for report in reports] == [0, 0, 0, 0]
    [sentence] = said
    assert sentence == (
        f"feed 'feed': no row is in 2013.01.01.00...2013.01.01.03, but table '{table.name}' has rows, such as one with "
        "key 1357002000000. The key would be in the feed's bricks if keys counted ms. Set `bricks.unit: ms`, and give "
        "the feed another name and stream, because these bricks are recorded without rows."
    )
    assert {metadata(feed, report)["warning"] for report in reports} == {sentence}
    right = table.feed(0, key="t", bricks={**HOURS, "unit": "ms"}, stream={"order": order, "name": "right"})
    reports, said = _published(right, redis_server)
    assert [report.rows for report in reports] == [0, 1, 0, 0]
    assert not said
    assert "warning" not in metadata(right, reports[0])


def test_a_range_beside_the_rows_is_named_and_an_empty_table_is_not(table: Table, redis_server: RedisServer) -> None:
    reports, said = _published(table.feed(9_999, key="id + 20000"), redis_server)
    assert [report.rows for report in reports] == [0]
    assert "such as one with key 20001. If you expect rows here, check `key`, `where` and `bricks`" in said[0]
    assert _published(table.feed(9_999, where="id > 1"), redis_server)[1] == [
        f"feed 'feed': no row is in 0.0.0.0: table '{table.name}' has rows, and the feed's `where` rejects them "
        "all. If you expect rows here, check `where`."
    ]
    empty = Table("id UInt64", "SELECT 1 WHERE 0", order_by="id").feed(9_999, where="id > 1")
    assert _published(empty, redis_server)[1] == []
