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

import threading
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from blake3 import blake3

from deltareg.codec import FRAME_LANES, Array
from deltareg.sketch import loops
from deltareg.sketch.sketches import Sketch, samples_of, width_of

__all__ = ["LEAST_LANES", "Sketcher"]

LEAST_LANES = 1 << 22
"""Lanes that a delta has at least where projections are worth their bytes: the records of smaller ones are small."""

_RUN = 64


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
