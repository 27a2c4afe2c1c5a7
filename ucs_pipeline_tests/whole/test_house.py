"""The layout: the size of the packages, the uses of what Dagster does not document, and the import paths that stay."""

import ast
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from dagster import DagsterInstance

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ucs_pipeline"
MODULES = [path for path in PACKAGE.rglob("*.py") if "defs" not in path.parts]

# An instance's configuration from before the packages were split.
OLD_DAGSTER_YAML = """
event_log_storage:
  module: ucs_pipeline.event_log
  class: PooledSqliteEventLogStorage
  config:
    base_dir: history
run_coordinator:
  module: ucs_pipeline.run_queue
  class: StreamRunCoordinator
python_logs:
  dagster_handler_config:
    handlers:
      file:
        (): ucs_pipeline.home.log_file_handler
        filename: dagster.log
        max_bytes: 1000
        backup_count: 1
"""


def test_a_package_has_at_most_nine_modules() -> None:
    packages = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {package.name: modules for package, modules in packages.items() if modules > 9} == {}


def test_every_package_has_a_purpose() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_what_dagster_does_not_document_is_used_in_two_places() -> None:
    users: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith(("dagster._", "dagster.components.")):
                package, *_ = path.relative_to(PACKAGE).parts
                users.add(package if package == "instance" else str(path.relative_to(PACKAGE)))
    assert users == {"instance", "orchestration/_dagster.py"}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ucs_pipeline", "BrickFeed"),
        ("ucs_pipeline", "build_defs"),
        ("ucs_pipeline", "Reader"),
        ("ucs_pipeline", "read_entries"),
        ("ucs_pipeline", "read_brick"),
        ("ucs_pipeline", "publish"),
        ("ucs_pipeline", "redis_url"),
        ("ucs_pipeline.bricks", "get_brick_name"),
        ("ucs_pipeline.bricks", "get_brick_list"),
        ("ucs_pipeline.bricks", "get_brick_bounds"),
        ("ucs_pipeline.event_log", "PooledSqliteEventLogStorage"),
        ("ucs_pipeline.run_queue", "StreamRunCoordinator"),
        ("ucs_pipeline.home", "log_file_handler"),
        ("ucs_pipeline.redis_link", "redis_url"),
        ("ucs_pipeline.definitions", "defs"),
    ],
)
def test_a_public_name_can_be_imported(module: str, name: str) -> None:
    assert getattr(import_module(module), name)


def test_a_dagster_yaml_of_before_the_rooms_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(OLD_DAGSTER_YAML)
    with DagsterInstance.get() as instance:
        assert type(instance.event_log_storage).__name__ == "PooledSqliteEventLogStorage"
        assert type(instance.run_coordinator).__name__ == "StreamRunCoordinator"
        assert instance.get_handlers()


def test_a_consumer_imports_neither_dagster_nor_pandas_nor_arrow() -> None:
    code = (
        "import sys; from ucs_pipeline import Reader, read_entries, read_brick, redis_url;"
        "print([name for name in ('dagster', 'pandas', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
