"""What a sweep found, and what its points tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from deltareg.analysis.curves import Curve, describe
from deltareg.analysis.points import Place
from deltareg.analysis.scoring import Evaluation, Metrics
from deltareg.errors import InvalidArgument
from deltareg.lock import LockedBase
from deltareg.manifest import Count, DigestText, Document
from deltareg.recipe import Number

__all__ = ["MetricSummary", "SweepPoint", "SweepReport", "SweptDelta", "check_lower", "summaries"]


class SweptDelta(Document):
    """One delta of the recipe."""

    reference: str
    digest: DigestText
    weight: Number = Field(description="weight in the recipe, which a factor multiplies")
    varies: Literal["alpha", "beta"] | None = Field(
        description="the factor of its weight; with `fused` its weights are alpha, and beta = 1 − alpha"
    )


class SweepPoint(Document):
    """One point: its weights, and what the evaluation gave."""

    alpha: float
    beta: float | None = None
    weights: dict[str, Number] = Field(description="weights of the deltas that vary, but for those by tensor")
    metrics: Metrics = Field(description="by name; null for infinity, and for what is no number")
    apply_seconds: float = Field(description="seconds of putting the deltas on the model, or of building")
    score_seconds: float = Field(description="seconds of the evaluation itself")


class MetricSummary(Document):
    """What the points tell of one metric."""

    lower_is_better: bool
    best: float
    best_alpha: float
    best_beta: float | None = None
    at_zero: float | None = Field(description="at alpha 0, and beta 0 where there is one; null where no point is there")
    at_one: float | None = Field(description="at alpha 1, and beta 1 where there is one; null where no point is there")
    tolerance: float = Field(description="share of max − min that the plateau may lose")
    alpha: Curve = Field(description="along alpha, through the best point")
    beta: Curve | None = Field(default=None, description="along beta, through the best point")
    not_finite: Count = Field(description="points at which it was infinite or no number, or not given")


class SweepReport(Document):
    """What a sweep found."""

    recipe: str = Field(description="its file")
    recipe_digest: DigestText
    base: LockedBase
    method: str
    deltas: list[SweptDelta]
    evaluation: Evaluation
    fused: bool = Field(description="the first delta has the weight alpha, the second 1 − alpha")
    alpha: list[float]
    beta: list[float] | None = None
    points: list[SweepPoint]
    metrics: dict[str, MetricSummary] = Field(description="by name; empty before the last point is done")
    complete: bool = Field(description="whether every point is done")
    reused_points: Count = Field(description="points that an earlier run had done")
    load_seconds: float = Field(description="seconds of checking everything, and of loading the base")
    seconds: float
    warnings: list[str] = Field(description="what the user should know")


def check_lower(lower: Sequence[str], metrics: Metrics) -> None:
    """Refuse names of metrics that an evaluation did not give. Raises InvalidArgument."""
    unknown = [name for name in lower if name not in metrics]
    if unknown:
        raise InvalidArgument(
            f"the evaluation gave no metric {unknown[0]!r}, of which lower is to be better",
            cause=f"it gave {', '.join(metrics)}",
            hint="--lower-is-better takes one of these",
        )


def summaries(points: Sequence[SweepPoint], lower: Sequence[str], tolerance: float) -> dict[str, MetricSummary]:
    """What the points tell of each metric that was a finite number somewhere."""
    names = list(dict.fromkeys(name for point in points for name in point.metrics))
    found = {name: _summary(points, name, lower=name in lower, tolerance=tolerance) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def _summary(points: Sequence[SweepPoint], name: str, *, lower: bool, tolerance: float) -> MetricSummary | None:
    """None where the metric was a finite number nowhere."""
    values = {Place(one.alpha, one.beta): value for one in points if (value := one.metrics.get(name)) is not None}
    if not values:
        return None
    sign = -1.0 if lower else 1.0
    best = max(values, key=lambda place: sign * values[place])

    def line(axis: Literal["alpha", "beta"]) -> Curve:
        other = "beta" if axis == "alpha" else "alpha"
        along = sorted(
            (getattr(place, axis), value)
            for place, value in values.items()
            if getattr(place, other) == getattr(best, other)
        )
        return describe(
            [one for one, _ in along], [value for _, value in along], lower_is_better=lower, tolerance=tolerance
        )

    def at(factor: float) -> float | None:
        return values.get(Place(factor, None if best.beta is None else factor))

    return MetricSummary(
        lower_is_better=lower,
        best=values[best],
        best_alpha=best.alpha,
        best_beta=best.beta,
        at_zero=at(0.0),
        at_one=at(1.0),
        tolerance=tolerance,
        alpha=line("alpha"),
        beta=None if best.beta is None else line("beta"),
        not_finite=len(points) - len(values),
    )
