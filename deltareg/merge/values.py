"""What the stages of a merge work on: the same lanes of every delta, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deltareg.codec import Array, Lane, kernels
from deltareg.codec.memory import empty
from deltareg.merge import loops as host_loops
from deltareg.merge.block import Addend
from deltareg.merge.deferred import Deferred

__all__ = ["Extent", "Values", "values_of"]


@dataclass(frozen=True)
class Extent:
    """What a stage settles something for: one tensor, or all of a model.

    `lanes` counts its lanes, `blocks` the blocks in which they are seen; `numbers` are those of its deltas, and `kinds`
    has for each of them the lane of its D1, None where tensors of several dtypes are taken together.
    """

    lanes: int
    blocks: int
    numbers: tuple[int, ...]
    kinds: tuple[Lane | None, ...]


@dataclass
class Values:
    """One block of lanes of all deltas, which stages change in place.

    `symbols` are the bits of D1. `first` is the block's first lane in the tensor, `row` the lanes in one of its rows.
    `weights` and `scales` (float64) are what each delta is multiplied with in the end: what the user gave, and what the
    stages add to it. `keys` (64 bits) are the seeds of the deltas' random masks. `kind` is float32 or float64, `make`
    gives the numbers of the lanes from one to another. The last stage gives `merged`.

    `array`, `symbols` and `merged` may be on a device; then `loops` are those that work there. Stages do with them what
    `loops` has, and nothing else. Where there is a `deferred`, they tell it what is to be done, and do nothing.
    """

    symbols: tuple[Any, ...]
    kinds: tuple[Lane, ...]
    first: int
    row: int
    weights: Array
    keys: tuple[int, ...]
    kind: type[np.floating[Any]]
    make: Callable[[int, int], Any]
    loops: Any = host_loops
    deferred: Deferred | None = None
    scales: Array = field(init=False)
    before: list[float] | None = None
    merged: Any = None
    _array: Any = None

    def __post_init__(self) -> None:
        self.scales = np.ones(len(self.symbols), np.float64)

    @property
    def array(self) -> Any:
        """D1 + D2 as numbers of `kind`, of shape (deltas, lanes), a zero where nothing changes.

        Made when it is first asked for: what compares magnitudes has no need of it.
        """
        if self._array is None:
            self._array = self.make(0, self.lanes) if self.deferred is None else self.deferred.values()
        return self._array

    def products(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """The scalar products of these pairs of deltas."""
        if self.deferred is not None:
            return self.deferred.products(pairs)
        return [float(self.loops.dot(self.array[one], self.array[other])) for one, other in pairs]

    def defer(self, tell: Callable[[Deferred], bool]) -> bool:
        """Put a stage's work off, which `tell` tells; False where it has to be done at once."""
        if self.deferred is None:
            return False
        if not tell(self.deferred):
            # What was put off is done, and nothing is any more.
            self._array, self.deferred = self.array, None
            return False
        self._array = None
        return True

    def part(self, start: int, stop: int) -> Values:
        """The lanes from `start` to `stop`, of which no number was made so far."""
        return Values(
            tuple(symbols[start:stop] for symbols in self.symbols),
            self.kinds,
            self.first + start,
            self.row,
            self.weights,
            self.keys,
            self.kind,
            lambda lower, upper: self.make(start + lower, start + upper),
            self.loops,
        )

    @property
    def lanes(self) -> int:
        """Lanes of the block."""
        return len(self.symbols[0])

    @property
    def deltas(self) -> int:
        """How many deltas there are."""
        return len(self.symbols)

    def empty(self) -> Any:
        """An undefined value for each lane, where the values are."""
        return self.loops.empty(self.lanes, self.kind)

    def number(self, value: float) -> Any:
        """A number in the type of the values."""
        return self.kind(value)

    def numbers(self, values: Array) -> Array:
        """Numbers in the type of the values, each rounded once."""
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float64).astype(self.kind)

    def magnitudes(self, delta: int, kind: Lane | None) -> tuple[Any, Any]:
        """Symbols of a delta by whose bits magnitudes compare, and the mask that takes their signs away.

        Those of D1 in its own `kind`; where that is None, the values as float64.
        """
        if kind is None:
            return self.loops.bits_of(self.array[delta], np.float64), np.uint64(2**63 - 1)
        return self.symbols[delta], kind.bits(int(kind.marker) - 1)


def values_of(
    addends: Sequence[Addend], accumulator: type[np.floating[Any]], start: int = 0, stop: int | None = None
) -> Array:
    """The array of `Values`, from decoded frames of one length: all lanes, or those from `start` to `stop`."""
    stop = addends[0].frame.lanes if stop is None else stop
    array = empty(len(addends) * (stop - start), accumulator).reshape(len(addends), stop - start)
    for row, addend in zip(array, addends, strict=True):
        delta = addend.delta[start:stop]
        kernels.widen_all(delta, row)
        mending = addend.frame.mending
        if mending is not None:
            here = mending.within(start, stop)
            row[here.positions] = here.terms(delta, addend.lane, accumulator)
    return array
