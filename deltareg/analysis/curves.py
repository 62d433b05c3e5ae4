"""What a curve of a metric over a weight tells: its best point, its curvature, its plateau."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from deltareg.analysis.regression import student_quantile
from deltareg.errors import InvalidArgument
from deltareg.manifest import Count, Document

__all__ = ["CONFIDENCE", "Concavity", "Curve", "Plateau", "concavity", "describe", "plateau"]

CONFIDENCE = 0.95
"""Of the intervals."""

_LEAST_FOR_CURVATURE = 4
_SAME = 1e-9


class Concavity(Document):
    """Whether a curve bends downwards, judged in two ways."""

    curvature: float = Field(description="coefficient c of the least-squares quadratic a + b·x + c·x²")
    low: float = Field(description="lower end of its 95 % confidence interval")
    high: float = Field(description="upper end of it")
    second_differences: Count = Field(description="triples of neighbouring points")
    not_above_zero: float = Field(description="share of the second differences that are at most 0")
    verdict: Literal["concave", "convex", "undecided"] = Field(
        description="concave where the whole interval lies below 0, convex where it lies above"
    )


class Plateau(Document):
    """The widest run of points about the best one whose metric is nearly as good."""

    low: float
    high: float
    width: float
    points: Count
    threshold: float = Field(description="the metric at which it ends: the best less the tolerated loss")
    open_low: bool = Field(description="it begins where the range begins, and may be wider")
    open_high: bool = Field(description="it ends where the range ends, and may be wider")


class Curve(Document):
    """A metric along one weight, the others held."""

    points: Count = Field(description="points whose metric is a finite number")
    best_at: float
    best: float
    concavity: Concavity | None = Field(default=None, description="null where there are too few points")
    plateau: Plateau | None = Field(default=None, description="null where there are too few points")
    notes: list[str] = Field(description="what could not be told, and why")


def describe(
    weights: Sequence[float], metric: Sequence[float], *, lower_is_better: bool = False, tolerance: float = 0.05
) -> Curve:
    """All that a curve tells; `weights` ascend, and `metric` is finite.

    `tolerance` is the share of max − min that a point of the plateau may be worse than the best. Of points equally good
    the first is the best. Raises InvalidArgument for a tolerance outside of 0 … 1, and for no point at all.
    """
    if not weights:
        raise InvalidArgument("a curve needs a point at least", hint="was any metric a finite number?")
    signed = [-value for value in metric] if lower_is_better else list(metric)
    best = max(range(len(signed)), key=signed.__getitem__)
    notes: list[str] = []
    bend = concavity(weights, metric)
    if bend is None:
        notes.append(f"too few points for the curvature: {len(weights)}, it takes {_LEAST_FOR_CURVATURE}")
    wide = plateau(weights, metric, lower_is_better=lower_is_better, tolerance=tolerance)
    if wide is None:
        notes.append(f"too few points for a plateau: {len(weights)}, it takes 3")
    elif max(signed) == min(signed):
        notes.append("the metric is the same at every point")
    elif best in (0, len(signed) - 1):
        notes.append("the best point is at the end of the range: a better one may lie outside")
    return Curve(
        points=len(weights), best_at=weights[best], best=metric[best], concavity=bend, plateau=wide, notes=notes
    )


def concavity(weights: Sequence[float], metric: Sequence[float]) -> Concavity | None:
    """How a curve bends; None for fewer than four points.

    Ordinary least squares of y = a + b·x + c·x² with n − 3 degrees of freedom: c ± t(0.975, n − 3) · s · √[(XᵀX)⁻¹]₃₃,
    s² = Σ residual² / (n − 3) (Draper and Smith, Applied Regression Analysis, 3rd edition, 1998, section 5.1). It
    supposes independent errors of one width, which points that share their questions do not quite have; so the share of
    second differences (yᵢ₊₁ − yᵢ)/(xᵢ₊₁ − xᵢ) − (yᵢ − yᵢ₋₁)/(xᵢ − xᵢ₋₁) ≤ 0 stands beside it: a concave function has no
    other (Boyd and Vandenberghe, Convex Optimization, 2004, section 3.1). ParamΔ (arXiv 2504.21023), section 5.2, is
    about performance that is concave in the weight.
    """
    count = len(weights)
    if count < _LEAST_FOR_CURVATURE:
        return None
    x, y = np.asarray(weights, np.float64), np.asarray(metric, np.float64)
    # In units of the range, and about its middle: the columns of the design are then far from parallel.
    half = (x[-1] - x[0]) / 2
    unit = (x - (x[0] + x[-1]) / 2) / half
    design = np.stack([np.ones_like(unit), unit, unit * unit], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ (design.T @ y)
    residual = y - design @ coefficients
    freedom = count - 3
    spread = math.sqrt(float(residual @ residual) / freedom * float(inverse[2, 2]))
    curvature, error = float(coefficients[2]), student_quantile((1 + CONFIDENCE) / 2, freedom) * spread
    # What rounding alone gives is no curvature.
    rounding = 64 * np.finfo(np.float64).eps * float(np.abs(y).max(initial=0.0))
    error = max(error, rounding)
    slopes = np.diff(y) / np.diff(x)
    slack = rounding / float(np.diff(x).min())
    second = np.diff(slopes)
    scale = float(half * half)
    low, high = (curvature - error) / scale, (curvature + error) / scale
    return Concavity(
        curvature=curvature / scale,
        low=low,
        high=high,
        second_differences=len(second),
        not_above_zero=float(np.mean(second <= slack)),
        verdict="concave" if high < 0 else "convex" if low > 0 else "undecided",
    )


def plateau(
    weights: Sequence[float], metric: Sequence[float], *, lower_is_better: bool = False, tolerance: float = 0.05
) -> Plateau | None:
    """The widest run of neighbouring points about the best that lose at most `tolerance` × (max − min).

    A point x belongs to it where f(x) ≥ f(best) − tolerance · (max f − min f): a definition of this project's own. The
    width is that between measured points, so it is never too wide. None for fewer than three points. Raises
    InvalidArgument for a tolerance outside of 0 … 1.
    """
    if not 0 <= tolerance <= 1:
        raise InvalidArgument(f"the tolerance is {tolerance!r}", hint="give a share from 0 to 1, such as 0.05")
    if len(weights) < 3:
        return None
    signed = [-value for value in metric] if lower_is_better else list(metric)
    top = max(signed)
    # A hair of slack: a loss of just the tolerance counts as within it, however it was rounded.
    floor = top - tolerance * (top - min(signed)) - _SAME * (top - min(signed))
    runs: list[tuple[int, int]] = []
    start: int | None = None
    for place, value in enumerate([*signed, -math.inf]):
        if value >= floor and start is None:
            start = place
        elif value < floor and start is not None:
            runs.append((start, place - 1))
            start = None
    holding = [run for run in runs if top in signed[run[0] : run[1] + 1]]
    first, last = max(holding, key=lambda run: weights[run[1]] - weights[run[0]])
    threshold = top - tolerance * (top - min(signed))
    return Plateau(
        low=weights[first],
        high=weights[last],
        width=weights[last] - weights[first],
        points=last - first + 1,
        threshold=-threshold if lower_is_better else threshold,
        open_low=first == 0,
        open_high=last == len(weights) - 1,
    )
