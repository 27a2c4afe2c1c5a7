"""The matrix counts what pytest found, and its page names every server."""

from pathlib import Path

from ucs_pipeline_tests.matrix import SERVERS, on_server
from ucs_pipeline_tests.servers.redis_server import redis_executable
from ucs_pipeline_tests.support.home import PROJECT


def test_tests_run_on_the_server_that_is_named_and_are_counted(tmp_path: Path) -> None:
    server = Path(redis_executable(oldest=True))
    (tmp_path / "test_server.py").write_text(
        "import os, pytest\n"
        "from pathlib import Path\n"
        "from ucs_pipeline_tests.servers.redis_server import redis_executable\n"
        f"def test_server(): assert Path(redis_executable()).resolve() == Path({str(server)!r}).resolve()\n"
        "def test_fails(): assert os.environ['PATH'] == ''\n"
        "def test_is_skipped(): pytest.skip()\n"
    )
    passed, [failed], skipped = on_server(server, [str(tmp_path)])
    assert (passed, failed.rpartition(".")[2], skipped) == (1, "test_server::test_fails", 1)


def test_the_page_names_every_server() -> None:
    page = (PROJECT / "docs" / "reference" / "compatibility.md").read_text()
    for wheel in SERVERS:
        assert f"`{wheel.package}`" in page
