"""`ucs publish --launch`, with a real daemon that runs the bricks."""

import re
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus

from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.cockpit import Cockpit
from ucs_pipeline_tests.support.home import run_ucs

# The daemon polls for new backfills, and for finished ones, every 30 seconds.
pytestmark = pytest.mark.timeout(900)

_ON_ITS_PAGE = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { isAssetBackfill numPartitions tags { key value } } ... on Error { message }
  }
}
"""


def test_the_daemon_publishes_what_the_command_hands_over(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cockpit(tmp_path, redis_server.url) as cockpit:
        code, output = run_ucs(
            "publish", "flights", "--next", "3", "--launch", home=tmp_path, UCS_REDIS_URL=redis_server.url
        )
        assert code == 0, output
        said = re.fullmatch(r"feed 'flights': launched backfill (\w+) of (\S+); in the UI: /runs/b/(\w+)\n", output)
        assert said, output
        backfill, bricks, page = said.groups()
        assert (bricks, page) == ("0.0.0.0...0.0.0.2", backfill)
        shown = cockpit.ask(_ON_ITS_PAGE, id=backfill)["partitionBackfillOrError"]
        assert (shown["isAssetBackfill"], shown["numPartitions"]) == (True, 3)
        assert {"key": "ucs/feed", "value": "flights"} in shown["tags"]
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
        with dg.DagsterInstance.get() as instance:
            deadline = time.monotonic() + 600
            while (found := instance.get_backfill(backfill)) and found.status not in BULK_ACTION_TERMINAL_STATUSES:
                assert time.monotonic() < deadline, cockpit.log()
                time.sleep(0.5)
            assert found
            assert found.status is BulkActionStatus.COMPLETED_SUCCESS
            [run] = instance.get_runs(dg.RunsFilter(tags={"ucs.feed/flights": "yes"}))
            assert run.tags["ucs/bricks"] == bricks
            assert instance.get_materialized_partitions(dg.AssetKey("flights")) == {f"0.0.0.{n}" for n in range(3)}
    assert redis_server.client().xlen("flights") == 30_000
    # The command in its own process continues after it.
    code, output = run_ucs("publish", "flights", "--next", "1", home=tmp_path, UCS_REDIS_URL=redis_server.url)
    assert code == 0, output
    assert redis_server.client().xlen("flights") == 40_000
