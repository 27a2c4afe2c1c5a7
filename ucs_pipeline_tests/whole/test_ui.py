"""Dagster's UI, driven by a browser: what a person clicks, and what the pages show afterwards."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import Page, expect

from ucs_pipeline.cli.demo_data import DATASETS, ROWS
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit, chromium, chromium_page, screenshot

# The servers take 10 to 25 seconds to start; Dagster polls for new backfills, and for finished ones, every 30 seconds.

pytestmark = pytest.mark.browser

_RUN_ENDS_MS = 240_000
_TOP_OF_STACK_TRACE = """() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const start = texts.currentNode.data.indexOf("Stack Trace:");
    if (start >= 0) {
      const range = document.createRange();
      range.setStart(texts.currentNode, start);
      range.setEnd(texts.currentNode, start + 1);
      return range.getBoundingClientRect().top;
    }
  }
}"""


@pytest.fixture(scope="module")
def cockpit(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Cockpit]:
    """The UI over an empty home. The tests below share it where they can, and each works in a fresh one as well."""
    chromium()  # if it is missing, report it before anything starts
    with Cockpit(tmp_path_factory.mktemp("cockpit"), redis_server.url) as cockpit:
        yield cockpit


@pytest.fixture
def page(cockpit: Cockpit) -> Iterator[Page]:
    """An empty page of the browser, for addresses within the UI."""
    with chromium_page(cockpit.url) as page:
        yield page


def test_a_range_that_would_leave_a_hole_is_refused_in_words(page: Page, redis_server: RedisServer) -> None:
    _launch(page, "0.0.0.5")
    expect(page.get_by_text("Failure", exact=True)).to_be_visible(timeout=_RUN_ENDS_MS)
    run = page.url
    # The events of the run that matter here; the trace below the sentence names files of this machine.
    page.goto(f"{run}?logs=type:STEP_FAILURE")
    sentence = page.get_by_text("publishing 0.0.0.5 now would leave a gap. Stream 'flights' is empty")
    expect(sentence.first).to_contain_text("Launch 0.0.0.0...0.0.0.5 instead")
    screenshot(page, "refused", height=page.evaluate(_TOP_OF_STACK_TRACE))

    _open(page, "partitions&partition=0.0.0.5")
    expect(page.get_by_text("and did not materialize this asset")).to_be_visible()
    assert redis_server.client().xlen("flights") == 0


def test_bricks_that_are_ticked_are_published_up_to_the_hole_between_them(
    page: Page, redis_server: RedisServer
) -> None:
    _open(page, "overview")
    page.get_by_role("button", name="Materialize…").click()
    page.get_by_text("Select a partition or create one").click()
    for brick in ("0.0.0.0", "0.0.0.1", "0.0.0.2", "0.0.0.4"):
        page.get_by_role("menuitem").get_by_text(brick, exact=True).first.click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Launch backfill").click()
    _open(page, "partitions")
    expect(page.get_by_text("Materialized (3)")).to_be_visible(timeout=_RUN_ENDS_MS)
    expect(page.get_by_text("Failed (1)")).to_be_visible(timeout=_RUN_ENDS_MS)
    assert redis_server.client().xlen("flights") == 30_000
    # What the runs proved is shown, and the refused one leaves it as it is.
    page.goto("/assets/redis/flights?view=checks&checkDetail=stream_not_behind")
    expect(page.get_by_text("Passed", exact=True).first).to_be_visible()


def test_backfills_publish_every_brick_of_each_class_and_a_brick_launched_again_adds_nothing(
    page: Page, redis_server: RedisServer
) -> None:
    redis = redis_server.client()
    for feed in ("weather", "planes", "flights"):
        _launch(page, feed=feed)
    backfill = page.url
    for feed, partitions in (("flights", 34), ("weather", 364), ("planes", 100)):
        _open(page, "partitions", feed)
        expect(page.get_by_text(f"Materialized ({partitions})")).to_be_visible(timeout=_RUN_ENDS_MS)
        assert redis.xlen(feed) == DATASETS[feed].rows
    _show_what_was_published(page)
    _show_other_classes(page)

    _launch(page, "0.0.0.5")
    expect(page.get_by_text("Success", exact=True)).to_be_visible(timeout=_RUN_ENDS_MS)
    _open(page, "partitions&partition=0.0.0.5")
    expect(page.get_by_text("already in the stream")).to_be_visible()
    expect(page.get_by_role("row", name="published")).to_have_text("published0")
    assert redis.xlen("flights") == ROWS

    page.goto(backfill)
    expect(page.get_by_text("100% completed")).to_be_visible(timeout=_RUN_ENDS_MS)
    expect(page.get_by_text("Succeeded", exact=True).first).to_be_visible(timeout=_RUN_ENDS_MS)
    screenshot(page, "backfill")


def _show_what_was_published(page: Page) -> None:
    screenshot(page, "partitions")
    _open(page, "partitions&partition=0.0.0.5")
    expect(page.get_by_role("row", name="first_entry_id")).to_have_text("first_entry_id5-1")
    expect(page.get_by_role("row", name="stream_length_after")).to_have_text("stream_length_after60000")
    expect(page.get_by_text("Unsynced")).to_have_count(0)
    entries = page.get_by_role("columnheader", name="5-1").or_(page.get_by_text("5-1", exact=True).last).first
    assert entries.locator("xpath=ancestor::table[1]").evaluate("it => it.getBoundingClientRect().right") < 1400
    screenshot(page, "brick")
    _open(page, "overview")
    expect(page.get_by_role("cell", name="33-6776")).to_be_visible()
    expect(page.get_by_text("Nullable(Int32)", exact=True)).to_be_visible()
    expect(page.get_by_text("redis://redis/flights", exact=True)).to_be_visible()
    # What matters is on the first screen, and nothing is folded away.
    expect(page.get_by_text("the constant ucs_worker")).to_be_in_viewport()
    expect(page.get_by_text("Show more")).to_have_count(0)
    expect(page.get_by_role("link", name="Open defs.yaml")).to_be_visible()
    screenshot(page, "asset")
    page.get_by_role("button", name="Plots").click()
    for figure in ("bytes", "dagster/partition_row_count", "rows_per_second", "seconds", "stream_length_after"):
        expect(page.get_by_text(figure, exact=True)).to_be_visible()
    expect(page.locator("canvas")).to_have_count(9)
    page.get_by_text("last_id", exact=True).evaluate("title => title.scrollIntoView()")
    screenshot(page, "plots", height=850)
    _open(page, "overview")
    page.get_by_role("link", name="All runs of this feed").click()
    page.get_by_text("Show runs within backfills").click()
    expect(page.get_by_text("ucs/bricks: 0.0.0.0...0.0.0.33")).to_be_visible()
    _open(page, "lineage")
    expect(page.get_by_text("100% filled")).to_be_visible()
    expect(page.get_by_text("stream", exact=True)).to_be_visible()
    screenshot(page, "lineage", height=650)


def _show_other_classes(page: Page) -> None:
    # A day of 23 hours; and a part, of the keys whose md5 begins with two digits.
    _open(page, "partitions&partition=2013.03.10", "weather")
    expect(page.get_by_text("2013-03-10T00:00:00-05:00 <= time < 2013-03-11T00:00:00-04:00")).to_be_visible()
    expect(page.get_by_text("2013-03-10T05:00:00.000+00:00").first).to_be_visible()
    _open(page, "partitions&partition=2.0", "planes")
    expect(page.get_by_text("2.0.0.0 <= digits of md5 <= 2.0.9.9 (base 10, digit sum)")).to_be_visible()
    for feed in ("weather", "planes"):
        _open(page, "overview", feed)
        expect(page.get_by_text("All runs of this feed")).to_be_in_viewport()
        expect(page.get_by_text("Show more")).to_have_count(0)


def _open(page: Page, view: str, feed: str = "flights") -> None:
    page.goto(f"/assets/{feed}?view={view}")


def _launch(page: Page, brick: str | None = None, feed: str = "flights") -> None:
    """Materialises one brick, or all of them, and follows the link to the run or backfill."""
    _open(page, "overview", feed)
    page.get_by_role("button", name="Materialize…").click()
    if brick is None:
        backfill = page.get_by_role("button", name="Launch backfill")
        for _ in range(10):
            # Partitions that the page loads after the click take the choice back.
            page.get_by_role("button", name="All", exact=True).click()
            with suppress(AssertionError):
                expect(backfill).to_be_enabled(timeout=5_000)
                break
        backfill.click()
    else:
        page.get_by_text("Select a partition or create one").click()
        page.get_by_placeholder("Filter partitions").fill(brick)
        page.get_by_text("Select all (1)").click()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Launch 1 run").click()
    page.get_by_role("link", name="View", exact=True).click()
    page.wait_for_url("**/runs/**")
