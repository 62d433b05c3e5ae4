"""Deciding, from headers and inventories alone, what becomes of each tensor of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from deltareg.artifact import Artifact
from deltareg.checkpoint import Checkpoint, ShardPlan, Tensor, lay_out
from deltareg.codec import lane_of
from deltareg.errors import NotHomologous, UnsupportedFormat
from deltareg.homology import Finding, compare_shapes, delta_shapes, refuse_mismatch
from deltareg.manifest import TensorEntry
from deltareg.names import Reference

__all__ = ["Action", "Plan", "PlannedTensor", "WeightedDelta", "plan", "refuse_stacked"]

Action = Literal["copy", "convert", "add", "replace"]


@dataclass(frozen=True)
class WeightedDelta:
    """One delta that is to be applied, and its weight, a finite number that is not zero."""

    reference: Reference
    artifact: Artifact
    weight: float

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The tensors of the delta, by name."""
        return {entry.name: entry for entry in self.artifact.inventory.tensors}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output. `pieces` are the deltas that change it, by their number, with their entries."""

    name: str
    action: Action
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: Tensor | None
    pieces: tuple[tuple[int, TensorEntry], ...]


@dataclass(frozen=True)
class Plan:
    """All tensors of the output by name, the files that they go to, and what the user should know."""

    tensors: Mapping[str, PlannedTensor]
    shards: tuple[ShardPlan, ...]
    removed: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def refuse_stacked(artifact: Artifact, reference: Reference) -> None:
    """Raise UnsupportedFormat for a delta that was taken on top of others, or whose config is of another format."""
    if artifact.config.requires:
        raise UnsupportedFormat(
            f"{reference} was taken on top of other deltas, which this deltareg cannot put under it",
            requires=artifact.config.requires,
            hint="install a newer deltareg",
        )


def plan(target: Checkpoint, deltas: Sequence[WeightedDelta]) -> Plan:
    """What becomes of each tensor. Raises NotHomologous, naming everything that does not fit."""
    for delta in deltas:
        _refuse(delta, target)
    warnings: list[str] = []
    removed = {
        name for delta in deltas for name, entry in delta.entries.items() if entry.kind == "removed"
    } & target.tensors.keys()
    tensors: dict[str, PlannedTensor] = {}
    for name, tensor in target.tensors.items():
        pieces = _pieces(deltas, name)
        if name in removed:
            if any(entry.changed for _, entry in pieces):
                warnings.append(f"{name} is changed by one delta and removed by another: it is left out")
            continue
        tensors[name] = _planned(tensor, pieces, deltas, warnings)
    added = [name for delta in deltas for name, entry in delta.entries.items() if entry.base_dtype is None]
    for name in dict.fromkeys(added):
        tensors[name] = _added(name, _pieces(deltas, name), deltas, warnings)
    return Plan(tensors, _shards(target, tensors), tuple(sorted(removed)), tuple(warnings))


def _refuse(delta: WeightedDelta, target: Checkpoint) -> None:
    entries = delta.entries
    optional = [name for name, entry in entries.items() if entry.kind == "removed"]
    shapes = {name: tensor.shape for name, tensor in target.tensors.items()}
    findings = compare_shapes(delta_shapes(delta.artifact.inventory), shapes, optional=optional)
    for name, tensor in target.tensors.items():
        entry = entries.get(name)
        if entry is not None and entry.post_dtype is not None and not _dtype_fits(entry, tensor.dtype):
            findings.append(
                Finding("tensor-dtype", "error", name, f"{entry.base_dtype} → {entry.post_dtype}", tensor.dtype)
            )
    refuse_mismatch(
        findings,
        message=f"{delta.reference} does not fit {target.id}; the delta's base against the target",
        hint=f"deltareg show {delta.reference} tells which base the delta was taken from",
    )


def _dtype_fits(entry: TensorEntry, dtype: str) -> bool:
    if entry.base_dtype is None or entry.post_dtype is None or entry.kind == "zero":
        return True
    if _adds(entry):
        return lane_of(dtype).adds_to(lane_of(entry.post_dtype))
    return dtype in (entry.base_dtype, entry.post_dtype)


def _adds(entry: TensorEntry) -> bool:
    """Whether the record's values are added, rather than put in the place of the target's."""
    if entry.base_dtype is None or entry.post_dtype is None:
        return False
    return lane_of(entry.base_dtype).adds_to(lane_of(entry.post_dtype))


def _pieces(deltas: Sequence[WeightedDelta], name: str) -> list[tuple[int, TensorEntry]]:
    return [
        (number, delta.entries[name])
        for number, delta in enumerate(deltas)
        if name in delta.entries and delta.entries[name].kind != "removed"
    ]


def _planned(
    tensor: Tensor, pieces: list[tuple[int, TensorEntry]], deltas: Sequence[WeightedDelta], warnings: list[str]
) -> PlannedTensor:
    dtype = _result_dtype(tensor, [entry for _, entry in pieces], warnings)
    active = [(number, entry) for number, entry in pieces if entry.kind != "zero"]
    adding = [_adds(entry) for _, entry in active]
    if any(adding) and not all(adding):
        raise NotHomologous(
            f"the deltas do not agree about {tensor.name}: one adds numbers to it, another replaces its bits",
            hint="apply deltas that were taken from checkpoints of the same dtypes",
            tensor=tensor.name,
        )
    if not active:
        action: Action = "copy" if dtype == tensor.dtype else "convert"
    elif all(adding):
        action = "add"
    else:
        action = "replace"
        active = [_strongest(tensor.name, active, deltas, warnings)]
    nbytes = tensor.elements * lane_of(dtype).element_bits // 8
    return PlannedTensor(tensor.name, action, dtype, tensor.shape, nbytes, tensor, tuple(active))


def _added(
    name: str, pieces: list[tuple[int, TensorEntry]], deltas: Sequence[WeightedDelta], warnings: list[str]
) -> PlannedTensor:
    number, entry = _strongest(name, pieces, deltas, warnings)
    assert entry.post_dtype is not None
    shape = tuple(entry.shape)
    nbytes = lay_out([(name, entry.post_dtype, shape)])[0].nbytes
    return PlannedTensor(name, "replace", entry.post_dtype, shape, nbytes, None, ((number, entry),))


def _strongest(
    name: str, pieces: list[tuple[int, TensorEntry]], deltas: Sequence[WeightedDelta], warnings: list[str]
) -> tuple[int, TensorEntry]:
    """What cannot be added is taken from the delta with the largest weight, the first of them where several have it."""
    chosen = max(pieces, key=lambda piece: (abs(deltas[piece[0]].weight), -piece[0]))
    if len(pieces) > 1:
        warnings.append(f"{name} cannot be summed: it is taken from {deltas[chosen[0]].reference}")
    return chosen


def _result_dtype(tensor: Tensor, entries: list[TensorEntry], warnings: list[str]) -> str:
    """Post's dtype where the target has the base's, else the target's own."""
    wanted = {
        entry.post_dtype if entry.base_dtype == tensor.dtype or not _adds(entry) else tensor.dtype
        for entry in entries
        if entry.post_dtype is not None and not (entry.kind == "zero" and entry.base_dtype == entry.post_dtype)
    }
    if len(wanted) > 1:
        warnings.append(f"the deltas give {tensor.name} different dtypes: it keeps {tensor.dtype}")
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
