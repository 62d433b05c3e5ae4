"""Writing a delta as a PEFT adapter: factors of bounded rank, and the error that this makes."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from deltareg.artifact import Artifact, Packs
from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint, CheckpointWriter, ShardPlan
from deltareg.checkpoint.staging import check_free
from deltareg.codec import FRAME_LANES, Array, RecordReader, is_additive, lane_of
from deltareg.codec.lanes import DELTA_DTYPES, view_of
from deltareg.codec.lowrank import matrix_of
from deltareg.codec.memory import frame_memory
from deltareg.codec.truncate import Truncated, truncate
from deltareg.describe import sum_of_squares
from deltareg.errors import InvalidArgument, OutputExists, translate_os_errors
from deltareg.fingerprint import layer_order
from deltareg.lora.base import check_base, refuse_onto_base
from deltareg.lora.card import (
    AdapterShape,
    ExportedTensor,
    ExportReport,
    LeftOut,
    adapter_card,
    adapter_config,
)
from deltareg.lora.config import CONFIG_FILE
from deltareg.lora.experts import Experts
from deltareg.lora.frames import delta_values, post_lanes, stretches_of
from deltareg.lora.modules import PREFIX, Kind, has_tied_output, is_token_embedding, kind_of, module_of
from deltareg.lora.renamed import is_renamed
from deltareg.manifest import TensorEntry
from deltareg.merge import Block, linear
from deltareg.names import Reference
from deltareg.progress import SILENT, Progress
from deltareg.threads import in_order, thread_count

__all__ = ["ExportReport", "ExportedTensor", "LeftOut", "export_lora"]

WEIGHTS_FILE = "adapter_model.safetensors"
# Deltas of up to so many numbers are read once and kept; larger ones are read anew for each pass.
_MOST_KEPT = 8 * 2**20
_MOST_RANK = 2**16
# The norm of a delta whose factors and product float32 can hold.
_MOST_NORM = 1e38
_TOO_LARGE = "its delta is complex or too large for factors in float32"
_RENAMED = "transformers has its module under another name, by which peft would not find it; deltareg apply has it all"


def export_lora(
    reference: Reference | str,
    registry: Registry,
    out: Path | str,
    *,
    rank: int,
    base: Checkpoint | str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    force: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ExportReport:
    """Write a delta as an adapter that `peft` loads, with factors of rank `rank` at most, in float32.

    Factors that the delta stores and that have no higher rank are written as they are; every other matrix gets the
    nearest ones of that rank. With `base`, the delta's own, biases and norms go along as whole parameters; else they
    are left out and named. A base that `check` finds incompatible is refused, but with `force`. All or nothing appears
    at `out`. Raises InvalidArgument, NotHomologous, NotFound, OutputExists, BadRecord, DigestMismatch, DiskFull.
    """
    started = time.monotonic()
    if type(rank) is not int or not 0 < rank <= _MOST_RANK:
        raise InvalidArgument(f"{rank!r:.40} is no rank", hint=f"--rank takes 1 to {_MOST_RANK}")
    name = registry.version_of(reference)
    artifact = registry.artifact(name)
    for pack in artifact.packs:
        registry.store.verify(pack, quick=True)
    _check_replaceable(Path(os.path.realpath(out)), overwrite)
    with ExitStack() as stack:
        before, notes = None, list[str]()
        if base is not None:
            if not isinstance(base, Checkpoint) and os.path.exists(base):
                # Before it is opened, too: an adapter that lies there is no base.
                refuse_onto_base(Path(os.path.realpath(out)), Path(base))
            before = base if isinstance(base, Checkpoint) else stack.enter_context(Checkpoint.open(base))
            if before.is_local:
                refuse_onto_base(Path(os.path.realpath(out)), before.root)
            notes = check_base(before, name, artifact, threads, force=force)
        packs = stack.enter_context(artifact.open_packs())
        export = _Export(artifact, packs, rank, before, thread_count(threads))
        if export.nothing:
            raise InvalidArgument(
                f"{name} changes nothing that an adapter can have",
                cause=export.why_nothing,
                hint="apply it instead: deltareg apply",
            )
        if dry_run:
            for _ in export.computed(progress):
                pass
            return export.report(str(out), str(name), notes, started, dry_run=True)
        plan = ShardPlan(WEIGHTS_FILE, tuple(export.layout()), {"format": "pt"})
        writer = stack.enter_context(CheckpointWriter(out, [plan], overwrite=overwrite))
        for tensor, data in export.computed(progress):
            writer.write(tensor, 0, view_of(data))
        report = export.report(str(out), str(name), notes, started, dry_run=False)
        writer.add_file(CONFIG_FILE, adapter_config(artifact.config, export.shape))
        writer.add_file("README.md", adapter_card(artifact.config, report))
        writer.commit()
        return report


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise OutputExists unless `out` is free; with `overwrite` it may be an adapter, but no other checkpoint."""
    check_free(out, overwrite)
    with translate_os_errors("look at the output", out):
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    weights = [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]
    others = [name for name in weights if not name.startswith("adapter_model")]
    if names and (others or CONFIG_FILE not in names):
        raise OutputExists(
            f"the output exists already: {out}",
            cause=f"it is no adapter, and is not overwritten: it has {others[0] if others else f'no {CONFIG_FILE}'}",
            hint="choose another output; only an adapter is overwritten",
            path=out,
        )


