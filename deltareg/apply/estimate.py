"""How long an apply will take, from doing a small part of it and writing nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deltareg.apply.limits import Limits
from deltareg.apply.loops import load_loops
from deltareg.apply.placement import WeightedDelta
from deltareg.apply.plan import Plan, PlannedTensor
from deltareg.apply.run import Share, run
from deltareg.checkpoint import Tensor
from deltareg.merge.processor import CPU, Processor
from deltareg.progress import SILENT, Progress
from deltareg.store import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["expected_seconds"]

_SAMPLE = 48 * 2**20
_LARGEST = 64 * 2**20


def expected_seconds(
    plan: Plan, deltas: Sequence[WeightedDelta], store: Store, limits: Limits, processor: Processor = CPU
) -> float:
    """Seconds of reading, decoding and merging, without those in which the disk is waited for.

    Tensors of about 48 MiB in all are merged, and one pack is verified; the rest is taken to be like them.
    """
    changed = [tensor for tensor in plan.tensors.values() if tensor.action != "copy" and tensor.nbytes]
    sample = _sample(changed)
    if not sample:
        return 0.0
    part = replace(plan, tensors={tensor.name: tensor for tensor in sample})
    if processor is CPU:
        load_loops(part)
    started = time.monotonic()
    share = Share(frozenset(part.tensors))
    run(
        part,
        deltas,
        store,
        _Nowhere(),
        limits=limits,
        progress=SILENT,
        verified=lambda: None,  # nothing is written of what is read
        part=share,
        processor=processor,
    )
    merged = time.monotonic() - started
    packs = [pack for delta in deltas for pack in delta.artifact.packs]
    started = time.monotonic()
    for pack in packs[:1]:
        store.verify(pack, quick=True)
    verified = time.monotonic() - started
    share_of_packs = sum(pack.size for pack in packs) / max(1, sum(pack.size for pack in packs[:1]))
    share_of_tensors = sum(tensor.nbytes for tensor in changed) / sum(tensor.nbytes for tensor in sample)
    return merged * share_of_tensors + verified * share_of_packs / limits.threads


def _sample(tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """The largest tensors of at most 64 MiB, up to 48 MiB in all; the smallest one where all are larger."""
    found: list[PlannedTensor] = []
    room = _SAMPLE
    for tensor in sorted(tensors, key=lambda tensor: (-tensor.nbytes, tensor.name)):
        if tensor.nbytes <= min(_LARGEST, room if found else _LARGEST):
            found.append(tensor)
            room -= tensor.nbytes
    return found or sorted(tensors, key=lambda tensor: (tensor.nbytes, tensor.name))[:1]


class _Nowhere:
    """Takes what an apply would write, and drops it."""

    def write(self, tensor: str, offset: int, data: Buffer) -> None:
        """Drop a part of a tensor."""

    def copy_part(self, tensor: str, offset: int, nbytes: int, source: Tensor) -> bool:
        """Be given them: there is nowhere to copy them to."""
        return False

    def copy(self, tensor: str, source: Tensor, progress: Progress | None = None) -> None:
        """Drop a tensor."""
