"""Straight lines, their intervals, and the quantiles of Student's t."""

from __future__ import annotations

import numpy as np
import pytest

from deltareg.analysis.regression import Resampling, fit, student_quantile


# Tables of NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.90, 5, 1.476),
        (0.975, 10, 2.228),
        (0.995, 10, 3.169),
        (0.999, 30, 3.385),
        (0.975, 100, 1.984),
    ],
)
def test_quantiles_are_those_of_the_tables(probability: float, freedom: int, value: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(value, abs=5e-4)
    assert student_quantile(1 - probability, freedom) == pytest.approx(-value, abs=5e-4)


def test_quantiles_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 7, 29, 500, 1e5):
        for probability in (0.5001, 0.6, 0.9, 0.975, 0.9999, 0.01):
            expected = float(stats.t.ppf(probability, freedom))
            assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


def test_lines_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(5)
    x = list(1000 + draw.random(30))
    y = [0.7 * one + 3 + draw.normal() * 0.01 for one in x]
    line = fit(x, y, intercept=True, confidence=0.9, resampling=Resampling(range(30), 0, 0))
    true = stats.linregress(x, y)
    assert line is not None and line.gamma_bootstrap is None
    assert line.gamma == pytest.approx(true.slope, rel=1e-9)
    assert line.gamma_error == pytest.approx(true.stderr, rel=1e-9)
    assert line.intercept == pytest.approx(true.intercept, rel=1e-6)
    assert line.intercept_error == pytest.approx(true.intercept_stderr, rel=1e-9)
    assert line.r_squared == pytest.approx(true.rvalue**2, rel=1e-9)
    half = float(stats.t.ppf(0.95, 28)) * true.stderr
    assert line.gamma_interval.low == pytest.approx(true.slope - half, rel=1e-9)
    assert line.gamma_interval.high == pytest.approx(true.slope + half, rel=1e-9)


def test_a_line_through_the_origin_by_hand() -> None:
    """x = 1, 2, 3 and y = 1, 2, 4: γ = 17/14; residuals −3/14, −6/14, 5/14; s² = 70/196/2 = 5/28."""
    line = fit([1, 2, 3], [1, 2, 4], intercept=False, confidence=0.95, resampling=Resampling(range(3), 0, 0))
    assert line is not None
    assert line.gamma == pytest.approx(17 / 14)
    assert line.intercept == 0 and line.intercept_error is None
    assert line.gamma_error == pytest.approx((5 / 28 / 14) ** 0.5)
    assert line.degrees_of_freedom == 2
    assert line.gamma_interval.high - line.gamma == pytest.approx(4.3027 * (5 / 28 / 14) ** 0.5, rel=1e-4)
    assert line.r_squared == pytest.approx(1 - (70 / 196) / (14 / 3))
    assert line.r_squared_uncentred == pytest.approx(1 - (70 / 196) / 21)


@pytest.mark.parametrize("intercept", [False, True])
def test_the_bootstrap_is_that_of_a_plain_loop(intercept: bool) -> None:
    draw = np.random.default_rng(2)
    x = list(50 + 10 * draw.random(12))
    y = [0.9 * one + draw.normal() for one in x]
    clusters = [number % 6 for number in range(12)]
    line = fit(x, y, intercept=intercept, confidence=0.8, resampling=Resampling(clusters, 400, 7))
    weights = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), size=400)
    gammas, shares = [], []
    for weight in weights:
        chosen = [place for place in range(12) for _ in range(weight[clusters[place]])]
        one = fit(
            [x[place] for place in chosen],
            [y[place] for place in chosen],
            intercept=intercept,
            confidence=0.8,
            resampling=Resampling(range(len(chosen)), 0, 0),
        )
        assert one is not None
        gammas.append(one.gamma)
        shares.append(one.r_squared)
    assert line is not None and line.gamma_bootstrap is not None and line.r_squared_bootstrap is not None
    assert [line.gamma_bootstrap.low, line.gamma_bootstrap.high] == pytest.approx(np.quantile(gammas, [0.1, 0.9]))
    assert [line.r_squared_bootstrap.low, line.r_squared_bootstrap.high] == pytest.approx(
        np.quantile(shares, [0.1, 0.9])
    )


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 400 samples with γ = 0.9 about 90 % have it within their interval; 4 standard errors are 6 %."""
    draw = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        x = 100 * draw.random(8)
        y = 0.9 * x + 5 * draw.normal(size=8)
        line = fit(list(x), list(y), intercept=False, confidence=0.9, resampling=Resampling(range(8), 0, 0))
        assert line is not None
        held += line.gamma_interval.low <= 0.9 <= line.gamma_interval.high
    assert 0.84 * 400 <= held <= 0.96 * 400


def test_what_determines_no_line_is_none() -> None:
    resampling = Resampling(range(3), 10, 0)
    assert fit([0, 0, 0], [1, 2, 3], intercept=False, confidence=0.9, resampling=resampling) is None
    assert fit([0.1, 0.1, 0.1], [1, 2, 3], intercept=True, confidence=0.9, resampling=resampling) is None
    assert fit([1, 2], [1, 2], intercept=True, confidence=0.9, resampling=Resampling(range(2), 10, 0)) is None
    flat = fit([1, 2, 3], [2, 2, 2], intercept=False, confidence=0.9, resampling=resampling)
    assert flat is not None and flat.r_squared is None


def test_few_clusters_have_no_bootstrap() -> None:
    line = fit([1, 2, 3, 4], [1, 2, 3, 5], intercept=False, confidence=0.9, resampling=Resampling([0, 0, 1, 1], 99, 0))
    assert line is not None and line.gamma_bootstrap is line.r_squared_bootstrap is None
