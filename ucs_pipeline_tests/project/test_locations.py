"""`ucs` on any code location, found as Dagster's own commands find it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FEED = """
import dagster as dg

from ucs_pipeline import BrickFeed, ClickHouseResource, RedisResource, build_defs

resources = {"clickhouse": ClickHouseResource(url="embedded"), "redis": RedisResource(url="redis://127.0.0.1:1")}
feed = BrickFeed(name=NAME, table="numbers(10)", key="number", bricks={"class": "number", "last": 9})
"""
DEFS = "defs = build_defs(feed, resources=resources)\n"


def _write(directory: Path, name: str, feed: str = "orders", defs: str = DEFS) -> None:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FEED.replace("NAME", repr(feed)) + defs)


def _ucs(directory: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UCS_", "DAGSTER_"))}
    home = directory / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").touch()
    return subprocess.run(
        [sys.executable, "-m", "ucs_pipeline.cli.main", *arguments],
        cwd=directory,
        env={**kept, "DAGSTER_HOME": str(home), **more},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Definitions of a file, a module and a package, each with a feed of its own."""
    _write(tmp_path, "here.py", "by_file")
    _write(tmp_path, "company/__init__.py", "by_package")
    _write(tmp_path, "company/definitions.py", "by_module", "@dg.definitions\ndef anything():\n    return " + DEFS[7:])
    _write(tmp_path, "both.py", "one", f"{DEFS}more = build_defs(feed)\n")
    (tmp_path / "broken.py").write_text("import dagster as dg\n\nx = 1 / 0\n")
    return tmp_path


def test_options_and_files_name_a_code_location_as_for_dagster(place: Path) -> None:
    def right(*options: str, **more: str) -> str:
        done = _ucs(place, *options, "check", **more)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.rpartition(": ")[2].strip()

    assert right("-f", "here.py") == "by_file"
    assert right("-m", "company.definitions") == "by_module"
    assert right("--package-name", "company") == "by_package"
    assert right("-m", "both", "-a", "defs") == "one"
    assert right("-m", "here", "-m", "company.definitions") == "by_file, by_module"
    assert right(DAGSTER_MODULE_NAME="company.definitions") == "by_module"
    (place / "elsewhere").mkdir()
    assert right("-d", "elsewhere", "-f", "here.py") == "by_file"
    (place / "workspace.yaml").write_text("load_from: [{python_file: here.py}, {python_module: company.definitions}]")
    assert right() == "by_file, by_module"
    assert right("-w", "workspace.yaml") == "by_file, by_module"
    # Dagster reads pyproject.toml first.
    (place / "pyproject.toml").write_text('[tool.dagster]\nmodule_name = "company.definitions"\n')
    assert right() == "by_module"
    (place / "pyproject.toml").write_text('[tool.dg.project]\nroot_module = "company"\n')
    assert right() == "by_module"


def test_what_cannot_be_loaded_is_one_sentence(place: Path) -> None:
    def wrong(*arguments: str) -> str:
        done = _ucs(place, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("ucs: ")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("ucs: ").strip()

    assert wrong("status").startswith(
        f"There is no code location here: {place} has neither a pyproject.toml with [tool.dagster] or"
    )
    assert wrong("-f", "broken.py", "status") == (
        "code location 'broken.py' cannot be loaded: broken.py:3: ZeroDivisionError: division by zero. "
        "[UCS-DEFINITIONS]"
    )
    assert "No module named 'nope'" in wrong("-m", "nope", "status")
    assert "Cannot have more than one Definitions object" in wrong("-m", "both", "status")
    assert wrong("-f", "here.py", "verify", "nope") == (
        "There is no feed 'nope'. The feeds here are: 'by_file'. Name one of them, or another code location with -m "
        "MODULE or -f FILE. [UCS-NO-FEED]"
    )
    assert wrong("-f", "here.py", "-m", "here", "verify", "by_file") == (
        "feed 'by_file' is in two code locations. Name one with -m MODULE or -f FILE. [UCS-NO-FEED]"
    )
    elsewhere = (
        "is served by another process. Run ucs where its code is, and name it with -m MODULE or -f FILE. [UCS-LOCATION]"
    )
    for text in (
        "load_from: [{grpc_server: {host: 127.0.0.1, port: 1, location_name: far}}]",
        "load_from: [{python_file: {relative_path: here.py, executable_path: /other/python, location_name: far}}]",
    ):
        (place / "far.yaml").write_text(text)
        assert wrong("-w", "far.yaml", "status") == f"code location 'far' {elsewhere}"


def test_a_variable_that_is_not_set_is_named(place: Path) -> None:
    _write(
        place,
        "unset.py",
        defs=DEFS.replace("resources)", 'resources | {"redis": RedisResource(url=dg.EnvVar("X_URL"))})'),
    )
    unset = "resource 'redis' needs environment variable X_URL, which is not set. Set it. [UCS-RESOURCE]"
    done = _ucs(place, "-f", "unset.py", "verify", "orders")
    assert (done.returncode, done.stderr) == (2, f"ucs: {unset}\n")
    shown = _ucs(place, "-f", "unset.py", "-m", "company.definitions", "status", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    problems = {feed["feed"]: feed["problem"] for feed in json.loads(shown.stdout)}
    assert problems["orders"] == unset
    assert "Redis cannot be reached" in problems["by_module"]
    scraped = _ucs(place, "-f", "unset.py", "metrics")
    assert (scraped.returncode, scraped.stderr) == (0, f"ucs: {unset}\n")
    set_ = _ucs(place, "-f", "unset.py", "status", X_URL="redis://:hunter2@127.0.0.1:1")
    assert (set_.returncode, set_.stderr) == (0, "")
    assert "Check X_URL" in set_.stdout
    assert "hunter2" not in set_.stdout


def test_readers_by_name_find_the_code_location_too(place: Path) -> None:
    (place / "workspace.yaml").write_text("load_from: [{python_file: here.py}]")
    program = "from ucs_pipeline import Reader\ntry: Reader('by_file').take(1)\nexcept Exception as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=place, capture_output=True, text=True, timeout=300
    )
    assert "stream 'by_file': Redis cannot be reached" in done.stdout
    assert "Check `url` of resource 'redis' and the server" in done.stdout
