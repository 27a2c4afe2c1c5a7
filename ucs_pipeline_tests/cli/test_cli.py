"""The command `ucs`, as a person runs it."""

import signal
import time
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from ucs_pipeline.cli.demo_data import ROWS
from ucs_pipeline.orchestration.checks.finding import CHECKS
from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import make_home, run_ucs, ucs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("UCS_CLICKHOUSE_URL", raising=False)
    monkeypatch.delenv("UCS_REDIS_URL", raising=False)
    return make_home(tmp_path)


def test_the_demo_moves_all_three_tables_and_a_second_one_has_nothing_to_do(
    home: Path, redis_server: RedisServer
) -> None:
    code, output = run_ucs("demo", home=home, UCS_REDIS_URL=redis_server.url)
    assert code == 0, output
    assert output.count("table and stream agree") == 3
    client = redis_server.client()
    assert client.xlen("flights") == ROWS == 336_776
    assert (client.xlen("weather"), client.xlen("planes")) == (26_115, 3_322)
    # Hours are asked for by time: noon of the Fourth of July in New York, at three airports.
    noon = int(datetime(2013, 7, 4, 16, tzinfo=timezone.utc).timestamp() * 1000)
    assert [fields[b"origin"] for _, fields in client.xrange("weather", noon, noon)] == [b"EWR", b"JFK", b"LGA"]
    [(entry, _)] = [(entry, found) for entry, found in client.xrange("planes") if found[b"tailnum"] == b"N14228"]
    assert entry.startswith(b"2931-")
    [(_, fields)] = client.xrange("flights", "12-346", "12-346")
    assert fields[b"id"] == fields[b"rec_id"] == b"120345"
    assert fields[b"function_type"] == b"ucs_worker"
    code, output = run_ucs("demo", home=home, UCS_REDIS_URL=redis_server.url)
    assert code == 0, output
    assert output.count("nothing to do") == 3
    assert client.xlen("flights") == ROWS


def test_the_demo_fails_when_the_stream_was_tampered_with(home: Path, redis_server: RedisServer) -> None:
    assert run_ucs("demo", home=home, UCS_REDIS_URL=redis_server.url)[0] == 0
    redis_server.client().xdel("flights", "7-7")
    for command in (["demo"], ["verify", "flights"]):
        code, output = run_ucs(*command, home=home, UCS_REDIS_URL=redis_server.url)
        assert code == 1, output
        assert "DO NOT agree" in output
        assert "entry 7-7 is not in the stream" in output
    assert "FAIL all_rows_arrived\n  feed 'flights': 34 bricks are materialized with 336,776 rows, and table" in output
    assert "brick: 0.0.0.7, compared: entry 7-7 against table" in output
    assert "pass no_gaps" in output


