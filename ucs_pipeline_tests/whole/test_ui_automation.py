"""Dagster's UI, driven by a browser: the sensor that publishes what a table seals, and the checks."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit, chromium, chromium_page, screenshot

# The servers take 10 to 25 seconds to start, and the sensor ticks every 30 seconds.

pytestmark = pytest.mark.browser

_RUN_ENDS_MS = 240_000


@pytest.fixture
def cockpit(tmp_path: Path, redis_server: RedisServer) -> Iterator[Cockpit]:
    chromium()  # if it is missing, report it before anything starts
    with Cockpit(tmp_path, redis_server.url) as cockpit:
        yield cockpit


def test_a_sensor_publishes_what_is_sealed_and_the_checks_agree(cockpit: Cockpit, redis_server: RedisServer) -> None:
    redis = redis_server.client()
    with chromium_page(cockpit.url) as page:
        _switch_the_sensor_on(page)
        _wait_until(lambda: redis.xlen("flights") == 330_000)

        reason = _why_nothing_goes_on(page)
        assert reason == (
            "feed 'flights': skipped: brick 0.0.0.33 is not sealed. The newest id is 336,775; an id of 340,000 or more "
            "seals it. To publish it earlier, launch it by hand or set `tail: follow`. Next check in 30 s."
        )

        page.goto("/assets/redis/flights?view=checks")
        page.get_by_role("button", name="Execute all").click()
        page.goto("/assets/redis/flights?view=checks&checkDetail=stream_not_behind")
        expect(page.get_by_text("Passed", exact=True).first).to_be_visible(timeout=_RUN_ENDS_MS)
        expect(page.get_by_text("330,000 recorded of 336,776 in the table: 6,776 behind")).to_be_visible()
        expect(page.get_by_text("Succeeded")).to_have_count(5, timeout=_RUN_ENDS_MS)
        screenshot(page, "checks")

        _append_flights(cockpit.home / ".ucs" / "tables" / "flights.parquet", 340_001)
        _wait_until(lambda: redis.xlen("flights") == 340_000)
        page.goto("/assets/flights?view=partitions")
        expect(page.get_by_text("Materialized (34)")).to_be_visible(timeout=_RUN_ENDS_MS)


def _switch_the_sensor_on(page: Page) -> None:
    page.goto("/locations/ucs_pipeline/sensors/flights_sensor")
    page.locator("input[type=checkbox]").locator("xpath=..").first.click()
    expect(page.locator("input[type=checkbox]").first).to_be_checked()


def _why_nothing_goes_on(page: Page) -> str:
    """The sensor's skip reason after the run that it requested."""
    said = ""
    for _ in range(4):
        page.goto("/locations/ucs_pipeline/sensors/flights_sensor")
        page.get_by_role("button", name="0 runs requested").first.click(timeout=_RUN_ENDS_MS)
        reason = page.get_by_text("feed 'flights':").first
        reason.wait_for(timeout=_RUN_ENDS_MS)
        said = reason.inner_text().removeprefix("Skip reason: ")
        if "is not sealed" in said:
            break
        page.wait_for_timeout(30_000)
    screenshot(page, "sensor")
    return said


def _append_flights(path: Path, rows: int) -> None:
    """More flights at the end of the table, as somebody else would write them."""
    table = pq.read_table(path)
    more = table.slice(0, rows - table.num_rows)
    more = more.set_column(0, table.schema.field("id"), pc.add(more["id"], table.num_rows))
    whole, written = path.with_suffix(".new"), path
    with pq.ParquetWriter(whole, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(more)
    whole.replace(written)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
