"""Stages that make one delta of several: they give `Values.merged`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deltareg.codec import Array, Lane, lane_of
from deltareg.merge.search import Counts, Ranks, Search, bounds, keep_largest, new_counts, splits
from deltareg.merge.stage import Gathering, Stage, Sums
from deltareg.merge.values import Extent, Values

__all__ = ["Elect", "EnergyShares", "Near", "Reinforce", "SelectVariance", "Sum", "Vote", "Weigh"]

Vote = Literal["weighted", "unweighted", "count"]
"""How deltas vote for a sign: with weight · Δ, with Δ, or with their signs alone."""


_BEYOND = 1 << 32, -1  # no variance is so large


@dataclass(frozen=True)
class Weigh(Stage):
    """Take wᵢΔᵢ for Δᵢ: for methods that have no place of their own for weights."""

    @property
    def defers(self) -> bool:
        """Always."""
        return True

    def act(self, settled: Sequence[Any], values: Values, position: int, extent: Extent) -> None:
        if (values.weights != 1).any():
            weights = values.numbers(values.weights)
            if not values.defer(lambda deferred: deferred.multiply(weights)):
                values.loops.scale_rows(values.array, weights)
            values.weights = np.ones(values.deltas)


@dataclass(frozen=True)
class Sum(Stage):
    """scale · Σ wᵢΔᵢ, over Σ wᵢ where `normalize` and that is not 0."""

    normalize: bool = False
    scale: float = 1.0

    @property
    def defers(self) -> bool:
        """Always."""
        return True

    def factors(self, weights: Array, scales: Array) -> Array:
        """What each delta is multiplied with."""
        total = float(weights.sum()) if self.normalize else 1.0
        return weights * scales * (self.scale / (total or 1.0))

    def act(self, settled: Sequence[Any], values: Values, position: int, extent: Extent) -> None:
        factors = values.numbers(self.factors(values.weights, values.scales))
        if values.defer(lambda deferred: deferred.sum(factors)):
            values.merged = values.deferred
            return
        values.merged = values.empty()
        values.loops.weighted_sum(values.array, factors, values.merged)


@dataclass(frozen=True)
class Elect(Stage):
    """In each lane, the mean of those deltas whose sign is that of most of them.

    Deltas vote for the sign as `vote` says; Σ = 0 elects +. Their wᵢΔᵢ are summed and divided by Σ wᵢ over those that
    agree ("weights"), by how many they are ("count"), or not at all ("none").
    """

    vote: Vote
    normalize: Literal["weights", "count", "none"]
    scale: float = 1.0

    @property
    def defers(self) -> bool:
        """Always."""
        return True

    def act(self, settled: Sequence[Any], values: Values, position: int, extent: Extent) -> None:
        factors = values.weights * values.scales
        # A factor that all have must not decide a vote by the way in which it rounds.
        scales = values.scales / values.scales[0] if (values.scales == values.scales[0]).all() else values.scales
        votes = values.weights * scales if self.vote == "weighted" else scales
        shares = values.weights if self.normalize == "weights" else np.ones(values.deltas)
        if self.normalize == "none":
            shares = np.zeros(values.deltas)
        numbers, scale = values.numbers, values.number(self.scale)
        told = numbers(factors), numbers(votes), self.vote == "count", numbers(shares), scale
        if values.defer(lambda deferred: deferred.elect(*told)):
            values.merged = values.deferred
            return
        values.merged = values.empty()
        values.loops.elect(values.array, *told, values.number(1), values.merged)


@dataclass(frozen=True)
class SelectVariance(Stage):
    """Keep the share `density` of the lanes that vary, those in which the deltas' variance is largest."""

    density: float

    @property
    def defers(self) -> bool:
        """Always."""
        return True

    def passes(self, extent: Extent) -> int:
        return self._search(extent).passes if 0 < self.density < 1 else 0

    def gathering(self, number: int, settled: Sequence[Ranks], extent: Extent) -> Gathering:
        counts = self._search(extent).gathering(number, settled)
        return counts if number else _OfVarying(counts, self.density)

    def wants(self, number: int, settled: Sequence[Ranks], position: int, extent: Extent) -> bool:
        return self._search(extent).wants(settled, position)

    def measure(self, number: int, settled: Sequence[Ranks], values: Values, extent: Extent) -> Any:
        search = self._search(extent)
        window = search.window(number, settled, 0)
        if values.deferred is not None and window is not None:
            counts = new_counts()
            varying = values.deferred.count_spreads(*window, counts)
            return [[counts]] if number else ([[counts]], varying)
        spread = _variance(values)
        found = search.measure(number, settled, spread)
        return found if number else (found, int(values.loops.count_nonzero(spread.array[0])))

    def divisible(self, settled: Sequence[Ranks], position: int, extent: Extent) -> bool:
        return not 0 < self.density < 1 or not splits(self._search(extent).known(settled), position)

    def act(self, settled: Sequence[Ranks], values: Values, position: int, extent: Extent) -> None:
        if self.density >= 1:
            return
        cut = self._search(extent).known(settled)[0][0].cut if self.density > 0 else None
        least = _BEYOND if cut is None else bounds(cut, position)
        if values.defer(lambda deferred: deferred.select(*least)):
            return
        if cut is None:
            values.array[:] = 0
            return
        spread = _variance(values)
        symbols, mask = spread.magnitudes(0, spread.kinds[0])
        for row in values.array:
            keep_largest(values, row, symbols, mask, cut, position)

    def _search(self, extent: Extent) -> Search:
        # The variance has the accumulator's type. How many lanes are sought is known after the first pass.
        wide = any(kind is None or kind.wide for kind in extent.kinds)
        return Search(Extent(extent.lanes, extent.blocks, (0,), (_variance_lane(wide),)), [[extent.lanes - 1]])


