"""Lineage: whether a target descends from the base of a delta, from a few hundred values of each base tensor.

Equal shapes do not make a common ancestor. An artifact carries samples of its base's tensors; the same places of a
target give the cosine of the two and how far they are from one another, without the base.

The verdict comes from **matrices** alone (tensors with two extents above 1, norms left out): norm weights lie around 1,
and positive vectors have a cosine near 1 in models that have nothing in common. Of each matrix the cosine is taken by
itself and weighted by the number of its sampled values, so that a matrix of large numbers that every model of a family
starts from (the `A_log` of Mamba, a table of sines) cannot speak for the others. The lowest of the classes attention,
mlp, embedding and of all matrices together decides: a delta is added to each of them. `python -m
tests.sketch.measure_lineage` measures, on real weights, what the thresholds rest on:

| base | target | values | attention | mlp | embedding | all | verdict |
|---|---|---|---|---|---|---|---|
| antibody_4_2 | itself, in fp32 or bf16 | 964 | 1.000 | 1.000 | 1.000 | 1.000 | same |
| antibody_4_2 | shark_4_2, a light fine-tune | 964 | 1.000 | 1.000 | 1.000 | 1.000 | related |
| antibody_4_2 | tcr_4_2, a heavy fine-tune | 932 | 0.978 | 0.970 | 0.998 | 0.975 | related |
| antibody_4_2 | antibody_4_1, unrelated weights | 516 | −0.051 | −0.010 | −0.184 | −0.043 | unrelated |
| antibody_4_2 | random, each tensor's mean and width | 964 | 0.011 | −0.007 | −0.137 | −0.007 | unrelated |
| antibody_4_2 | heads in another order | 964 | −0.121 | 1.000 | 1.000 | 0.554 | unrelated |
| MiniLM | fine-tune | 7124 | 1.000 | 1.000 | 1.000 | 1.000 | related |
| MiniLM | random, each tensor's mean and width | 7124 | 0.009 | −0.005 | 0.004 | 0.002 | unrelated |
| MiniLM | heads in another order | 7124 | −0.029 | 1.000 | 1.000 | 0.501 | unrelated |
| generated | light fine-tune | 3872 | 1.000 | 1.000 | 1.000 | 1.000 | related |
| generated | another seed | 3872 | 0.020 | −0.013 | −0.053 | −0.003 | unrelated |

The last pair has a plain cosine of 0.77 over all tensors: its norms. What is related lies above 0.97 here, what is not
below 0.03, which leaves room for training that goes much further than these fine-tunes did.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deltareg.checkpoint import DTYPES, Checkpoint, Tensor
from deltareg.fingerprint import module_class
from deltareg.sketch.floats import PRECISIONS, rounded
from deltareg.sketch.samples import SamplePlan, Samples, TensorSpec, chunks, decode_runs, read_runs
from deltareg.threads import in_order

__all__ = [
    "LEAST_VALUES",
    "UNRELATED_BELOW",
    "Likeness",
    "Lineage",
    "LineageVerdict",
    "compare_samples",
    "judge",
    "measure_lineage",
]

UNRELATED_BELOW = 0.3
"""A matrix cosine below this is that of unrelated weights: related ones were measured above 0.97, others below 0.03."""

LEAST_VALUES = 64
"""Sampled values that a matrix cosine needs to count: that of unrelated weights then has a standard error of 1/8."""

LineageVerdict = Literal["same", "related", "unrelated", "unknown"]
Array = npt.NDArray[Any]

_JUDGED = ("attention", "mlp", "embedding")
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
# The squares of such numbers, summed over all elements of a model, stay finite.
_LARGEST = 2.0**450


@dataclass(frozen=True)
class Likeness:
    """How alike base and target are, in one module class or in all.

    `tensors` and `values` were compared; `equal` is the share of values with the same bits once the more precise dtype
    of the two is rounded to the other. `cosine` is that of the two as vectors, `distance` ‖Θ'−Θ‖/‖Θ‖, and
    `distance_to_delta` ‖Θ'−Θ‖/‖ΔΘ‖ over the tensors whose delta's norm is known: all three are estimates, in which
    the sums over a tensor's values are scaled by its elements over its values. `matrix_cosine` is the mean of the
    matrices' cosines, weighted by values; `matrix_values` and `matrix_equal` tell of the same matrices. None where
    there is nothing to divide by.
    """

    tensors: int
    values: int
    equal: float | None
    cosine: float | None
    distance: float | None
    distance_to_delta: float | None
    matrix_values: int
    matrix_equal: float | None
    matrix_cosine: float | None


@dataclass(frozen=True)
class Lineage:
    """What the samples of a base tell of a target.

    `classes` are by module class, only those with compared tensors. Sampled tensors that the target lacks, that have
    another shape there, or are no floats, are not compared: `missing`, `reshaped`, `replaced` count them. `left_out`
    are values that are NaN, infinite or above 2^450 in either. `reads` and `bytes_read` are of the target's data.
    """

    classes: Mapping[str, Likeness]
    total: Likeness
    missing: int
    reshaped: int
    replaced: int
    left_out: int
    reads: int
    bytes_read: int

    @property
    def lowest(self) -> tuple[str, float] | None:
        """The class with the lowest matrix cosine, or "total" for all, and this cosine. None if values are too few."""
        judged = {name: self.classes[name] for name in _JUDGED if name in self.classes} | {"total": self.total}
        enough = {
            name: likeness.matrix_cosine
            for name, likeness in judged.items()
            if likeness.matrix_cosine is not None and likeness.matrix_values >= LEAST_VALUES
        }
        return min(enough.items(), key=lambda item: item[1]) if enough else None


def judge(lineage: Lineage) -> LineageVerdict:
    """Whether the target shares an ancestor with the base.

    "unknown": fewer than LEAST_VALUES values of matrices could be compared. "same": all of them are equal, up to the
    rounding of one dtype to the other. "unrelated": the lowest matrix cosine, that of `lineage.lowest`, is below
    UNRELATED_BELOW. "related" otherwise.
    """
    lowest = lineage.lowest
    if lowest is None:
        return "unknown"
    if lineage.total.matrix_equal == 1:
        return "same"
    return "unrelated" if lowest[1] < UNRELATED_BELOW else "related"


def measure_lineage(
    samples: Samples,
    target: Checkpoint,
    *,
    renamed: Mapping[str, str] = MappingProxyType({}),
    delta_norms: Mapping[str, float],
    base_norms: Mapping[str, float] = MappingProxyType({}),
    threads: int = 4,
    most_reads: int | None = None,
) -> Lineage:
    """Compare the samples of a base with the same places of `target`, of which nothing else is read.

    `renamed` gives the target's name of a base tensor that has another one there; `delta_norms` are ‖ΔΘ‖ of base's
    tensors, and `base_norms` ‖Θ‖: where one is absent or 0, as of dtypes that are not added, it is estimated. With
    `most_reads` so many runs of matrices are read at most, drawn from the whole model: for targets that
    are read over a network. The result is the same for every number of threads. Raises BadHeader where a file of the
    target ends early, and what reading from the hub raises.
    """
    plan = samples.plan
    homes: dict[int, Tensor] = {}
    skipped = {"missing": 0, "reshaped": 0, "replaced": 0}
    for number, spec in enumerate(plan.tensors):
        tensor = target.tensors.get(renamed.get(spec.name, spec.name))
        if tensor is None:
            skipped["missing"] += 1
        elif fault := _why_not(spec, tensor):
            skipped[fault] += 1
        else:
            homes[number] = tensor
    classes = _classes(plan)
    matrices = _matrices(plan, classes)
    runs = _by_place(plan, homes, _runs_of(plan, homes, matrices, most_reads))
    sums = np.zeros((_SUMS, plan.owners.size))
    firsts = np.cumsum(plan.lengths) - plan.lengths
    pieces = chunks(runs, threads)
    tasks = [partial(_compare, samples, firsts, homes, piece) for piece in pieces]
    for piece, part in zip(pieces, in_order(tasks, threads), strict=True):
        sums[:, piece] = part
    return _told(
        _PerTensor.of(plan, sums, matrices, delta_norms, base_norms),
        classes,
        left_out=int(plan.lengths[runs].sum() - sums[0].sum()),
        reads=runs.size,
        bytes_read=int((_widths(plan, homes)[plan.owners[runs]] * plan.lengths[runs]).sum()),
        **skipped,
    )


def compare_samples(
    samples: Samples,
    target: Samples,
    *,
    renamed: Mapping[str, str] = MappingProxyType({}),
    delta_norms: Mapping[str, float],
    base_norms: Mapping[str, float] = MappingProxyType({}),
) -> Lineage:
    """Compare the samples of a base with those that somebody took of a target, whose weights are elsewhere.

    What is given is as `measure_lineage` has it, and so is the result. A tensor that has another name in the target was
    sampled at other places there, and counts as missing.
    """
    plan = samples.plan
    numbers = {spec.name: number for number, spec in enumerate(target.plan.tensors)}
    ours, theirs = _runs_by_tensor(plan), _runs_by_tensor(target.plan)
    homes: dict[int, int] = {}
    skipped = {"missing": 0, "reshaped": 0, "replaced": 0}
    for number, spec in enumerate(plan.tensors):
        other = numbers.get(renamed.get(spec.name, spec.name))
        if other is not None and target.plan.tensors[other].shape != spec.shape:
            skipped["reshaped"] += 1
        elif other is None or not _same_places(plan, ours[number], target.plan, theirs[other]):
            skipped["missing"] += 1
        else:
            homes[number] = other
    classes = _classes(plan)
    sums = np.zeros((_SUMS, plan.owners.size))
    runs = _joined([ours[number] for number in homes])
    if runs.size:
        there = _joined([theirs[other] for other in homes.values()])
        owners = np.unique(plan.owners[runs], return_inverse=True)[1]
        pairs = [(plan.tensors[one].dtype, target.plan.tensors[other].dtype) for one, other in homes.items()]
        sums[:, runs] = _summed(_values(samples, runs), _values(target, there), pairs, owners, plan.lengths[runs])
    return _told(
        _PerTensor.of(plan, sums, _matrices(plan, classes), delta_norms, base_norms),
        classes,
        left_out=int(plan.lengths[runs].sum() - sums[0].sum()),
        reads=0,
        bytes_read=0,
        **skipped,
    )


def _told(tensors: _PerTensor, classes: Array, **counted: int) -> Lineage:
    found: list[str] = np.unique(classes[tensors.compared]).tolist()
    return Lineage(
        classes={name: tensors.likeness(classes == name) for name in found},
        total=tensors.likeness(tensors.compared),
        **counted,
    )


def _runs_by_tensor(plan: SamplePlan) -> list[range]:
    """The runs of each tensor."""
    edges: list[int] = np.searchsorted(plan.owners, np.arange(len(plan.tensors) + 1)).tolist()
    return [range(start, end) for start, end in pairwise(edges)]


def _same_places(plan: SamplePlan, ours: range, other: SamplePlan, theirs: range) -> bool:
    one, two = slice(ours.start, ours.stop), slice(theirs.start, theirs.stop)
    return np.array_equal(plan.starts[one], other.starts[two]) and np.array_equal(plan.lengths[one], other.lengths[two])


def _joined(ranges: Sequence[range]) -> Array:
    return np.concatenate([np.arange(one.start, one.stop) for one in ranges] or [np.zeros(0, np.int64)])


def _values(samples: Samples, runs: Array) -> Array:
    """The values of `runs`, one after the other."""
    lengths = samples.plan.lengths[runs]
    firsts = (np.cumsum(samples.plan.lengths) - samples.plan.lengths)[runs]
    starts = np.cumsum(lengths) - lengths
    return samples.values[np.repeat(firsts - starts, lengths) + np.arange(int(lengths.sum()))]


def _why_not(spec: TensorSpec, tensor: Tensor) -> Literal["reshaped", "replaced"] | None:
    if tensor.shape != spec.shape:
        return "reshaped"
    return None if tensor.dtype in PRECISIONS else "replaced"


def _runs_of(plan: SamplePlan, homes: Mapping[int, Tensor], matrices: Array, most: int | None) -> Array:
    there = np.zeros(len(plan.tensors), np.bool_)
    there[list(homes)] = True
    if most is None:
        return np.flatnonzero(there[plan.owners])
    runs = np.flatnonzero((there & matrices)[plan.owners])
    return np.sort(runs[np.argsort(plan.draws[runs], kind="stable")[: max(0, most)]])


def _by_place(plan: SamplePlan, homes: Mapping[int, Tensor], runs: Array) -> Array:
    """`runs` in the order of files and bytes, as disks like it."""
    ranks = np.zeros(len(plan.tensors), np.int64)
    ordered = sorted(homes, key=lambda number: (homes[number].shard, homes[number].start))
    ranks[ordered] = np.arange(len(ordered))
    # Stable: the runs of one tensor ascend already.
    return runs[np.argsort(ranks[plan.owners[runs]], kind="stable")]


def _widths(plan: SamplePlan, homes: Mapping[int, Tensor]) -> Array:
    """Bytes of the target's elements, (tensors,) int64; 0 for tensors that are not compared."""
    return np.array(
        [DTYPES[homes[number].dtype].bits // 8 if number in homes else 0 for number in range(len(plan.tensors))],
        np.int64,
    )


def _classes(plan: SamplePlan) -> Array:
    """The module class of each tensor, (tensors,) text."""
    # The numbers of layers and experts do not count, and names that differ in these alone are many.
    alike = [_NUMBER.sub("0", spec.name) for spec in plan.tensors]
    known = {name: module_class(name) for name in set(alike)}
    return np.array([known[name] for name in alike], np.str_)


def _matrices(plan: SamplePlan, classes: Array) -> Array:
    """Which tensors the verdict comes from, (tensors,) bool."""
    extents = [sum(extent > 1 for extent in spec.shape) for spec in plan.tensors]
    return (np.array(extents, np.int64) > 1) & (classes != "norm")


# --- sums ---------------------------------------------------------------------------------------------------------

_SUMS = 6
"""Of each run: values, equal values, Σ base², Σ target², Σ base·target, Σ (target − base)²."""


def _compare(samples: Samples, firsts: Array, homes: Mapping[int, Tensor], runs: Array) -> Array:
    """Read `runs` of the target and sum up each against base: (6, runs) float64."""
    plan = samples.plan
    lengths = plan.lengths[runs]
    numbers, owners = np.unique(plan.owners[runs], return_inverse=True)
    tensors: list[int] = numbers.tolist()
    pairs = [(plan.tensors[number].dtype, homes[number].dtype) for number in tensors]
    target = decode_runs(read_runs(plan, homes, runs), [dtype for _, dtype in pairs], owners, lengths)
    starts = np.cumsum(lengths) - lengths
    base = samples.values[np.repeat(firsts[runs] - starts, lengths) + np.arange(target.size)]
    return _summed(base, target, pairs, owners, lengths)


def _summed(base: Array, target: Array, pairs: list[tuple[str, str]], owners: Array, lengths: Array) -> Array:
    """The sums of runs that lie one after the other; `owners` say which pair of dtypes each has."""
    equal = _equal(base, target, pairs, np.repeat(owners, lengths))
    starts = np.cumsum(lengths) - lengths
    counted = (np.abs(base) <= _LARGEST) & (np.abs(target) <= _LARGEST)  # False for NaN
    base, target = np.where(counted, base, 0.0), np.where(counted, target, 0.0)
    terms = (counted, equal & counted, base * base, target * target, base * target, (target - base) ** 2)
    return np.stack([np.add.reduceat(term.astype(np.float64), starts) for term in terms])


def _equal(base: Array, target: Array, pairs: list[tuple[str, str]], owners: Array) -> Array:
    """Whether values have the same bits, the more precise dtype of a pair being rounded to the other. NaN have not."""
    equal = np.zeros(base.size, np.bool_)
    for pair in dict.fromkeys(pairs):
        chosen = np.array([other == pair for other in pairs], np.bool_)[owners]
        coarse = min(pair, key=PRECISIONS.__getitem__)
        left, right = rounded(base[chosen], coarse), rounded(target[chosen], coarse)
        equal[chosen] = (left == right) & (np.signbit(left) == np.signbit(right))
    return equal


@dataclass(frozen=True)
class _PerTensor:
    """What is known of each tensor, all (tensors,); `squares` and `products` are scaled to all of its elements."""

    compared: Array
    values: Array
    equal: Array
    base_squares: Array
    base_norms: Array
    target_squares: Array
    products: Array
    difference_squares: Array
    matrices: Array
    cosines: Array
    deltas: Array

    @classmethod
    def of(
        cls,
        plan: SamplePlan,
        sums: Array,
        matrices: Array,
        delta_norms: Mapping[str, float],
        base_norms: Mapping[str, float],
    ) -> _PerTensor:
        count = len(plan.tensors)
        # bincount adds in the order of the plan's runs, whichever thread has read them.
        values, equal, base, target, product, difference = (np.bincount(plan.owners, row, count) for row in sums)
        scale = np.divide(plan.elements, values, out=np.zeros(count), where=values > 0)
        lengths = np.sqrt(base) * np.sqrt(target)
        norms = np.array([base_norms.get(spec.name, 0.0) for spec in plan.tensors], np.float64)
        return cls(
            compared=values > 0,
            values=values,
            equal=equal,
            base_squares=base * scale,
            base_norms=np.where(norms > 0, norms, np.sqrt(base * scale)),
            target_squares=target * scale,
            products=product * scale,
            difference_squares=difference * scale,
            matrices=matrices & (lengths > 0),
            cosines=np.divide(product, lengths, out=np.zeros(count), where=lengths > 0),
            deltas=np.array([delta_norms.get(spec.name, math.nan) for spec in plan.tensors], np.float64),
        )

    def likeness(self, chosen: Array) -> Likeness:
        """The likeness over the `chosen` tensors."""
        known = chosen & self.compared & ~np.isnan(self.deltas)
        matrices = chosen & self.matrices
        values, matrix_values = _sum(self.values, chosen), _sum(self.values, matrices)
        lengths = math.sqrt(_sum(self.base_squares, chosen)) * math.sqrt(_sum(self.target_squares, chosen))
        distance = math.sqrt(_sum(self.difference_squares, chosen))
        return Likeness(
            tensors=int((chosen & self.compared).sum()),
            values=int(values),
            equal=_ratio(_sum(self.equal, chosen), values),
            cosine=_ratio(_sum(self.products, chosen), lengths),
            distance=_ratio(distance, _length(self.base_norms, chosen & self.compared)),
            distance_to_delta=_ratio(math.sqrt(_sum(self.difference_squares, known)), _length(self.deltas, known)),
            matrix_values=int(matrix_values),
            matrix_equal=_ratio(_sum(self.equal, matrices), matrix_values),
            matrix_cosine=_ratio(_sum(self.values * self.cosines, matrices), matrix_values),
        )


def _sum(row: Array, chosen: Array) -> float:
    return float(row[chosen].sum())


def _length(norms: Array, chosen: Array) -> float:
    # hypot: squares of what another program has written might overflow.
    return math.hypot(*norms[chosen].tolist())


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None
