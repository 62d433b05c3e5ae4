"""What a merge method is made of: stages, each of which sees the deltas' values block by block.

A stage may first measure: it sees every block in one pass or several, and what it finds in the blocks is gathered and
settled before the next pass begins. Then it acts on each block. Nothing depends on the order in which blocks are seen,
so that they can be seen in any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from deltareg.merge.parameter import PerDelta
from deltareg.merge.values import Extent, Values

__all__ = ["Gathering", "Scope", "Stage", "Sums", "of_each"]

Scope = Literal["tensor", "model"]
"""What a stage settles at a time: one tensor, or all of a model."""


def of_each(value: PerDelta, extent: Extent) -> list[float]:
    """The number for each delta of an extent."""
    return [value[number] if isinstance(value, tuple) else value for number in extent.numbers]


class Gathering(Protocol):
    """Takes what one pass found in each block; not to be used by two threads at a time."""

    def add(self, position: int, found: Any) -> None:
        """Take what was found in the block at a position of the extent."""
        ...

    def merge(self, other: Any) -> None:
        """Take what another gathering of the same pass was given, in another process."""
        ...

    def settle(self) -> Any:
        """What follows from all of it."""
        ...


class Stage:
    """One stage. Two stages of equal parameters are equal."""

    @property
    def scope(self) -> Scope:
        """What is settled at a time."""
        return "tensor"

    @property
    def whole_rows(self) -> bool:
        """Whether blocks must hold whole rows of the tensor."""
        return False

    @property
    def defers(self) -> bool:
        """Whether it puts its work off where it can: see `Values.defer`."""
        return False

    def passes(self, extent: Extent) -> int:
        """How often every block is seen before the stage can act."""
        return 0

    def gathering(self, number: int, settled: Sequence[Any], extent: Extent) -> Gathering:
        """What gathers pass `number`; `settled` has what the passes before it gave."""
        raise NotImplementedError

    def wants(self, number: int, settled: Sequence[Any], position: int, extent: Extent) -> bool:
        """Whether pass `number` must see the block at `position` at all."""
        return True

    def measure(self, number: int, settled: Sequence[Any], values: Values, extent: Extent) -> Any:
        """What pass `number` finds in one block."""
        raise NotImplementedError

    def divisible(self, settled: Sequence[Any], position: int, extent: Extent) -> bool:
        """Whether `act` does the same on any part of the block at `position` as on all of it."""
        return True

    def act(self, settled: Sequence[Any], values: Values, position: int, extent: Extent) -> None:
        """Do the stage's work on one block, in place; or on a part of it, where it is divisible."""
        raise NotImplementedError


class Sums:
    """Gathers lists of float64 and settles their sums, each rounded once whatever the order (`math.fsum`)."""

    def __init__(self) -> None:
        self._found: list[Sequence[float]] = []

    def add(self, position: int, found: Sequence[float]) -> None:
        """Take the numbers of one block."""
        self._found.append(found)

    def merge(self, other: Sums) -> None:
        """Take the numbers of other blocks."""
        self._found += other._found

    def settle(self) -> list[float]:
        """The sum of each number over the blocks."""
        return [_sum(column) for column in zip(*self._found, strict=True)]


def _sum(numbers: Sequence[float]) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # beyond float64, or infinities of both signs
        return sum(numbers)
