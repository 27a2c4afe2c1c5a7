"""A project home in a temporary directory: Dagster's configuration, and small tables for the embedded engine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg
import pyarrow as pa

from ucs_pipeline import testing
from ucs_pipeline.bricks.number import name_of_ordinal
from ucs_pipeline.cli.demo_data import DATASETS
from ucs_pipeline.orchestration.names import range_tags

PROJECT = Path(__file__).parents[2]

RUN_IN_PROCESS = """
import warnings
warnings.simplefilter("ignore")
from ucs_pipeline import publish
publish("flights", 0, 33)
"""
"""Python text that publishes every brick of the flights feed in one run of the instance at DAGSTER_HOME."""


def make_home(directory: Path) -> Path:
    """A project home with the project's own configuration."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(PROJECT / name, directory)
    return directory


def copy_project(directory: Path) -> Path:
    """A copy of the project that has the demo's feeds and no others."""
    shutil.copy(PROJECT / "pyproject.toml", make_home(directory))
    package = directory / "ucs_pipeline"
    shutil.copytree(PROJECT / "ucs_pipeline", package, ignore=shutil.ignore_patterns("__pycache__", "defs"))
    for name in DATASETS:
        shutil.copytree(PROJECT / "ucs_pipeline" / "defs" / name, package / "defs" / name)
    shutil.copy(PROJECT / "ucs_pipeline" / "defs" / "resources.py", package / "defs")
    return directory


def write_table(home: Path, name: str, columns: Mapping[str, pa.Array]) -> None:
    """A table the embedded engine shows in this home."""
    testing.write_table(home / ".ucs" / "tables", name, columns)


def python(text: str, home: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """A Python process in that home."""
    return _start([sys.executable, "-c", text], home, environment)


def ucs(*arguments: str, home: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """The command `ucs` in that home; its output goes to `process.log` there."""
    return _start([sys.executable, "-m", "ucs_pipeline.cli.main", *arguments], home, environment)


def run_ucs(*arguments: str, home: Path, **environment: str) -> tuple[int, str]:
    """The command `ucs` in that home, run to its end: exit code and output."""
    log = home / "process.log"
    log.unlink(missing_ok=True)
    code = ucs(*arguments, home=home, **environment).wait()
    return code, log.read_text(errors="surrogateescape")


def _start(command: list[str], home: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    with (home / "process.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, "DAGSTER_HOME": str(home), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def run_bricks(
    defs: dg.Definitions,
    feed: str,
    instance: dg.DagsterInstance,
    first: int | str | None,
    last: int | str | None,
    *,
    together: Sequence[str] = (),
    **tags: str,
) -> dg.ExecuteInProcessResult:
    """One run of a feed's asset over a range of bricks, as a backfill would start it; without a range if None.

    Number bricks may be given by their ordinals. `together`: further assets of the run. `tags`: further tags of it.
    """
    if first is not None and last is not None:
        names = [end if isinstance(end, str) else name_of_ordinal(end) for end in (first, last)]
        tags |= range_tags(*names)
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=[*map(dg.AssetKey, (feed, *together))], tags=tags, raise_on_error=False
    )
