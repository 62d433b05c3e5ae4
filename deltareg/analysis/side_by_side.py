"""What sketches estimate of deltas beside what their records say: whether the standard errors told are honest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import combinations

from pydantic import Field

from deltareg.analysis.compare import PairJob, measure
from deltareg.artifact import Artifact
from deltareg.errors import InvalidArgument
from deltareg.manifest import Document
from deltareg.progress import SILENT, Progress
from deltareg.sketch.comparison import (
    Comparison,
    DeltaNorms,
    Pair,
    PairReport,
    Skipped,
    norms_of,
    sides_of,
)
from deltareg.threads import thread_count

__all__ = ["Agreement", "Compared", "Difference", "PairSideBySide", "SideBySideReport", "side_by_side"]


class Difference(Document):
    """One figure, estimated and exact."""

    estimated: float
    exact: float
    difference: float = Field(description="estimated − exact")
    error: float = Field(ge=0, description="the standard error that the estimate tells")
    within: bool = Field(description="the difference is at most one standard error; of honest ones about 68 % are")


class Compared(Document):
    """One module class of one layer (empty: of the whole model). What either does not say is absent."""

    layer: str
    module_class: str
    cosine: Difference | None = None
    sign_conflict: Difference | None = None
    tensors: int
    parameters: int


class Agreement(Document):
    """How often estimates kept to their standard errors, layer by layer and class by class.

    Sums over classes are not counted: they would count the same errors again.
    """

    compared: int
    within_one: int = Field(description="at most one standard error off; of honest ones 68 %")
    within_two: int = Field(description="at most two; of honest ones 95 %")
    largest: float = Field(ge=0, description="the largest difference")


class PairSideBySide(Document):
    """Two deltas: what sketches estimate, what the records say of the same tensors, and the differences."""

    first: str
    second: str
    estimated: PairReport
    exact: PairReport
    differences: list[Compared]
    cosine: Agreement
    sign_conflict: Agreement
    skipped: list[Skipped]


class SideBySideReport(Document):
    """What `side_by_side` found. Layers are in the order of the checkpoint."""

    deltas: list[DeltaNorms]
    pairs: list[PairSideBySide]
    seconds: float


def side_by_side(
    deltas: Sequence[tuple[str, Artifact]], *, threads: int | None = None, progress: Progress = SILENT
) -> SideBySideReport:
    """Compare each two of `deltas` twice: from their sketches alone, and from the records of the same tensors.

    Sketches of small tensors count here, which `compare` passes over where it has the records. Raises InvalidArgument
    for fewer than two deltas, a name given twice, and two that have no sketch of one tensor in common; NotHomologous
    for two that have no tensor to compare; what opening artifacts and reading records raises.
    """
    started = time.monotonic()
    sides = sides_of(deltas)
    sketched = [Pair(one, other, small=True) for one, other in combinations(sides, 2)]
    for pair in sketched:
        pair.refuse_strangers()
        if all(found.exact for found in pair.found.values()):
            raise InvalidArgument(
                f"{pair.one.name} and {pair.other.name} have no sketches to set beside their records",
                cause="deltas of models below 2^22 parameters have none",
                hint=f"deltareg compare --exact {pair.one.name} {pair.other.name}",
            )
        pair.skipped += [Skipped(name=name, reason="it has no sketch in both deltas") for name in pair.unknown]
    read = [PairJob(pair.one, pair.other, exact=True, only=pair.found) for pair in sketched]
    measure(sides, read, thread_count(threads), progress)
    return SideBySideReport(
        deltas=[norms_of(side) for side in sides],
        pairs=[_beside(one.report(), other.report()) for one, other in zip(sketched, read, strict=True)],
        seconds=time.monotonic() - started,
    )


def _beside(estimated: PairReport, exact: PairReport) -> PairSideBySide:
    true = {(layer, key): found for layer, key, found in exact.rows(layers=True)}
    rows = [_compared(layer, key, found, true[layer, key]) for layer, key, found in estimated.rows(layers=True)]
    parts = [row for row in rows if row.module_class != "all" and (row.layer or not _has_layers(row, rows))]
    return PairSideBySide(
        first=estimated.first,
        second=estimated.second,
        estimated=estimated,
        exact=exact,
        differences=rows,
        cosine=_agreement(row.cosine for row in parts),
        sign_conflict=_agreement(row.sign_conflict for row in parts),
        skipped=estimated.skipped,
    )


def _has_layers(row: Compared, rows: Iterable[Compared]) -> bool:
    return any(other.layer and other.module_class == row.module_class for other in rows)


def _compared(layer: str, key: str, estimated: Comparison, exact: Comparison) -> Compared:
    return Compared(
        layer=layer,
        module_class=key,
        cosine=_difference(estimated.cosine, estimated.cosine_error, exact.cosine),
        sign_conflict=_difference(estimated.sign_conflict, estimated.sign_conflict_error, exact.sign_conflict),
        tensors=estimated.tensors,
        parameters=estimated.parameters,
    )


# What the sums of floats leave where both are the same number.
_ROUNDING = 1e-9


def _difference(estimated: float | None, error: float | None, exact: float | None) -> Difference | None:
    if estimated is None or exact is None or error is None:
        return None
    off = estimated - exact
    return Difference(
        estimated=estimated, exact=exact, difference=off, error=error, within=abs(off) <= error + _ROUNDING
    )


def _agreement(found: Iterable[Difference | None]) -> Agreement:
    """Of the figures that are estimates: those of unchanged tensors are known."""
    known = [one for one in found if one is not None and one.error > 0]
    return Agreement(
        compared=len(known),
        within_one=sum(one.within for one in known),
        within_two=sum(abs(one.difference) <= 2 * one.error + _ROUNDING for one in known),
        largest=max((abs(one.difference) for one in known), default=0.0),
    )