@dataclass(frozen=True)
class _Matrix:
    """A tensor that becomes two factors: its entry, its module, how PEFT has the factors, and their rank."""

    entry: TensorEntry
    module: str
    kind: Kind
    rank: int
    reader: RecordReader
    anew: bool = False
    """Whether stored factors are not taken, for the sake of the rank and the scale of others."""

    @property
    def turned(self) -> bool:
        """Whether the tensor has inputs before outputs."""
        return self.kind in (Kind.TURNED, Kind.EMBEDDING)

    @property
    def is_stored(self) -> bool:
        """Whether the record has factors of this rank."""
        return not self.anew and self.entry.rank == self.rank and self.reader.head.low_rank is not None

    @property
    def scale(self) -> float:
        """What PEFT has to multiply the factors with."""
        low_rank = self.reader.head.low_rank
        return low_rank.scale if self.is_stored and low_rank is not None else 1.0


class _Export:
    """Decides what becomes of each tensor, then computes it."""

    def __init__(self, artifact: Artifact, packs: Packs, rank: int, base: Checkpoint | None, threads: int) -> None:
        self._artifact = artifact
        self._packs = packs
        self._rank = rank
        self._base = base
        self._threads = threads
        self._names = {entry.name for entry in artifact.inventory.tensors}
        self._experts = Experts(artifact.config.fingerprint.model_type, self._names)
        self._matrices: list[_Matrix] = []
        self._whole: dict[str, TensorEntry] = {}
        self._keys: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._left: list[tuple[TensorEntry, str]] = []
        self._tensors: list[ExportedTensor] = []
        self._residues: dict[str, float] = {}
        self._totals: list[float] = []
        self.shape = AdapterShape()
        self._sort()
        self.shape.transposed = any(one.kind is Kind.TURNED for one in self._matrices)

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to write."""
        return not self._matrices

    @property
    def why_nothing(self) -> str | None:
        """The most frequent reason for that."""
        reasons = Counter(reason for _, reason in self._left).most_common(1)
        return reasons[0][0] if reasons else None

    def _sort(self) -> None:
        entries = sorted(self._artifact.inventory.tensors, key=lambda one: (layer_order(one.name), one.name))
        told = self._artifact.config.fingerprint
        tied = has_tied_output(told.structure, told.model_type, [entry.name for entry in entries])
        for entry in entries:
            if entry.kind == "zero":
                continue
            kind = self._kind_of(entry)
            reason = _refusal(entry) or self._doubt(entry, kind, tied=tied)
            if reason is None:
                stored = entry.rank is not None and entry.rank <= self._rank
                rank = entry.rank if stored and entry.rank else min(self._rank, *matrix_of(entry.shape))
                self._matrices.append(_Matrix(entry, module_of(entry.name), kind, rank, self._reader(entry)))
            else:
                self._reasons[entry.name] = reason
        self._sort_experts()
        self._sort_rest([entry for entry in entries if entry.name in self._reasons])
        for matrix in self._matrices:
            self.shape.ranks[matrix.module] = matrix.rank
            self.shape.scales[matrix.module] = matrix.scale

    def _sort_experts(self) -> None:
        """Experts have one rank and one scale, which are the config's own: PEFT knows no others of what it joins."""
        self._reasons |= self._experts.incomplete({matrix.entry.name for matrix in self._matrices})
        self._matrices = [matrix for matrix in self._matrices if matrix.entry.name not in self._reasons]
        experts = [matrix for matrix in self._matrices if matrix.entry.name in self._experts]
        if len({(matrix.rank, matrix.scale) for matrix in experts}) > 1:
            rank = max(matrix.rank for matrix in experts)
            self._matrices = [
                replace(matrix, rank=rank, anew=True) if matrix.entry.name in self._experts else matrix
                for matrix in self._matrices
            ]
        self.shape.leading = next((matrix.module for matrix in experts), None)

    def _doubt(self, entry: TensorEntry, kind: Kind, *, tied: bool) -> str | None:
        """Why what could be factors should not become such."""
        if tied and entry.rank is None and is_token_embedding(entry.name):
            return "it is the output's matrix too, of which peft would change the one or, merged, both"
        if kind is Kind.UNKNOWN:
            return "its name does not tell whether it is an embedding or a linear layer"
        if (reason := self._renaming(entry) or self._experts.doubt(entry.name)) is not None:
            return reason
        return _TOO_LARGE if _exceeds(self._reader(entry)) else None

    def _renaming(self, entry: TensorEntry) -> str | None:
        model_type = self._artifact.config.fingerprint.model_type
        return _RENAMED if is_renamed(entry.name, model_type) else None

    def _reader(self, entry: TensorEntry) -> RecordReader:
        return RecordReader(entry, self._packs.parts(entry))

    def _kind_of(self, entry: TensorEntry) -> Kind:
        if len(entry.shape) > 2:
            return Kind.CONVOLUTION
        biased = f"{module_of(entry.name)}.bias" in self._names
        model_type = self._artifact.config.fingerprint.model_type
        return kind_of(entry.name, model_type, biased=biased, adapted=_has_factors(entry))

    def _sort_rest(self, rest: list[TensorEntry]) -> None:
        """What is no matrix goes along whole, where everything of its module is known, or is left out."""
        adapted = {matrix.module for matrix in self._matrices}
        inventory = {entry.name: entry for entry in self._artifact.inventory.tensors}
        by_module: dict[str, list[TensorEntry]] = {}
        for name, entry in inventory.items():
            if entry.post_dtype is not None:
                by_module.setdefault(module_of(name), []).append(entry)
        outer = {module_of(module) for module in map(module_of, inventory)}
        for entry in rest:
            module = module_of(entry.name)
            parts = by_module.get(module, [])
            # A module that holds others cannot go along: nothing within it could have factors.
            shared = len(entry.shape) == 2 and is_token_embedding(entry.name) and entry.base_dtype is not None
            floats = any(one.post_dtype in DELTA_DTYPES for one in parts)
            lost = self._renaming(entry) or self._experts.doubt_whole(entry.name)
            if lost is not None:
                self._left.append((entry, self._reasons[entry.name] if entry.name in self._experts else lost))
            elif entry.post_dtype is None or not floats or not module or module in outer or shared:
                self._left.append((entry, self._reasons[entry.name]))
            elif module in adapted and entry.name == f"{module}.bias" and self._base is not None:
                self.shape.biases = True
                self._whole[entry.name] = entry
                self._keys[entry.name] = f"{module}.base_layer.bias"
            elif module not in adapted and (self._base is not None or all(one.base_dtype is None for one in parts)):
                if module not in self.shape.saved:
                    self.shape.saved.append(module)
                for one in parts:
                    self._whole[one.name] = one
                    self._keys[one.name] = one.name
            else:
                self._left.append((entry, self._reasons[entry.name]))

    def layout(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """The tensors of the adapter's file, in order."""
        for matrix in self._matrices:
            rows, columns = matrix_of(matrix.entry.shape)
            names = _names(matrix)
            outs, ins = (columns, rows) if matrix.turned else (rows, columns)
            kernel = matrix.entry.shape[2:]
            yield names[0], "F32", (matrix.rank, *(matrix.entry.shape[1:] if kernel else (ins,)))
            yield names[1], "F32", (outs, matrix.rank, *(1 for _ in kernel))
        for name, key in self._keys.items():
            entry = self._whole[name]
            yield PREFIX + key, _stored_dtype(entry), tuple(entry.shape)

    def computed(self, progress: Progress) -> Iterator[tuple[str, Array]]:
        """The tensors of `layout` with their numbers, one after the other."""
        total = sum(math.prod(matrix.entry.shape) for matrix in self._matrices)
        with progress.step("export", 4 * total), ExitStack() as stack:
            tasks = (partial(self._factors, matrix) for matrix in self._matrices)
            results = stack.enter_context(closing(in_order(tasks, self._threads)))
            for matrix, found in zip(self._matrices, results, strict=True):
                self._note(matrix, found)
                progress.advance(4 * math.prod(matrix.entry.shape))
                left, right = found.left, found.right
                if matrix.turned:
                    left, right = right.T, left.T
                names = _names(matrix)
                yield names[0], np.ascontiguousarray(right)
                yield names[1], np.ascontiguousarray(left)
            for name, key in self._keys.items():
                yield PREFIX + key, self._post(self._whole[name])
        for entry, _ in self._left:
            squares = self._squares(entry)
            self._totals.append(squares)
            self._residues[entry.name] = squares

    def report(self, out: str, reference: str, notes: list[str], started: float, *, dry_run: bool) -> ExportReport:
        """What was computed."""
        residue, total = sum_of_squares(self._residues.values()), sum_of_squares(self._totals)
        config = self._artifact.config
        return ExportReport(
            out=out,
            reference=reference,
            digest=self._artifact.digest,
            base=config.base.id,
            rank=self._rank,
            error=_ratio(residue, total),
            delta_error=config.exactness.relative_error,
            overwritten=sum(one.overwritten for one in self._tensors),
            tensors=self._tensors,
            left_out=[
                LeftOut(name=entry.name, reason=reason, share=self._residues[entry.name] / residue if residue else 0.0)
                for entry, reason in self._left
            ],
            saved_modules=[*self.shape.saved],
            notes=notes,
            size=sum(math.prod(shape) * lane_of(dtype).width for _, dtype, shape in self.layout()),
            seconds=time.monotonic() - started,
            dry_run=dry_run,
        )

    def _factors(self, matrix: _Matrix) -> Truncated:
        shape = matrix_of(matrix.entry.shape)
        if matrix.is_stored:
            left, right = matrix.reader.factors()
            return Truncated(left, right, 0.0, self._squares(matrix.entry))
        stretches = partial(stretches_of, matrix.reader, *shape)
        if shape[0] * shape[1] > _MOST_KEPT:
            return truncate(stretches, shape, matrix.rank, matrix.entry.name)
        kept = list(stretches())
        return truncate(lambda: iter(kept), shape, matrix.rank, matrix.entry.name)

    def _note(self, matrix: _Matrix, found: Truncated) -> None:
        error = _ratio(found.residue, found.total)
        name = matrix.entry.name
        lacking = matrix.entry.overwritten
        exact = matrix.is_stored and matrix.entry.error is None and not lacking
        tensor = ExportedTensor(name=name, rank=matrix.rank, error=error, exact=exact, overwritten=lacking)
        self._tensors.append(tensor)
        self._residues[name] = found.residue
        self._totals.append(found.total)

    def _squares(self, entry: TensorEntry) -> float:
        """‖Δ‖² of a tensor; nothing where it is not added to."""
        if not is_additive(entry) or not entry.packs:
            return 0.0
        reader = self._reader(entry)
        sums: list[float] = []
        for number in range(reader.count):
            with frame_memory():
                values = delta_values(reader, number)
                sums.append(float(np.vdot(values, values)))
        return sum_of_squares(sums)

    def _post(self, entry: TensorEntry) -> Array:
        """A whole parameter as post has it. Its delta is no error: it is counted with the whole."""
        assert entry.post_dtype is not None
        if entry.base_dtype is not None:
            self._totals.append(self._squares(entry))
        base = None if self._base is None else self._base.tensors.get(entry.name)
        lane, to = lane_of(entry.post_dtype), lane_of(_stored_dtype(entry))
        out = np.empty(lane.lanes_of(math.prod(entry.shape)), to.stored)
        reader = self._reader(entry) if entry.packs else None
        for start in range(0, out.size, FRAME_LANES):
            with frame_memory():
                part = out[start : start + FRAME_LANES]
                bits = post_lanes(entry, reader, base, start, part.size)
                if to is lane:
                    part[:] = bits
                else:
                    linear(Block(bits, lane, (), part, to))
        return out


def _refusal(entry: TensorEntry) -> str | None:
    """Why a tensor cannot become factors; None where it can."""
    if entry.post_dtype is None:
        return "the training removed it"
    if entry.base_dtype is None:
        return "the base lacks it"
    if not is_additive(entry):
        return f"it is {entry.post_dtype}, to which nothing is added"
    if len(entry.shape) < 2 or min(entry.shape) == 0:
        return "it is no matrix"
    if len(entry.shape) > 2 and not (len(entry.shape) <= 5 and _has_factors(entry)):
        # Of what no adapter changed nothing tells whether it is a convolution, and of how many groups.
        return f"it has {len(entry.shape)} dimensions, and no adapter's factors"
    if not entry.name.endswith(".weight"):
        return "it is no module's weight"
    if not math.isfinite(entry.delta_norm):
        return "its delta has numbers that are not finite"
    if entry.base_dtype == "C64" or entry.post_dtype == "C64" or entry.delta_norm > _MOST_NORM:
        return _TOO_LARGE
    return None


def _has_factors(entry: TensorEntry) -> bool:
    """Whether a tensor's record has the factors of an adapter."""
    return entry.rank is not None and entry.error is None


def _names(matrix: _Matrix) -> tuple[str, str]:
    """What PEFT calls the factors."""
    start = f"{PREFIX}{matrix.module}"
    if matrix.kind is Kind.EMBEDDING:
        return f"{start}.lora_embedding_A", f"{start}.lora_embedding_B"
    return f"{start}.lora_A.weight", f"{start}.lora_B.weight"


def _exceeds(reader: RecordReader) -> bool:
    """Whether a delta in float64 has a number that float32 lacks: the norm leaves out what has no square."""
    if reader.head.delta.dtype != "F64":
        return False
    for number in range(reader.count):
        with frame_memory():
            if np.abs(delta_values(reader, number)).max(initial=0.0) > _MOST_NORM:
                return True
    return False


def _stored_dtype(entry: TensorEntry) -> str:
    """The dtype of a whole parameter in the adapter: what is no float, such as a counter, keeps its own."""
    assert entry.post_dtype is not None
    return "F32" if entry.post_dtype in DELTA_DTYPES else entry.post_dtype


def _ratio(residue: float, total: float) -> float:
    return math.sqrt(residue / total) if total else 0.0
