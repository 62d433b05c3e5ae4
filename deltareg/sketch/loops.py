# pyright: basic
# numba compares the annotations of an overload with those of its body, so that neither carries any.
"""The compiled loops of projections and comparisons, self-contained as `codec/kernels.py` says that they must be.

Lanes travel as there: uint16 is BF16, int16 is F16, float32 and float64 are themselves. All sums are float64, in an
order that does not depend on the machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from deltareg.codec.kernels import kernel

__all__ = ["compare_lanes", "mixed", "project", "rotate"]

# Larger numbers count as 0: sums of them, or their squares, would be infinite.
_LARGEST_SUMMED = 2.0**450


def number(lane: Any) -> Any:
    """The lane's value in float64; 0 for what is no finite number. For use inside kernels."""
    raise NotImplementedError


@overload(number)
def _number(lane):
    if lane == types.uint16:

        def bf16(lane):
            value = np.float64(np.uint32(np.uint32(lane) << np.uint32(16)).view(np.float32))
            return value if abs(value) < np.inf else 0.0

        return bf16
    if lane == types.int16:

        def f16(lane):
            pattern = np.uint32(np.uint16(lane))
            magnitude = np.uint32(pattern & np.uint32(0x7FFF))
            tiny = np.float32(np.int32(magnitude)) * np.float32(5.960464477539063e-08)  # 2**-24
            normal = np.uint32((magnitude << np.uint32(13)) + np.uint32(0x38000000)).view(np.float32)
            value = np.float64(tiny if magnitude < np.uint32(0x0400) else normal)
            value = value if magnitude < np.uint32(0x7C00) else 0.0
            return -value if pattern & np.uint32(0x8000) else value

        return f16

    def wide(lane):
        value = np.float64(lane)
        return value if abs(value) < _LARGEST_SUMMED else 0.0

    return wide


@kernel
def mixed(key: Any, counter: Any) -> Any:
    """Output `counter` of the generator SplitMix64 that starts at `key` (uint64).

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    z = key + (np.uint64(counter) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit
def _signed(value, signs, place):
    flip = np.uint64(((signs >> np.uint64(place)) & np.uint64(1)) << np.uint64(63))
    return np.uint64(np.float64(value).view(np.uint64) ^ flip).view(np.float64)


@kernel
def project(lanes: Any, first: Any, key: Any, width: Any, sums: Any) -> Any:
    """Add lane i, with its sign, to bucket i mod `width` of `sums` (float64, `width` + 64 long, zeros before).

    `first` is the number of the first lane within its tensor, a multiple of 64.
    """
    bucket = first % width
    whole = lanes.size - lanes.size % 64
    # Runs of 64 may write beyond the last bucket; what they wrote there belongs to the first ones.
    for start in range(0, whole, 64):
        signs = mixed(key, (first + start) >> 6)
        part = lanes[start : start + 64]
        into = sums[bucket : bucket + 64]
        for j in range(64):
            into[j] += _signed(number(part[j]), signs, j)
        bucket += 64
        if bucket >= width:
            bucket -= width
    signs = mixed(key, (first + whole) >> 6)
    for j in range(lanes.size - whole):
        sums[bucket + j] += _signed(number(lanes[whole + j]), signs, j)
    for j in range(64):
        sums[j] += sums[width + j]
        sums[width + j] = 0.0


@kernel
def rotate(values: Any, key: Any, round_: Any) -> Any:
    """One round of pseudo-random signs and Walsh-Hadamard, in place; the length is a power of two, 64 at least."""
    size = values.size
    for start in range(0, size, 64):
        signs = mixed(key, (round_ * size + start) >> 6)
        for j in range(64):
            values[start + j] = _signed(values[start + j], signs, j)
    half = 1
    while half < size:
        for start in range(0, size, 2 * half):
            low = values[start : start + half]
            high = values[start + half : start + 2 * half]
            for j in range(half):
                one = low[j]
                other = high[j]
                low[j] = one + other
                high[j] = one - other
        half *= 2


@kernel
def compare_lanes(one: Any, other: Any, sums: Any) -> Any:
    """Add Σab, Σa², Σb², the lanes that neither leaves alone, and those of them whose signs oppose, to `sums`."""
    parts = np.zeros((5, 16), np.float64)
    for start in range(0, one.size, 16):
        a = one[start : start + 16]
        b = other[start : start + 16]
        for j in range(a.size):
            x = number(a[j])
            y = number(b[j])
            parts[0, j] += x * y
            parts[1, j] += x * x
            parts[2, j] += y * y
            parts[3, j] += np.float64((x != 0.0) & (y != 0.0))
            parts[4, j] += np.float64(((x < 0.0) & (y > 0.0)) | ((x > 0.0) & (y < 0.0)))
    for n in range(5):
        for j in range(16):
            sums[n] += parts[n, j]