class _OfVarying:
    """Gathers the counts of the first pass, and says how many lanes are sought: a share of those that vary."""

    def __init__(self, counts: Counts, density: float) -> None:
        self._counts = counts
        self._density = density
        self._varying = 0

    def add(self, position: int, found: tuple[Any, int]) -> None:
        """Take the counts of one block, and how many of its lanes vary."""
        self._varying += found[1]
        self._counts.add(position, found[0])

    def merge(self, other: _OfVarying) -> None:
        """Take the counts of other blocks."""
        self._varying += other._varying
        self._counts.merge(other._counts)

    def settle(self) -> Any:
        """What is known of the cut."""
        return self._counts.settle_for(int(self._varying * self._density))


def _variance(values: Values) -> Values:
    spread = values.empty()
    values.loops.variance(values.array, values.number(values.deltas), values.number(0), spread)
    bits, lane = values.loops.bits_of(spread, values.kind), _variance_lane(values.kind is np.float64)
    shape = (lane,), values.first, values.row, np.ones(1), (0,), values.kind
    return Values((bits,), *shape, lambda start, stop: spread[None, start:stop], values.loops)


def _variance_lane(wide: bool) -> Lane:
    return lane_of("F64" if wide else "F32")


@dataclass(frozen=True)
class EnergyShares(Stage):
    """Weigh each delta by its share of Σ Δ² over the tensor and all deltas."""

    @property
    def defers(self) -> bool:
        """It changes weights alone."""
        return True

    def passes(self, extent: Extent) -> int:
        return 1

    def gathering(self, number: int, settled: Sequence[Any], extent: Extent) -> Gathering:
        return Sums()

    def measure(self, number: int, settled: Sequence[Any], values: Values, extent: Extent) -> list[float]:
        return values.products([(delta, delta) for delta in range(values.deltas)])

    def act(self, settled: Sequence[list[float]], values: Values, position: int, extent: Extent) -> None:
        energies = np.array(settled[0])
        total = float(energies.sum())
        values.weights = energies / total if total > 0 else np.full(values.deltas, 1 / values.deltas)


@dataclass(frozen=True)
class Reinforce(Stage):
    """Where one delta alone is above `epsilon`, that delta, reinforced; where several are, their mean.

    The reinforcement of delta i is 1 + r · min(α, ρᵢ), where ρᵢ is how many of its lanes are shared for each that is
    not; 1 where `r` is 0.
    """

    epsilon: float
    r: float = 0.0
    alpha: float = 0.0
    scale: float = 1.0

    def passes(self, extent: Extent) -> int:
        return 1 if self.r else 0

    def gathering(self, number: int, settled: Sequence[Any], extent: Extent) -> Gathering:
        return Sums()

    def measure(self, number: int, settled: Sequence[Any], values: Values, extent: Extent) -> list[int]:
        shared, alone = np.zeros(values.deltas, np.int64), np.zeros(values.deltas, np.int64)
        counts = values.loops.empty(values.lanes, np.uint8)
        values.loops.contributions(values.array, values.number(self.epsilon), counts, shared, alone)
        return [*shared.tolist(), *alone.tolist()]

    def act(self, settled: Sequence[list[float]], values: Values, position: int, extent: Extent) -> None:
        reinforced = np.ones(values.deltas)
        if self.r:
            shared, alone = np.array(settled[0]).reshape(2, -1)
            reinforced += self.r * np.clip(shared / np.maximum(alone, self.epsilon), 0, self.alpha)
        values.merged = values.empty()
        values.loops.reinforce(
            values.array,
            values.number(self.epsilon),
            values.numbers(values.weights * self.scale),
            values.numbers(reinforced),
            values.number(1),
            values.merged,
        )


@dataclass(frozen=True)
class Near(Stage):
    """The delta, brought to the absolute value `limit` where it is larger."""

    limit: float
    scale: float = 1.0

    def act(self, settled: Sequence[Any], values: Values, position: int, extent: Extent) -> None:
        values.loops.shrink(values.array[0], values.number(self.limit), values.number(1))
        values.merged = values.empty()
        values.loops.weighted_sum(values.array, values.numbers(np.array([self.scale])), values.merged)
