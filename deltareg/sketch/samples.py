"""Samples: a few hundred values of each tensor of a base, at places that its name and size alone decide.

So nothing but the values is stored, and the same places of a target are read by byte ranges. `docs/format.md` has
every byte. Places never change within format version 1.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from deltareg.artifact import pack, unpack
from deltareg.checkpoint import DTYPES, Checkpoint, Tensor
from deltareg.errors import BadManifest, UnsupportedFormat, translate_os_errors
from deltareg.sketch.floats import PRECISIONS, decode
from deltareg.threads import in_order

__all__ = [
    "SAMPLES_TYPE",
    "SamplePlan",
    "Samples",
    "TensorSpec",
    "chunks",
    "decode_runs",
    "read_runs",
    "read_samples",
    "sample_plan",
    "take_samples",
]

SAMPLES_TYPE = "application/vnd.deltareg.samples.v1+zstd"
"""Media type of the layer that holds an artifact's samples."""

Array = npt.NDArray[Any]

_MAGIC = b"DSmp"
_VERSION = 1
_HEAD = _MAGIC + bytes((_VERSION, 0, 0, 0))
_RUN = 16
_LEAST_OF_TENSOR = 4
_MOST_OF_TENSOR = 256
_ELEMENTS_PER_VALUE = 1024
_MOST_OF_MODEL = 1 << 20
_MAX_ELEMENTS = 1 << 40
_GOLDEN = 0x9E3779B97F4A7C15
# Runs that are read at once: memory stays small, and threads have something to share.
_CHUNK = 8192


@dataclass(frozen=True)
class TensorSpec:
    """What the sampled places of a tensor follow from, and the dtype of its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SamplePlan:
    """Which values of a model are sampled: runs of up to 16 consecutive elements.

    `tensors` are those that have samples, by name (Unicode code points); `elements` counts those of each. The other
    arrays have a place for each run: the number of its tensor, its first element, its length (all int64), and what was
    drawn for it (uint64). Runs are in the order of the tensors, then of the elements.
    """

    tensors: tuple[TensorSpec, ...]
    elements: Array
    owners: Array
    starts: Array
    lengths: Array
    draws: Array

    @property
    def values(self) -> int:
        """Number of sampled values."""
        return int(self.lengths.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all sampled values, as they are stored."""
        widths = np.array([_width(spec.dtype) for spec in self.tensors], np.int64)
        return int((widths[self.owners] * self.lengths).sum())


@dataclass(frozen=True)
class Samples:
    """The sampled values of a base: (values,) float64 in the order of the plan, each exact."""

    plan: SamplePlan
    values: Array


# --- which places -------------------------------------------------------------------------------------------------


