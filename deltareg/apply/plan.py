"""Deciding, from headers and inventories alone, what becomes of each tensor of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from deltareg.apply.placement import Placement, WeightedDelta, place_unchanged
from deltareg.apply.rows import Rows
from deltareg.artifact import Artifact
from deltareg.check import dtype_fits
from deltareg.checkpoint import Checkpoint, ShardPlan, Tensor, lay_out
from deltareg.codec import is_additive, lane_of
from deltareg.errors import NotHomologous, UnsupportedFormat
from deltareg.homology import compare_shapes, delta_shapes, finding, refuse_mismatch
from deltareg.manifest import TensorEntry
from deltareg.names import Reference

__all__ = ["Action", "Piece", "Plan", "PlannedTensor", "plan", "refuse_stacked"]

Action = Literal["copy", "convert", "add", "replace"]


@dataclass(frozen=True)
class Piece:
    """What one delta, by its number, changes of a tensor; `rows` where its rows stand otherwise in the target."""

    delta: int
    entry: TensorEntry
    rows: Rows | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output; `source` is the target's that it is made of."""

    name: str
    action: Action
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: Tensor | None
    pieces: tuple[Piece, ...]


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


def plan(target: Checkpoint, deltas: Sequence[WeightedDelta], placement: Placement | None = None) -> Plan:
    """What becomes of each tensor, where `placement` puts the deltas; without it the target has to be the base.

    Raises NotHomologous, naming everything that does not fit.
    """
    if placement is None:
        for delta in deltas:
            _refuse(delta, target)
        placement = place_unchanged(deltas)
    warnings: list[str] = []
    named = [(name, placed) for tensors in placement.deltas for name, placed in tensors.items()]
    removed = {name for name, placed in named if placed.entry.kind == "removed"} & target.tensors.keys()
    tensors: dict[str, PlannedTensor] = {}
    sources = {name: (name, tensor) for name, tensor in target.tensors.items()}
    sources |= {name: (name, target.tensors[home]) for name, home in placement.untied.items()}
    for name, tensor in sources.values():
        pieces = _pieces(placement, name)
        if name in removed:
            if any(piece.entry.changed for piece in pieces):
                warnings.append(f"{name} is changed by one delta and removed by another: it is left out")
            continue
        tensors[name] = _planned(name, tensor, pieces, deltas, warnings)
    for name in dict.fromkeys(name for name, placed in named if placed.entry.base_dtype is None):
        if name not in sources:
            tensors[name] = _added(name, _pieces(placement, name), deltas, warnings)
    return Plan(tensors, _shards(target, tensors), tuple(sorted(removed)), tuple(warnings))


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


def _pieces(placement: Placement, name: str) -> list[Piece]:
    return [
        Piece(number, placed.entry, placed.rows)
        for number, tensors in enumerate(placement.deltas)
        if (placed := tensors.get(name)) is not None and placed.entry.kind != "removed"
    ]


def _planned(
    name: str, tensor: Tensor, pieces: list[Piece], deltas: Sequence[WeightedDelta], warnings: list[str]
) -> PlannedTensor:
    dtype = _result_dtype(name, tensor, [piece.entry for piece in pieces], warnings)
    active = [piece for piece in pieces if piece.entry.kind != "zero"]
    adding = [is_additive(piece.entry) for piece in active]
    if any(adding) and not all(adding):
        raise NotHomologous(
            f"the deltas do not agree about {name}: one adds numbers to it, another replaces its bits",
            hint="apply deltas that were taken from checkpoints of the same dtypes",
            tensor=name,
        )
    if not active:
        action: Action = "copy" if dtype == tensor.dtype else "convert"
    elif all(adding):
        action = "add"
    else:
        action = "replace"
        active = [_strongest(name, active, deltas, warnings)]
    nbytes = tensor.elements * lane_of(dtype).element_bits // 8
    return PlannedTensor(name, action, dtype, tensor.shape, nbytes, tensor, tuple(active))


def _added(name: str, pieces: list[Piece], deltas: Sequence[WeightedDelta], warnings: list[str]) -> PlannedTensor:
    piece = _strongest(name, pieces, deltas, warnings)
    assert piece.entry.post_dtype is not None
    shape = tuple(piece.entry.shape)
    nbytes = lay_out([(name, piece.entry.post_dtype, shape)])[0].nbytes
    return PlannedTensor(name, "replace", piece.entry.post_dtype, shape, nbytes, None, (piece,))


def _strongest(name: str, pieces: list[Piece], deltas: Sequence[WeightedDelta], warnings: list[str]) -> Piece:
    """What cannot be added is taken from the delta with the largest weight, the first of them where several have it."""
    chosen = max(pieces, key=lambda piece: (abs(deltas[piece.delta].weight), -piece.delta))
    if len(pieces) > 1:
        warnings.append(f"{name} cannot be summed: it is taken from {deltas[chosen.delta].reference}")
    return chosen


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
