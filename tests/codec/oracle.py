"""Floating point by arithmetic: what the compiled loops do with bits is done here with powers of two.

Values are float64, which holds every number of every format; results are bit patterns. Nothing here knows numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMATS", "Format", "accumulate", "accumulator", "difference", "marker", "ulp"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Format:
    """An IEEE 754 binary format: `precision` bits of significand, `least` the exponent of the smallest normal."""

    dtype: str
    width: int
    precision: int
    least: int

    @property
    def bits(self) -> np.dtype[Any]:
        """The unsigned integer of its width."""
        return np.dtype(f"<u{self.width}")

    @property
    def nan(self) -> int:
        """The canonical NaN: sign 0, quiet, no payload."""
        return self.infinity | 1 << (self.precision - 2)

    @property
    def infinity(self) -> int:
        """The bits of +Inf."""
        return (2**self._exponent_bits - 1) << (self.precision - 1)

    @property
    def _exponent_bits(self) -> int:
        return 8 * self.width - self.precision

    def widen(self, patterns: Array) -> Array:
        """The values of bit patterns."""
        whole = np.asarray(patterns).astype(np.uint64)
        fraction = (whole & np.uint64((1 << (self.precision - 1)) - 1)).astype(np.float64)
        exponent = (whole >> np.uint64(self.precision - 1)) & np.uint64(2**self._exponent_bits - 1)
        negative = (whole >> np.uint64(8 * self.width - 1)).astype(bool)
        stored = exponent.astype(np.int64)
        significand = np.where(stored > 0, fraction + 2.0 ** (self.precision - 1), fraction)
        scale = np.maximum(stored, 1) - 1 + self.least - (self.precision - 1)
        with np.errstate(over="ignore"):
            value = np.ldexp(significand, scale)
        value = np.where(stored == 2**self._exponent_bits - 1, np.where(fraction == 0, np.inf, np.nan), value)
        return np.where(negative, -value, value)

    def narrow(self, values: Array) -> Array:
        """The bit patterns of values rounded once, to nearest, ties to even."""
        values = np.asarray(values, np.float64)
        finite = np.isfinite(values)
        magnitude = np.where(finite, np.abs(values), 0.0)
        step = self._step(magnitude)
        # Halving twice: one power of two may be smaller than float64 can hold.
        count = np.rint(np.ldexp(np.ldexp(magnitude, -(step // 2)), -(step - step // 2))).astype(np.int64)
        place = step - (self.least - (self.precision - 1))
        # A count of 2**precision has rounded up to the next binade: the addition carries into the exponent.
        patterns = np.where(count >= 1 << (self.precision - 1), (place << (self.precision - 1)) + count, count)
        patterns = np.where(patterns >= self.infinity, self.infinity, patterns)
        patterns = np.where(np.isinf(values), self.infinity, patterns)
        signs = np.signbit(values).astype(np.uint64) << np.uint64(8 * self.width - 1)
        return np.where(np.isnan(values), np.uint64(self.nan), patterns.astype(np.uint64) | signs).astype(self.bits)

    def _step(self, magnitude: Array) -> Array:
        """The exponent of the distance between neighbours at `magnitude`."""
        _, exponent = np.frexp(magnitude)
        exponent = np.where(magnitude == 0, -5000, exponent.astype(np.int64) - 1)
        return np.maximum(exponent, self.least) - (self.precision - 1)


FORMATS = {
    format_.dtype: format_
    for format_ in (
        Format("BF16", 2, 8, -126),
        Format("F16", 2, 11, -14),
        Format("F32", 4, 24, -126),
        Format("F64", 8, 53, -1022),
        Format("C64", 4, 24, -126),
    )
}


def marker(format_: Format) -> int:
    """The bits of −0.0, which say that a lane does not change."""
    return 1 << (8 * format_.width - 1)


def ulp(values: Array, format_: Format) -> Array:
    """The distance between neighbours of the format at each value."""
    return np.ldexp(1.0, format_._step(np.abs(values)))


def accumulator(*formats: Format) -> type[np.floating[Any]]:
    """float32 where all formats have 16 bits, else float64."""
    return np.float32 if all(format_.width == 2 for format_ in formats) else np.float64


def difference(base: Array, post: Array, base_format: Format, post_format: Format) -> Array:
    """The bits of D1 = round(post − base)."""
    kind = accumulator(base_format, post_format)
    with np.errstate(all="ignore"):
        exact = post_format.widen(post).astype(kind) - base_format.widen(base).astype(kind)
    return post_format.narrow(exact.astype(np.float64))


def accumulate(total: Array, term: Array, weight: float) -> Array:
    """total + weight · term, the product and the sum each rounded to the type of `total`."""
    kind = total.dtype.type
    with np.errstate(all="ignore"):
        product = (term.astype(kind) * kind(weight)).astype(kind)
        return (total + product).astype(kind)
