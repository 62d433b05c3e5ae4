"""Stages that leave out some of a delta: by magnitude, by chance, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deltareg.merge.deferred import Deferred
from deltareg.merge.parameter import PerDelta
from deltareg.merge.search import Ranks, Search, bounds, drop_largest, keep_largest, splits
from deltareg.merge.stage import Gathering, Scope, Stage, Sums, of_each
from deltareg.merge.values import Extent, Values

__all__ = ["Band", "Drop", "MagPrune", "MatchNorm", "Ramp", "Rescale", "Trim"]

Rescale = Literal["inverse", "l1", "none"]
"""What makes up for what was left out: division by the chance of being kept, the same Σ|Δ| as before, or nothing."""

Ramp = Literal["paper", "ends"]
"""How the chances of MagPrune go from the largest to the smallest of a row: see `MagPrune`."""


@dataclass(frozen=True)
class Band(Stage):
    """Keep of each delta the lanes whose ranks by magnitude follow the `gamma` largest, `density` of them all.

    Both are shares of the lanes. Where `density` leaves less room, fewer of the largest go.
    """

    density: PerDelta
    gamma: PerDelta = 0.0
    over: Scope = "tensor"
    rescale: Rescale = "none"

    @property
    def defers(self) -> bool:
        """Unless it needs sums of the numbers."""
        return self.rescale != "l1"

    @property
    def scope(self) -> Scope:
        """As `over` says."""
        return self.over

    def passes(self, extent: Extent) -> int:
        return self._search(extent).passes

    def gathering(self, number: int, settled: Sequence[Ranks], extent: Extent) -> Gathering:
        return self._search(extent).gathering(number, settled)

    def wants(self, number: int, settled: Sequence[Ranks], position: int, extent: Extent) -> bool:
        return self._search(extent).wants(settled, position)

    def measure(self, number: int, settled: Sequence[Ranks], values: Values, extent: Extent) -> Any:
        return self._search(extent).measure(number, settled, values)

    def divisible(self, settled: Sequence[Ranks], position: int, extent: Extent) -> bool:
        return self.rescale != "l1" and not splits(self._search(extent).known(settled), position)

    def act(self, settled: Sequence[Ranks], values: Values, position: int, extent: Extent) -> None:
        _remember(self.rescale, values)
        known = self._search(extent).known(settled)
        # Magnitudes of several dtypes are compared as numbers, whose bits are not those of the symbols.
        if values.defer(lambda deferred: None not in extent.kinds and self._tell(deferred, known, position)):
            return
        for delta, row in enumerate(known):
            cuts = [sought.cut for sought in row]
            symbols, mask = values.magnitudes(delta, extent.kinds[delta])
            if cuts[0] is not None:
                keep_largest(values, values.array[delta], symbols, mask, cuts[0], position)
            if len(cuts) > 1 and cuts[1] is not None:
                drop_largest(values, values.array[delta], symbols, mask, cuts[1], position)

    def _tell(self, deferred: Deferred, known: Ranks, position: int) -> bool:
        cuts = [[sought.cut for sought in row] for row in known]
        least = [bounds(row[0], position) for row in cuts if row[0] is not None]
        most = [bounds(row[1], position) for row in cuts if len(row) > 1 and row[1] is not None]
        return deferred.keep_at_least(least) and (not most or deferred.keep_below(most))

    def _search(self, extent: Extent) -> Search:
        kept = [self._kept(density, extent.lanes) for density in of_each(self.density, extent)]
        gammas = of_each(self.gamma, extent)
        if not any(gammas):
            return Search(extent, [[count] for count in kept])
        largest = [
            min(int(gamma * extent.lanes), extent.lanes - count) for gamma, count in zip(gammas, kept, strict=True)
        ]
        return Search(extent, [[count + most, most] for count, most in zip(kept, largest, strict=True)])

    def _kept(self, density: float, lanes: int) -> int:
        return int(density * lanes)


@dataclass(frozen=True)
class Trim(Band):
    """Keep of each delta the share `density` of its lanes that have the largest magnitudes; at least one, unless 0."""

    def _kept(self, density: float, lanes: int) -> int:
        return max(1, int(density * lanes)) if density > 0 else 0


@dataclass(frozen=True)
class Drop(Stage):
    """Keep each lane with the chance `density`."""

    density: PerDelta
    rescale: Rescale = "inverse"

    @property
    def defers(self) -> bool:
        """Unless it needs sums of the numbers."""
        return self.rescale != "l1"

    def divisible(self, settled: Sequence[Any], position: int, extent: Extent) -> bool:
        return self.rescale != "l1"

    def act(self, settled: Sequence[Any], values: Values, position: int, extent: Extent) -> None:
        _remember(self.rescale, values)
        densities = of_each(self.density, extent)
        limits = [round(density * 2**32) for density in densities]
        if not values.defer(lambda deferred: deferred.drop(values.keys, limits)):
            chances = values.loops.empty(values.lanes, np.uint32)
            for row, key, limit in zip(values.array, values.keys, limits, strict=True):
                values.loops.draw(np.uint64(key), values.first, chances)
                values.loops.drop(row, chances, limit, values.number(0))
        if self.rescale == "inverse":
            values.scales /= [density or 1.0 for density in densities]


@dataclass(frozen=True)
class MagPrune(Stage):
    """Keep each lane with a chance that falls with its rank in its row, 0 for the largest magnitude of n.

    `ramp` "paper": density + ε/2 − ε·rank/n. "ends": from density + ε for the first to density − ε for the last.
    """

    density: PerDelta
    epsilon: PerDelta
    ramp: Ramp = "paper"
    rescale: Rescale = "inverse"

    @property
    def defers(self) -> bool:
        """Unless it needs sums of the numbers."""
        return self.rescale != "l1"

    @property
    def whole_rows(self) -> bool:
        """Ranks are those in a row."""
        return True

    def divisible(self, settled: Sequence[Any], position: int, extent: Extent) -> bool:
        return False

    def act(self, settled: Sequence[Any], values: Values, position: int, extent: Extent) -> None:
        _remember(self.rescale, values)
        shares = zip(of_each(self.density, extent), of_each(self.epsilon, extent), strict=True)
        lines = [self._line(density, epsilon, values.row) for density, epsilon in shares]
        inverse = self.rescale == "inverse"
        if values.defer(lambda deferred: deferred.drop_by_rank(values.keys, lines, inverse=inverse)):
            return
        chances = values.loops.empty(values.lanes, np.uint32)
        ranks = values.loops.empty(values.lanes, np.int32)
        for delta, (row, key, (most, step)) in enumerate(zip(values.array, values.keys, lines, strict=True)):
            symbols, mask = values.magnitudes(delta, values.kinds[delta])
            values.loops.rank_rows(symbols, mask, symbols.itemsize, values.row, ranks)
            values.loops.draw(np.uint64(key), values.first, chances)
            values.loops.drop_by_rank(row, chances, ranks, most, step, inverse, values.number(0))

    def _line(self, density: float, epsilon: float, row: int) -> tuple[float, float]:
        """The chance of rank 0, and by how much it falls from rank to rank."""
        if density in (0, 1):
            return density, 0.0
        if self.ramp == "paper":
            return density + epsilon / 2, epsilon / row
        return (density + epsilon, 2 * epsilon / (row - 1)) if row > 1 else (density, 0.0)


@dataclass(frozen=True)
class MatchNorm(Stage):
    """Scale each delta so that Σ|Δ| of the tensor is what it was before the stage in front of this one."""

    def passes(self, extent: Extent) -> int:
        return 1

    def gathering(self, number: int, settled: Sequence[Any], extent: Extent) -> Gathering:
        return Sums()

    def measure(self, number: int, settled: Sequence[Any], values: Values, extent: Extent) -> list[float]:
        assert values.before is not None
        return [*values.before, *(float(values.loops.absolute_sum(row)) for row in values.array)]

    def act(self, settled: Sequence[list[float]], values: Values, position: int, extent: Extent) -> None:
        before, after = settled[0][: values.deltas], settled[0][values.deltas :]
        values.scales *= [one / other if other > 0 else 1.0 for one, other in zip(before, after, strict=True)]


def _remember(rescale: Rescale, values: Values) -> None:
    if rescale == "l1":
        values.before = [float(values.loops.absolute_sum(row)) for row in values.array]
