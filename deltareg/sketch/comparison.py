"""How much deltas interfere, as far as their sketches tell: nothing of their records is read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import Field

from deltareg.artifact import Artifact
from deltareg.codec import is_additive
from deltareg.errors import InvalidArgument, NotHomologous
from deltareg.fingerprint import layer_order, module_class
from deltareg.manifest import Document, TensorEntry
from deltareg.sketch.sketches import PROJECTION_TYPE, Sketch, lanes_of, read_sketches, samples_of

__all__ = [
    "ALL",
    "Comparison",
    "ComparisonReport",
    "DeltaNorms",
    "Measured",
    "Pair",
    "PairReport",
    "Side",
    "Skipped",
    "estimate",
    "norms_of",
    "sides_of",
]

ALL = "all"
"""The class that holds every tensor."""


_LAYER_LIMIT = 256 * 2**20
# Records of tensors that are smaller than this are read where they are at hand: of a norm's few hundred lanes a sketch
# keeps so few numbers that the estimate is off by 0.05.
_READ_BELOW = 1 << 17


class Comparison(Document):
    """Two deltas over some tensors that both have. What cannot be said is absent."""

    cosine: float | None = Field(default=None, description="absent where either delta is zero")
    cosine_error: float | None = Field(default=None, ge=0, description="standard error; 0 where it is exact")
    norm_ratio: float | None = Field(default=None, ge=0, description="norm of the second over norm of the first")
    sign_conflict: float | None = Field(
        default=None, ge=0, le=1, description="share of the lanes changed by both whose signs oppose"
    )
    sign_conflict_error: float | None = Field(default=None, ge=0, description="standard error; 0 where it is exact")
    tensors: int
    parameters: int = Field(description="lanes of these tensors")
    exact: bool


class Skipped(Document):
    """A tensor that was not compared, and why."""

    name: str
    reason: str


class PairReport(Document):
    """Two deltas: by module class, and by layer and class."""

    first: str
    second: str
    classes: dict[str, Comparison]
    layers: dict[str, dict[str, Comparison]] = Field(description="by layer's name, such as model.layers.0, and class")
    skipped: list[Skipped]

    def rows(self, *, layers: bool) -> Iterator[tuple[str, str, Comparison]]:
        """The layer ("" for the whole model), the module class (ALL first), and what was found, in order."""
        for layer, classes in [("", self.classes), *(self.layers.items() if layers else ())]:
            for key in sorted(classes, key=lambda key: (key != ALL, key)):
                yield layer, key, classes[key]


class DeltaNorms(Document):
    """One delta: its Frobenius norms by module class, and by layer and class."""

    name: str
    digest: str
    classes: dict[str, float]
    layers: dict[str, dict[str, float]]


class ComparisonReport(Document):
    """What `compare` found. Layers are in the order of the checkpoint."""

    deltas: list[DeltaNorms]
    pairs: list[PairReport]
    seconds: float


def estimate(deltas: Sequence[tuple[str, Artifact]]) -> ComparisonReport:
    """Compare each two of `deltas`, given with the names that the report shall call them by, from their sketches.

    What the sketches do not tell is skipped. Raises InvalidArgument for fewer than two deltas or a name given twice,
    NotHomologous for two that have no tensor to compare; what opening artifacts raises.
    """
    started = time.monotonic()
    sides = sides_of(deltas)
    pairs = [Pair(one, other) for one, other in combinations(sides, 2)]
    for pair in pairs:
        pair.refuse_strangers()
        pair.skipped += [Skipped(name=name, reason="it has no sketch in both deltas") for name in pair.unknown]
    return ComparisonReport(
        deltas=[norms_of(side) for side in sides],
        pairs=[pair.report() for pair in pairs],
        seconds=time.monotonic() - started,
    )


def sides_of(deltas: Sequence[tuple[str, Artifact]]) -> list[Side]:
    """The deltas with what their sketches hold. Raises InvalidArgument for fewer than two, or a name given twice."""
    names = [name for name, _ in deltas]
    if len(names) < 2:
        raise InvalidArgument("give two deltas at least", hint="deltareg list tells which there are")
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise InvalidArgument(
            f"{twice} is given twice", hint="name each delta once: a channel is a name of its version"
        )
    return [Side.of(name, artifact) for name, artifact in deltas]


@dataclass(frozen=True, eq=False)
class Side:
    """One delta of the comparison."""

    name: str
    artifact: Artifact
    entries: Mapping[str, TensorEntry]
    sketches: Mapping[str, Sketch]
    at_hand: bool

    @classmethod
    def of(cls, name: str, artifact: Artifact) -> Side:
        tensors = artifact.inventory.tensors
        layer = artifact.layer(PROJECTION_TYPE, limit=_LAYER_LIMIT)
        sketches: Mapping[str, Sketch] = {} if layer is None else read_sketches(layer, tensors)
        return cls(name, artifact, {entry.name: entry for entry in tensors}, sketches, artifact.has_packs)


@dataclass(frozen=True)
class Measured:
    """Two deltas of one tensor. `both` and `opposed` count lanes out of `sampled`."""

    lanes: int
    norms: tuple[float, float]
    cosine: float
    error: float
    sampled: int
    both: int
    opposed: int
    exact: bool


class Pair:
    """Two deltas, and what is known of each tensor that they share."""

    def __init__(self, one: Side, other: Side, *, exact: bool = False, small: bool = False) -> None:
        """`exact`: no sketch is asked. `small`: those of small tensors are, though their records are at hand."""
        self.one = one
        self.other = other
        self._small = small
        self.found: dict[str, Measured] = {}
        self.skipped: list[Skipped] = []
        self.unknown: list[str] = []
        """Tensors of which sketches tell nothing: their records would have to be read."""
        for name in sorted(one.entries.keys() | other.entries.keys(), key=lambda name: (layer_order(name), name)):
            reason = self._reason(name)
            if reason is not None:
                self.skipped.append(Skipped(name=name, reason=reason))
            elif (estimate := None if exact else self._estimate(name)) is not None:
                self.found[name] = estimate
            else:
                self.unknown.append(name)

    def _reason(self, name: str) -> str | None:
        """Why a tensor cannot be compared."""
        a, b = self.one.entries.get(name), self.other.entries.get(name)
        if a is None or b is None:
            return f"only {(self.one if b is None else self.other).name} has it"
        for side, entry in ((self.one, a), (self.other, b)):
            if not is_additive(entry):
                return f"{side.name} does not add to it: {entry.base_dtype} → {entry.post_dtype}"
        if a.shape != b.shape or lanes_of(a) != lanes_of(b):
            return f"it is {a.post_dtype} {a.shape} and {b.post_dtype} {b.shape}"
        return None

    def _estimate(self, name: str) -> Measured | None:
        a, b = self.one.entries[name], self.other.entries[name]
        lanes, norms = lanes_of(a), (a.delta_norm, b.delta_norm)
        if a.changed == 0 or b.changed == 0 or lanes == 0:
            return Measured(lanes, norms, 0.0, 0.0, lanes, 0, 0, True)
        if lanes < _READ_BELOW and not self._small and self.one.at_hand and self.other.at_hand:
            return None
        one, other = self.one.sketches.get(name), self.other.sketches.get(name)
        if one is None or other is None:
            return None
        return Measured(lanes, norms, *one.angle(other), samples_of(lanes), *one.opposition(other), False)

    def refuse_strangers(self) -> None:
        """Raise NotHomologous where there is nothing to compare."""
        if not self.found and not self.unknown:
            raise NotHomologous(
                f"{self.one.name} and {self.other.name} have no tensor to compare",
                cause=f"{len(self.skipped)} tensors differ, the first: {self.skipped[0].name}: {self.skipped[0].reason}"
                if self.skipped
                else "they have no tensors",
                hint="compare deltas of one parameter space: deltareg show tells the base of each",
            )

    def report(self) -> PairReport:
        """All of it, by class and by layer."""
        found = sorted(self.found.items(), key=lambda item: layer_order(item[0]))
        classes, layers = _grouped(found)
        return PairReport(
            first=self.one.name,
            second=self.other.name,
            classes={key: _combined(group) for key, group in classes.items()},
            layers={
                layer: {key: _combined(group) for key, group in groups.items()} for layer, groups in layers.items()
            },
            skipped=self.skipped,
        )


def norms_of(side: Side) -> DeltaNorms:
    entries = sorted(side.entries.values(), key=lambda entry: layer_order(entry.name))
    classes, layers = _grouped((entry.name, entry.delta_norm) for entry in entries if is_additive(entry))
    return DeltaNorms(
        name=side.name,
        digest=side.artifact.digest,
        classes={key: math.hypot(*group) for key, group in classes.items()},
        layers={layer: {key: math.hypot(*group) for key, group in groups.items()} for layer, groups in layers.items()},
    )


_Groups = dict[str, list[Any]]


def _grouped(found: Iterable[tuple[str, Any]]) -> tuple[_Groups, dict[str, _Groups]]:
    """What is given by tensor, by module class (and ALL), and the same by layer."""
    classes: _Groups = {}
    layers: dict[str, _Groups] = {}
    for name, value in found:
        layer = _layer(name)
        for groups in [classes] if layer is None else [classes, layers.setdefault(layer, {})]:
            for key in (module_class(name), ALL):
                groups.setdefault(key, []).append(value)
    return classes, layers


def _layer(name: str) -> str | None:
    """The name up to its first part that is a number: `model.layers.0`."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isascii() and part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])


