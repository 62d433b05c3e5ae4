"""The compiled loops that an apply needs, loaded before its first frame.

Loading takes some tenths of a second in which every thread would wait, and on a machine's first use, when they are
compiled, seconds. It depends on the dtypes and not on the sizes, so that it is measured apart from the work.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deltareg.apply.plan import Plan, PlannedTensor
from deltareg.codec import Lane, decode_frame, lane_of
from deltareg.codec.smallest import smallest_frames
from deltareg.merge import Addend, Block

__all__ = ["load_loops"]


def load_loops(plan: Plan, method: Callable[[Block], None]) -> None:
    """Decode and apply one lane in each combination of dtypes that the plan has."""
    for action, target, out, pieces in {_work_of(tensor) for tensor in plan.tensors.values()}:
        if action == "copy":
            continue
        if action == "replace":
            for data in smallest_frames(out, adds=False):
                decode_frame(memoryview(data), 1, None, out)
            continue
        assert target is not None
        addends = [addend for lanes in pieces for addend in _addends(*lanes)]
        # Where only one of several deltas changes something, it is added as if it were alone.
        for some in {0: (), 1: tuple(addends[:1]), len(addends): tuple(addends)}.values():
            method(Block(np.zeros(1, target.stored), target, some, np.zeros(1, out.stored), out))


_Work = tuple[str, Lane | None, Lane, tuple[tuple[Lane, Lane], ...]]


def _work_of(tensor: PlannedTensor) -> _Work:
    pieces = [(piece.entry.base_dtype, piece.entry.post_dtype) for piece in tensor.pieces]
    lanes = tuple((lane_of(base), lane_of(post)) for base, post in pieces if base is not None and post is not None)
    target = None if tensor.source is None else lane_of(tensor.source.dtype)
    return tensor.action, target, lane_of(tensor.dtype), lanes


def _addends(base: Lane, post: Lane) -> list[Addend]:
    return [
        Addend(decode_frame(memoryview(data), 1, base, post), base, post, 1.0)
        for data in smallest_frames(post, adds=True)
    ]
