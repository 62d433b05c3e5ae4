"""`planes`: the symbols as byte planes, most significant first."""

from __future__ import annotations

import numpy as np

from deltareg.codec.lanes import Array, Lane
from deltareg.codec.memory import empty
from deltareg.codec.streams import Preset, StreamReader, pack_stream

__all__ = ["decode", "encode"]


def encode(symbols: Array, lane: Lane, preset: Preset) -> bytes:
    """One stream for each byte of the symbols, rotated so that a float's exponent fills the first.

    `symbols` is one-dimensional, of `lane.bits`.
    """
    planes = rotate(symbols, lane.rotation).astype(f">u{lane.width}", copy=False).view(np.uint8)
    planes = planes.reshape(-1, lane.width)
    return b"".join(pack_stream(np.ascontiguousarray(planes[:, byte]), preset) for byte in range(lane.width))


def decode(reader: StreamReader, count: int, lane: Lane) -> Array:
    """The inverse of `encode` for `count` symbols. Raises BadRecord."""
    planes = empty(count * lane.width, np.uint8).reshape(count, lane.width)
    for byte in range(lane.width):
        planes[:, byte] = reader.stream(size=count)
    symbols = planes.view(f">u{lane.width}").reshape(-1).astype(lane.bits)
    return rotate(symbols, -lane.rotation)


def rotate(symbols: Array, left: int) -> Array:
    """Each symbol's bits rotated left (right where negative)."""
    bits = 8 * symbols.dtype.itemsize
    left %= bits
    if left == 0:
        return symbols
    kind = symbols.dtype.type
    return (symbols << kind(left)) | (symbols >> kind(bits - left))
