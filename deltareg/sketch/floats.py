"""Floats of every dtype as float64, which has the value of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PRECISIONS", "decode", "rounded"]

Array = npt.NDArray[Any]

PRECISIONS: Mapping[str, int] = {
    "F8_E5M2": 3,
    "F8_E5M2FNUZ": 3,
    "F8_E4M3": 4,
    "F8_E4M3FNUZ": 4,
    "BF16": 8,
    "F16": 11,
    "F32": 24,
    "F64": 53,
}
"""The dtypes of weights that are floats, and the bits of their significands. F8_E8M0 holds scales, no weights."""


def decode(raw: Array, dtype: str) -> Array:
    """The values of `raw`, little-endian bytes of `dtype`: float64, each exact."""
    return _DECODERS[dtype](raw)


def rounded(values: Array, dtype: str) -> Array:
    """`values` rounded to nearest, ties to even, in float64. To 8 bits nothing is rounded: these come with scales.

    BF16 takes them by way of F32.
    """
    with np.errstate(over="ignore", under="ignore"):
        if dtype in ("F16", "F32"):
            return values.astype("<f2" if dtype == "F16" else "<f4").astype(np.float64)
        if dtype == "BF16":
            bits = values.astype(np.float32).view(np.uint32)
            bits = bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
            return _widened(bits & np.uint32(0xFFFF0000))
    return values


def _decode_bf16(raw: Array) -> Array:
    return _widened(raw.view("<u2").astype(np.uint32) << np.uint32(16))


def _widened(bits: Array) -> Array:
    # Signalling NaN make a warning of their own.
    with np.errstate(invalid="ignore"):
        return bits.view(np.float32).astype(np.float64)


def _decode_ieee(kind: str, raw: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return raw.view(kind).astype(np.float64)


def _decode_eight_bits(mantissa: int, bias: int, style: str, raw: Array) -> Array:
    return _eight_bit_values(mantissa, bias, style)[raw]


@cache
def _eight_bit_values(mantissa: int, bias: int, style: str) -> Array:
    """What the 256 patterns of an 8-bit float stand for, (256,) float64.

    `style` is "ieee" (infinities and NaN), "fn" (all ones are NaN) or "fnuz" (the pattern of −0 is NaN).
    """
    patterns = np.arange(256)
    exponents, fractions = (patterns & 127) >> mantissa, patterns & ((1 << mantissa) - 1)
    significands = fractions / (1 << mantissa) + (exponents > 0)
    values = np.where(patterns > 127, -1.0, 1.0) * np.ldexp(significands, np.maximum(exponents, 1) - bias)
    if style == "ieee":
        top = exponents == exponents.max()
        values[top] = np.where(fractions[top] > 0, np.nan, np.copysign(np.inf, values[top]))
    elif style == "fn":
        values[[127, 255]] = np.nan
    else:
        values[128] = np.nan
    return values


_DECODERS: Mapping[str, Callable[[Array], Array]] = {
    "F8_E5M2": partial(_decode_eight_bits, 2, 15, "ieee"),
    "F8_E5M2FNUZ": partial(_decode_eight_bits, 2, 16, "fnuz"),
    "F8_E4M3": partial(_decode_eight_bits, 3, 7, "fn"),
    "F8_E4M3FNUZ": partial(_decode_eight_bits, 3, 8, "fnuz"),
    "BF16": _decode_bf16,
    "F16": partial(_decode_ieee, "<f2"),
    "F32": partial(_decode_ieee, "<f4"),
    "F64": partial(_decode_ieee, "<f8"),
}
