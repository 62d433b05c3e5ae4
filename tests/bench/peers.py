"""What others make of the same pair of checkpoints: sizes counted to the byte, seconds measured here.

Everything is computed from the bytes that `tests.raw` reads, without the product.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from tests import raw

__all__ = [
    "Entropy",
    "Packed",
    "TensorPair",
    "bitx",
    "copy_directory",
    "delta_bytes",
    "delta_of",
    "entropy",
    "pairs_of",
    "read_files",
    "zipnn",
    "zstd",
]

_CHUNK = 1 << 20
_FRAME = 4
"""Bytes that BitX needs to say how long a chunk's frame is."""


@dataclass(frozen=True)
class TensorPair:
    """A tensor that both checkpoints have with one dtype and shape; or that post alone has (`base` is None)."""

    spec: raw.TensorSpec
    base: NDArray[np.uint8] | None
    post: NDArray[np.uint8]

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return raw.WIDTHS[self.spec.dtype]


@dataclass(frozen=True)
class Packed:
    """A peer's result.

    `size` is the payload alone, in bytes; `framing` is what must be added to find the payload's parts again. Seconds
    are wall time; `unpack_seconds` leads back to what was packed. `threads` is what the peer was allowed.
    """

    peer: str
    size: int
    framing: int
    pack_seconds: float
    unpack_seconds: float
    threads: int
    needs_base: bool

    @property
    def total(self) -> int:
        """Everything counted, bytes."""
        return self.size + self.framing


@dataclass(frozen=True)
class Entropy:
    """The order-0 entropy of the 16-bit symbols D1, each tensor having its own distribution.

    `mended` counts elements where base + D1 does not round to post. The price of exactness is the entropy of their
    positions and 4 bits for each.
    """

    elements: int
    symbol_bits: float
    mended: int
    position_bits: float

    @property
    def price_bits(self) -> float:
        """The price of exactness, bits in all."""
        return self.position_bits + 4 * self.mended

    @property
    def size(self) -> float:
        """H with the price of exactness, in bytes."""
        return (self.symbol_bits + self.price_bits) / 8

    @property
    def bits_per_element(self) -> float:
        """H of D1 alone."""
        return self.symbol_bits / max(1, self.elements)


def pairs_of(base: Mapping[str, raw.RawTensor], post: Mapping[str, raw.RawTensor]) -> list[TensorPair]:
    """Post's tensors, each beside base's where it has the same dtype and shape."""
    alike = {name: base[name].data for name, tensor in post.items() if name in base and base[name].spec == tensor.spec}
    return [TensorPair(tensor.spec, alike.get(name), tensor.data) for name, tensor in post.items()]


# --- D1 and its entropy -------------------------------------------------------------------------------------------


