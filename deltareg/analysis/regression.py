"""Straight lines by least squares, with confidence intervals from Student's t and from the bootstrap.

Written with numpy alone: scipy would double the size of an installation for one quantile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from deltareg.manifest import Document

__all__ = ["Interval", "Line", "Resampling", "fit", "student_quantile"]

_Vector = NDArray[np.float64]

# Resampled weights that are held at a time: 16 MB.
_CHUNK = 1 << 21
# Of a sum of squares about its mean only rounding is left below this share of the sum itself.
_FLAT = 1e-12


class Interval(Document):
    """A confidence interval."""

    low: float
    high: float


class Line(Document):
    """y = intercept + gamma · x, by least squares. What cannot be said is absent."""

    gamma: float = Field(description="the regression coefficient")
    gamma_error: float = Field(ge=0, description="its standard error")
    gamma_interval: Interval = Field(description="from Student's t: of normal errors alike at every point")
    gamma_bootstrap: Interval | None = Field(
        default=None, description="percentiles of resampled tasks; absent below three tasks"
    )
    intercept: float = Field(description="0 for a line through the origin")
    intercept_error: float | None = Field(default=None, ge=0)
    intercept_interval: Interval | None = None
    r_squared: float | None = Field(
        default=None, le=1, description="1 − Σ(y − ŷ)² / Σ(y − mean)²; below 0 where the mean would predict better"
    )
    r_squared_bootstrap: Interval | None = None
    r_squared_uncentred: float | None = Field(
        default=None, le=1, description="1 − Σ(y − ŷ)² / Σy², as it is often told of lines through the origin"
    )
    residual_error: float = Field(ge=0, description="standard deviation of the residuals")
    degrees_of_freedom: int = Field(ge=1)


@dataclass(frozen=True)
class Resampling:
    """How the bootstrap draws: whole clusters of points, by a seed."""

    clusters: Sequence[int]
    """The cluster of each point, from 0."""
    resamples: int
    seed: int


def fit(
    x: Sequence[float], y: Sequence[float], *, intercept: bool, confidence: float, resampling: Resampling
) -> Line | None:
    """The line by ordinary least squares, with intervals of this confidence (0 to 1); None where x determines none.

    Draper and Smith, "Applied Regression Analysis", 3rd ed., 1998, chapter 1 and, through the origin, 18.1.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    count, freedom = len(xs), len(xs) - (2 if intercept else 1)
    middle_x, middle_y = (float(xs.mean()), float(ys.mean())) if intercept and count else (0.0, 0.0)
    u, v = xs - middle_x, ys - middle_y
    spread = float(u @ u)
    if freedom < 1 or spread <= _FLAT * float(xs @ xs):
        return None
    gamma = float(u @ v) / spread
    start = middle_y - gamma * middle_x
    residuals = ys - start - gamma * xs
    squares = float(residuals @ residuals)
    deviation = math.sqrt(squares / freedom)
    quantile = student_quantile((1 + confidence) / 2, freedom)
    error = deviation / math.sqrt(spread)
    start_error = deviation * math.sqrt(1 / count + middle_x**2 / spread) if intercept else None
    gammas, shares = _resampled(xs, ys, intercept=intercept, confidence=confidence, resampling=resampling)
    return Line(
        gamma=gamma,
        gamma_error=error,
        gamma_interval=_around(gamma, quantile * error),
        gamma_bootstrap=gammas,
        intercept=start,
        intercept_error=start_error,
        intercept_interval=None if start_error is None else _around(start, quantile * start_error),
        r_squared=_explained(squares, ys - ys.mean(), float(ys @ ys)),
        r_squared_bootstrap=shares,
        r_squared_uncentred=None if intercept else _explained(squares, ys, float(ys @ ys)),
        residual_error=deviation,
        degrees_of_freedom=freedom,
    )


def _around(value: float, half: float) -> Interval:
    return Interval(low=value - half, high=value + half)


def _explained(squares: float, deviations: _Vector, scale: float) -> float | None:
    total = float(deviations @ deviations)
    return None if total <= _FLAT * scale else 1 - squares / total


# --- the bootstrap ------------------------------------------------------------------------------------------------


def _resampled(
    x: _Vector, y: _Vector, *, intercept: bool, confidence: float, resampling: Resampling
) -> tuple[Interval | None, Interval | None]:
    """Percentile intervals of γ and R²: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, 13.3.

    Points are drawn with what stands beside them (9.5 there), and a task with all of its points: the same task on two
    model families is not two independent findings.
    """
    count = len(set(resampling.clusters))
    if count < 3 or resampling.resamples < 1:
        return None, None
    gammas: list[_Vector] = []
    shares: list[_Vector] = []
    # About the means: sums of squares of numbers that are far from 0 would lose digits.
    middle_x, middle_y = (x.mean(), y.mean()) if intercept else (0.0, 0.0)
    u, v = x - middle_x, y - middle_y
    for weights in _weights(resampling, count):
        total, ux, vy = weights.sum(axis=1), weights @ u, weights @ v
        means = (ux / total, vy / total) if intercept else (np.zeros(len(total)), np.zeros(len(total)))
        uu = weights @ (u * u) - means[0] ** 2 * total
        uv = weights @ (u * v) - means[0] * means[1] * total
        vv = weights @ (v * v) - means[1] ** 2 * total
        about = weights @ (v * v) - vy**2 / total
        with np.errstate(divide="ignore", invalid="ignore"):
            gamma = np.where(uu > _FLAT * float(u @ u), uv / uu, np.nan)
            gammas.append(gamma)
            shares.append(np.where(about > _FLAT * float(v @ v), 1 - (vv - gamma * uv) / about, np.nan))
    return _percentiles(gammas, confidence), _percentiles(shares, confidence)


def _weights(resampling: Resampling, count: int) -> Iterator[NDArray[np.float64]]:
    """How often each point is in each resample, some resamples at a time."""
    generator = np.random.default_rng(resampling.seed)
    clusters = np.asarray(resampling.clusters)
    step = max(1, _CHUNK // len(clusters))
    for start in range(0, resampling.resamples, step):
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=min(step, resampling.resamples - start))
        yield drawn[:, clusters].astype(np.float64)


def _percentiles(parts: Sequence[_Vector], confidence: float) -> Interval | None:
    found: Any = np.concatenate(parts)
    known = found[np.isfinite(found)]
    # Where most resamples determine no line the others are a choice, not a sample.
    if 2 * len(known) < len(found):
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=float(low), high=float(high))


# --- Student's t --------------------------------------------------------------------------------------------------


def student_quantile(probability: float, freedom: float) -> float:
    """The value below which Student's t with `freedom` degrees of freedom lies with this probability (0 to 1, open).

    By bisection of the distribution function, which is exact to about 10 digits.
    """
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while _student_distribution(high, freedom) < probability and high < 1e300:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _student_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student_distribution(value: float, freedom: float) -> float:
    """The probability of a smaller t, for value ≥ 0: Abramowitz and Stegun, 26.7.1."""
    whole = freedom + value * value
    return 0.5 + _incomplete_beta(0.5, freedom / 2, value * value / whole, freedom / whole) / 2


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction: DLMF 8.17.22; `rest` is 1 − x.

    Evaluated by the modified Lentz algorithm; I_x(a, b) = 1 − I_{1−x}(b, a) keeps x where the fraction converges fast.
    """
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, rest, x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest) - math.log(a)
    )
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for step in range(1, 10_000):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        for term in (even, odd):
            d, c = 1 / _away_from_zero(1 + term * d, tiny), _away_from_zero(1 + term / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return front * fraction


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