def test_a_failed_check_alone_makes_verify_fail(
    home: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_ucs("demo", home=home, UCS_REDIS_URL=redis_server.url)[0] == 0
    redis_server.client().xtrim("flights", minid="20-1", approximate=False)
    code, output = run_ucs("verify", "flights", home=home, UCS_REDIS_URL=redis_server.url)
    assert code == 0, output
    assert "table and stream agree" in output
    assert [line for line in output.splitlines() if line.startswith(("pass", "FAIL"))] == [
        f"pass {check.name}" for check in CHECKS
    ]
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as instance:
        # Brick 0 was not recorded with what the table holds.
        wrong = dg.AssetMaterialization("flights", partition="0.0.0.0", tags={"dagster/data_version": f"9-{7:016x}"})
        instance.report_runless_asset_event(wrong)
    code, output = run_ucs("verify", "flights", home=home, UCS_REDIS_URL=redis_server.url)
    assert code == 1, output
    assert "table and stream agree" in output
    assert "FAIL no_late_rows" in output
    assert "brick: 0.0.0.0, rows recorded: 9, rows in the table: 10000, content recorded: 0000000000000007" in output


def test_the_demo_stopped_by_ctrl_c_resumes(home: Path, redis_server: RedisServer) -> None:
    client = redis_server.client()
    # Capacity for about a quarter of the rows, so that it cannot be done before it is stopped.
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 6_000_000)
    try:
        process = ucs("demo", home=home, UCS_REDIS_URL=redis_server.url)
        while client.xlen("flights") < 20_000:
            assert process.poll() is None, (home / "process.log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, (home / "process.log").read_text()
    finally:
        client.config_set("maxmemory", 0)
    assert "Traceback" not in (home / "process.log").read_text()
    assert 0 < client.xlen("flights") < ROWS
    assert run_ucs("demo", home=home, UCS_REDIS_URL=redis_server.url)[0] == 0
    assert client.xlen("flights") == ROWS


def test_the_demo_reads_from_a_server_over_http(
    home: Path, redis_server: RedisServer, clickhouse_http: ClickHouseServer
) -> None:
    urls = {"UCS_REDIS_URL": redis_server.url, "UCS_CLICKHOUSE_URL": clickhouse_http.url}
    code, output = run_ucs("demo", home=home, **urls)
    assert code == 0, output
    assert "created table flights" in output
    assert "table and stream agree" in output


@pytest.mark.parametrize(
    ("code", "command", "environment", "sentence"),
    [
        (2, ["verify", "nothing"], {}, "There is no feed 'nothing'. The feeds here are: '"),
        (75, ["demo"], {"UCS_REDIS_URL": "redis://127.0.0.1:1"}, "Check UCS_REDIS_URL"),
        (2, ["demo"], {"UCS_REDIS_URL": "http://127.0.0.1"}, "UCS_REDIS_URL is not a Redis URL"),
        (75, ["demo"], {"UCS_CLICKHOUSE_URL": "http://127.0.0.1:1"}, "Check UCS_CLICKHOUSE_URL"),
        (2, ["stop"], {"DAGSTER_HOME": "/nowhere"}, "DAGSTER_HOME is '/nowhere', which is not a directory"),
    ],
    ids=["no feed", "no Redis", "no Redis URL", "no ClickHouse", "no home"],
)
def test_a_mistake_ends_with_one_sentence(
    home: Path, redis_server: RedisServer, code: int, command: list[str], environment: dict[str, str], sentence: str
) -> None:
    ended, output = run_ucs(*command, home=home, **{"UCS_REDIS_URL": redis_server.url, **environment})
    assert ended == code, output
    assert sentence in output
    assert "Traceback" not in output


def test_of_a_clickhouse_that_is_not_there_one_sentence_is_said_and_no_more(
    home: Path, redis_server: RedisServer
) -> None:
    urls = {"UCS_REDIS_URL": redis_server.url, "UCS_CLICKHOUSE_URL": "http://user:secret@127.0.0.1:1/default"}
    code, output = run_ucs("verify", "weather", home=home, **urls)
    assert code == 75
    [line] = output.splitlines()
    assert line.startswith("ucs: feed 'weather': ClickHouse cannot be read (")
    assert "secret" not in line


def test_stopping_the_server_says_how_many_runs_need_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    for runs, said in ((0, ""), (1, "1 run is publishing, and will wait"), (2, "2 runs are publishing, and will wait")):
        with dg.DagsterInstance.get() as instance:
            create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
            if runs:
                tags = {"ucs/feed": "flights"}
                create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=tags)
        assert run_ucs("status", home=home)[0] == 0
        code, output = run_ucs("stop", home=home)
        lines = output.splitlines()
        assert (code, lines[0], len(lines)) == (0, "stopped the embedded redis-server", 1 + bool(runs))
        assert lines[-1].startswith(said)
    assert run_ucs("stop", home=home) == (0, "no embedded redis-server is running\n")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["prune", "--days", "0"], "ucs prune: Invalid value for '--days': 0 is not in the range x>=1."),
        (["verify"], "ucs verify: Missing argument 'FEED'."),
        (["read", "flights", "--row", "3"], "ucs read: No such option"),
        (["statis"], "ucs: No such command 'statis'."),
    ],
    ids=["a wrong value", "no feed", "no such option", "no such command"],
)
def test_a_mistake_on_the_command_line_ends_with_one_sentence(home: Path, command: list[str], sentence: str) -> None:
    code, output = run_ucs(*command, home=home)
    assert code == 2
    assert output.startswith(sentence)
    assert output.count("\n") == 1


def test_without_a_command_it_shows_its_commands(home: Path) -> None:
    assert run_ucs(home=home) == run_ucs("--help", home=home)
    assert "Usage: ucs [OPTIONS] COMMAND" in run_ucs(home=home)[1]