def _combined(group: Sequence[Measured]) -> Comparison:
    """Several tensors as one vector."""
    first, second = (math.hypot(*(measured.norms[side] for measured in group)) for side in (0, 1))
    cosine, error = None, None
    if first and second and math.isfinite(first) and math.isfinite(second):
        weights = [measured.norms[0] / first * (measured.norms[1] / second) for measured in group]
        cosine = math.fsum(weight * measured.cosine for weight, measured in zip(weights, group, strict=True))
        error = math.hypot(*(weight * measured.error for weight, measured in zip(weights, group, strict=True)))
    conflict, doubt = _conflict(group)
    return Comparison(
        cosine=cosine,
        cosine_error=error,
        norm_ratio=second / first if first and math.isfinite(second / first) else None,
        sign_conflict=conflict,
        sign_conflict_error=doubt,
        tensors=len(group),
        parameters=sum(measured.lanes for measured in group),
        exact=all(measured.exact for measured in group),
    )


def _conflict(group: Sequence[Measured]) -> tuple[float | None, float | None]:
    """The share of opposed signs, a ratio of two sums, and its standard error.

    Each sample stands for as many lanes as the tensor has for each (Cochran, "Sampling Techniques", 1977, 6.11).
    """
    scales = [measured.lanes / max(measured.sampled, 1) for measured in group]
    both = math.fsum(scale * measured.both for scale, measured in zip(scales, group, strict=True))
    if not both:
        return None, None
    share = math.fsum(scale * measured.opposed for scale, measured in zip(scales, group, strict=True)) / both
    squares = math.fsum(
        scale**2 * (measured.opposed * (1 - share) ** 2 + (measured.both - measured.opposed) * share**2)
        for scale, measured in zip(scales, group, strict=True)
        if measured.sampled < measured.lanes
    )
    return share, math.sqrt(squares) / both
