"""The code of docs/how-to/in-your-dagster.md makes a code location."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ucs_pipeline_tests.support.home import PROJECT

PYPROJECT = """
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "my_company"
"""


def _block(mark: str) -> str:
    page = (PROJECT / "docs" / "how-to" / "in-your-dagster.md").read_text()
    [block] = re.findall(rf"<!-- in_your_dagster {mark} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    return str(block)


def test_the_code_of_the_page_makes_a_code_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaces: list[dict[str, Any]] = [{}, {}]
    for space, mark in zip(spaces, ("resources", "python"), strict=True):
        exec(_block(mark), space)  # noqa: S102 - the page's own code
    package = tmp_path / "my_company"
    (package / "defs" / "orders").mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (package / "defs" / "orders" / "defs.yaml").write_text(_block("feed"))
    monkeypatch.syspath_prepend(str(tmp_path))
    resources = spaces[0]["defs"]
    written = dg.Definitions.merge(dg.load_from_defs_folder(path_within_project=package), resources)
    dg.Definitions.validate_loadable(written)
    graph = written.resolve_asset_graph()
    assert graph.get(dg.AssetKey("orders")).parent_keys == {dg.AssetKey(["raw", "orders"])}
    assert graph.get(dg.AssetKey("orders")).group_name == "shop"
    built = dg.Definitions.merge(spaces[1]["feeds"], resources)
    dg.Definitions.validate_loadable(built)
    names = {check.name for check in built.resolve_asset_graph().asset_check_keys}
    assert "all_rows_arrived" in names
    assert {sensor.name for sensor in built.sensors or ()} == {"orders_sensor"}


def test_what_components_have_in_common_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCS_ALERT_WEBHOOK_URL", "http://127.0.0.1:1/")
    package = tmp_path / "our_company"
    for name in ("first", "second", "third"):
        (package / "defs" / name).mkdir(parents=True)
        feed = _block("feed").replace("name: orders", f"name: {name}\n  stream: {{name: shared, order: any}}")
        (package / "defs" / name / "defs.yaml").write_text(re.sub(r"  table_asset.*\n", "", feed))
    (package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT.replace("my_company", "our_company"))
    monkeypatch.syspath_prepend(str(tmp_path))
    space: dict[str, Any] = {}
    exec(_block("resources"), space)  # noqa: S102 - the page's own code
    defs = dg.Definitions.merge(dg.load_from_defs_folder(path_within_project=package), space["defs"])
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    feeds = {dg.AssetKey(name) for name in ("first", "second", "third")}
    assert graph.get(dg.AssetKey(["redis", "shared"])).parent_keys == feeds
    assert graph.get(dg.AssetKey(["archive", "shop", "orders"])).child_keys == feeds
    alerts = [sensor.name for sensor in defs.sensors or () if "alerts" in sensor.name]
    assert sorted(alerts) == ["check_failure_alerts", "run_failure_alerts"]
