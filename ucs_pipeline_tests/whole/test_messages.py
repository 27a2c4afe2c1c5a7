"""Every message has a code, every code is explained, and every code is used."""

import ast
import re

import pytest

from ucs_pipeline import errors
from ucs_pipeline.errors import StreamError, StreamUnavailableError, UcsError
from ucs_pipeline.message_codes import CODES
from ucs_pipeline.orchestration.checks.finding import CHECKS
from ucs_pipeline.orchestration.sensors.feed_sensor import _checked_again
from ucs_pipeline_tests.support.words import banned
from ucs_pipeline_tests.whole.test_house import MODULES, PACKAGE

TREES = {path: ast.parse(path.read_text()) for path in MODULES if path != PACKAGE / "message_codes.py"}
_CODE = re.compile(r"UCS-[A-Z-]+")


def _classes() -> set[str]:
    """Names of `UcsError` and its subclasses, by the source."""
    found, before = {"UcsError"}, set[str]()
    while found != before:
        before = set(found)
        for tree in TREES.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and found & {ast.unparse(base) for base in node.bases}:
                    found.add(node.name)
    return found


def _made() -> list[tuple[str, ast.Call]]:
    """Every place where such an error is made."""
    classes = _classes()
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes
    ]


def test_every_code_is_explained_and_used() -> None:
    used = {
        node.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _CODE.fullmatch(node.value)
    }
    assert used == set(CODES)


def test_every_error_is_made_of_a_text_and_at_most_a_code() -> None:
    made = _made()
    assert len(made) > 100
    for place, call in made:
        assert len(call.args) in (1, 2), place
        assert {keyword.arg for keyword in call.keywords} <= {"code"}, place


def test_a_code_passes_if_the_errors_that_have_it_are_worth_another_try() -> None:
    passing = {"SourceUnavailableError", "StreamUnavailableError", "StreamFullError"}
    for place, call in _made():
        assert isinstance(call.func, ast.Name)
        if len(call.args) == 2 and isinstance(call.args[1], ast.Constant):
            assert CODES[str(call.args[1].value)].passes == (call.func.id in passing), place
    assert {name for name in passing if CODES[vars(errors)[name].code].passes} == passing


def test_a_skipped_tick_tells_the_next_check_before_the_code_of_its_error() -> None:
    told = _checked_again("skipped: Redis is down. [UCS-REDIS-UNAVAILABLE]", "in 30 s")
    assert told == "skipped: Redis is down. Next check in 30 s. [UCS-REDIS-UNAVAILABLE]"


def test_every_class_of_errors_has_a_code_of_its_own() -> None:
    defaults = [
        value.code for value in vars(errors).values() if isinstance(value, type) and issubclass(value, UcsError)
    ]
    assert len(set(defaults)) == len(defaults) > 5
    assert set(defaults) <= set(CODES)


def test_every_check_has_a_code() -> None:
    codes = {check.code for check in CHECKS}
    assert codes == {code for code in CODES if code.startswith("UCS-CHECK-")}
    assert len(codes) == len(CHECKS)


def test_an_error_ends_with_its_code() -> None:
    error = StreamError("feed 'flights': stream 'flights' is full.", "UCS-STREAM-FULL")
    assert str(error) == "feed 'flights': stream 'flights' is full. [UCS-STREAM-FULL]"
    assert (error.code, error.text) == ("UCS-STREAM-FULL", "feed 'flights': stream 'flights' is full.")
    assert StreamUnavailableError("Redis is down.").code == "UCS-REDIS-UNAVAILABLE"


def test_an_error_made_of_the_text_of_another_keeps_its_code() -> None:
    error = StreamError("No.", "UCS-RIGHTS")
    assert (UcsError(f"resource 'redis': {error}").code, str(type(error)(str(error)))) == (error.code, str(error))


@pytest.mark.parametrize(("place", "call"), _made(), ids=[place for place, _ in _made()])
def test_a_message_has_none_of_the_banned_turns(place: str, call: ast.Call) -> None:
    del place
    written = "".join(str(node.value) for node in ast.walk(call) if isinstance(node, ast.Constant))
    assert banned(written) == []
