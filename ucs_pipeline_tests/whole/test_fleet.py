"""Ten feeds are ten YAML files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.home import copy_project

NAMES = [f"feed_{number}" for number in range(10)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, with ten feeds of a fleet in the place of the demo's."""
    for directory in (copy_project(tmp_path) / "ucs_pipeline" / "defs").iterdir():
        if directory.is_dir():
            shutil.rmtree(directory)
    for number, name in enumerate(NAMES):
        feed = {
            "name": name,
            "table": "events",
            "key": "id",
            "bricks": {"class": "number", "last": 10_000 * (number + 1) - 1},
            "where": f"id % 10 = {number}",
            "group": "fleet",
            "owners": ["team:data"],
            "tags": {"number": str(number)},
            "check_schedule": f"{number} 5 * * *",
        }
        file = tmp_path / "ucs_pipeline" / "defs" / name / "defs.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump({"type": "ucs_pipeline.BrickFeed", "attributes": feed}))
    return tmp_path


def _run(project: Path, redis_url: str, *command: str) -> str:
    environment = {**os.environ, "DAGSTER_HOME": str(project), "PYTHONPATH": str(project), "UCS_REDIS_URL": redis_url}
    command = (sys.executable, "-m", *command)
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ten_files_are_ten_feeds(project: Path, redis_server: RedisServer) -> None:
    _run(project, redis_server.url, "dagster", "definitions", "validate")
    statuses = json.loads(_run(project, redis_server.url, "ucs_pipeline.cli.main", "status", "--json"))
    assert [(status["feed"], status["bricks"]) for status in statuses] == [
        (name, number + 1) for number, name in enumerate(NAMES)
    ]
    table = _run(project, redis_server.url, "ucs_pipeline.cli.main", "status")
    for name in NAMES:
        assert f"│ {name} " in table
