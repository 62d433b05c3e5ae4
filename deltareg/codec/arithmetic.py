"""`arithmetic`: 16-bit float symbols bit by bit, by adaptive binary arithmetic coding.

A Huffman code pays for its table and for whole bits, which in a small tensor is a twentieth of the record. Here nothing
is stored but the code: each bit's chance is learnt from the bits before it. That takes a hundred times as
long as a palette, so that it is for small frames.

The chances follow Krichevsky and Trofimov ("The performance of universal encoding", 1981), with a bound on what is
remembered so that they follow a tensor whose rows differ. `docs/format.md` has every step.
"""

from __future__ import annotations

import numpy as np

from deltareg.codec import kernels
from deltareg.codec.lanes import Array, Lane
from deltareg.codec.memory import empty
from deltareg.codec.streams import Preset, StreamReader, pack_number
from deltareg.errors import BadRecord

__all__ = ["MOST_LANES", "decode", "encode", "fits"]

MOST_LANES: dict[Preset, int] = {"fast": 1 << 12, "small": 1 << 18}
"""Lanes that a frame has at most for the encoder to try this. Readers take any number."""


def fits(lane: Lane) -> bool:
    """Whether lanes of this kind can be coded so: floats of 16 bits."""
    return lane.width == 2 and lane.additive


def encode(symbols: Array) -> bytes | None:
    """The symbols (uint16); None where they would take more room than they do as they are."""
    stream = empty(2 * symbols.size, np.uint8)
    used = int(kernels.arithmetic_encode(symbols, stream))
    return None if used < 0 else pack_number(used) + stream[:used].tobytes()


def decode(reader: StreamReader, count: int, lane: Lane) -> Array:
    """The inverse of `encode` for `count` symbols. Raises BadRecord."""
    stream = reader.plain(reader.number())
    symbols = empty(count, lane.bits)
    looked_at = int(kernels.arithmetic_decode(stream, symbols))
    if stream.size > looked_at:
        raise BadRecord(f"an arithmetic code has {stream.size} bytes, of which {looked_at} are needed")
    return symbols
