import doctest
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucs_pipeline.bricks import number as bricks
from ucs_pipeline.bricks.number import (
    BLOCK,
    BRICK,
    PART,
    SHARD,
    Bounds,
    get_brick_bounds,
    get_brick_list,
    get_brick_name,
    name_of_ordinal,
    ordinal_of_name,
)
from ucs_pipeline.errors import BrickError, UcsError

# Far beyond 2**64: the shard has no upper bound.
ids = st.integers(min_value=0, max_value=10**40) | st.builds(
    lambda unit, count, step: max(0, unit * count + step),
    st.sampled_from([BRICK, BLOCK, PART, SHARD, 2**53, 2**63, 2**64]),
    st.integers(0, 10**6),
    st.integers(-1, 1),
)
ordinals = ids


@pytest.mark.parametrize(
    ("row_id", "name"),
    [
        (0, "0.0.0.0"),
        (9_999, "0.0.0.0"),
        (10_000, "0.0.0.1"),
        (10**7 - 1, "0.0.0.999"),
        (10**7, "0.0.1.0"),
        (10**10 - 1, "0.0.999.999"),
        (10**10, "0.1.0.0"),
        (10**13 - 1, "0.999.999.999"),
        (10**13, "1.0.0.0"),
        (12_345_678_901_234, "1.234.567.890"),
        (2**53 + 1, "900.719.925.474"),
        (2**64, "1844674.407.370.955"),
        (10**30, "100000000000000000.0.0.0"),
    ],
)
def test_an_id_has_the_name_the_standard_gives_it(row_id: int, name: str) -> None:
    assert get_brick_name(row_id) == name


@pytest.mark.parametrize(
    ("name", "first", "end"),
    [
        ("0.0.0.0", 0, 10_000),
        ("0.0.0.1", 10_000, 20_000),
        ("0.0.1.0", 10_000_000, 10_010_000),
        ("1.234.567.890", 12_345_678_900_000, 12_345_678_910_000),
        ("10000000000000.0.0.0", 10**26, 10**26 + 10_000),
    ],
)
def test_bounds_are_half_open(name: str, first: int, end: int) -> None:
    assert get_brick_bounds(name) == Bounds(first, end)


def test_a_list_has_both_ends_and_carries_over_every_level() -> None:
    assert get_brick_list("0.0.0.999", "0.0.1.1") == ["0.0.0.999", "0.0.1.0", "0.0.1.1"]
    assert get_brick_list("0.999.999.999", "1.0.0.0") == ["0.999.999.999", "1.0.0.0"]
    assert get_brick_list("7.0.0.3", "7.0.0.3") == ["7.0.0.3"]


def test_the_levels_are_a_thousand_of_the_level_below() -> None:
    assert (BRICK, BLOCK, PART, SHARD) == (10**4, 10**7, 10**10, 10**13)


@given(ids)
def test_every_id_lies_in_the_bounds_of_its_brick(row_id: int) -> None:
    bounds = get_brick_bounds(get_brick_name(row_id))
    assert bounds.first <= row_id < bounds.end
    assert bounds.end - bounds.first == BRICK


@given(ids)
def test_the_ids_just_inside_the_bounds_belong_to_the_brick_and_those_just_outside_do_not(row_id: int) -> None:
    name = get_brick_name(row_id)
    first, end = get_brick_bounds(name)
    assert get_brick_name(first) == name == get_brick_name(end - 1)
    assert get_brick_name(end) == name_of_ordinal(ordinal_of_name(name) + 1) != name
    if first:
        assert get_brick_name(first - 1) == name_of_ordinal(ordinal_of_name(name) - 1) != name


@given(ordinals)
def test_a_name_survives_the_way_to_its_ordinal_and_back(ordinal: int) -> None:
    name = name_of_ordinal(ordinal)
    assert ordinal_of_name(name) == ordinal
    assert name_of_ordinal(ordinal_of_name(name)) == name


@given(ids)
def test_an_ordinal_counts_the_bricks_below_the_id(row_id: int) -> None:
    assert ordinal_of_name(get_brick_name(row_id)) == row_id // 10_000


@given(ids, ids)
def test_ordinals_rise_with_the_order_of_bricks(one: int, other: int) -> None:
    low, high = (get_brick_name(row_id) for row_id in sorted((one, other)))
    assert (ordinal_of_name(low) < ordinal_of_name(high)) == (low != high)
    assert ([int(level) for level in low.split(".")] < [int(level) for level in high.split(".")]) == (low != high)


