"""Backfills by a real daemon: every selection a person can make in the UI, each on a feed of its own, all at once."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import clickhouse_connect
import dagster as dg
import pytest
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus
from dagster._core.storage.dagster_run import RunsFilter

from ucs_pipeline import BrickFeed
from ucs_pipeline.bricks.number import get_brick_list
from ucs_pipeline.feed.feed import Feed
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit
from ucs_pipeline_tests.support.connections import build_defs
from ucs_pipeline_tests.support.home import python, run_bricks

# The daemon polls for new backfills, and for finished ones, every 30 seconds.
pytestmark = pytest.mark.timeout(900)

BRICKS = get_brick_list("0.0.0.0", "0.0.0.11")
STEP = 2_500
"""Ids between two rows: four rows a brick."""
MOST = 6
FEEDS = """
from ucs_pipeline_tests.whole.test_backfills import feed
from ucs_pipeline_tests.support.connections import build_defs

defs = build_defs(*map(feed, ["whole", "beyond", "gap", "finished", "failed", "cancelled", "twice", "any_order"]))
"""

_BEFORE = "from ucs_pipeline_tests.whole.test_backfills import before; before()"
_RESUME = """
mutation ($id: String!) {
  reexecutePartitionBackfill(reexecutionParams: {parentRunId: $id, strategy: FROM_FAILURE}) {
    ... on LaunchBackfillSuccess { backfillId } ... on Error { message }
  }
}
"""


def feed(name: str, table: str = "bricks") -> Feed:
    """A feed of twelve bricks; two runs for all of them."""
    # Full in the middle of the third brick; until somebody reads, the run waits.
    stream: dict[str, object] = {"max_len": 10} if name == "cancelled" else {}
    if name == "any_order":
        stream = {"order": "any"}
    bricks = {"class": "number", "last": len(BRICKS) * 10_000 - 1}
    return BrickFeed(name=name, table=table, key="id", bricks=bricks, stream=stream, max_bricks_per_run=MOST)


class Launched(NamedTuple):
    """The UI after every backfill has ended."""

    instance: dg.DagsterInstance
    client: Any
    backfills: dict[str, list[str]]
    consumed: list[str]
    """Entries of the feed that is cancelled, which its consumer has read and trimmed."""

    def status(self, name: str) -> list[BulkActionStatus]:
        """How a feed's backfills ended."""
        return [backfill.status for i in self.backfills[name] if (backfill := self.instance.get_backfill(i))]

    def runs(self, name: str) -> list[dg.DagsterRun]:
        """Runs of a feed's backfills, in the order in which they were launched."""
        ids = self.backfills[name]
        found = self.instance.get_run_records(ascending=True)
        return [record.dagster_run for record in found if record.dagster_run.tags.get("dagster/backfill") in ids]

    def done(self, name: str) -> set[str]:
        """Bricks that are materialized."""
        return self.instance.get_materialized_partitions(dg.AssetKey(name))

    def sentence(self, run: dg.DagsterRun) -> str:
        """Why a run failed."""
        records = self.instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
        failure = records[0].event_log_entry.get_dagster_event().step_failure_data.user_failure_data
        assert failure
        return failure.description or ""

    def entries(self, name: str) -> list[str]:
        """Ids of the entries in a feed's stream."""
        return [entry_id.decode() for entry_id, _ in self.client.xrange(name)]


