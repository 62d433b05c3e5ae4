"""What each safetensors dtype is to the codec: lanes of one width, added as numbers or replaced as bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltareg.errors import UnsupportedFormat

if TYPE_CHECKING:
    from deltareg.manifest import TensorEntry

__all__ = ["DELTA_DTYPES", "FRAME_LANES", "Array", "Lane", "delta_lane_of", "is_additive", "lane_of", "view_of"]

Array = npt.NDArray[Any]

FRAME_LANES = 1 << 20
"""Lanes of a frame; the last of a record may have fewer."""

DELTA_DTYPES = ("BF16", "F16", "F32", "F64")
"""What D1 may be held in where that is not post's own format: one number for each of post's lanes."""


def view_of(array: Array) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    # NumPy's stubs call arrays buffers from Python 3.12 on only.
    return memoryview(array.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Lane:
    """How the bytes of one dtype are cut into lanes.

    `stored` is the NumPy type that the compiled loops take for it (see `kernels.py`), `bits` the unsigned integer of
    the same width. `precision` counts the significand's bits, the hidden one included; `least` is the exponent of the
    smallest normal number.
    """

    code: int
    dtype: str
    stored: type[np.generic]
    bits: type[np.unsignedinteger[Any]]
    additive: bool
    precision: int = 0
    least: int = 0

    @property
    def width(self) -> int:
        """Bytes of one lane."""
        return np.dtype(self.bits).itemsize

    @property
    def element_bits(self) -> int:
        """Bits of one element of the dtype."""
        return _ODD_ELEMENTS.get(self.dtype, 8 * self.width)

    @property
    def marker(self) -> Any:
        """The symbol of a lane that does not change: the bits of −0.0 (x + (−0.0) = x for every x)."""
        return self.bits(1 << (8 * self.width - 1))

    @property
    def infinity(self) -> Any:
        """The bits of +Inf, where lanes are numbers."""
        return self.bits(((1 << (8 * self.width - self.precision)) - 1) << (self.precision - 1))

    @property
    def rotation(self) -> int:
        """Bits that a symbol is rotated left before it is cut into bytes: the exponent then fills the high byte."""
        return 1 if self.additive else 0

    @property
    def wide(self) -> bool:
        """Whether sums with this dtype are accumulated in float64 (else float32)."""
        return self.additive and self.width > 2

    def lanes_of(self, elements: int) -> int:
        """How many lanes `elements` elements of the dtype are."""
        return elements * self.element_bits // (8 * self.width)

    def adds_to(self, post: Lane) -> bool:
        """Whether numbers of this dtype and a difference make numbers of `post`."""
        return self.additive and post.additive and self.element_bits // self.width == post.element_bits // post.width

    def holds(self, post: Lane) -> bool:
        """Whether a record may say that its D1 is held in this dtype rather than in that of the lanes of `post`."""
        return post.additive and self.dtype in DELTA_DTYPES and self.stored is not post.stored


_ODD_ELEMENTS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}

# Codes are part of the format and never change. C64 is two F32 lanes for each element; F4 and F6 pack elements across
# bytes, so that their lane is the byte.
_LANES = {
    lane.dtype: lane
    for lane in (
        Lane(1, "BF16", np.uint16, np.uint16, True, 8, -126),
        Lane(2, "F16", np.int16, np.uint16, True, 11, -14),
        Lane(3, "F32", np.float32, np.uint32, True, 24, -126),
        Lane(4, "F64", np.float64, np.uint64, True, 53, -1022),
        Lane(5, "C64", np.float32, np.uint32, True, 24, -126),
        Lane(16, "BOOL", np.uint8, np.uint8, False),
        Lane(17, "U8", np.uint8, np.uint8, False),
        Lane(18, "I8", np.uint8, np.uint8, False),
        Lane(19, "U16", np.uint16, np.uint16, False),
        Lane(20, "I16", np.uint16, np.uint16, False),
        Lane(21, "U32", np.uint32, np.uint32, False),
        Lane(22, "I32", np.uint32, np.uint32, False),
        Lane(23, "U64", np.uint64, np.uint64, False),
        Lane(24, "I64", np.uint64, np.uint64, False),
        Lane(32, "F8_E4M3", np.uint8, np.uint8, False),
        Lane(33, "F8_E5M2", np.uint8, np.uint8, False),
        Lane(34, "F8_E8M0", np.uint8, np.uint8, False),
        Lane(35, "F8_E4M3FNUZ", np.uint8, np.uint8, False),
        Lane(36, "F8_E5M2FNUZ", np.uint8, np.uint8, False),
        Lane(40, "F6_E2M3", np.uint8, np.uint8, False),
        Lane(41, "F6_E3M2", np.uint8, np.uint8, False),
        Lane(42, "F4", np.uint8, np.uint8, False),
    )
}
_BY_CODE = {lane.code: lane for lane in _LANES.values()}


def is_additive(entry: TensorEntry) -> bool:
    """Whether the delta of a tensor is numbers that are added, rather than bits that are put in the target's place."""
    if entry.base_dtype is None or entry.post_dtype is None:
        return False
    return lane_of(entry.base_dtype).adds_to(lane_of(entry.post_dtype))


def delta_lane_of(entry: TensorEntry) -> Lane:
    """The lane of D1 of a tensor that post has: post's, unless the delta has a dtype of its own."""
    dtype = entry.delta_dtype or entry.post_dtype
    assert dtype is not None
    return lane_of(dtype)


def lane_of(dtype: str | int) -> Lane:
    """The lane of a dtype, by its name or by its code in a record. Raises UnsupportedFormat."""
    found = _LANES.get(dtype) if isinstance(dtype, str) else _BY_CODE.get(dtype)
    if found is None:
        raise UnsupportedFormat(f"unknown dtype {dtype!r}", hint="install a newer deltareg", dtype=dtype)
    return found
