"""What computes: by default the processor that runs the program, with compiled loops on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from deltareg.codec import Array, Lane, kernels
from deltareg.codec.memory import frame_memory
from deltareg.merge import loops
from deltareg.merge.block import Addend, Block
from deltareg.merge.deferred import Deferred
from deltareg.merge.linear import linear
from deltareg.merge.values import values_of

__all__ = ["CPU", "Processor"]

Result = TypeVar("Result")

# So many lanes of two deltas, their values and what is made of them take about 5 MB: a share of a cache, where the
# 20 MB of a whole block would go to memory and back between each two loops.
_PART_LANES = 1 << 18


class Processor:
    """Does the arithmetic of an apply. This one is the host's; subclasses are devices, with arrays of their own.

    All of them give the same bits.
    """

    keeps_tokens: bool = False
    """Whether it looks up the symbols of a palette itself."""

    defers: bool = True
    """Whether stages can put off what they do: see `deferred.py`."""

    repeats: bool = False
    """Whether a step may be done more than once, since memory may run out in it."""

    def __init__(self, part_lanes: int | None = _PART_LANES) -> None:
        """Work on so many lanes of a block at a time; None for all."""
        self.part_lanes = part_lanes

    @property
    def name(self) -> str:
        """What to call it."""
        return "cpu"

    @property
    def loops(self) -> ModuleType | Any:
        """The loops of the merge methods, as `loops.py` has them, on its arrays."""
        return loops

    def step(self, work: Callable[[], Result]) -> Result:
        """Do `work` in frame memory. It waits for no other step, and nothing of it is kept but what it returns."""
        with frame_memory():
            return work()

    def linear(self, block: Block) -> None:
        """As `deltareg.merge.linear`."""
        linear(block)

    def values_of(
        self, addends: Sequence[Addend], accumulator: type[np.floating[Any]]
    ) -> tuple[tuple[Any, ...], Callable[[int, int], Any]]:
        """The symbols of `Values`, and what makes its array, on this processor."""
        return tuple(addend.symbols for addend in addends), partial(values_of, addends, accumulator)

    def add_merged(self, target: Array, target_lane: Lane, merged: Any, out: Array, out_lane: Lane) -> None:
        """out = round(target + merged), of the lanes that they are: `target` and `out` here, `merged` there."""
        if isinstance(merged, Deferred):
            merged.add_to(target, out)
        else:
            kernels.add_merged(target, merged, out)


CPU = Processor()
"""The host itself."""
