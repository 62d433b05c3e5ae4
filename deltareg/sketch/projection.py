"""Projections: what tells two deltas' cosine, tensor by tensor, without the deltas themselves.

A tensor's lanes of D1 are added with pseudo-random signs into buckets (a count sketch: Charikar, Chen and
Farach-Colton, "Finding frequent items in data streams", 2002), the buckets are mixed by two rounds of signs and
Walsh-Hadamard transforms (Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", 2009), and of each result
the sign is kept, one bit: two vectors at angle θ differ in a share θ/π of them (Charikar, "Similarity estimation
techniques from rounding algorithms", 2002). Lengths need no sketch, as the inventory has them. The mixing makes every
bit see every lane, so that a delta of few or very uneven changes is estimated as well as any.

Beside it stand the signs of D1 at pseudo-random lanes, the same ones in every delta, for the share of opposed signs.

`docs/format.md` has every byte. What is computed is fixed by format version 1: widths, keys and the order of the sums
never change, or two deltas could no longer be compared.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from blake3 import blake3

from deltareg.artifact import pack, unpack
from deltareg.codec import FRAME_LANES, Array, is_additive, lane_of
from deltareg.errors import BadManifest, UnsupportedFormat
from deltareg.manifest import TensorEntry
from deltareg.sketch import loops

__all__ = [
    "LEAST_LANES",
    "PROJECTION_TYPE",
    "Sketch",
    "Sketcher",
    "lanes_of",
    "pack_sketches",
    "read_sketches",
    "samples_of",
    "width_of",
]

PROJECTION_TYPE = "application/vnd.deltareg.projection.v1+zstd"
"""Media type of the layer that holds an artifact's projections."""

LEAST_LANES = 1 << 22
"""Lanes that a delta has at least where projections are worth their bytes: the records of smaller ones are small."""

_MAGIC = b"DPrj"
_VERSION = 1
_LIMIT = 256 * 2**20
_RUN = 64


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


@dataclass
class _Tensor:
    """One tensor on its way: the sum of the frames up to `done`, and the frames that came too early."""

    lanes: int
    keys: tuple[np.uint64, ...]
    places: Array
    samples: Array
    sums: Array | None
    done: int = 0
    early: dict[int, Array | None] = field(default_factory=dict[int, Any])

    @property
    def frames(self) -> int:
        return -(-self.lanes // FRAME_LANES)


class Sketcher:
    """Makes the projections of a delta from its frames, which may come in any order and from any thread.

    The result is the same for each order: the sums of the frames are added in the frames' order. A tensor takes 8
    bytes for each of its buckets until its last frame has come.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Tensor] = {}
        self._finished: dict[str, Sketch] = {}

    def add(self, name: str, lanes: int, number: int, delta: Array | None) -> None:
        """Take in frame `number` of the tensor `name`, which has `lanes` lanes in all.

        `delta` are the frame's lanes of D1, typed as `kernels.py` says (uint16 BF16, int16 F16, float32, float64),
        −0.0 where nothing changes; None for a frame in which nothing does. Not kept. Raises ValueError for a frame
        that the tensor does not have, or that came before.
        """
        tensor = self._tensor(name, lanes)
        expected = min(FRAME_LANES, lanes - number * FRAME_LANES)
        if not 0 <= number < tensor.frames or (delta is not None and delta.size != expected):
            raise ValueError(f"frame {number} of {name!r} does not fit into {lanes} lanes")
        sums = None if delta is None else self._project(tensor, number, delta)
        with self._lock:
            if number < tensor.done or number in tensor.early or tensor.lanes != lanes:
                raise ValueError(f"frame {number} of {name!r} came twice, or its tensor has {tensor.lanes} lanes")
            tensor.early[number] = sums
            while tensor.done in tensor.early:
                part = tensor.early.pop(tensor.done)
                if part is not None:
                    tensor.sums = part if tensor.sums is None else np.add(tensor.sums, part, out=tensor.sums)
                tensor.done += 1
            last = tensor.done == tensor.frames
        if last:
            self._close(name, tensor)

    def finish(self) -> dict[str, Sketch]:
        """The projections by tensor; a tensor in which nothing changes has none. Raises ValueError if frames lack."""
        incomplete = [name for name, tensor in self._open.items() if tensor.done < tensor.frames]
        if incomplete:
            raise ValueError(f"frames of {', '.join(map(repr, incomplete[:8]))} lack")
        return dict(self._finished)

    def _tensor(self, name: str, lanes: int) -> _Tensor:
        with self._lock:
            found = self._open.get(name)
            if found is None:
                keys = _keys(name)
                places = _sampled(lanes, keys[2])
                found = _Tensor(lanes, keys, places, np.zeros(places.size, np.int8), None)
                self._open[name] = found
            return found

    def _project(self, tensor: _Tensor, number: int, delta: Array) -> Array:
        first = number * FRAME_LANES
        width = width_of(tensor.lanes)
        sums = np.zeros(width + _RUN, np.float64)
        loops.project(delta, first, tensor.keys[0], width, sums)
        start, end = np.searchsorted(tensor.places, (first, first + delta.size))
        tensor.samples[start:end] = _signs(delta[tensor.places[start:end] - first])
        return sums

    def _close(self, name: str, tensor: _Tensor) -> None:
        sums, tensor.sums = tensor.sums, None
        if sums is None or not sums.any():
            return
        width = width_of(tensor.lanes)
        values = np.zeros(1 << (width - 1).bit_length(), np.float64)
        values[:width] = sums[:width]
        loops.rotate(values, tensor.keys[1], 0)
        once = values.copy()
        loops.rotate(values, tensor.keys[1], 1)
        # Few changed lanes give sums of exactly 0. A constant there would not turn with the delta's sign.
        decided = np.where(values == 0, once, values)[:width]
        sketch = Sketch(tensor.lanes, np.packbits(decided < 0, bitorder="little"), tensor.samples)
        with self._lock:
            self._finished[name] = sketch


def _keys(name: str) -> tuple[np.uint64, ...]:
    """The keys of signs, mixing and samples: the first 24 bytes of the BLAKE3 of the tensor's name."""
    return tuple(np.frombuffer(blake3(name.encode()).digest()[:24], "<u8").astype(np.uint64))


def _sampled(lanes: int, key: np.uint64) -> Array:
    """The lanes that are sampled, ascending: one of each of as many equal stretches as there are samples."""
    count = samples_of(lanes)
    edges = [number * lanes // count for number in range(count + 1)] if count else [0]
    return np.array(
        [start + loops.mixed(key, number) % (end - start) for number, (start, end) in enumerate(pairwise(edges))],
        np.int64,
    )


def _signs(lanes: Array) -> Array:
    """−1, 0 or 1 for each lane; 0 for what is no finite number."""
    if lanes.dtype == np.uint16:
        values: Array = (lanes.astype(np.uint32) << 16).view(np.float32)
    else:
        values = lanes.view(np.float16) if lanes.dtype == np.int16 else lanes
    return np.where(np.isfinite(values), np.sign(values), 0).astype(np.int8)


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
