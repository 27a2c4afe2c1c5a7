import http.client
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
THREE_BATCHES = "SELECT number FROM numbers(150000) SETTINGS max_block_size = 50000 FORMAT ArrowStream"


@contextmanager
def connect(server: ClickHouseServer, **options: Any) -> Iterator[Client]:
    client = clickhouse_connect.get_client(dsn=server.url, dedicated_pool=True, **options)
    with closing(client):
        yield client


@pytest.fixture
def client(clickhouse_http: ClickHouseServer) -> Iterator[Client]:
    with connect(clickhouse_http, autogenerate_session_id=False) as client:
        yield client


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


def post(server: ClickHouseServer, sql: str, *, login: str | None = "tester:secret", **arguments: str) -> Answer:
    """One request by a plain HTTP client; `whole` is False if the connection ended before the body did."""
    address = urlsplit(server.url)
    headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login is not None else {}
    with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)) as connection:
        connection.request("POST", f"/?{urlencode(arguments)}", sql.encode(), headers)
        with connection.getresponse() as response:
            body, whole = b"", True
            try:
                while part := response.read1(65_536):
                    body += part
            except http.client.IncompleteRead as error:
                body, whole = body + error.partial, False
            return Answer(response.status, dict(response.getheaders()), body, whole)


def arrow_stream(client: Client, sql: str, **options: Any) -> io.IOBase:
    return cast(io.IOBase, client.raw_stream(sql, fmt="ArrowStream", **options))


def rows_of(stream: bytes) -> list[int]:
    return [batch.num_rows for batch in pa.ipc.open_stream(stream)]


def resident_megabytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def test_a_table_makes_the_round_trip_through_the_real_driver(client: Client) -> None:
    client.command("CREATE OR REPLACE TABLE trip (id UInt64, name Nullable(String)) ENGINE = MergeTree ORDER BY id")
    table = pa.table({"id": pa.array([1, 2, 2**64 - 1], pa.uint64()), "name": ["one", None, "it's"]})
    client.insert_arrow("trip", table)
    client.insert("trip", [[3, "three"]], column_names=["id", "name"])

    assert client.query("SELECT * FROM trip ORDER BY id").result_rows == [
        (1, "one"),
        (2, None),
        (3, "three"),
        (2**64 - 1, "it's"),
    ]
    assert client.command("SELECT count() FROM trip") == 4
    assert client.raw_query("SELECT id FROM trip ORDER BY id LIMIT 2", fmt="TSV") == b"1\n2\n"
    assert client.query_arrow("SELECT id FROM trip ORDER BY id")["id"].to_pylist() == [1, 2, 3, 2**64 - 1]


def test_an_arrow_stream_arrives_as_one_stream_of_several_batches(client: Client) -> None:
    sql = "SELECT number, toString(number) AS text FROM numbers(150000)"
    with closing(arrow_stream(client, sql, settings={"max_block_size": 50_000})) as response:
        batches = list(pa.ipc.open_stream(response))
    assert [batch.num_rows for batch in batches] == [50_000] * 3
    assert batches[2]["text"][-1].as_py() == "149999"

    with client.query_arrow_stream(sql) as stream:
        assert sum(batch.num_rows for batch in stream) == 150_000


def test_an_empty_result_still_has_its_columns(client: Client) -> None:
    with closing(arrow_stream(client, "SELECT number FROM numbers(10) WHERE number > 99")) as response:
        reader = pa.ipc.open_stream(response)
        assert reader.schema.names == ["number"]
        assert list(reader) == []


def test_dictionaries_of_every_block_reach_the_reader(client: Client) -> None:
    settings = {"output_format_arrow_low_cardinality_as_dictionary": 1, "max_block_size": 1000}
    sql = "SELECT toLowCardinality(toString(number % 7000)) AS word FROM numbers(20000)"
    with closing(arrow_stream(client, sql, settings=settings)) as response:
        words = [word for batch in pa.ipc.open_stream(response) for word in batch["word"].to_pylist()]
    assert words == [str(number % 7000) for number in range(20_000)]


