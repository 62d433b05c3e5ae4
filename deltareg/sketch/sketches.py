"""Sketches: what is kept of a projection, and what two of them tell.

How they are made `deltareg.sketch.projection` says; reading and comparing them compiles nothing, so that a registry can
do it too. `docs/format.md` has every byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deltareg.artifact import pack, unpack
from deltareg.codec import Array, is_additive, lane_of
from deltareg.errors import BadManifest, UnsupportedFormat
from deltareg.manifest import TensorEntry

__all__ = ["PROJECTION_TYPE", "Sketch", "lanes_of", "pack_sketches", "read_sketches", "samples_of", "width_of"]

PROJECTION_TYPE = "application/vnd.deltareg.projection.v1+zstd"
"""Media type of the layer that holds an artifact's projections."""

_MAGIC = b"DPrj"
_VERSION = 1
_LIMIT = 256 * 2**20


def width_of(lanes: int) -> int:
    """Bits of the projection of a tensor of so many lanes; a prime number, 0 for no lanes.

    A prime has no factor in common with the length of a row, so that rows and columns spread over all buckets. Grows
    with the square root; a tensor of 2^23 lanes is often the only one of its class, and from 2^27 on nearly always.
    """
    if lanes < 1:
        return 0
    if lanes >= 1 << 27:
        return 53003
    if lanes >= 1 << 23:
        return 41603
    width = max(1021, 5 * math.isqrt(lanes)) | 1
    while any(width % factor == 0 for factor in range(3, math.isqrt(width) + 1, 2)):
        width += 2
    return width


def samples_of(lanes: int) -> int:
    """Lanes of a tensor whose signs are kept."""
    return min(lanes, width_of(lanes) // 8, 1024)


def lanes_of(entry: TensorEntry) -> int:
    """Lanes of post, 0 where post lacks the tensor."""
    return 0 if entry.post_dtype is None else lane_of(entry.post_dtype).lanes_of(math.prod(entry.shape))


@dataclass(frozen=True)
class Sketch:
    """The projection of one tensor's delta.

    `bits` are the signs of the projections, 8 in a uint8, the first in the lowest bit; `samples` the signs of the
    sampled lanes, int8: 0 where nothing changes, 1 and −1.
    """

    lanes: int
    bits: Array
    samples: Array

    def angle(self, other: Sketch) -> tuple[float, float]:
        """Cosine and its standard error, from the bits that differ.

        cos(π·h/k), h of k bits being different; its error is π·sin θ·√(p(1 − p)/k) with p = θ/π.
        """
        width = width_of(self.lanes)
        differ = int(np.bitwise_count(self.bits ^ other.bits).sum())
        cosine = math.cos(math.pi * differ / width)
        # A share of 0 or 1 is not certain: one bit more on either side (Laplace).
        share = (differ + 1) / (width + 2)
        return cosine, math.pi * math.sin(math.pi * share) * math.sqrt(share * (1 - share) / width)

    def opposition(self, other: Sketch) -> tuple[int, int]:
        """Of the sampled lanes, those that both deltas change, and those of them whose signs oppose."""
        products = self.samples * other.samples
        return int(np.count_nonzero(products)), int(np.count_nonzero(products < 0))


# --- bytes --------------------------------------------------------------------------------------------------------


def pack_sketches(sketches: Mapping[str, Sketch], entries: Sequence[TensorEntry]) -> bytes:
    """The layer that holds `sketches`, in the order of the inventory's `entries`.

    Left out are the sketches of names that are no entry, and those of entries that `read_sketches` would refuse.
    """
    chosen = [(number, entry) for number, entry in enumerate(entries) if entry.name in sketches and _can_have(entry)]
    numbers = np.array([number for number, _ in chosen], "<u4").tobytes()
    bodies = [_body(sketches[entry.name]) for _, entry in chosen]
    return pack(b"".join((_MAGIC, bytes((_VERSION, 0, 0, 0)), len(chosen).to_bytes(4, "little"), numbers, *bodies)))


def read_sketches(data: bytes, entries: Sequence[TensorEntry]) -> Mapping[str, Sketch]:
    """The projections in a layer, by tensor. Raises BadManifest, UnsupportedFormat."""
    due = 12 + sum(4 + _body_size(lanes_of(entry)) for entry in entries)
    raw = memoryview(unpack(data, limit=min(due, _LIMIT), what="the projections"))
    if len(raw) < 12 or bytes(raw[:4]) != _MAGIC:
        raise BadManifest("the projections do not start as projections do")
    if bytes(raw[4:8]) != bytes((_VERSION, 0, 0, 0)):
        raise UnsupportedFormat(
            f"the projections have version {raw[4]}; this deltareg reads version {_VERSION}",
            hint="install a newer deltareg",
        )
    count = int.from_bytes(raw[8:12], "little")
    at = 12 + 4 * count
    if count > len(entries) or at > len(raw):
        raise BadManifest(f"the projections are of {count} tensors; the inventory has {len(entries)}")
    found: dict[str, Sketch] = {}
    previous = -1
    for number in map(int, np.frombuffer(raw[12:at], "<u4")):
        if not previous < number < len(entries) or not _can_have(entries[number]):
            raise BadManifest(f"the projections name tensor {number}, which has none, or not in order")
        entry, previous = entries[number], number
        size = _body_size(lanes_of(entry))
        if at + size > len(raw):
            raise BadManifest(f"the projections end within {entry.name!r}")
        found[entry.name] = _parse_body(raw[at : at + size], lanes_of(entry), entry.name)
        at += size
    if at != len(raw):
        raise BadManifest(f"{len(raw) - at} bytes are left over after the last projection")
    return found


def _can_have(entry: TensorEntry) -> bool:
    return is_additive(entry) and entry.changed > 0 and lanes_of(entry) > 0


def _body_size(lanes: int) -> int:
    return -(-width_of(lanes) // 8) - (-samples_of(lanes) // 5)


def _body(sketch: Sketch) -> bytes:
    digits = np.zeros(-(-sketch.samples.size // 5) * 5, np.uint8)
    digits[: sketch.samples.size] = sketch.samples % 3
    packed = digits.reshape(-1, 5) @ np.array([1, 3, 9, 27, 81], np.uint8)
    return sketch.bits.tobytes() + packed.tobytes()


def _parse_body(body: memoryview, lanes: int, name: str) -> Sketch:
    width, count = width_of(lanes), samples_of(lanes)
    bits = np.frombuffer(body[: -(-width // 8)], np.uint8)
    packed = np.frombuffer(body[-(-width // 8) :], np.uint8)
    digits = (packed[:, None] // np.array([1, 3, 9, 27, 81], np.uint8) % 3).reshape(-1)
    if bits[-1] >> (width % 8) or (packed > 242).any() or digits[count:].any():
        raise BadManifest(f"the projection of {name!r} has bits where none belong")
    return Sketch(lanes, bits, np.array([0, 1, -1], np.int8)[digits[:count]])
