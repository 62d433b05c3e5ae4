"""Deciding, from headers and inventories alone, what becomes of each tensor of the target."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from deltareg.apply.placement import Placement, WeightedDelta, place_unchanged
from deltareg.apply.rows import Rows
from deltareg.check import dtype_fits
from deltareg.checkpoint import Checkpoint, ShardPlan, Tensor, lay_out
from deltareg.codec import DELTA_DTYPES, Lane, delta_lane_of, is_additive, lane_of
from deltareg.errors import InvalidArgument, NotHomologous
from deltareg.homology import compare_shapes, delta_shapes, finding, refuse_mismatch
from deltareg.manifest import TensorEntry
from deltareg.merge import METHODS, Gradient, Method, Schedule, Stage, Subject, Value, method_of, subjects_of
from deltareg.merge.combine import Sum
from deltareg.merge.deferred import can_defer
from deltareg.names import Reference

__all__ = [
    "LINEAR",
    "Action",
    "Merge",
    "Parameters",
    "Piece",
    "Plan",
    "PlannedTensor",
    "naming",
    "plan",
    "schedules_of",
]

Action = Literal["copy", "convert", "add", "replace"]

Parameters = Mapping[str, Value | Gradient | Schedule]
"""Parameters of a method, by name: one value for every tensor, or what differs by tensor."""


@dataclass(frozen=True)
class Piece:
    """What one delta, by its number, changes of a tensor; `rows` where its rows stand otherwise in the target."""

    delta: int
    entry: TensorEntry
    rows: Rows | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Merge:
    """How deltas are combined: a method, its parameters, which may differ by tensor, and the seed of random masks.

    A delta may have some of the parameters for itself: these count before those that all have.
    """

    method: Method
    parameters: Mapping[str, Schedule] = field(default_factory=dict[str, Schedule])
    seed: int = 0

    @classmethod
    def of(cls, method: str, parameters: Parameters | None, seed: int) -> Merge:
        """By the method's name. Raises InvalidArgument for a method or a value that there is not."""
        known = method_of(method)
        schedules = schedules_of(parameters)
        for name, schedule in schedules.items():
            for value in schedule.values:
                known.check(name, value)
        return cls(known, schedules, seed)

    def check_own(self, reference: Reference, parameters: Mapping[str, Schedule]) -> None:
        """Raise InvalidArgument where a delta has a parameter for itself that it cannot have."""
        for name, schedule in parameters.items():
            for value in schedule.values:
                with naming(reference):
                    self.method.check_own(name, value)

    def told(self) -> dict[str, Schedule]:
        """Every parameter with what it is, defaults included; for a plain sum nothing but what is no default."""
        found: dict[str, Schedule] = {}
        for name, parameter in self.method.parameters.items():
            given = self.parameters.get(name, Schedule(()))
            whole = given
            if parameter.default is not None and not any(selector is None for selector, _ in given.rules):
                whole = Schedule(((None, parameter.default), *given.rules))
            # What each delta has for itself has no value for all.
            if whole.rules and (self.method.name != "linear" or given.rules):
                found[name] = whole
        return found


def schedules_of(parameters: Parameters | None) -> dict[str, Schedule]:
    """Parameters, one value or several, as schedules."""
    return {name: Schedule.of(value) for name, value in (parameters or {}).items()}


@contextmanager
def naming(reference: Reference) -> Generator[None]:
    """Say of what is wrong within which delta it is about."""
    try:
        yield
    except InvalidArgument as error:
        raise InvalidArgument(f"{reference}: {error.message}", hint=error.hint) from error


LINEAR = Merge(METHODS["linear"])
"""Σ weight · Δ."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output; `source` is the target's that it is made of.

    `pieces` are what changes it. Where it is added to, `idle` are the parts of deltas that leave it as it is, `stages`
    what the method does.
    """

    name: str
    action: Action
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: Tensor | None
    pieces: tuple[Piece, ...]
    idle: tuple[Piece, ...] = ()
    stages: tuple[Stage, ...] = ()

    @property
    def lanes(self) -> int:
        """Lanes of the output."""
        return self.nbytes // lane_of(self.dtype).width

    @property
    def row(self) -> int:
        """Lanes of a row: of the last dimension, or all where there is but one."""
        lanes = self.lanes
        return lanes // math.prod(self.shape[:-1]) if len(self.shape) > 1 and lanes else max(lanes, 1)

    @property
    def kinds(self) -> list[Lane]:
        """The lanes of D1 of each delta that has the tensor."""
        return [delta_lane_of(piece.entry) for piece in (*self.pieces, *self.idle)]

    @property
    def is_sum(self) -> bool:
        """Whether the method is nothing but a weighted sum, which needs no room for values."""
        return len(self.stages) == 1 and isinstance(self.stages[0], Sum)

    @property
    def defers(self) -> bool:
        """Whether its stages can put off what they do."""
        if self.source is None or self.is_sum:
            return False
        return can_defer([lane_of(self.source.dtype), lane_of(self.dtype), *self.kinds], self.stages, self.row)


