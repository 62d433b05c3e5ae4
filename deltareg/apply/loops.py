"""The compiled loops that an apply needs, loaded before its first frame.

Loading takes some tenths of a second in which every thread would wait, and on a machine's first use, when they are
compiled, seconds. It depends on the dtypes and not on the sizes, so that it is measured apart from the work.
"""

from __future__ import annotations

import numpy as np

from deltareg.apply.merging import Merging, Part
from deltareg.apply.plan import Plan, PlannedTensor
from deltareg.codec import Frame, Lane, decode_frame, delta_lane_of, kernels, lane_of
from deltareg.codec.mend import Mending, can_mend
from deltareg.codec.smallest import smallest_frames
from deltareg.merge import Addend, Block, Stage, accumulator_of, linear
from deltareg.merge.processor import CPU

__all__ = ["load_loops"]

_FEW = 16


def load_loops(plan: Plan) -> None:
    """Decode and apply a few lanes in each combination of dtypes and stages that the plan has."""
    if any(piece.entry.rank is not None for tensor in plan.tensors.values() for piece in tensor.pieces):
        kernels.multiply(np.ones((1, 1)), np.ones((1, 1)), 1.0, 0, np.zeros(1, np.uint32))
    for action, target, out, pieces, stages, defers in {_work_of(tensor) for tensor in plan.tensors.values()}:
        if action == "copy":
            continue
        if action == "replace":
            for data in smallest_frames(out, adds=False):
                decode_frame(memoryview(data), 1, None, out)
            continue
        assert target is not None
        if stages:
            _merge_few_lanes(target, out, pieces, stages, defers=defers)
            continue
        addends = [addend for lanes in pieces for addend in _addends(*lanes)]
        # Where only one of several deltas changes something, it is added as if it were alone.
        for some in {0: (), 1: tuple(addends[:1]), len(addends): tuple(addends)}.values():
            linear(Block(np.zeros(1, target.stored), target, some, np.zeros(1, out.stored), out))


_Work = tuple[str, Lane | None, Lane, tuple[tuple[Lane, Lane], ...], tuple[Stage, ...], bool]


def _work_of(tensor: PlannedTensor) -> _Work:
    adding = [(piece.entry.base_dtype, piece.entry) for piece in tensor.pieces if piece.entry.post_dtype is not None]
    lanes = tuple((lane_of(base), delta_lane_of(entry)) for base, entry in adding if base is not None)
    target = None if tensor.source is None else lane_of(tensor.source.dtype)
    stages = () if tensor.is_sum else tensor.stages
    return tensor.action, target, lane_of(tensor.dtype), lanes, stages, tensor.defers


def _addends(base: Lane, delta: Lane) -> list[Addend]:
    return [
        Addend(decode_frame(memoryview(data), 1, base, delta), base, delta, 1.0)
        for data in smallest_frames(delta, adds=True)
    ]


def _merge_few_lanes(
    target: Lane, out: Lane, pieces: tuple[tuple[Lane, Lane], ...], stages: tuple[Stage, ...], *, defers: bool
) -> None:
    for base, delta in pieces:
        _addends(base, delta)

    def one(delta: Lane) -> Part:
        # From 1.5 on in every format: a share of them is looked for.
        symbols = (int(delta.infinity >> delta.bits(1)) + np.arange(_FEW)).astype(delta.bits)
        mending = Mending(np.zeros(1, np.int64), np.zeros(1, delta.bits)) if can_mend(delta) else None
        return Part(0, lambda number, lanes: Frame(lanes, symbols, None, mending), delta, delta, 1.0, 0)

    # Two deltas at least, which some methods need.
    parts = [one(delta) for _, delta in (pieces if len(pieces) > 1 else pieces * 2)]
    accumulator = accumulator_of([target, out, *(delta for _, delta in pieces)])
    merging = Merging(_FEW, _FEW, parts, stages, accumulator, defers=defers)
    for here, merged in merging.merge_alone():
        before, after = np.zeros(_FEW, target.stored), np.zeros(_FEW, out.stored)
        CPU.add_merged(before[here], target, merged, after[here], out)
