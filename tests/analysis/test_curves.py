"""What is told of curves whose shape is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deltareg.analysis.curves import concavity, describe, plateau
from deltareg.errors import InvalidArgument

X = [number / 10 for number in range(21)]


def parabola(x: float) -> float:
    return 0.8 - 0.3 * (x - 0.9) ** 2


def test_a_parabola_is_found_again() -> None:
    found = concavity(X, [parabola(x) for x in X])
    assert found is not None
    assert found.curvature == pytest.approx(-0.3)
    assert found.low <= -0.3 <= found.high < 0
    assert (found.second_differences, found.not_above_zero, found.verdict) == (19, 1, "concave")
    found = concavity(X, [-parabola(x) for x in X])
    assert found is not None
    assert (found.not_above_zero, found.verdict) == (0, "convex")


def test_a_line_is_neither_concave_nor_convex() -> None:
    for line in ([0.1 + 0.7 * x for x in X], [1e6 - 3.3 * x for x in X], [5.0] * len(X)):
        found = concavity(X, line)
        assert found is not None
        assert found.verdict == "undecided"
        assert found.curvature == pytest.approx(0, abs=1e-9 * max(map(abs, line)))
        assert found.not_above_zero == 1


def test_the_interval_holds_the_curvature_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        found = concavity(X, [parabola(x) + 0.05 * draw.standard_normal() for x in X])
        assert found is not None
        held += found.low <= -0.3 <= found.high
    # 95 % of 400, and four standard deviations of such a count.
    assert abs(held - 380) <= 4 * math.sqrt(400 * 0.95 * 0.05)


def test_weights_need_not_be_evenly_spaced() -> None:
    x = [0, 0.1, 0.5, 0.6, 1.7, 2]
    found = concavity(x, [parabola(one) for one in x])
    assert found is not None
    assert (found.curvature, found.not_above_zero) == (pytest.approx(-0.3), 1)


def test_too_few_points_are_told() -> None:
    assert concavity(X[:3], [0, 1, 0]) is None
    assert plateau(X[:2], [0, 1]) is None
    for count, notes in ((1, 2), (2, 2), (3, 1), (4, 0)):
        found = describe(X[:count], [0.0, 1.0, 0.5, 0.2][:count])
        assert sum("too few points" in note for note in found.notes) == notes
    with pytest.raises(InvalidArgument, match="a point at least"):
        describe([], [])


def test_the_plateau_is_the_widest_run_that_has_the_best_point() -> None:
    metric = [0, 0.5, 0.96, 1.0, 0.97, 0.94, 0.99, 0.98, 0.97, 0.96, 0.2]
    found = plateau(list(range(11)), metric)
    assert found is not None
    # 6 to 9 is wider, and does not have the best point.
    assert (found.low, found.high, found.width, found.points) == (2, 4, 2, 3)
    assert found.threshold == pytest.approx(0.95)
    assert not found.open_low and not found.open_high
    wide = plateau(list(range(11)), metric, tolerance=0.06)
    assert wide is not None
    assert (wide.low, wide.high) == (2, 9)


def test_a_plateau_at_the_end_of_the_range_may_be_wider() -> None:
    found = describe(X, [min(x, 1.0) for x in X])
    assert found.plateau is not None
    assert (found.plateau.low, found.plateau.high, found.plateau.open_high) == (1.0, 2.0, True)
    assert found.best_at == 1.0
    rising = describe(X, X)
    assert "end of the range" in rising.notes[0]
    flat = describe(X, [3.0] * len(X))
    assert flat.plateau is not None
    assert flat.plateau.open_low and flat.plateau.open_high
    assert flat.notes == ["the metric is the same at every point"]


def test_lower_can_be_better() -> None:
    found = describe(X, [-parabola(x) for x in X], lower_is_better=True)
    assert found.best_at == 0.9
    assert found.best == pytest.approx(-0.8)
    assert found.plateau is not None and found.concavity is not None
    assert found.plateau.threshold > found.best
    assert found.concavity.verdict == "convex"


def test_a_tolerance_is_a_share() -> None:
    for tolerance in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidArgument, match="tolerance"):
            plateau(X, X, tolerance=tolerance)
    everything = plateau(X, X, tolerance=1.0)
    assert everything is not None
    assert everything.points == len(X)
