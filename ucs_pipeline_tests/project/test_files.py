"""`ucs check`, and the sentence of every other command, on a copy of the project with files that people wrote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ucs_pipeline_tests.support.home import copy_project

FEED = """\
type: ucs_pipeline.BrickFeed
attributes:
  name: {name}
  table: t
  key: id
  bricks: {{class: number, last: 50000}}
"""

WRONG: dict[str, tuple[str, str, str]] = {
    "typo/defs.yaml": ("{feed}  colums: {{id: id}}", "", "feed 'typo': colums is not a setting. Did you mean columns?"),
    "class/defs.yaml": (
        "type: ucs_pipeline.BrickFeed\nattributes: {{name: a, table: t, key: id, bricks: {{class: numbr, last: 5}}}}",
        "",
        "feed 'a': bricks.class: expected 'number', 'time' or 'text' (found 'numbr')",
    ),
    "zone/defs.yaml": (
        "type: ucs_pipeline.BrickFeed\nattributes: {{name: a, table: t, key: id, bricks: {{class: time, "
        "first: 2013-01-01, last: 2013-01-02, zone: Europe/Berlim}}}}",
        "",
        "feed 'a': bricks.zone: 'Europe/Berlim' is not a time zone",
    ),
    "missing/defs.yaml": (
        "type: ucs_pipeline.BrickFeed\nattributes: {{name: missing, key: id, bricks: {{class: number, last: 5}}}}",
        "",
        "feed 'missing': table is missing",
    ),
    "nothing/defs.yaml": (
        "type: ucs_pipeline.BrickFeed",
        "",
        "a feed without a name: name is missing. table is missing. key is missing. bricks is missing.",
    ),
    "reserved/defs.yaml": ("{config}", "", "feed 'config': name 'config' is reserved by Dagster. Choose another"),
    "indentation/defs.yaml": ("{feed}   final: true", ":7", "invalid YAML: expected <block end>, but found"),
    "tab/defs.yaml": ("type: x\nattributes:\n\tname: a", ":3", "invalid YAML: found character '\\t' that cannot"),
    "empty/defs.yaml": ("# later\n", "", "the file is empty. Expected `type` and `attributes`"),
    "list/defs.yaml": ("- a", "", "expected `type: ucs_pipeline.BrickFeed` and `attributes` (found a list)"),
    "beside/defs.yaml": ("{feed}atributes: 5", "", "atributes is not a setting. Did you mean attributes?"),
    "untyped/defs.yaml": ("attributes: {{name: a}}", "", "type is missing"),
    "type/defs.yaml": ("type: ucs_pipeline.BrikFeed", "", "Module `ucs_pipeline` has no attribute `BrikFeed`"),
    "module/defs.yaml": ("type: ucs_pipelin.BrickFeed", "", "Module `ucs_pipelin` not found"),
    "template/defs.yaml": (
        "{feed}  where: '{{{{ nope }}}}'",
        "",
        "feed 'template': where: a template has no value: 'nope' is undefined",
    ),
    "unset/defs.yaml": (
        "{feed}  where: \"region = '{{{{ env.UCS_NO_SUCH_VARIABLE }}}}'\"",
        "",
        "feed 'unset': where: a template has no value: environment variable UCS_NO_SUCH_VARIABLE is not set. ",
    ),
    "twice/defs.yaml": (
        "{feed}  where: a = 'secret'\n  final: true\n  where: b",
        "",
        "feed 'twice': where is written twice, in lines 7 and 9. Keep one of them",
    ),
    "second/defs.yaml": (
        "{feed}---\ntype: ucs_pipeline.BrickFeed\nattributes: {{name: b, table: t, key: id, bricks: {{class: number, "
        "last: 0100}}}}",
        "",
        "feed 'b': bricks.last (line 9): YAML reads the number in base 8, for its leading zero. Write it in base 10",
    ),
    "boolean/defs.yaml": (
        "type: ucs_pipeline.BrickFeed\nattributes: {{name: no, table: t, key: id, bricks: {{class: number, last: 5}}}}",
        "",
        "a feed whose name is no text: name: expected text (found false, as YAML reads off and no). Quote it",
    ),
    "outside/defs.yaml": (
        "type: ucs_pipeline.BrickFeed\nattributes:\nname: a\ntable: secret",
        "",
        "name is not a setting. table is not a setting. Indent the feed's settings below `attributes`",
    ),
    "sql/defs.yaml": (
        "type: ucs_pipeline.BrickFeed\nattributes: decrypt('secret')",
        "",
        "attributes: expected settings, such as {name: orders} (found a text)",
    ),
    "alias/defs.yaml": ("{feed}  where: *secret", ":7", "invalid YAML: found undefined alias '[HIDDEN]'. Check"),
    "broken/defs.yaml": (
        "{feed}  where: [secret, (",
        ":7",
        "invalid YAML: expected ',' or ']', but got '<stream end>'",
    ),
    "shape/defs.yaml": (
        "{feed}  columns: decrypt('secret')",
        "",
        "feed 'shape': columns: expected field: column pairs, such as {id: id} (found a text)",
    ),
    "two/defs.yaml": ("{feed}---\n{config}", "", "feed 'config': name 'config' is reserved"),
    "deeper/still/deeper/defs.yaml": ("{feed}  final: maybe", "", "feed 'deeper': final: expected true or false"),
    "function/defs.yaml": (
        "{feed}  transform: nope:fn",
        "",
        "feed 'function': transform 'nope:fn' cannot be imported (ModuleNotFoundError: No module named 'nope')",
    ),
    "no_function/defs.yaml": (
        "{feed}  transform: json:nope",
        "",
        "feed 'no_function': transform 'json:nope' cannot be imported (AttributeError: module 'json' has no attribute",
    ),
    "no_callable/defs.yaml": (
        "{feed}  transform: json:__name__",
        "",
        "feed 'no_callable': transform 'json:__name__' is a str, expected a function",
    ),
    "no_code/defs.yaml": (
        "{feed}  transform: ucs_pipeline.broken:fn",
        "",
        "feed 'no_code': transform 'ucs_pipeline.broken:fn' cannot be imported (ZeroDivisionError: division by zero)",
    ),
    "raises.py": ("x = 1\ny = nope", ":2", "NameError: name 'nope' is not defined"),
    "syntax.py": ("x = 1\nx =", ":2", "SyntaxError: invalid syntax"),
    "imports.py": ("import nope", ":1", "ModuleNotFoundError: No module named 'nope'"),
    "python.py": (
        "from ucs_pipeline import BrickFeed, build_defs\n\n"
        "defs = build_defs(BrickFeed(name='code', table='', key='id', bricks={{'class': 'number', 'last': 5}}))",
        ":3",
        "feed 'code': table: expected text of at least 1 character (found '')",
    ),
}
"""File under `defs`, to its text, the line that is named, and how the sentence begins."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path)