def test_a_long_stream_starts_at_once_and_does_not_fill_memory(
    clickhouse_http: ClickHouseServer, client: Client
) -> None:
    before = resident_megabytes(clickhouse_http.pid)
    sql = "SELECT number, number * 2, number * 3 FROM numbers(1000000000000)"
    with closing(arrow_stream(client, sql, settings={"max_threads": 1})) as response:
        reader = pa.ipc.open_stream(response)
        rows = 0
        while rows < 5_000_000:
            rows += reader.read_next_batch().num_rows
        assert resident_megabytes(clickhouse_http.pid) < before + 100


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("UInt64", 2**64 - 1),
        ("Int64", -5),
        ("String", "it's a\ttab, a \\ and a\nnewline, ü"),
        ("Array(String)", ["a'b", "c"]),
        ("Nullable(UInt8)", None),
    ],
)
def test_parameters_are_bound_by_the_server(client: Client, kind: str, value: object) -> None:
    assert client.query(f"SELECT {{value:{kind}}}", parameters={"value": value}).result_rows == [(value,)]


def test_parameters_reach_an_arrow_stream(client: Client) -> None:
    sql = "SELECT number FROM numbers(100) WHERE number >= {first:UInt64} AND number < {end:UInt64}"
    with closing(arrow_stream(client, sql, parameters={"first": 10, "end": 15})) as response:
        assert pa.ipc.open_stream(response).read_all()["number"].to_pylist() == [10, 11, 12, 13, 14]


def test_a_missing_parameter_is_refused(clickhouse_http: ClickHouseServer) -> None:
    answer = post(clickhouse_http, "SELECT {value:UInt64}")
    assert answer.headers["X-ClickHouse-Exception-Code"] == "456"


def test_settings_hold_for_their_own_query_only(client: Client) -> None:
    sql = "SELECT toString(getSetting('max_block_size'))"
    usual = client.query(sql).result_rows
    assert client.query(sql, settings={"max_block_size": 1234}).result_rows == [("1234",)]
    assert client.query(sql).result_rows == usual != [("1234",)]


def test_an_unknown_setting_is_refused_as_clickhouse_refuses_it(client: Client) -> None:
    with pytest.raises(DatabaseError, match="Unknown setting 'no_such_setting'") as refusal:
        arrow_stream(client, "SELECT 1", settings={"no_such_setting": 1})
    assert (refusal.value.code, refusal.value.name) == (115, "UNKNOWN_SETTING")


@pytest.mark.parametrize(
    ("sql", "status", "code", "name"),
    [
        ("SELECT * FROM nowhere", 404, "60", "UNKNOWN_TABLE"),
        ("SELECT nothing FROM numbers(1)", 404, "47", "UNKNOWN_IDENTIFIER"),
        ("SELECT * FROM nowhere FORMAT ArrowStream", 404, "60", "UNKNOWN_TABLE"),
        ("SELECT (", 400, "62", "SYNTAX_ERROR"),
        ("SELECT throwIf(1)", 500, "395", "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
    ],
)
def test_an_error_has_the_status_the_code_and_the_words_of_clickhouse(
    clickhouse_http: ClickHouseServer, sql: str, status: int, code: str, name: str
) -> None:
    answer = post(clickhouse_http, sql)
    assert answer.status == status
    assert answer.headers["X-ClickHouse-Exception-Code"] == code
    assert answer.body.startswith(f"Code: {code}. DB::Exception: ".encode())
    assert f"({name}) (version ".encode() in answer.body


def test_an_unknown_database_is_refused(clickhouse_http: ClickHouseServer) -> None:
    answer = post(clickhouse_http, "SELECT 1", database="nowhere")
    assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (404, "81")


def test_a_get_request_may_only_read(clickhouse_http: ClickHouseServer) -> None:
    address = urlsplit(clickhouse_http.url)
    with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)) as connection:
        arguments = {"query": "CREATE TABLE t (a Int8) ENGINE = Memory", "user": "tester", "password": "secret"}
        connection.request("GET", f"/?{urlencode(arguments)}")
        with connection.getresponse() as response:
            assert response.headers["X-ClickHouse-Exception-Code"] == "164"
            response.read()
        connection.request("GET", f"/?{urlencode({**arguments, 'query': 'SELECT 1'})}")
        with connection.getresponse() as response:
            assert response.read() == b"1\n"


