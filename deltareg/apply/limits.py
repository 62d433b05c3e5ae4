"""How much of a machine a run takes: threads, and what it holds in memory. What it gives does not depend on it."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass, replace

import numpy as np

from deltareg.apply.merging import blocks_of
from deltareg.apply.plan import Plan, PlannedTensor
from deltareg.checkpoint.output import MOST_WAITING, bytes_on_their_way
from deltareg.codec import FRAME_LANES, delta_lane_of, lane_of
from deltareg.errors import InvalidArgument
from deltareg.merge import accumulator_of

__all__ = ["Limits", "held_bytes", "limits_for", "peak_memory", "resident_memory"]

# Up to so many bytes of decoded deltas are kept from one pass over a tensor to the next.
_MOST_KEPT = 192 * 2**20
_SOME_KEPT = 48 * 2**20
# So many tensors are on their way at a time: while the last steps of one pass are done, others need not wait for it.
_AHEAD = 3
# What is sent waits on disk where it may not in memory; with so much of it that is rare.
_LEAST_WAITING = 8 * 2**20
# What the interpreter, the allocator and the results that wait to be taken need beside all that is counted here.
_SLACK = 24 * 2**20
# Frame memory is taken in blocks: see `codec/memory.py`.
_ARENA_BLOCK = 16 * 2**20
_COUNTS = 65_536 * 4
_RUNS = 64


@dataclass(frozen=True)
class Limits:
    """Threads; tensors that are on their way at a time; bytes of decoded deltas that are kept of all of them.

    `waiting` are the bytes that may wait in memory for their turn to be sent, where the output is in an object store.
    """

    threads: int
    ahead: int = _AHEAD
    kept: int = _MOST_KEPT
    waiting: int = MOST_WAITING


def limits_for(
    plan: Plan, threads: int, memory: int | None, resident: int, out: str | os.PathLike[str] = ""
) -> tuple[Limits, int]:
    """The most that `memory` bytes allow, of which `resident` are taken already, and about how many are held then.

    Without a bound it is what is fastest. Else fewer tensors are on their way, then nothing is kept, then less waits to
    be sent, then threads go. Raises InvalidArgument where one thread needs more.
    """
    if memory is not None and memory < 1:
        raise InvalidArgument(f"{memory} bytes of memory hold nothing", hint="write 2GiB, 500MiB or a number of bytes")
    best = Limits(threads)
    if memory is None:
        return best, resident + held_bytes(plan, best, out)
    leaner = [best, *(replace(best, ahead=1, kept=kept) for kept in (_MOST_KEPT, _SOME_KEPT, 0))]
    leaner += [Limits(count, 1, 0, _LEAST_WAITING) for count in range(threads, 0, -1)]
    for limits in leaner:
        held = resident + held_bytes(plan, limits, out)
        if held <= memory:
            return limits, held
    least = resident + held_bytes(plan, leaner[-1], out)
    raise InvalidArgument(
        f"{memory // 2**20} MiB of memory are too few: {resident // 2**20} MiB are taken before the work begins",
        hint=f"this needs --memory {-(-least // 2**20)}MiB",
        needed=least,
    )


def held_bytes(plan: Plan, limits: Limits, out: str | os.PathLike[str] = "") -> int:
    """About how many bytes of memory a run to `out` holds at most, beside what the process holds before it."""
    changed = [tensor for tensor in plan.tensors.values() if tensor.action != "copy"]
    frame = max((_frame_bytes(tensor) for tensor in changed), default=0)
    frames = limits.threads * (frame + _ARENA_BLOCK) if frame else 0
    flight = sorted(map(_flight_bytes, changed), reverse=True)
    decoded = sum(_decoded_bytes(tensor) for tensor in changed)
    return (
        _SLACK
        + frames
        + min(limits.kept, decoded)
        + sum(flight[: limits.ahead + 1])
        + _model_bytes(plan)
        + _sent_bytes(plan, limits, out)
    )


def _frame_bytes(tensor: PlannedTensor) -> int:
    """What the work on one block takes: of each delta compressed bytes, tokens and symbols, then values and results."""
    target = 0 if tensor.source is None else lane_of(tensor.source.dtype).width
    kinds = tensor.kinds
    known = [lane_of(tensor.dtype), *kinds, *([] if tensor.source is None else [lane_of(tensor.source.dtype)])]
    wide = np.dtype(accumulator_of(known)).itemsize
    decoded = sum(2 * kind.width + 1 for kind in kinds)
    values = 2 * wide if tensor.is_sum or not tensor.stages else (len(kinds) + 3) * wide + 8
    block = FRAME_LANES
    if any(stage.whole_rows for stage in tensor.stages):
        block = max(block, tensor.row) + FRAME_LANES
    return min(tensor.lanes, block) * (decoded + values + target + lane_of(tensor.dtype).width)


def _decoded_bytes(tensor: PlannedTensor) -> int:
    """What may be kept of a tensor from one pass over it to the next."""
    if tensor.is_sum or not tensor.stages:
        return 0
    return tensor.lanes * sum(delta_lane_of(piece.entry).width for piece in tensor.pieces)


def _flight_bytes(tensor: PlannedTensor) -> int:
    """What else is held of a tensor from one pass over it to the next: counts of magnitudes."""
    if tensor.is_sum or not tensor.stages:
        return 0
    blocks = min(_RUNS, blocks_of(tensor.lanes, tensor.row, tensor.stages))
    return blocks * 2 * _COUNTS * len(tensor.pieces)


def _model_bytes(plan: Plan) -> int:
    """What stages that settle something for the whole model hold of it: counts of the magnitudes of each delta."""
    found: dict[object, int] = {}
    deltas = 1 + max((piece.delta for tensor in plan.tensors.values() for piece in tensor.pieces), default=0)
    for tensor in plan.tensors.values():
        if tensor.stages and tensor.stages[0].scope == "model":
            blocks = blocks_of(tensor.lanes, tensor.row, tensor.stages)
            found[tensor.stages[0]] = found.get(tensor.stages[0], 0) + blocks
    return sum((min(_RUNS, blocks) + 1) * 2 * _COUNTS * deltas for blocks in found.values())


def _sent_bytes(plan: Plan, limits: Limits, out: str | os.PathLike[str]) -> int:
    """What is on its way to an object store, and what waits for its turn."""
    sizes = [sum(plan.tensors[name].nbytes for name, _, _ in shard.tensors) for shard in plan.shards]
    sent = bytes_on_their_way(out, sizes)
    return 0 if sent is None else sent + min(limits.waiting, plan.nbytes)


def peak_memory() -> int:
    """The most bytes of memory that this process has held at a time."""
    try:
        # Not getrusage's where it can be helped: Linux counts in what the parent held before it started this program.
        with open("/proc/self/status", "rb") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def resident_memory() -> int:
    """Bytes of memory that this process holds now; the most so far where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()