@dataclass(frozen=True)
class Plan:
    """All tensors of the output by name, the files that they go to, and what the user should know.

    `subjects` are the tensors as selectors see them, `seed` is that of random masks.
    """

    tensors: Mapping[str, PlannedTensor]
    shards: tuple[ShardPlan, ...]
    removed: tuple[str, ...]
    warnings: tuple[str, ...]
    subjects: Mapping[str, Subject]
    seed: int

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def plan(
    target: Checkpoint,
    deltas: Sequence[WeightedDelta],
    placement: Placement | None = None,
    merge: Merge = LINEAR,
    *,
    dtype: str | None = None,
) -> Plan:
    """What becomes of each tensor, where `placement` puts the deltas; without it the target has to be the base.

    With `dtype`, BF16, F16, F32 or F64, tensors of floats come out in that one, but for those whose bits are replaced.

    Raises NotHomologous, naming everything that does not fit; InvalidArgument for parameters that a method cannot have.
    """
    if placement is None:
        for delta in deltas:
            _refuse(delta, target)
        placement = place_unchanged(deltas)
    planner = _Planner(target, deltas, placement, merge, dtype)
    return planner.plan()


class _Planner:
    def __init__(
        self,
        target: Checkpoint,
        deltas: Sequence[WeightedDelta],
        placement: Placement,
        merge: Merge,
        dtype: str | None,
    ) -> None:
        self._target = target
        self._dtype = dtype
        self._deltas = deltas
        self._placement = placement
        self._merge = merge
        self._warnings = [
            f"{delta.reference} is an approximation: {delta.artifact.config.exactness}"
            for delta in deltas
            if delta.artifact.config.exactness.kind == "lossy"
        ]
        self._alone = 0
        self._own = any(delta.parameters for delta in deltas)
        self._stages_of: dict[tuple[tuple[tuple[str, Value], ...], ...], tuple[Stage, ...]] = {}
        self._sources = dict(target.tensors) | {name: target.tensors[home] for name, home in placement.untied.items()}
        self._named = [(name, placed) for tensors in placement.deltas for name, placed in tensors.items()]
        self._subjects = subjects_of(dict.fromkeys([*self._sources, *(name for name, _ in self._named)]))

    def plan(self) -> Plan:
        removed = {name for name, placed in self._named if placed.entry.kind == "removed"} & self._target.tensors.keys()
        tensors: dict[str, PlannedTensor] = {}
        for name, tensor in self._sources.items():
            pieces = self._pieces(name)
            if name in removed:
                if any(piece.entry.changed for piece in pieces):
                    self._warnings.append(f"{name} is changed by one delta and removed by another: it is left out")
                continue
            tensors[name] = self._planned(name, tensor, pieces)
        for name in dict.fromkeys(name for name, placed in self._named if placed.entry.base_dtype is None):
            if name not in self._sources and (pieces := self._pieces(name)):
                tensors[name] = self._added(name, pieces)
        if self._alone:
            count = f"{self._alone} tensors" if self._alone > 1 else "1 tensor"
            self._warnings.append(f"{count} had fewer deltas than {self._merge.method.name} takes: they were summed")
        return Plan(
            tensors,
            _shards(self._target, tensors),
            tuple(sorted(removed)),
            tuple(self._warnings),
            self._subjects,
            self._merge.seed,
        )

    def _pieces(self, name: str) -> list[Piece]:
        subject = self._subjects[name]
        return [
            Piece(number, placed.entry, placed.rows, weight)
            for number, tensors in enumerate(self._placement.deltas)
            if (placed := tensors.get(name)) is not None and placed.entry.kind != "removed"
            if (weight := self._deltas[number].weight_at(subject)) != 0
        ]

    def _planned(self, name: str, tensor: Tensor, pieces: list[Piece]) -> PlannedTensor:
        active = [piece for piece in pieces if piece.entry.kind != "zero"]
        adding = [is_additive(piece.entry) for piece in active]
        if self._dtype is not None and tensor.dtype in DELTA_DTYPES and all(adding):
            dtype = self._dtype
        else:
            dtype = _result_dtype(name, tensor, [piece.entry for piece in pieces], self._warnings)
        if any(adding) and not all(adding):
            raise NotHomologous(
                f"the deltas do not agree about {name}: one adds numbers to it, another replaces its bits",
                hint="apply deltas that were taken from checkpoints of the same dtypes",
                tensor=name,
            )
        idle: tuple[Piece, ...] = ()
        stages: tuple[Stage, ...] = ()
        if not active:
            action: Action = "copy" if dtype == tensor.dtype else "convert"
        elif all(adding):
            action = "add"
            idle = tuple(piece for piece in pieces if piece.entry.kind == "zero")
            stages = self._stages(name, len(pieces))
        else:
            action = "replace"
            active = [self._strongest(name, active)]
        nbytes = tensor.elements * lane_of(dtype).element_bits // 8
        return PlannedTensor(name, action, dtype, tensor.shape, nbytes, tensor, tuple(active), idle, stages)

    def _stages(self, name: str, deltas: int) -> tuple[Stage, ...]:
        if deltas < self._merge.method.least:
            self._alone += 1
            return LINEAR.method.stages({})
        subject = self._subjects[name]
        shared = _values(self._merge.parameters, subject)
        own = [_values(delta.parameters, subject) for delta in self._deltas] if self._own else []
        # Thousands of tensors have the same parameters.
        key = tuple(tuple(values.items()) for values in (shared, *own))
        if key not in self._stages_of:
            for delta, values in zip(self._deltas, own, strict=False):
                with naming(delta.reference):
                    self._merge.method.stages({**shared, **values})
            self._stages_of[key] = self._merge.method.stages(shared, own)
        return self._stages_of[key]

    def _added(self, name: str, pieces: list[Piece]) -> PlannedTensor:
        piece = self._strongest(name, pieces)
        assert piece.entry.post_dtype is not None
        shape = tuple(piece.entry.shape)
        nbytes = lay_out([(name, piece.entry.post_dtype, shape)])[0].nbytes
        return PlannedTensor(name, "replace", piece.entry.post_dtype, shape, nbytes, None, (piece,))

    def _strongest(self, name: str, pieces: list[Piece]) -> Piece:
        """What cannot be added is taken from the delta with the largest weight, the first of them."""
        chosen = max(pieces, key=lambda piece: (abs(piece.weight), -piece.delta))
        if len(pieces) > 1:
            reference = self._deltas[chosen.delta].reference
            self._warnings.append(f"{name} cannot be summed: it is taken from {reference}")
        return chosen