@given(ids)
def test_the_parts_of_a_name_are_the_quotients_of_the_levels(row_id: int) -> None:
    shard, part, block, brick = map(int, get_brick_name(row_id).split("."))
    assert shard == row_id // SHARD
    assert part == row_id % SHARD // PART
    assert block == row_id % PART // BLOCK
    assert brick == row_id % BLOCK // BRICK


@given(ordinals, st.integers(0, 2_500))
def test_a_list_is_the_consecutive_bricks_between_its_ends(ordinal: int, more: int) -> None:
    names = get_brick_list(name_of_ordinal(ordinal), name_of_ordinal(ordinal + more))
    assert [ordinal_of_name(name) for name in names] == list(range(ordinal, ordinal + more + 1))
    bounds = [get_brick_bounds(name) for name in names]
    assert all(this.end == following.first for this, following in pairwise(bounds))


@pytest.mark.parametrize(
    "name",
    [
        *("", "0", "0.0.0", "0.0.0.0.0", "0.0.0.", ".0.0.0", "a.b.c.d", "0,0,0,0"),
        *("00.0.0.0", "0.0.0.01", "0.0.0.000", "01.0.0.0", "0.0.0.1000", "0.1000.0.0"),
        *("-1.0.0.0", "+1.0.0.0", "0.0.0.-0", "0.0.0.1 ", " 0.0.0.1", "0.0.0.1\n", "1_0.0.0.0", "0.0.0.1e1"),
        *("٣.0.0.0", "0.0.0.²"),
    ],
)
def test_a_text_that_is_no_brick_name_is_refused_with_what_was_expected(name: str) -> None:
    sentence = (
        f"{name!r} is not a brick name. Expected shard.part.block.brick: four numbers without leading zeros, "
        "the last three from 0 to 999, such as 0.0.1.42. [UCS-BRICK-NAME]"
    )
    for call in (get_brick_bounds, ordinal_of_name, lambda bad: get_brick_list(bad, "9.0.0.0")):
        with pytest.raises(BrickError) as refusal:
            call(name)
        assert str(refusal.value) == sentence


@pytest.mark.parametrize("name", [None, 0, 0.0, b"0.0.0.0", ["0", "0", "0", "0"]])
def test_a_name_that_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(BrickError, match="is not a brick name"):
        ordinal_of_name(name)  # type: ignore[arg-type]


@given(st.text(alphabet="0123456789.-+ a", max_size=16))
def test_a_text_is_either_refused_or_the_one_spelling_of_its_brick(name: str) -> None:
    try:
        ordinal = ordinal_of_name(name)
    except BrickError:
        return
    assert name_of_ordinal(ordinal) == name


@pytest.mark.parametrize("row_id", [1.0, 12_345.6, float(2**60), "1", None, True, False, b"1"])
def test_an_id_that_is_no_integer_is_refused(row_id: object) -> None:
    with pytest.raises(BrickError) as refusal:
        get_brick_name(row_id)  # type: ignore[arg-type]
    sentence = f"id {row_id!r} is not an integer. Number bricks take integers of 0 or more."
    assert (refusal.value.text, refusal.value.code) == (sentence, "UCS-BRICK-NAME")


@given(st.integers(max_value=-1))
def test_a_negative_id_is_refused(row_id: int) -> None:
    with pytest.raises(BrickError) as refusal:
        get_brick_name(row_id)
    assert str(refusal.value) == f"id {row_id} is negative. Number bricks take integers of 0 or more. [UCS-BRICK-NAME]"


def test_an_ordinal_that_is_no_position_is_refused() -> None:
    with pytest.raises(
        BrickError, match=r"^ordinal -1 is negative\. Number bricks take integers of 0 or more\. \[UCS-"
    ):
        name_of_ordinal(-1)
    with pytest.raises(BrickError, match=r"^ordinal 1\.5 is not an integer\. "):
        name_of_ordinal(1.5)  # type: ignore[arg-type]


def test_a_reversed_range_is_refused_with_the_range_turned_round() -> None:
    with pytest.raises(BrickError) as refusal:
        get_brick_list("0.0.1.0", "0.0.0.999")
    sentence = "brick range 0.0.1.0...0.0.0.999 is reversed. Give the earlier brick first: 0.0.0.999...0.0.1.0."
    assert refusal.value.text == sentence


def test_a_refusal_is_caught_as_an_error_of_this_package_and_as_a_value_error() -> None:
    assert issubclass(BrickError, UcsError)
    assert issubclass(BrickError, ValueError)


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(bricks)
    assert result.attempted > 0
    assert result.failed == 0