def _to_float(bits: NDArray[np.uint16], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def _from_float(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint16]:
    return raw.to_bf16(values) if dtype == "BF16" else values.astype(np.float16).view(np.uint16)


def delta_of(base: NDArray[np.uint16], post: NDArray[np.uint16], dtype: str) -> NDArray[np.uint16]:
    """D1 = round(post − base) as bit patterns of `dtype` (BF16 or F16), −0.0 where nothing changed."""
    with np.errstate(all="ignore"):
        delta = _from_float(_to_float(post, dtype) - _to_float(base, dtype), dtype)
    delta[base == post] = 0x8000
    return delta


def _blocks(pair: TensorPair, base: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
    before, after = base.view(np.uint16), pair.post.view(np.uint16)
    for start in range(0, after.size, _CHUNK):
        yield before[start : start + _CHUNK], after[start : start + _CHUNK]


def entropy(pairs: Iterable[TensorPair]) -> Entropy:
    """H of D1 over the pairs' 16-bit floats; other tensors, and those that base lacks, are left out."""
    elements = mended = 0
    symbol_bits = position_bits = 0.0
    for pair in pairs:
        if pair.base is None or pair.spec.dtype not in ("BF16", "F16"):
            continue
        counts, wrong = np.zeros(1 << 16, np.int64), 0
        for base, post in _blocks(pair, pair.base):
            delta = delta_of(base, post, pair.spec.dtype)
            counts += np.bincount(delta, minlength=1 << 16)
            with np.errstate(all="ignore"):
                total = _to_float(base, pair.spec.dtype) + _to_float(delta, pair.spec.dtype)
            wrong += int(np.count_nonzero(_from_float(total, pair.spec.dtype) != post))
        size = int(counts.sum())
        elements, mended = elements + size, mended + wrong
        symbol_bits += _bits(counts)
        position_bits += _bits(np.array([wrong, size - wrong]))
    return Entropy(elements, symbol_bits, mended, position_bits)


def _bits(counts: NDArray[np.int64]) -> float:
    """Bits that an ideal order-0 code needs for symbols that occur `counts` times."""
    found = counts[counts > 0].astype(np.float64)
    return float((found * np.log2(found.sum() / found)).sum()) if found.size else 0.0


def delta_bytes(pairs: Iterable[TensorPair]) -> bytes:
    """What general compressors are given: D1 of 16-bit floats, the difference of F32, the XOR of others, joined."""
    return b"".join(_delta_bytes(pair) for pair in pairs)


def _delta_bytes(pair: TensorPair) -> bytes:
    if pair.base is None:
        return pair.post.tobytes()
    if pair.spec.dtype in ("BF16", "F16"):
        return delta_of(pair.base.view(np.uint16), pair.post.view(np.uint16), pair.spec.dtype).tobytes()
    if pair.spec.dtype == "F32":
        return (np.frombuffer(pair.post, np.float32) - np.frombuffer(pair.base, np.float32)).tobytes()
    return (pair.post ^ pair.base).tobytes()


# --- peers --------------------------------------------------------------------------------------------------------


def bitx(pairs: Iterable[TensorPair]) -> Packed:
    """The BitX recipe: XOR of base and post, one plane for each byte of an element, zstd 3 in chunks of 1 MiB.

    Checked: unpacking with base gives post. Tensors that base lacks have their planes packed as they are. The framing
    is four bytes a chunk and the compressed header of post. One thread.
    """
    pairs = list(pairs)
    packer, unpacker = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    size, framing = 0, len(packer.compress(raw.header(pair.spec for pair in pairs)))
    pack_seconds = unpack_seconds = 0.0
    for pair in pairs:
        started = time.perf_counter()
        planes = _planes(pair)
        frames = [
            [packer.compress(plane[at : at + _CHUNK].data) for at in range(0, plane.size, _CHUNK)] for plane in planes
        ]
        packed = time.perf_counter()
        joined = [np.frombuffer(b"".join(map(unpacker.decompress, plane)), np.uint8) for plane in frames]
        found = np.ascontiguousarray(np.stack(joined, axis=1)).reshape(-1)
        if pair.base is not None:
            found ^= pair.base
        unpack_seconds += time.perf_counter() - packed
        pack_seconds += packed - started
        if not np.array_equal(found, pair.post):
            raise AssertionError(f"BitX does not give {pair.spec.name} back")
        size += sum(len(frame) for plane in frames for frame in plane)
        framing += sum(_FRAME * len(plane) for plane in frames)
    return Packed("BitX recipe", size, framing, pack_seconds, unpack_seconds, threads=1, needs_base=True)


def _planes(pair: TensorPair) -> list[NDArray[np.uint8]]:
    changed = pair.post if pair.base is None else pair.post ^ pair.base
    return [np.ascontiguousarray(changed[byte :: pair.width]) for byte in range(pair.width)]


def zstd(data: bytes, *, level: int = 1, threads: int = 2) -> Packed:
    """`zstd -T2 -1` of `data`, in this process (unpacking is single-threaded, as in the program)."""
    packer = zstandard.ZstdCompressor(level=level, threads=threads)
    return _codec(f"zstd -T{threads} -{level}", data, packer.compress, zstandard.ZstdDecompressor().decompress, threads)


def zipnn(data: bytes, *, dtype: str = "BF16", threads: int = 2) -> Packed | None:
    """ZipNN of `data`; None where the package is not installed."""
    if importlib.util.find_spec("zipnn") is None:
        return None
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    # Imported here: it imports torch, and is installed for the benchmark alone.
    coder = importlib.import_module("zipnn").ZipNN(bytearray_dtype=names[dtype], input_format="byte", threads=threads)
    # A copy each time: zipnn reorders its input in place.
    return _codec("zipnn", data, lambda plain: bytes(coder.compress(bytearray(plain))), coder.decompress, threads)


def _codec(
    peer: str, data: bytes, pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes], threads: int
) -> Packed:
    started = time.perf_counter()
    packed = pack(data)
    between = time.perf_counter()
    found = unpack(packed)
    ended = time.perf_counter()
    if bytes(found) != data:
        raise AssertionError(f"{peer} does not give its input back")
    return Packed(peer, len(packed), 0, between - started, ended - between, threads, needs_base=False)


# --- the disk -----------------------------------------------------------------------------------------------------


def read_files(*directories: Path) -> tuple[int, float]:
    """Bytes and seconds of reading every file below `directories` once, in blocks of 4 MiB, one thread."""
    buffer = bytearray(4 << 20)
    total = 0
    started = time.perf_counter()
    for path in (path for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total, time.perf_counter() - started


def copy_directory(source: Path, scratch: Path, *, repeats: int = 3) -> tuple[int, float]:
    """Bytes of `source`, and the median seconds of `cp -r` into `scratch`, the page cache being warm."""
    size, _ = read_files(source)
    seconds: list[float] = []
    for number in range(repeats):
        goal = scratch / f"cp-{number}"
        started = time.perf_counter()
        subprocess.run(["cp", "-r", str(source), str(goal)], check=True, stdin=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
        shutil.rmtree(goal)
    return size, statistics.median(seconds)
