"""`linear`: weighted sums of deltas (ParamΔ, task arithmetic)."""

from __future__ import annotations

import numpy as np

from deltareg.codec import Array, Lane, kernels
from deltareg.codec.memory import empty
from deltareg.codec.mend import Mending, Overwrites
from deltareg.merge.block import Addend, Block, accumulator_of

__all__ = ["linear", "overwrite"]


def linear(block: Block) -> None:
    """out = round(target + Σ wᵢ·Δᵢ): ParamΔ (arXiv 2504.21023, equation 3), task arithmetic (arXiv 2212.04089).

    Products and sums are rounded one by one to the accumulator's type, in the order of the addends, and the total once
    to the output's. A lane that no delta changes keeps the target's bits.
    """
    active = [addend for addend in block.addends if addend.frame.symbols is not None]
    if len(active) == 1 and block.accumulator is _own_accumulator(block, active[0]):
        _add_one(block, active[0])
    else:
        _add_all(block, active)


def overwrite(block: Block, addend: Addend) -> tuple[int, int]:
    """Put post's bits where no sum can give them; returns how many lanes were overwritten, and how many were not.

    That is done only where the target is the base, lane for lane, and the delta stands alone at weight 1.
    """
    overwrites = addend.frame.overwrites
    if overwrites is None:
        return 0, 0
    fitting = _fitting(block, addend, overwrites)
    block.out.view(addend.lane.bits)[overwrites.positions[fitting]] = overwrites.post[fitting]
    count = int(np.count_nonzero(fitting))
    return count, overwrites.positions.size - count


def _fitting(block: Block, addend: Addend, overwrites: Overwrites) -> Array:
    alone = addend.weight == 1 and len(block.addends) == 1
    if not alone or block.target_lane != addend.base_lane or block.out_lane != addend.lane:
        return np.zeros(overwrites.positions.size, bool)
    return block.target.view(addend.base_lane.bits)[overwrites.positions] == overwrites.base


def _own_accumulator(block: Block, addend: Addend) -> type[np.floating]:
    return accumulator_of([block.target_lane, addend.lane])


def _add_one(block: Block, addend: Addend) -> None:
    kernels.apply_one(block.target, addend.delta, addend.symbols, addend.lane.marker, addend.weight, block.out)
    mending = addend.frame.mending
    if mending is None:
        return
    terms = mending.terms(addend.delta, addend.lane, block.accumulator)
    kernels.apply_terms(block.target, mending.positions, terms, addend.weight, block.out)


def _add_all(block: Block, active: list[Addend]) -> None:
    total = empty(block.out.size, block.accumulator)
    kernels.widen_all(block.target, total)
    touched = empty(total.size, np.uint8)
    touched.fill(0)
    for addend in active:
        mending = addend.frame.mending
        before = None if mending is None else total[mending.positions]
        kernels.accumulate(total, touched, addend.delta, addend.symbols, addend.lane.marker, addend.weight)
        if mending is not None and before is not None:
            total[mending.positions] = _mended(before, addend.delta, mending, addend.weight, addend.lane)
    kernels.finish(block.target, total, touched, block.out)


def _mended(before: Array, delta: Array, mending: Mending, weight: float, lane: Lane) -> Array:
    terms = mending.terms(delta, lane, before.dtype.type)
    with np.errstate(all="ignore"):
        return before + terms * before.dtype.type(weight)
