"""The weights of a sweep as people write them."""

from __future__ import annotations

import math

import pytest

from deltareg.analysis.grid import MOST_POINTS, checked_values, parse_values
from deltareg.errors import InvalidArgument


def test_a_range_has_its_ends_and_decimal_values() -> None:
    values = parse_values("0:2:0.1")
    assert len(values) == 21
    assert values == [number / 10 for number in range(21)]
    assert parse_values("-1:1:0.5") == [-1, -0.5, 0, 0.5, 1]
    assert parse_values("0:1:0.3") == [0, 0.3, 0.6, 0.9]
    assert parse_values("0.5:0.5:1") == [0.5]


def test_a_list_comes_in_order() -> None:
    assert parse_values("1, 0,0.5") == [0, 0.5, 1]
    assert parse_values("1e-1") == [0.1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        (" , ", "empty"),
        ("0,,1", "gap"),
        ("2:0:0.1", "ends before it begins"),
        ("0:2:0", "step"),
        ("0:2:-0.1", "step"),
        ("0:2", "no range"),
        ("0:1:2:3", "no range"),
        ("0:one:0.1", "'one' in --alpha is no number"),
        ("nan", "no number"),
        ("0:inf:1", "no number"),
        ("1_0", "no number"),
        ("1e39", "1e\\+39"),
        ("0,1,0", "0 twice"),
        ("0:10000:1", "10,000 points"),
        ("0:1:1e-300", "10,000 points"),
    ],
)
def test_what_is_no_range_is_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told) as error:
        parse_values(text, "--alpha")
    assert error.value.hint


def test_values_of_a_program_are_judged_too() -> None:
    for values in ([], [math.nan], [math.inf], [1.0, 1.0], [float(one) for one in range(MOST_POINTS + 1)]):
        with pytest.raises(InvalidArgument):
            checked_values(values, "alpha")
    assert len(checked_values(range(MOST_POINTS), "alpha")) == MOST_POINTS