def _write(project: Path, path: str, text: str) -> None:
    file = project / "ucs_pipeline" / "defs" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.format(feed=FEED.format(name=path.split("/")[0]), config=FEED.format(name="config")))


def _ucs(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return _python(project, "-m", "ucs_pipeline.cli.main", *arguments)


def _python(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Servers that would refuse any connection, and a home that Dagster could make no record in.
    nowhere = {"UCS_REDIS_URL": "redis://127.0.0.1:1", "UCS_CLICKHOUSE_URL": "http://127.0.0.1:1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, **nowhere, "PYTHONPATH": str(project), "DAGSTER_HOME": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_file_that_is_wrong_is_named_with_one_sentence(project: Path) -> None:
    (project / "ucs_pipeline" / "broken.py").write_text("1 / 0")
    for path, (text, _, _) in WRONG.items():
        _write(project, path, text)
    done = _ucs(project, "check")
    assert (done.returncode, done.stderr) == (2, "")
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(said) == {f"ucs_pipeline/defs/{path}{line}" for path, (_, line, _) in WRONG.items()}
    for path, (_, line, sentence) in WRONG.items():
        assert said[f"ucs_pipeline/defs/{path}{line}"].startswith(sentence)
    assert "secret" not in done.stdout
    # So does Dagster, when it loads the code location.
    load = _python(project, "-c", "import ucs_pipeline.definitions")
    assert load.returncode == 1
    assert load.stderr.count("Error: ") == 1
    assert "secret" not in load.stderr


def test_a_dagster_project_of_its_own_shows_no_secret_of_a_feed_that_is_yaml(project: Path) -> None:
    load = (
        "import traceback\nimport dagster as dg\nfrom pathlib import Path\nimport ucs_pipeline\n"
        "try: dg.load_from_defs_folder(path_within_project=Path(ucs_pipeline.__file__).parent)\n"
        "except Exception: traceback.print_exc()"
    )
    for path in ("unset", "twice", "shape"):
        # The line after a wrong one is shown by Dagster in its own errors.
        text = WRONG[f"{path}/defs.yaml"][0].replace("secret", "hunter2")
        _write(project, f"one_{path}/defs.yaml", f"{text}\n  description: is hunter2")
        assert "hunter2" not in (said := _python(project, "-c", load).stderr)
        assert WRONG[f"{path}/defs.yaml"][2].partition(": ")[2] in said
        shutil.rmtree(project / "ucs_pipeline" / "defs" / f"one_{path}")


def test_right_feeds_are_one_line(project: Path) -> None:
    done = _ucs(project, "check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 feeds are valid: flights, planes, weather\n", "")
    _write(project, "orders/defs.yaml", "{feed}  stream: {{shards: 2}}\n  transform: json:dumps")
    _write(project, "code.py", "import dagster as dg\n\n@dg.asset\ndef other() -> None: ...")
    done = _ucs(project, "check")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "4 feeds are valid: flights, orders, planes, weather\n",
        "",
    )
    assert not (project / "history").exists()
    shutil.rmtree(project / "ucs_pipeline" / "defs")
    (project / "ucs_pipeline" / "defs").mkdir()
    done = _ucs(project, "status")
    assert (done.returncode, done.stdout) == (2, "")
    sentence = "there is no feed. Write one into ucs_pipeline/defs/<name>/defs.yaml."
    assert done.stderr == f"ucs: ucs_pipeline/defs: {sentence} [UCS-DEFINITIONS]\n"


def test_what_feeds_cannot_be_beside_each_other_is_said_with_the_files(project: Path) -> None:

    _write(project, "orders/defs.yaml", "{feed}")
    _write(project, "copy/defs.yaml", FEED.format(name="orders").replace("{", "{{").replace("}", "}}"))
    _write(project, "other/defs.yaml", "{feed}  stream: {{name: planes}}")
    _write(project, "typo/defs.yaml", "{feed}  colums: {{id: id}}")
    done = _ucs(project, "check")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines() == [
        "ucs_pipeline/defs/typo/defs.yaml: feed 'typo': colums is not a setting. Did you mean columns? [UCS-SETTING]",
        "ucs_pipeline/defs/copy/defs.yaml and ucs_pipeline/defs/orders/defs.yaml: 2 feeds are named 'orders' ('orders' "
        "and 'orders'). An ordered feed needs a name and a stream of its own: rename one. [UCS-CONFLICT]",
        "ucs_pipeline/defs/other/defs.yaml and ucs_pipeline/defs/planes/defs.yaml: 2 feeds are writing to stream "
        "'planes' ('other' and 'planes'). An ordered feed needs a name and a stream of its own: rename one. "
        "[UCS-CONFLICT]",
    ]


def test_what_only_dagster_finds_wrong_is_said_too(project: Path) -> None:
    _write(project, "code.py", "import dagster as dg\n\n@dg.asset\ndef flights() -> None: ...")
    for command in ("check", "status"):
        done = _ucs(project, command)
        assert done.returncode == 2
        assert "ucs_pipeline/defs: Duplicate asset key: AssetKey(['flights'])" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("path", ["typo/defs.yaml", "indentation/defs.yaml", "raises.py"])
def test_commands_that_need_the_feeds_say_the_sentence(project: Path, path: str) -> None:
    text, line, sentence = WRONG[path]
    _write(project, path, text)
    done = _ucs(project, "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ucs: ucs_pipeline/defs/{path}{line}: {sentence}")
    assert done.stderr.count("\n") == 1


def test_of_several_wrong_files_the_first_is_said_and_how_to_see_the_rest(project: Path) -> None:
    for path in ("typo/defs.yaml", "class/defs.yaml", "raises.py"):
        _write(project, path, WRONG[path][0])
    done = _ucs(project, "prune")
    assert done.returncode == 2
    assert done.stderr.startswith("ucs: ucs_pipeline/defs/class/defs.yaml: feed 'a': bricks.class")
    assert done.stderr.endswith(" `ucs check` lists 2 more. [UCS-SETTING]\n")


def test_a_transform_is_not_imported_to_load_the_definitions(project: Path) -> None:
    _write(project, "function/defs.yaml", WRONG["function/defs.yaml"][0])
    assert _ucs(project, "status", "--json").returncode == 0


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(project: Path) -> None:
    with (project / "ucs_pipeline" / "orchestration" / "asset_page.py").open("a") as module:
        module.write("\n\ndef fields(*_):\n    raise RuntimeError('a bug')\n")
    for command in ("check", "status"):
        done = _ucs(project, command)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "RuntimeError: a bug" in done.stderr
