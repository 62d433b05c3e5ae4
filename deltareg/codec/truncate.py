"""The best factors of a rank for a matrix that is read in stretches of rows: a truncated SVD."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

__all__ = ["Stretches", "Truncated", "measured", "nearest_factors", "truncate"]

Matrix = npt.NDArray[Any]
Stretches = Callable[[], Iterator[tuple[int, Matrix]]]
"""Each call reads the matrix anew: the first row of each stretch, and the stretch as float64 or float32."""

# Up to so many multiplications (rows · columns · shorter side) LAPACK takes seconds, and the result is the best.
_EXACT_WORK = 4e9
_EXTRA = 16
_ITERATIONS = 4


@dataclass(frozen=True)
class Truncated:
    """left · right ≈ matrix, float32 of shapes (rows, rank) and (rank, columns), and sums of squares in float64.

    `residue` is ‖matrix − left · right‖², of the factors as they are rounded; `total` is ‖matrix‖².
    """

    left: Matrix
    right: Matrix
    residue: float
    total: float


def truncate(stretches: Stretches, shape: tuple[int, int], rank: int, name: str) -> Truncated:
    """The nearest factors of rank `rank`, with their error."""
    return measured(stretches, *nearest_factors(stretches, shape, rank, name))


def nearest_factors(stretches: Stretches, shape: tuple[int, int], rank: int, name: str) -> tuple[Matrix, Matrix]:
    """The factors of rank `rank` that are nearest in the Frobenius norm (Eckart and Young, 1936).

    Exact where the matrix is small; else a randomised range finder with subspace iterations (Halko, Martinsson and
    Tropp, arXiv 0909.4061, algorithms 4.4 and 5.1), whose seed is the tensor's name. Each iteration reads the matrix
    once; what is held beside a stretch is columns · (rank + 16).
    """
    rows, columns = shape
    rank = min(rank, rows, columns)
    if rows * columns * min(rows, columns) <= _EXACT_WORK:
        return _exact(stretches, shape, rank)
    return _randomised(stretches, shape, rank, name)


def measured(stretches: Stretches, left: Matrix, right: Matrix) -> Truncated:
    """The same factors with their error."""
    residues: list[float] = []
    totals: list[float] = []
    wide = right.astype(np.float64)
    for row, stretch in stretches():
        found = stretch.astype(np.float64, copy=False)
        rest = found - left[row : row + len(found)].astype(np.float64) @ wide
        residues.append(float(np.vdot(rest, rest)))
        totals.append(float(np.vdot(found, found)))
    return Truncated(left, right, math.fsum(residues), math.fsum(totals))


def _exact(stretches: Stretches, shape: tuple[int, int], rank: int) -> tuple[Matrix, Matrix]:
    matrix = np.empty(shape, np.float64)
    for row, stretch in stretches():
        matrix[row : row + len(stretch)] = stretch
    return _factors(*np.linalg.svd(matrix, full_matrices=False), rank)


def _randomised(stretches: Stretches, shape: tuple[int, int], rank: int, name: str) -> tuple[Matrix, Matrix]:
    rows, columns = shape
    width = min(rank + _EXTRA, rows, columns)
    seed = int.from_bytes(blake3(name.encode()).digest()[:8], "little")
    basis = np.random.default_rng(seed).standard_normal((columns, width), np.float32)
    for _ in range(1 + _ITERATIONS):
        # One step of (matrixᵀ · matrix), orthonormal before and after: without that all columns become the first.
        basis = np.linalg.qr(basis)[0]
        step = np.zeros((columns, width), np.float64)
        for _, stretch in stretches():
            # A power of two, so that squares neither overflow nor vanish in float32; no digit changes.
            exponent = _exponent(stretch)
            part = np.ldexp(stretch, -exponent).astype(np.float32, copy=False)
            step += np.ldexp((part.T @ (part @ basis)).astype(np.float64), 2 * exponent)
        basis = np.ldexp(step, -_exponent(step)).astype(np.float32) if step.any() else basis
    basis = np.linalg.qr(basis.astype(np.float64))[0]
    image = np.empty((rows, width), np.float64)
    for row, stretch in stretches():
        image[row : row + len(stretch)] = stretch.astype(np.float64, copy=False) @ basis
    left, values, right = np.linalg.svd(image, full_matrices=False)
    return _factors(left, values, right @ basis.T, rank)


def _exponent(matrix: Matrix) -> int:
    """The power of two that is above all magnitudes."""
    return math.frexp(max(-float(matrix.min()), float(matrix.max())))[1]


def _factors(left: Matrix, values: Matrix, right: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Both with half of each singular value, as a trained adapter's are of one size."""
    roots = np.sqrt(values[:rank])
    return (left[:, :rank] * roots).astype(np.float32), (roots[:, None] * right[:rank]).astype(np.float32)