@pytest.mark.parametrize("login", ["tester:wrong", "somebody:secret", "tester:", None])
def test_a_wrong_login_is_refused_without_repeating_the_password(
    clickhouse_http: ClickHouseServer, login: str | None
) -> None:
    answer = post(clickhouse_http, "SELECT 1", login=login)
    assert answer.status == 403
    assert answer.headers["X-ClickHouse-Exception-Code"] == "516"
    assert b"Authentication failed" in answer.body
    assert b"(AUTHENTICATION_FAILED)" in answer.body
    assert b"wrong" not in answer.body


def test_the_driver_reports_a_wrong_password(clickhouse_http: ClickHouseServer) -> None:
    with pytest.raises(DatabaseError) as refusal:
        clickhouse_connect.get_client(dsn=clickhouse_http.url.replace("secret", "wrong"), dedicated_pool=True)
    assert refusal.value.code == 516


def test_a_password_may_hold_any_character() -> None:
    with ClickHouseServer(password="p@ss:w/rd?ü") as server, connect(server) as client:
        assert client.command("SELECT 1") == 1


def test_a_session_serves_one_query_at_a_time(clickhouse_http: ClickHouseServer) -> None:
    with connect(clickhouse_http, session_id="mine") as client:
        with (
            closing(arrow_stream(client, "SELECT * FROM numbers(1000000000000)")),
            pytest.raises(DatabaseError) as refusal,
        ):
            client.command("SELECT 1")
        assert refusal.value.name == "SESSION_IS_LOCKED"


def test_ping_answers_without_a_login(clickhouse_http: ClickHouseServer, client: Client) -> None:
    assert client.ping()
    assert post(clickhouse_http, "", login=None).body == b"Ok.\n"


def test_an_undisturbed_stream_ends_with_the_end_marker(clickhouse_http: ClickHouseServer) -> None:
    answer = post(clickhouse_http, THREE_BATCHES)
    assert answer.whole
    assert answer.body.endswith(END_OF_STREAM)
    assert rows_of(answer.body) == [50_000] * 3


@pytest.mark.parametrize("size", [0, 1, 100, 200_000])
def test_a_stream_cut_after_some_bytes_breaks_off_exactly_there(clickhouse_http: ClickHouseServer, size: int) -> None:
    clickhouse_http.fault(cut_after_bytes=size)
    answer = post(clickhouse_http, THREE_BATCHES)
    assert (answer.status, answer.whole, len(answer.body)) == (200, False, size)
    assert post(clickhouse_http, THREE_BATCHES).whole


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_clean_cut_ends_properly_as_http_but_lacks_the_end_marker(
    clickhouse_http: ClickHouseServer, batches: int
) -> None:
    clickhouse_http.fault(cut_clean_after_batches=batches)
    answer = post(clickhouse_http, THREE_BATCHES)
    assert (answer.status, answer.whole) == (200, True)
    assert not answer.body.endswith(END_OF_STREAM)
    assert rows_of(answer.body) == [50_000] * batches
    assert post(clickhouse_http, THREE_BATCHES).body.endswith(END_OF_STREAM)


def test_an_exception_in_mid_stream_is_a_tagged_block_and_a_broken_connection(
    clickhouse_http: ClickHouseServer,
) -> None:
    clickhouse_http.fault(exception_after_batches=2)
    answer = post(clickhouse_http, THREE_BATCHES)
    tag = answer.headers["X-ClickHouse-Exception-Tag"]
    stream, _, block = answer.body.partition(f"\r\n__exception__\r\n{tag}\r\n".encode())
    message, _, rest = block.rpartition(b"\n" + str(block.index(b"\n") + 1).encode())
    assert (answer.status, answer.whole) == (200, False)
    assert rows_of(stream) == [50_000] * 2
    assert message.startswith(b"Code: 241. DB::Exception: ")
    assert rest == f" {tag}\r\n__exception__\r\n".encode()


