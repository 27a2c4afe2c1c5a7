"""Text bricks: names, lists and bounds calculated by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucs_pipeline.bricks.text import BASES, Digit, TextBricks
from ucs_pipeline.errors import BrickError


@pytest.mark.parametrize(
    ("key", "base", "digit", "name"),
    [
        # md5: 90015098 3cd24fb0 d6963f7d 28e17f72. Digits' sums 32, 60, 72, 56.
        ("abc", 10, "sum", "2.0.2.6"),
        ("abc", 100, "sum", "32.60.72.56"),
        ("abc", 1000, "sum", "32.60.72.56"),
        # As integers 2416005272, 1020415920, 3600170877, 685866866.
        ("abc", 10, "integer", "2.0.7.6"),
        ("abc", 100, "integer", "72.20.77.66"),
        ("abc", 1000, "integer", "272.920.877.866"),
        # md5: d41d8cd9 8f00b204 e9800998 ecf8427e. Sums 73, 40, 57, 76.
        ("", 10, "sum", "3.0.7.6"),
        # md5: 00594fd4 f42ba43f c1ca0427 a0576295. Sums 50, 64, 48, 44.
        (b"\xff", 10, "sum", "0.4.8.4"),
    ],
)
def test_a_key_is_in_the_brick_of_its_md5(key: str | bytes, base: int, digit: Digit, name: str) -> None:
    assert TextBricks(base, digit).get_brick_name(key) == name


def test_text_counts_as_utf_8() -> None:
    assert TextBricks().get_brick_name("Zürich") == TextBricks().get_brick_name("Zürich".encode())


def test_lists_and_bounds_count_in_the_base() -> None:
    assert TextBricks().get_brick_list("0.0.1.9", "0.0.2.1") == ["0.0.1.9", "0.0.2.0", "0.0.2.1"]
    assert TextBricks(100).get_brick_list("0.0.1.99", "0.0.2.0") == ["0.0.1.99", "0.0.2.0"]
    assert TextBricks().get_brick_bounds("2.0.2.6") == (2026, 2027)
    assert TextBricks(1000).get_brick_bounds("0.1.2.3") == (1_002_003, 1_002_004)
    assert len(TextBricks().get_brick_list("0.0.0.0", "9.9.9.9")) == 10_000


@pytest.mark.parametrize(
    "bad", ["1.2.3", "1.2.3.4.5", "10.0.0.0", "01.0.0.0", "-1.0.0.0", "a.b.c.d", "", None, "१.0.0.0"]
)
def test_what_is_no_brick_is_refused(bad: str) -> None:
    with pytest.raises(BrickError, match="four numbers from 0 to 9"):
        TextBricks().ordinal_of_name(bad)


def test_other_keys_bases_and_ordinals_are_refused() -> None:
    with pytest.raises(BrickError, match="5 is not text"):
        TextBricks().get_brick_name(5)  # type: ignore[arg-type]
    with pytest.raises(BrickError, match="Expected base 10, 100 or 1000"):
        TextBricks(7)
    with pytest.raises(BrickError, match="At base 10 they are 0 to 9999"):
        TextBricks().name_of_ordinal(10_000)


def test_coarser_units_are_named_by_their_leading_digits() -> None:
    bricks = TextBricks()
    assert bricks.unit_name(2026, 1) == "2.0.2"
    assert (bricks.unit_of_name("2.0.2", 1), bricks.unit_after(2020, 1)) == (2020, 2030)
    assert bricks.units(2026, 2051, 1) == range(2020, 2052, 10)
    with pytest.raises(BrickError, match=r"'2.0.2.6' is not a block name"):
        bricks.unit_of_name("2.0.2.6", 1)


@given(st.text(), st.sampled_from(BASES), st.sampled_from(["sum", "integer"]))
def test_a_name_leads_back_to_the_key_s_ordinal(key: str, base: int, digit: Digit) -> None:
    bricks = TextBricks(base, digit)
    assert bricks.ordinal_of_name(bricks.get_brick_name(key)) == bricks.ordinal_of_key(key)
