"""Lanes for which each record kind is chosen, mended and overwritten ones among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltareg.codec import Kind, lane_of
from tests.codec.oracle import FORMATS

__all__ = ["SAMPLES", "Sample"]

Array = NDArray[Any]
BF16 = FORMATS["BF16"]


@dataclass(frozen=True)
class Sample:
    """The kind that preset fast chooses for `size` lanes of it, its dtypes, and how its lanes are made."""

    kind: Kind
    base_dtype: str | None
    dtype: str
    make: Callable[[int], tuple[Array | None, Array]]
    # Enough for every stream to be worth compressing, few enough to try each byte.
    size: int = 3000


def _generator(size: int) -> np.random.Generator:
    return np.random.default_rng([7, size])


# So many that preset fast does not try an arithmetic code.
_MANY = 5000


def _unchanged(size: int) -> tuple[Array, Array]:
    base = BF16.narrow(_generator(size).normal(0, 1, size))
    return base, base.copy()


def _palette_bytes(size: int) -> tuple[Array, Array]:
    """Sixty frequent differences, and some of their own."""
    draw = _generator(size)
    base = BF16.narrow(draw.uniform(1.0, 1.99, size))
    steps = np.rint(draw.normal(0, 12, size)).astype(np.int64)
    return base, np.clip(base + steps, 0x3F00, 0x407F).astype(np.uint16)


def _palette_nibbles(size: int) -> tuple[Array, Array]:
    draw = _generator(size)
    base = BF16.narrow(draw.uniform(1.0, 1.9, size))
    post = base + draw.choice([0, 1, 2, 3], size, p=[0.5, 0.3, 0.15, 0.05])
    post[::50] = base[::50] + draw.integers(0, 60, post[::50].size)
    return base, post.astype(np.uint16)


def _steps(dtype: str, spread: float) -> Callable[[int], tuple[Array, Array]]:
    """Small differences of many sizes."""

    def make(size: int) -> tuple[Array, Array]:
        draw, format_ = _generator(size), FORMATS[dtype]
        base = format_.narrow(draw.normal(0, 0.02, size))
        return base, format_.narrow(format_.widen(base) + draw.normal(0, spread, size))

    return make


def _sparse(size: int) -> tuple[Array, Array]:
    draw = _generator(size)
    base = BF16.narrow(draw.normal(0, 1, size))
    return base, np.where(draw.random(size) < 0.02, base + draw.integers(1, 60, size), base).astype(np.uint16)


def _noise(dtype: str) -> Callable[[int], tuple[Array, Array]]:
    def make(size: int) -> tuple[Array, Array]:
        draw, format_ = _generator(size), FORMATS[dtype]
        scale = 10.0 ** draw.integers(-2, 4, size)
        return format_.narrow(draw.normal(0, 1, size)), format_.narrow(draw.normal(0, 1, size) * scale)

    return make


def _thin(dtype: str) -> Callable[[int], tuple[Array, Array]]:
    def make(size: int) -> tuple[Array, Array]:
        base, post = _noise(dtype)(size)
        return base, np.where(_generator(size).random(size) < 0.3, post, base)

    return make


def _mended(size: int) -> tuple[Array, Array]:
    """Differences larger than the weights: a tenth of the sums need a second term."""
    draw = _generator(size)
    base = BF16.narrow(draw.choice([1.0, 1.5, -3.0, 0.75], size))
    post = np.where(draw.random(size) < 0.1, 2.0 ** draw.integers(-12, 0, size), BF16.widen(base) * 1.5)
    return base, BF16.narrow(post)


def _overwritten(size: int) -> tuple[Array, Array]:
    base, post = _mended(size)
    post[5::64], post[6::64], base[7::64], post[8::64], base[9::64] = 0xFF81, 0x8000, 0x7F80, 0x7F80, 0x7FC1
    base[6::64] = 0
    return base, post


def _half_to_single(size: int) -> tuple[Array, Array]:
    draw = _generator(size)
    values = draw.normal(0, 1, size)
    return BF16.narrow(values), FORMATS["F32"].narrow(values * draw.normal(1, 0.01, size))


def _single_to_half(size: int) -> tuple[Array, Array]:
    post, base = _half_to_single(size)
    return base, post


def _bits(dtype: str, share: float) -> Callable[[int], tuple[Array, Array]]:
    def make(size: int) -> tuple[Array, Array]:
        draw, kind = _generator(size), lane_of(dtype).bits
        top = 2 if dtype == "BOOL" else 100
        base = draw.integers(0, top, size).astype(kind)
        return base, np.where(draw.random(size) < share, base ^ kind(1), base)

    return make


def _added(dtype: str) -> Callable[[int], tuple[None, Array]]:
    return lambda size: (None, _bits(dtype, 0)(size)[1])


SAMPLES: Mapping[str, Sample] = {
    "zero": Sample(Kind.ZERO, "BF16", "BF16", _unchanged),
    "palette of bytes": Sample(Kind.PALETTE, "BF16", "BF16", _palette_bytes, _MANY),
    "palette of nibbles": Sample(Kind.PALETTE, "BF16", "BF16", _palette_nibbles, _MANY),
    "sparse": Sample(Kind.SPARSE, "BF16", "BF16", _sparse, _MANY),
    "arithmetic": Sample(Kind.ARITHMETIC, "BF16", "BF16", _steps("BF16", 2e-4)),
    "arithmetic F16": Sample(Kind.ARITHMETIC, "F16", "F16", _steps("F16", 3e-5)),
    # Among fewer lanes some symbols seem frequent, and a palette seems worth its table.
    "planes of F16": Sample(Kind.PLANES, "F16", "F16", _noise("F16"), 20_000),
    "planes of F32": Sample(Kind.PLANES, "F32", "F32", _noise("F32")),
    "sparse F32": Sample(Kind.SPARSE, "F32", "F32", _thin("F32")),
    "planes of F64": Sample(Kind.PLANES, "F64", "F64", _noise("F64")),
    "planes of C64": Sample(Kind.PLANES, "C64", "C64", _noise("C64")),
    "mended": Sample(Kind.PALETTE, "BF16", "BF16", _mended),
    "overwritten": Sample(Kind.PALETTE, "BF16", "BF16", _overwritten),
    "BF16 to F32": Sample(Kind.PLANES, "BF16", "F32", _half_to_single),
    "F32 to BF16": Sample(Kind.ARITHMETIC, "F32", "BF16", _single_to_half),
    "replaced I64": Sample(Kind.SPARSE, "I64", "I64", _bits("I64", 0.01)),
    "replaced BOOL": Sample(Kind.SPARSE, "BOOL", "BOOL", _bits("BOOL", 0.3)),
    "replaced F8": Sample(Kind.PLANES, "F8_E4M3", "F8_E4M3", _bits("F8_E4M3", 1.0)),
    "I32 to U16": Sample(Kind.PLANES, "I32", "U16", lambda size: (np.zeros(size, np.uint32), _bits("U16", 0)(size)[1])),
    "added F32": Sample(Kind.PLANES, None, "F32", lambda size: (None, _noise("F32")(size)[1])),
    "added I16": Sample(Kind.PLANES, None, "I16", _added("I16")),
    "added F4": Sample(Kind.PLANES, None, "F4", _added("F4")),
}
"""One for each kind, each class of dtypes, and each way of mending."""
