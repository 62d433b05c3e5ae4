"""A block: the same lanes of the target and of every delta, and room for the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deltareg.codec import Array, Frame, Lane
from deltareg.codec.memory import empty

__all__ = ["Addend", "Block", "accumulator_of"]


def accumulator_of(lanes: Iterable[Lane]) -> type[np.floating]:
    """What sums of these are taken in: float64 where a dtype of 32 bits or more takes part, else float32."""
    return np.float64 if any(lane.wide for lane in lanes) else np.float32


@dataclass(frozen=True)
class Addend:
    """One delta's frame for the block, and its weight, which is not zero."""

    frame: Frame
    base_lane: Lane
    lane: Lane
    weight: float

    @cached_property
    def symbols(self) -> Array:
        """The bits of D1 of every lane of the block, the marker where nothing changes; of `lane.bits`."""
        frame = self.frame
        if frame.symbols is not None and frame.positions is None:
            return frame.symbols
        symbols = empty(frame.lanes, self.lane.bits)
        symbols.fill(self.lane.marker)
        if frame.symbols is not None:
            symbols[frame.positions] = frame.symbols
        return symbols

    @property
    def delta(self) -> Array:
        """D1 as typed lanes: a view of `symbols`."""
        return self.symbols.view(self.lane.stored)


@dataclass(frozen=True)
class Block:
    """What a method works on.

    `target` and `out` are arrays of one length, typed as `codec/kernels.py` says (`lane.stored`); `out` is written.
    """

    target: Array
    target_lane: Lane
    addends: tuple[Addend, ...]
    out: Array
    out_lane: Lane

    @property
    def accumulator(self) -> type[np.floating]:
        """What the method sums in."""
        return accumulator_of([self.target_lane, self.out_lane, *(addend.lane for addend in self.addends)])
