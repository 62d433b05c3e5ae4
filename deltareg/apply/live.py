"""Deltas on a model in memory: put on, weighted anew, taken off again, in place.

What a delta changes is kept before it is changed, so that taking everything off gives back the bits that were there.
Whatever is active is always merged anew from those: nothing builds up.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from deltareg.apply.company import Fault, faults_among, notes_among
from deltareg.apply.limits import Limits
from deltareg.apply.loops import load_loops
from deltareg.apply.placement import WeightedDelta, place
from deltareg.apply.plan import LINEAR, Merge, Parameters, Plan, plan, schedules_of
from deltareg.apply.prepare import Weight, checked_weight, open_delta, refuse_errors
from deltareg.apply.run import run
from deltareg.apply.write import verifying
from deltareg.catalog import Registry
from deltareg.check import Fit, fit
from deltareg.checkpoint import Checkpoint, LocalFolder, Tensor, checkpoint_of
from deltareg.checkpoint.layout import is_tokenizer_file, side_files_of
from deltareg.checkpoint.source import bytes_of
from deltareg.errors import DeltaregError, InvalidArgument, NotFound, NotHomologous, UnsupportedFormat
from deltareg.manifest import Document
from deltareg.merge import Value, refuse_unmatched
from deltareg.names import Reference, parse_reference
from deltareg.progress import SILENT, Progress
from deltareg.threads import in_background, thread_count

if TYPE_CHECKING:
    import os

    import torch
    from typing_extensions import Buffer

    from deltareg.codec import Array

    Model = torch.nn.Module | Mapping[str, torch.Tensor]

__all__ = ["Live", "LiveReport", "live"]

_DTYPES = {
    "bfloat16": "BF16",
    "bool": "BOOL",
    "complex64": "C64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "uint8": "U8",
}
_SHOWN = 5
_TOKENIZER_LIMIT = 512 * 2**20


class LiveReport(Document):
    """What a change of the active deltas did to the model."""

    deltas: dict[str, Value]
    changed_tensors: int
    restored_tensors: int
    remedies: list[str]
    warnings: list[str]
    seconds: float


def live(
    model: Model,
    registry: Registry | None = None,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Live:
    """Take hold of a model, so that deltas can be put on it: a module, or a state dict.

    Nothing changes yet. `tokenizer` is the directory that holds the model's tokenizer, or its checkpoint: given that,
    rows of the embeddings go to where their tokens are. Raises InvalidArgument, UnsupportedFormat.

        with deltareg.live(model) as loaded:
            loaded.apply("acme/search:1.0.0", weight=0.5)
            ...
    """
    return Live(model, registry or Registry(), tokenizer=tokenizer, threads=threads)


class Live:
    """A model, and the deltas that are on it. Leaving its context takes them all off.

    Not to be used while another thread computes with the model. Holds a copy of each tensor that an active delta
    changes.
    """

    def __init__(
        self,
        model: Model,
        registry: Registry,
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._registry = registry
        self._threads = thread_count(threads)
        self._slots = dict(_slots_of(model))
        self._files = _files_of(model, tokenizer)
        self._label = type(model).__name__
        self._active: dict[Reference, WeightedDelta] = {}
        self._merge = LINEAR
        self._forced: set[str] = set()

    @property
    def deltas(self) -> dict[str, Value]:
        """The active deltas with their weights, in the order in which they came."""
        return {str(reference): delta.weights.plain for reference, delta in self._active.items()}

    def apply(
        self,
        reference: str | Reference,
        weight: Weight = 1.0,
        *,
        parameters: Parameters | None = None,
        force: bool = False,
        progress: Progress = SILENT,
    ) -> LiveReport:
        """Put one more delta on the model, with `parameters` of the method that it has for itself.

        Raises NotHomologous where it does not fit (`force` overrides what the check finds, not what is impossible in
        place), InvalidArgument where it is on the model already, or was taken on top of a delta that is not (`force`
        overrides that too), or where one excludes the other; NotFound, BadRecord, DigestMismatch. After an error
        the model is as it was.
        """
        delta = open_delta(self._registry, reference, checked_weight(weight), schedules_of(parameters))
        if delta.reference in self._active:
            raise InvalidArgument(
                f"{delta.reference} is on the model already", hint="set(reference, weight) gives it another weight"
            )
        return self._change({**self._active, delta.reference: delta}, self._merge, force=force, progress=progress)

    def set(
        self,
        reference: str | Reference,
        weight: Weight,
        *,
        parameters: Parameters | None = None,
        force: bool = False,
        progress: Progress = SILENT,
    ) -> LiveReport:
        """Give an active delta another weight, and other `parameters` of the method for itself; None keeps these.

        Raises NotFound where it is not on the model; InvalidArgument for weight 0 while others stand on it, without
        `force`.
        """
        found = self._find(reference)
        own = found.parameters if parameters is None else schedules_of(parameters)
        delta = replace(found, weights=checked_weight(weight), parameters=own)
        wanted = {**self._active, found.reference: delta}
        return self._change(wanted, self._merge, force=True, alone=force, progress=progress)

    def remove(self, reference: str | Reference, *, force: bool = False, progress: Progress = SILENT) -> LiveReport:
        """Take a delta off again.

        Raises NotFound where it is not on the model; InvalidArgument while others stand on it, without `force`.
        """
        found = self._find(reference)
        rest = {name: delta for name, delta in self._active.items() if name != found.reference}
        return self._change(rest, self._merge, force=True, alone=force, progress=progress)

    def replace(
        self,
        deltas: Sequence[tuple[str | Reference, Weight, Parameters | None]],
        *,
        force: bool = False,
        progress: Progress = SILENT,
    ) -> LiveReport:
        """Make these the deltas on the model, in this order and no others, in one change: quicker than one by one.

        Raises what `apply` raises; InvalidArgument for one that is given twice.
        """
        wanted: dict[Reference, WeightedDelta] = {}
        for reference, weight, parameters in deltas:
            delta = open_delta(self._registry, reference, checked_weight(weight), schedules_of(parameters))
            if delta.reference in wanted:
                raise InvalidArgument(f"{delta.reference} is given twice", hint="give it one weight")
            wanted[delta.reference] = delta
        return self._change(wanted, self._merge, force=force, progress=progress)

    def clear(self) -> LiveReport:
        """Take everything off: the model has the bits that it had."""
        return self._change({}, self._merge, force=True, progress=SILENT)

    def merge(
        self,
        method: str,
        parameters: Parameters | None = None,
        *,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> LiveReport:
        """Merge the active deltas by another method from now on, as `deltareg.apply` does. Raises InvalidArgument."""
        merge = Merge.of(method, parameters, seed)
        return self._change(self._active, merge, force=True, progress=progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __repr__(self) -> str:
        told = ", ".join(f"{weight} × {reference}" for reference, weight in self.deltas.items()) or "no deltas"
        return f"Live({self._label}, {told})"

    def _find(self, reference: str | Reference) -> WeightedDelta:
        name = reference if isinstance(reference, Reference) else parse_reference(reference)
        if name not in self._active:
            name = self._registry.version_of(reference)
        if name not in self._active:
            on = ", ".join(map(str, self._active)) or "none"
            raise NotFound(f"{reference} is not on the model", cause=f"on it: {on}", hint="apply(reference) puts it on")
        return self._active[name]

    def _change(
        self,
        wanted: dict[Reference, WeightedDelta],
        merge: Merge,
        *,
        force: bool,
        alone: bool | None = None,
        progress: Progress,
    ) -> LiveReport:
        """`alone`: deltas may lack what they require, and exclude one another; None leaves that to `force`."""
        started = time.monotonic()
        alone = force if alone is None else alone
        deltas = [delta for delta in wanted.values() if any(delta.weights.values)]
        tensors = {name: (slot.dtype, slot.shape, slot.original) for name, slot in self._slots.items()}
        with checkpoint_of(self._label, tensors, self._files) as target:
            fits = fit(
                target, [(delta.reference, delta.artifact) for delta in deltas], threads=self._threads, lenient=True
            )
            refuse_errors(fits, target, force=force)
            faults = faults_among(deltas, fits)
            self._refuse_company(faults, force=alone)
            planned, remedies = self._plan(target, deltas, merge, fits)
            company = [*map(str, faults), *notes_among(deltas, fits)]
            changing = {name for name, tensor in planned.tensors.items() if tensor.action != "copy"}
            restoring = [name for name, slot in self._slots.items() if slot.kept is not None and name not in changing]
            if changing:
                self._run(planned, deltas, progress)
        for name in restoring:
            self._slots[name].restore()
        for name in changing:
            self._slots[name].settle()
        self._active, self._merge = wanted, merge
        self._forced = {str(fault) for fault in faults}
        return LiveReport(
            deltas=self.deltas,
            changed_tensors=len(changing),
            restored_tensors=len(restoring),
            remedies=remedies,
            warnings=[
                *(warning for delta in deltas for warning in delta.warnings),
                *company,
                *planned.warnings,
                *(f"{name} stays, which post lacks" for name in planned.removed),
            ],
            seconds=time.monotonic() - started,
        )

    def _plan(
        self, target: Checkpoint, deltas: list[WeightedDelta], merge: Merge, fits: Sequence[Fit]
    ) -> tuple[Plan, list[str]]:
        for delta in deltas:
            merge.check_own(delta.reference, delta.parameters)
        if deltas:
            merge.method.check_deltas(len(deltas))
        placement = place(target, deltas, fits, with_added=False)
        planned = plan(target, deltas, placement, merge)
        schedules = [*(schedule for delta in deltas for schedule in delta.schedules), *merge.parameters.values()]
        refuse_unmatched(schedules, planned.subjects.values())
        self._refuse_impossible(planned)
        return planned, list(placement.remedies)

    def _run(self, planned: Plan, deltas: list[WeightedDelta], progress: Progress) -> None:
        try:
            store, limits, sink = self._registry.store, Limits(self._threads), _Sink(self._slots)
            with in_background(verifying(deltas, store), self._threads) as verified:
                load_loops(planned)
                run(planned, deltas, store, sink, limits=limits, progress=progress, verified=verified)
        except BaseException as error:
            self._revert(error)
            raise

    def _refuse_company(self, faults: Sequence[Fault], *, force: bool) -> None:
        """Raise InvalidArgument for what a change makes wrong. What was forced before is not asked again."""
        new = [fault for fault in faults if str(fault) not in self._forced]
        if not new or force:
            return
        first = new[0]
        if first.missing is None:
            hint = "take one of them off first"
        else:
            hint = f"apply({first.missing.name!r}, {first.missing.weight:g}) first, or take {first.delta.reference} off"
        raise InvalidArgument(
            "; ".join(map(str, new)), hint=f"{hint}; force=True overrides", faults=[str(fault) for fault in new]
        )

    def _refuse_impossible(self, planned: Plan) -> None:
        """Raise NotHomologous for what cannot be done in place."""
        faults: list[str] = []
        for name, tensor in planned.tensors.items():
            slot = self._slots.get(name)
            if slot is None:
                faults.append(f"{name} would be a tensor of its own, which in this model it is not")
            elif tensor.dtype != slot.dtype:
                faults.append(f"{name} would be {tensor.dtype}, it is {slot.dtype}")
        if faults:
            raise NotHomologous(
                f"the deltas cannot be put on a model in memory: {_some(faults)}",
                hint="deltareg apply makes a checkpoint of them, which can then be loaded",
            )

    def _revert(self, failure: BaseException) -> None:
        """After a failure half way: the bits without deltas, then those of the deltas that were on before.

        Where these cannot be put back either, none is on the model, and `failure` is given a note that says so.
        """
        for slot in self._slots.values():
            slot.restore()
        before, self._active = self._active, {}
        try:
            if before:
                self._change(before, self._merge, force=True, progress=SILENT)
        except DeltaregError as error:
            failure.add_note(f"what was on the model before could not be put back, no delta is on it now: {error}")


class _Slot:
    """One tensor of the model: its bytes where they are, and those that it had where a delta has changed it."""

    def __init__(self, tensor: torch.Tensor, dtype: str) -> None:
        self.dtype = dtype
        self.shape = tuple(tensor.shape)
        self._tensor = tensor
        # What is elsewhere, or not in one piece, is worked on in a copy, and copied back.
        self._direct = tensor.device.type == "cpu" and tensor.is_contiguous()
        self._bytes = _bytes_of(tensor)
        self.kept: Array | None = None
        self._fresh: list[slice] = []
        self._lock = threading.Lock()

    @property
    def original(self) -> Array:
        """The bytes without any delta."""
        return self._bytes if self.kept is None else self.kept

    def write(self, offset: int, data: Buffer) -> None:
        """Change bytes, after what was there has been kept."""
        view = np.frombuffer(bytes_of(data), np.uint8)
        part = slice(offset, offset + view.size)
        with self._lock:
            if self.kept is None and not self._fresh:
                self._copy = np.empty_like(self._bytes)
            fresh = self.kept is None
            if fresh:
                self._fresh.append(part)
        if fresh:
            self._copy[part] = self._bytes[part]
        self._bytes[part] = view

    def settle(self) -> None:
        """All of it was written."""
        if self._fresh:
            self.kept, self._fresh = self._copy, []
            del self._copy
        self._put_back()

    def restore(self) -> None:
        """Give back the bytes without any delta."""
        if self.kept is not None:
            self._bytes[:] = self.kept
        for part in self._fresh:
            self._bytes[part] = self._copy[part]
        if self.kept is not None or self._fresh:
            self._put_back()
        self.kept, self._fresh = None, []

    def _put_back(self) -> None:
        if not self._direct:
            import torch

            with torch.no_grad():
                flat = cast("Any", torch).from_numpy(self._bytes).view(self._tensor.dtype)
                self._tensor.copy_(flat.view(self.shape))


class _Sink:
    """Writes into the model."""

    def __init__(self, slots: Mapping[str, _Slot]) -> None:
        self._slots = slots

    def write(self, tensor: str, offset: int, data: Buffer) -> None:
        """Change a part of a tensor."""
        self._slots[tensor].write(offset, data)

    def copy_part(self, tensor: str, offset: int, nbytes: int, source: Tensor) -> bool:
        """Be given them: what is there may be changed."""
        return False

    def copy(self, tensor: str, source: Tensor, progress: Progress | None = None) -> None:
        """A tensor that stays as it is without deltas; what is to be restored is restored in the end."""
        if progress is not None:
            progress.advance(source.nbytes)


def _slots_of(model: Model) -> Iterator[tuple[str, _Slot]]:
    """The model's tensors by name; of those that share their memory the first."""
    state = cast("Mapping[str, Any]", model.state_dict() if hasattr(model, "state_dict") else model)  # type: ignore[union-attr]
    if not hasattr(state, "items"):
        raise InvalidArgument(f"{type(model).__name__} is no model", hint="give a torch module or a state dict")
    seen: set[tuple[Any, ...]] = set()
    faults: list[str] = []
    for name, value in state.items():
        if not hasattr(value, "untyped_storage"):
            continue  # extra state of a module: no weights
        tensor = value.detach()
        if tensor.device.type == "meta":
            faults.append(f"{name} is on the device meta: its weights are not loaded")
            continue
        dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            faults.append(f"{name} is {tensor.dtype}")
            continue
        where = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and where in seen:
            continue
        seen.add(where)
        yield name, _Slot(tensor, dtype)
    if faults:
        raise UnsupportedFormat(
            f"deltas cannot be put on this model: {_some(faults)}",
            hint="load the model whole, in a dtype of numbers, without quantisation",
        )


def _some(faults: Sequence[str]) -> str:
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more


def _bytes_of(tensor: Any) -> Array:
    """The tensor's bytes, in place where they lie in one piece in this machine's memory."""
    import torch

    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def _files_of(model: Model, tokenizer: str | os.PathLike[str] | None) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        files["config.json"] = json.dumps(config.to_dict(), default=str).encode()
    if tokenizer is not None:
        folder = LocalFolder(Path(tokenizer))
        for name in side_files_of(folder.names()):
            if is_tokenizer_file(name):
                files[name] = folder.read(name, _TOKENIZER_LIMIT)
    return files
