"""The tutorial, command by command: each prints what the page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ucs_pipeline_tests.support.home import PROJECT

pytestmark = pytest.mark.slow

_BLOCK = re.compile(r"(<!-- differs -->\n)?```(bash|text)\n(.*?)```", re.DOTALL)


def test_every_command_of_the_tutorial_prints_what_the_page_shows(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "tutorial.md").read_text()
    for name, text in re.findall(r"<!-- tutorial (\S+) -->\n```python\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(text)
    # Installing is the company's test, next to this one; `dagster dev` stays until it is stopped.
    steps = page.split("## 2. ")[1].split("## 7. ")[0] + page.split("## 8. ")[1].split("## Use your own")[0]
    unset = ("UCS_", "DAGSTER_", "PYTEST_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**inherited, "PATH": path, "DAGSTER_HOME": str(tmp_path)}
    printed, compared = "", 0
    try:
        for differs, kind, text in _BLOCK.findall(steps):
            if kind == "bash":
                # Exit codes are ignored: that of the killed worker is its shell's.
                done = subprocess.run(
                    ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
                )
                printed = done.stdout + ("" if done.stdout else done.stderr)
            elif not differs:
                shown, found = _comparable(text), _comparable(printed)
                assert shown == found[: len(shown)], printed
                compared += 1
    finally:
        subprocess.run(["ucs", "stop"], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert compared == 10


def _comparable(text: str) -> list[str]:
    """Lines up to the dots, without the seconds that something took."""
    text = re.sub(r"in [\d.]+ s", "in N s", text.partition("\n...")[0])
    words = (re.sub(r"[\s━─]+", " ", line).strip() for line in text.splitlines())
    return [line for line in words if line]