def sample_plan(tensors: Sequence[TensorSpec]) -> SamplePlan:
    """The places at which `tensors`, all those of a base and in whatever order, are sampled.

    Floats have samples; empty tensors and other dtypes have none, but are counted. Raises BadManifest for a tensor
    of more than 2^40 elements.
    """
    counted = [
        (spec, count)
        for spec in sorted(tensors, key=lambda spec: spec.name)
        if spec.dtype in PRECISIONS and (count := _elements(spec))
    ]
    elements = np.array([count for _, count in counted], np.int64)
    values = _values_of(elements, len(tensors))
    runs = np.maximum(1, values // _RUN)
    slots = np.maximum(1, elements // _RUN)
    owners = np.repeat(np.arange(len(counted)), runs)
    numbers = np.arange(owners.size) - np.repeat(np.cumsum(runs) - runs, runs)
    draws = _mixed(np.array([_key(spec.name) for spec, _ in counted], np.uint64)[owners], numbers)
    # One slot of each of as many equal stretches as there are runs.
    first = numbers * slots[owners] // runs[owners]
    room = (numbers + 1) * slots[owners] // runs[owners] - first
    starts = (first + (draws % room.astype(np.uint64)).astype(np.int64)) * _RUN
    lengths = np.minimum(_RUN, values)[owners]
    return SamplePlan(tuple(spec for spec, _ in counted), elements, owners, starts, lengths, draws)


def _values_of(elements: Array, tensors: int) -> Array:
    """How many values of tensors of so many elements are sampled, in a model of so many tensors."""
    most = min(_MOST_OF_TENSOR, max(_RUN, _MOST_OF_MODEL // max(1, tensors)))
    wanted = np.clip(elements // _ELEMENTS_PER_VALUE, _LEAST_OF_TENSOR, most)
    return np.minimum(elements, np.where(wanted > _RUN, wanted // _RUN * _RUN, wanted))


def _elements(spec: TensorSpec) -> int:
    count = math.prod(spec.shape)
    if count > _MAX_ELEMENTS:
        raise BadManifest(f"tensor {spec.name!r:.120} has more than 2^40 elements", tensor=spec.name)
    return count


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def _mixed(keys: Array, counters: Array) -> Array:
    """Output number `counters`, from 0, of splitmix64 seeded by `keys`: (n,) uint64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. Sums and products are modulo 2^64.
    """
    mixed = keys + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


# --- the layer ----------------------------------------------------------------------------------------------------


def take_samples(checkpoint: Checkpoint, threads: int = 4) -> bytes:
    """The layer that holds the samples of a base: the same bytes for every number of threads.

    Raises BadHeader where a file of the checkpoint ends early, BadManifest for a tensor of more than 2^40 elements.
    """
    plan = sample_plan([TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in checkpoint.tensors.values()])
    homes = {number: checkpoint.tensors[spec.name] for number, spec in enumerate(plan.tensors)}
    tasks = [partial(read_runs, plan, homes, runs) for runs in chunks(np.arange(plan.owners.size), threads)]
    return pack(_HEAD + b"".join(part.tobytes() for part in in_order(tasks, threads)))


def read_samples(data: bytes, tensors: Sequence[TensorSpec]) -> Samples:
    """The samples in a layer. `tensors` are all those of the base, as the inventory has them, in whatever order.

    Allocates no more than the samples of these tensors take. Raises BadManifest, UnsupportedFormat.
    """
    plan = sample_plan(tensors)
    due = len(_HEAD) + plan.nbytes
    raw = unpack(data, limit=due, what="the samples")
    if raw[: len(_MAGIC)] != _MAGIC or len(raw) < len(_HEAD):
        raise BadManifest("the samples do not start as samples do")
    if raw[: len(_HEAD)] != _HEAD:
        raise UnsupportedFormat(
            f"the samples have version {raw[4]}; this deltareg reads version {_VERSION}",
            hint="install a newer deltareg",
        )
    if len(raw) != due:
        raise BadManifest(f"the samples are {len(raw)} bytes; those of the inventory's tensors are {due}")
    dtypes = [spec.dtype for spec in plan.tensors]
    return Samples(plan, decode_runs(np.frombuffer(raw, np.uint8)[len(_HEAD) :], dtypes, plan.owners, plan.lengths))


# --- runs ---------------------------------------------------------------------------------------------------------


def chunks(runs: Array, threads: int) -> list[Array]:
    """`runs` in pieces that are read at once, in order, so small that each thread has one where there are enough."""
    size = min(_CHUNK, -(-runs.size // threads))
    return [runs[start : start + size] for start in range(0, runs.size, max(1, size))]


def read_runs(plan: SamplePlan, homes: Mapping[int, Tensor], runs: Array) -> Array:
    """The bytes of `runs` of the tensors in `homes`, by number in the plan: one after the other, uint8.

    Raises what reading a tensor raises.
    """
    numbers, places = np.unique(plan.owners[runs], return_inverse=True)
    tensors: list[Tensor] = [homes[number] for number in numbers.tolist()]
    widths = np.array([_width(tensor.dtype) for tensor in tensors], np.int64)[places]
    sizes, offsets = plan.lengths[runs] * widths, plan.starts[runs] * widths
    ranges = [tensor.file_range() for tensor in tensors]
    if None not in ranges:
        # Hundreds of thousands of tiny reads: what `read_into` does around each takes longer than the read.
        files = np.array(ranges, np.int64).reshape(-1, 2)[places]
        each = (files[:, 0].tolist(), sizes.tolist(), (files[:, 1] + offsets).tolist())
        with translate_os_errors("read the checkpoint", tensors[0].shard if tensors else ""):
            raw = b"".join(map(os.pread, *each))
        if len(raw) == int(sizes.sum()):
            return np.frombuffer(raw, np.uint8)
    return np.frombuffer(b"".join(_read_each(tensors, places, offsets, sizes)), np.uint8)


def _read_each(tensors: Sequence[Tensor], places: Array, offsets: Array, sizes: Array) -> Iterator[bytes]:
    rows: Iterator[tuple[int, int, int]] = zip(places.tolist(), offsets.tolist(), sizes.tolist(), strict=True)
    for place, offset, size in rows:
        yield tensors[place].read(offset, size)


def decode_runs(raw: Array, dtypes: Sequence[str], owners: Array, lengths: Array) -> Array:
    """The values of runs that lie one after the other in `raw`, float64; `owners` say which of `dtypes` each has."""
    values = np.empty(int(lengths.sum()), np.float64)
    sizes = np.array([_width(dtype) for dtype in dtypes], np.int64)[owners] * lengths
    for dtype in dict.fromkeys(dtypes):
        chosen = np.array([other == dtype for other in dtypes], np.bool_)[owners]
        values[np.repeat(chosen, lengths)] = decode(raw[np.repeat(chosen, sizes)], dtype)
    return values


def _width(dtype: str) -> int:
    return DTYPES[dtype].bits // 8