def _entries(bricks: Sequence[str]) -> list[str]:
    return [f"{brick.rsplit('.', 1)[-1]}-{row}" for brick in bricks for row in range(1, 10_000 // STEP + 1)]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, clickhouse_http: ClickHouseServer) -> Iterator[Launched]:
    home = tmp_path_factory.mktemp("cockpit")
    table = clickhouse_connect.get_client(dsn=clickhouse_http.url)
    table.command("CREATE OR REPLACE TABLE bricks (id UInt64) ENGINE = MergeTree ORDER BY id")
    rows = len(BRICKS) * 10_000 // STEP
    table.command(f"INSERT INTO bricks SELECT number * {STEP} FROM numbers({rows})")
    table.close()
    with pytest.MonkeyPatch.context() as patch, RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        cockpit = Cockpit(home, redis.url, FEEDS, UCS_CLICKHOUSE_URL=clickhouse_http.url)
        before = python(_BEFORE, home, UCS_REDIS_URL=redis.url, UCS_CLICKHOUSE_URL=clickhouse_http.url)
        assert before.wait() == 0, (home / "process.log").read_text()
        patch.setenv("DAGSTER_HOME", str(home))
        with dg.DagsterInstance.get() as instance, cockpit, redis.client() as client:
            found = Launched(instance, client, _launch_all(cockpit), [])
            _cancel_and_resume(cockpit, found)
            _wait_until(lambda: all(_ended(found, name) for name in found.backfills), lambda: _consume(found))
            yield found


def before() -> None:
    """What there was before the backfills: a feed that is finished, and one whose last run failed."""
    with dg.DagsterInstance.get() as instance:
        assert run_bricks(build_defs(feed("finished")), "finished", instance, 0, 11).success
        assert run_bricks(build_defs(feed("failed")), "failed", instance, 0, 1).success
        assert not run_bricks(build_defs(feed("failed", "nowhere")), "failed", instance, 2, 5).success


def _launch_all(cockpit: Cockpit) -> dict[str, list[str]]:
    selections = {
        "whole": [BRICKS],
        "beyond": [BRICKS[5:8]],
        "gap": [BRICKS[:3] + BRICKS[5:7]],
        "finished": [BRICKS[2:6]],
        "failed": [BRICKS[2:6]],
        "cancelled": [BRICKS],
        "twice": [BRICKS[:6], BRICKS[:6]],
        "any_order": [BRICKS[2:4] + BRICKS[8:], BRICKS[:6]],
    }
    return {name: [cockpit.launch(name, bricks) for bricks in each] for name, each in selections.items()}


def _cancel_and_resume(cockpit: Cockpit, found: Launched) -> None:
    [backfill] = found.backfills["cancelled"]
    _wait_until(lambda: len(found.done("cancelled")) == 2)
    cockpit.cancel(backfill)
    _wait_until(lambda: _ended(found, "cancelled"))
    assert found.status("cancelled") == [BulkActionStatus.CANCELED]
    assert found.entries("cancelled") == _entries(BRICKS)[:10]
    resumed = cockpit.ask(_RESUME, id=backfill)["reexecutePartitionBackfill"]
    found.backfills["cancelled"].append(resumed["backfillId"])


def _consume(found: Launched) -> None:
    """Reads what is there, and trims it."""
    if there := found.entries("cancelled"):
        found.consumed.extend(there)
        brick, _, row = there[-1].partition("-")
        found.client.xtrim("cancelled", minid=f"{brick}-{int(row) + 1}", approximate=False)


def _ended(found: Launched, name: str) -> bool:
    return all(status in BULK_ACTION_TERMINAL_STATUSES for status in found.status(name))


def _wait_until(condition: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.5)


def test_the_whole_list_is_published_in_chunks_in_brick_order(launched: Launched) -> None:
    assert launched.status("whole") == [BulkActionStatus.COMPLETED_SUCCESS]
    assert [run.tags["ucs/bricks"] for run in launched.runs("whole")] == ["0.0.0.0...0.0.0.5", "0.0.0.6...0.0.0.11"]
    assert launched.done("whole") == set(BRICKS)
    assert launched.entries("whole") == _entries(BRICKS)


def test_a_range_beyond_the_next_brick_is_refused_before_any_row_moves(launched: Launched) -> None:
    assert launched.status("beyond") == [BulkActionStatus.COMPLETED_FAILED]
    [run] = launched.runs("beyond")
    assert "Launch 0.0.0.0...0.0.0.7 instead" in launched.sentence(run)
    assert launched.entries("beyond") == []


def test_a_selection_with_a_gap_is_published_up_to_it_and_refused_after_it(launched: Launched) -> None:
    assert launched.status("gap") == [BulkActionStatus.COMPLETED_FAILED]
    first, second = launched.runs("gap")
    assert first.is_success
    assert "Launch 0.0.0.3...0.0.0.6 instead" in launched.sentence(second)
    assert launched.entries("gap") == _entries(BRICKS[:3])


def test_finished_bricks_are_left_as_they_are(launched: Launched) -> None:
    assert launched.status("finished") == [BulkActionStatus.COMPLETED_SUCCESS]
    assert launched.entries("finished") == _entries(BRICKS)


def test_failed_bricks_alone_are_published(launched: Launched) -> None:
    assert launched.status("failed") == [BulkActionStatus.COMPLETED_SUCCESS]
    assert launched.done("failed") == set(BRICKS[:6])
    assert launched.entries("failed") == _entries(BRICKS[:6])


def test_a_cancelled_backfill_leaves_a_prefix_and_goes_on_when_it_is_resumed(launched: Launched) -> None:
    assert launched.status("cancelled") == [BulkActionStatus.CANCELED, BulkActionStatus.COMPLETED_SUCCESS]
    # The one that was cancelled in its middle was not started again, the one behind it never.
    ends = [run.status.value for run in launched.runs("cancelled")]
    assert ends == ["CANCELED", "CANCELED", "SUCCESS", "SUCCESS"]
    assert launched.done("cancelled") == set(BRICKS)
    assert launched.consumed + launched.entries("cancelled") == _entries(BRICKS)


def test_two_backfills_at_once_queue_and_publish_every_row_once(launched: Launched) -> None:
    assert launched.status("twice") == [BulkActionStatus.COMPLETED_SUCCESS] * 2
    records = launched.instance.get_run_records(RunsFilter(run_ids=[run.run_id for run in launched.runs("twice")]))
    times = sorted((record.start_time or 0.0, record.end_time or 0.0) for record in records)
    assert len(times) == 2
    assert all(end <= start for (_, end), (start, _) in pairwise(times))
    assert launched.entries("twice") == _entries(BRICKS[:6])


def test_backfills_of_an_any_order_feed_take_any_bricks_and_publish_every_row_once(launched: Launched) -> None:
    assert launched.status("any_order") == [BulkActionStatus.COMPLETED_SUCCESS] * 2
    assert {run.tags["ucs/bricks"] for run in launched.runs("any_order")} == {
        *("0.0.0.2...0.0.0.3", "0.0.0.8...0.0.0.11", "0.0.0.0...0.0.0.5")
    }
    assert launched.done("any_order") == {*BRICKS[:6], *BRICKS[8:]}
    ids = sorted(int(fields[b"id"]) for _, fields in launched.client.xrange("any_order"))
    assert ids == [number for number in range(0, len(BRICKS) * 10_000, STEP) if not 60_000 <= number < 80_000]


def test_every_run_of_a_backfill_can_be_found_by_its_feed(launched: Launched) -> None:
    for name in launched.backfills:
        found = launched.instance.get_runs(RunsFilter(tags={"ucs/feed": name}))
        runs = [run for run in launched.runs(name) if run.status is not dg.DagsterRunStatus.CANCELED]
        assert {run.run_id for run in runs} <= {run.run_id for run in found}