def test_an_exception_of_an_older_clickhouse_is_bare_text(clickhouse_http: ClickHouseServer) -> None:
    clickhouse_http.fault(exception_after_batches=1, tagged=0)
    answer = post(clickhouse_http, THREE_BATCHES)
    assert not answer.whole
    assert "X-ClickHouse-Exception-Tag" not in answer.headers
    assert b"\x00Code: 241. DB::Exception: Memory limit" in answer.body


def test_an_exception_the_engine_itself_raises_in_mid_stream_is_told_the_same_way(
    clickhouse_http: ClickHouseServer,
) -> None:
    # Far enough behind the first block that the engine, which waits for its reader, cannot be there already.
    sql = "SELECT throwIf(number = 9000000) FROM numbers(10000000) SETTINGS max_threads = 1 FORMAT ArrowStream"
    answer = post(clickhouse_http, sql)
    assert (answer.status, answer.whole) == (200, False)
    assert b"Code: 395. DB::Exception: " in answer.body


def test_requests_fail_as_often_as_asked_and_then_work(clickhouse_http: ClickHouseServer) -> None:
    clickhouse_http.fault(fail_next=2)
    assert [post(clickhouse_http, "SELECT 1").status for _ in range(3)] == [503, 503, 200]


def test_the_driver_retries_a_busy_server_twice_and_then_gives_up(
    clickhouse_http: ClickHouseServer, client: Client
) -> None:
    before = clickhouse_http.fault(fail_next=2)["requests"]
    assert client.query("SELECT 1").result_rows == [(1,)]
    assert clickhouse_http.fault()["requests"] == before + 3
    clickhouse_http.fault(fail_next=3)
    with pytest.raises(OperationalError, match="HTTP status 503"):
        client.query("SELECT 1")


def test_a_delay_holds_back_every_answer(clickhouse_http: ClickHouseServer) -> None:
    clickhouse_http.fault(delay_ms=200)
    started = time.monotonic()
    post(clickhouse_http, "SELECT 1")
    assert time.monotonic() - started >= 0.2


def test_faults_may_be_given_at_the_start() -> None:
    with ClickHouseServer(fail_next=1) as server:
        assert [post(server, "SELECT 1").status for _ in range(2)] == [503, 200]


def test_a_fault_switch_that_does_not_exist_is_refused(clickhouse_http: ClickHouseServer) -> None:
    with pytest.raises(HTTPError) as refusal:
        clickhouse_http.fault(cut_cleanly=1)
    with refusal.value as answer:
        assert answer.read() == b"no such fault switch: ['cut_cleanly']\n"


def test_a_client_that_leaves_frees_the_server(clickhouse_http: ClickHouseServer) -> None:
    with connect(clickhouse_http, session_id="left") as leaving:
        arrow_stream(leaving, "SELECT * FROM numbers(1000000000000)").close()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert leaving.command("SELECT 1") == 1
                return
            except DatabaseError:  # still locked: the server has not yet noticed
                time.sleep(0.05)
    pytest.fail("the abandoned query still holds its session")


def test_the_server_dies_with_its_parent() -> None:
    script = (
        "import os, sys; from ucs_pipeline_tests.servers.clickhouse_http import ClickHouseServer; "
        "server = ClickHouseServer().start(); print(server.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _lives(child):
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it is gone, perhaps since the file was opened
        return False


def test_tables_on_disk_survive_a_restart_on_the_same_port(tmp_path: Path) -> None:
    with ClickHouseServer(path=str(tmp_path / "engine")) as server:
        post(server, "CREATE TABLE kept (a UInt8) ENGINE = MergeTree ORDER BY a")
        post(server, "INSERT INTO kept VALUES (7)")
        url = server.url
        server.stop()
        server.start()
        assert server.url == url
        assert post(server, "SELECT a FROM kept").body == b"7\n"


def test_https_serves_a_client_that_trusts_the_certificate(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    with ClickHouseServer(certfile=certificate, keyfile=key) as server:
        assert server.url.startswith("https://")
        assert server.fault()["requests"] == 0
        # The driver takes TLS from `secure` or the port, not from the DSN's scheme.
        with connect(server, secure=True, ca_cert=str(certificate)) as client:
            assert client.command("SELECT 1") == 1
        with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
            clickhouse_connect.get_client(dsn=server.url, secure=True, dedicated_pool=True)
