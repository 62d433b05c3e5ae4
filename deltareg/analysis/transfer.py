"""Whether a delta's effect adds up: performance that four models predict, against performance that was measured.

ParamΔ (arXiv 2504.21023), section 5.1: if what post-training adds to a task were the same on every base, the model made
of the new base would do it as well as f(Θ'_base) + f(Θ_post) − f(Θ_base). The coefficient γ of the regression of what
was measured on that is the share of it that arrives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import Field

from deltareg.analysis.evaluations import LeftOut, TransferRow
from deltareg.analysis.regression import Interval, Line, Resampling, fit
from deltareg.errors import InvalidArgument
from deltareg.manifest import Document

__all__ = ["Interval", "Line", "TransferAnalysis", "TransferPoint", "TransferRow", "transfer"]

_LEAST = 3


class TransferPoint(TransferRow):
    """One task: what was predicted and what was measured."""

    hypothetical: float = Field(description="new_base + post − base")
    hypothetical_error: float | None = Field(default=None, ge=0, description="standard error, where all three have one")
    difference: float = Field(description="real − hypothetical")
    residual: float = Field(description="real − gamma · hypothetical, of the line through the origin")


class TransferAnalysis(Document):
    """What `transfer` found. The line through the origin is the one that γ is told of."""

    points: list[TransferPoint]
    through_origin: Line
    with_intercept: Line | None = Field(default=None, description="absent where all predictions are the same")
    gains: Line | None = Field(
        default=None,
        description="real − new_base on post − base, through the origin: without what the new base does by itself",
    )
    mean_hypothetical: float
    mean_real: float
    confidence: float = Field(gt=0, lt=1, description="of every interval")
    resamples: int = Field(ge=0)
    seed: int = Field(ge=0)
    left_out: list[LeftOut]
    warnings: list[str]

    @property
    def gamma(self) -> float:
        """γ of the line through the origin."""
        return self.through_origin.gamma

    @property
    def r_squared(self) -> float | None:
        """R² of the line through the origin, about the mean."""
        return self.through_origin.r_squared


def transfer(
    rows: Iterable[TransferRow],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    left_out: Sequence[LeftOut] = (),
    warnings: Sequence[str] = (),
) -> TransferAnalysis:
    """Regress what was measured on what base, post and new base predict, task by task.

    All values are in one unit, such as per cent. The bootstrap draws tasks, each with its points of all groups, by
    `seed`: the same rows give the same analysis. Raises InvalidArgument for fewer than three rows, a task given twice
    in one group, rows that determine no line, and options out of their range.
    """
    taken = list(rows)
    _check(taken, confidence, resamples, seed)
    hypothetical = [row.new_base + row.post - row.base for row in taken]
    real = [row.real for row in taken]
    tasks = {task: number for number, task in enumerate(dict.fromkeys(row.task for row in taken))}
    resampling = Resampling([tasks[row.task] for row in taken], resamples, seed)

    def line(x: Sequence[float], y: Sequence[float], *, intercept: bool = False) -> Line | None:
        return fit(x, y, intercept=intercept, confidence=confidence, resampling=resampling)

    through_origin = line(hypothetical, real)
    if through_origin is None:
        raise InvalidArgument(
            "the predicted performance is 0 for every task, which determines no line",
            hint="look at the columns: real is to be near new_base + post − base",
        )
    return TransferAnalysis(
        points=[
            _point(row, predicted, through_origin.gamma) for row, predicted in zip(taken, hypothetical, strict=True)
        ],
        through_origin=through_origin,
        with_intercept=line(hypothetical, real, intercept=True),
        gains=line([row.post - row.base for row in taken], [row.real - row.new_base for row in taken]),
        mean_hypothetical=math.fsum(hypothetical) / len(taken),
        mean_real=math.fsum(real) / len(taken),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        left_out=list(left_out),
        warnings=[*warnings, *_doubts(taken)],
    )


def _check(rows: Sequence[TransferRow], confidence: float, resamples: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise InvalidArgument(f"a confidence of {confidence} is not between 0 and 1", hint="write 0.95")
    if resamples < 0 or seed < 0:
        raise InvalidArgument("resamples and seed are not negative")
    if len(rows) < _LEAST:
        raise InvalidArgument(
            f"{len(rows)} tasks have all four values: a line with an error needs {_LEAST} at least",
            hint="give more tasks, or several families of models",
        )
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        key = (row.group, row.task, row.metric)
        if key in seen:
            raise InvalidArgument(
                f"{row.task} is given twice" + (f" in {row.group}" if row.group else ""),
                hint="name the family of models in the column group, or by --name",
            )
        seen.add(key)
    for row in rows:
        if not all(map(math.isfinite, (row.base, row.post, row.new_base, row.real))):
            raise InvalidArgument(f"{row.task} has a value that is no finite number")


def _point(row: TransferRow, hypothetical: float, gamma: float) -> TransferPoint:
    errors = (row.base_error, row.post_error, row.new_base_error)
    known = [error for error in errors if error is not None]
    return TransferPoint(
        **row.model_dump(by_alias=False),
        hypothetical=hypothetical,
        hypothetical_error=math.hypot(*known) if len(known) == len(errors) else None,
        difference=row.real - hypothetical,
        residual=row.real - gamma * hypothetical,
    )


def _doubts(rows: Sequence[TransferRow]) -> list[str]:
    """What makes the whole doubtful."""
    largest = [max(abs(row.base), abs(row.post), abs(row.new_base), abs(row.real)) for row in rows]
    small = sum(value <= 1 for value in largest)
    if 0 < small < len(rows) and max(largest) > 1.5:
        return [
            f"{small} of {len(rows)} tasks have values of at most 1, others more: where the units differ, the line is "
            "that of the larger ones"
        ]
    return []
