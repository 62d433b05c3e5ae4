"""Means on the sphere, and what else follows from the angles between deltas: weights of a sum.

Whatever is spanned by the deltas is known from their scalar products G, a small matrix for each tensor: one pass over
the deltas gives it, and what follows takes no time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deltareg.errors import InvalidArgument
from deltareg.merge.stage import Gathering, Stage, Sums
from deltareg.merge.values import Extent, Values

__all__ = ["Karcher", "ModelStock", "MultiSlerp", "Slerp"]

_Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Combination(Stage):
    """Replaces the weights by what follows from them and from the scalar products of the deltas."""

    @property
    def defers(self) -> bool:
        """It changes weights alone."""
        return True

    def weigh(self, products: _Numbers, weights: _Numbers) -> _Numbers:
        """The factors of the deltas, from G (deltas × deltas) and from the user's weights."""
        raise NotImplementedError

    def passes(self, extent: Extent) -> int:
        return 1

    def gathering(self, number: int, settled: Sequence[Any], extent: Extent) -> Gathering:
        return Sums()

    def measure(self, number: int, settled: Sequence[Any], values: Values, extent: Extent) -> list[float]:
        return values.products([(i, j) for i in range(values.deltas) for j in range(i + 1)])

    def act(self, settled: Sequence[list[float]], values: Values, position: int, extent: Extent) -> None:
        products = np.zeros((values.deltas, values.deltas))
        products[np.tril_indices(values.deltas)] = settled[0]
        products = products + np.tril(products, -1).T
        values.weights = self.weigh(products, values.weights)


@dataclass(frozen=True)
class Slerp(_Combination):
    """From the first delta (t = 0) to the second on a great circle: sin((1−t)θ)/sin θ and sin(tθ)/sin θ.

    Shoemake, "Animating rotation with quaternion curves", 1985. Where |cos θ| is above 0.9995 the two are interpolated
    linearly.
    """

    t: float

    def weigh(self, products: _Numbers, weights: _Numbers) -> _Numbers:
        norms = np.sqrt(np.diag(products))
        norms = np.where(norms > 0, norms, 1.0)
        cosine = min(1.0, max(-1.0, float(products[0, 1] / norms[0] / norms[1])))
        if abs(cosine) > 0.9995:
            return np.array([1 - self.t, self.t])
        angle = math.acos(cosine)
        return np.array([math.sin((1 - self.t) * angle), math.sin(self.t * angle)]) / math.sin(angle)


@dataclass(frozen=True)
class MultiSlerp(_Combination):
    """The weighted mean in the tangent space at the deltas' mean direction, brought back to the sphere.

    With unit vectors uᵢ, m = Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖ and v = Σ wᵢ(uᵢ − (uᵢ·m)m), the result is
    (m·cos ‖v‖ + v·sin ‖v‖/‖v‖) · Σ wᵢ‖Δᵢ‖ (goddard.blog, "Multi-SLERP").
    """

    normalize: bool = True
    eps: float = 1e-8

    def weigh(self, products: _Numbers, weights: _Numbers) -> _Numbers:
        if len(weights) == 1:
            return np.ones(1)
        total = float(weights.sum())
        shares = weights / total if self.normalize and total else weights
        norms = np.sqrt(np.diag(products))
        units = 1 / (norms + self.eps)
        angles = products * np.outer(units, units)
        length = _norm(angles, shares)
        if length < self.eps:
            if len(weights) == 2:
                return shares
            raise InvalidArgument(
                "the deltas' directions cancel each other out in a tensor: there is no mean direction",
                hint="give them other weights, or take --method linear",
            )
        mean = shares / length
        dots = angles @ mean
        tangent = shares - float(shares @ dots) * mean
        turn = _norm(angles, tangent) + self.eps
        result = mean * math.cos(turn) + tangent * (math.sin(turn) / turn)
        return result * float(norms @ shares) * units


@dataclass(frozen=True)
class Karcher(_Combination):
    """The point on the sphere with the least Σ wᵢ·θᵢ², by its fixed-point iteration, times Σ wᵢ‖Δᵢ‖ (arXiv 2603.04972).

    Weights are shares; they are normalised to a sum of 1.
    """

    iterations: int = 10
    tolerance: float = 1e-5

    def weigh(self, products: _Numbers, weights: _Numbers) -> _Numbers:
        if len(weights) == 1:
            return np.ones(1)
        if (weights < 0).any() or not weights.sum() > 0:
            raise InvalidArgument(
                "karcher takes weights that are shares: none of them negative, and not all 0",
                hint="give other weights, or take --method linear",
            )
        norms = np.sqrt(np.diag(products))
        shares = weights / float(weights.sum())
        valid = norms > self.tolerance * float(norms.max(initial=0.0))
        if not valid.any():
            return np.zeros(len(weights))
        units = np.where(valid, 1 / np.where(valid, norms, 1.0), 0.0)
        angles = products * np.outer(units, units)
        parts = np.where(valid, shares, 0.0)
        parts = parts / float(parts.sum())
        length = _norm(angles, parts)
        mean = np.eye(len(weights))[int(np.argmax(valid))] if length < self.tolerance else parts / length
        for _ in range(self.iterations):
            dots = np.clip(angles @ mean, -1.0, 1.0)
            turns = np.arccos(dots)
            moving = valid & (turns >= self.tolerance)
            pulls = np.where(moving, parts * turns / np.where(moving, np.sin(turns), 1.0), 0.0)
            tangent = pulls - float(pulls @ dots) * mean
            length = _norm(angles, tangent)
            if length < self.tolerance:
                break
            mean = math.cos(length) * mean + math.sin(length) * tangent / length
            mean = mean / (_norm(angles, mean) or 1.0)
        return mean * float(shares @ norms) * units


@dataclass(frozen=True)
class ModelStock(_Combination):
    """The mean of the N deltas, times t = N·cos θ / (1 + (N − 1)·cos θ), with the mean cosine of all pairs.

    Model Stock, arXiv 2403.19522, equation 4.
    """

    def weigh(self, products: _Numbers, weights: _Numbers) -> _Numbers:
        count = len(weights)
        norms = np.sqrt(np.diag(products))
        both = np.outer(norms, norms)
        cosines = np.clip(np.divide(products, both, out=np.zeros_like(products), where=both > 0), -1.0, 1.0)
        cosine = float(cosines[np.triu_indices(count, 1)].mean())
        divisor = 1 + (count - 1) * cosine
        share = count * cosine / divisor if abs(divisor) >= 1e-6 else 0.0
        return np.full(count, share / count)


def _norm(products: _Numbers, factors: _Numbers) -> float:
    """‖Σ factorᵢ·uᵢ‖ from the scalar products of the uᵢ."""
    return math.sqrt(max(0.0, float(factors @ products @ factors)))