def _values(parameters: Mapping[str, Schedule], subject: Subject) -> dict[str, Value]:
    """The parameters that are given for one tensor."""
    found = {name: schedule.at(subject) for name, schedule in parameters.items()}
    return {name: value for name, value in found.items() if value is not None}


def _refuse(delta: WeightedDelta, target: Checkpoint) -> None:
    entries = delta.entries
    optional = [name for name, entry in entries.items() if entry.kind == "removed"]
    shapes = {name: tensor.shape for name, tensor in target.tensors.items()}
    findings = compare_shapes(delta_shapes(delta.artifact.inventory), shapes, optional=optional)
    for name, tensor in target.tensors.items():
        entry = entries.get(name)
        if entry is not None and entry.post_dtype is not None and not dtype_fits(entry, tensor.dtype):
            findings.append(finding("tensor-dtype", name, f"{entry.base_dtype} → {entry.post_dtype}", tensor.dtype))
    refuse_mismatch(
        findings,
        message=f"{delta.reference} does not fit {target.id}; the delta's base against the target",
        hint=f"deltareg show {delta.reference} tells which base the delta was taken from",
    )


def _result_dtype(name: str, tensor: Tensor, entries: list[TensorEntry], warnings: list[str]) -> str:
    """Post's dtype where the target has the base's, else the target's own."""
    wanted = {
        entry.post_dtype if entry.base_dtype == tensor.dtype or not is_additive(entry) else tensor.dtype
        for entry in entries
        if entry.post_dtype is not None and not (entry.kind == "zero" and entry.base_dtype == entry.post_dtype)
    }
    if len(wanted) > 1:
        warnings.append(f"the deltas give {name} different dtypes: it keeps {tensor.dtype}")
        return tensor.dtype
    return next(iter(wanted), tensor.dtype) or tensor.dtype


def _shards(target: Checkpoint, tensors: Mapping[str, PlannedTensor]) -> tuple[ShardPlan, ...]:
    """The target's files with what is left of their tensors; added ones go to the last."""
    files = [
        (shard.file, dict(shard.metadata) or {"format": "pt"}, [name for name in shard.tensors if name in tensors])
        for shard in target.shards
    ]
    known = {name for _, _, names in files for name in names}
    files[-1][2].extend(name for name in tensors if name not in known)
    kept = [file for file in files if file[2]] or files[:1]
    plans = [
        ShardPlan(file, tuple((name, tensors[name].dtype, tensors[name].shape) for name in names), metadata)
        for file, metadata, names in kept
    ]
    if len(plans) == 1:
        plans = [ShardPlan("model.safetensors", plans[0].tensors, plans[0].metadata)]
    return tuple(plans)
