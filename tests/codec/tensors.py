"""Tensors by their bits: lanes to encode, checkpoints of them, and the records that `diff` makes of a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import deltareg
from deltareg.artifact import Part
from deltareg.checkpoint import encode_header
from deltareg.codec import (
    EncodedFrame,
    Frame,
    Kind,
    Mode,
    Preset,
    RecordHead,
    RecordReader,
    arithmetic,
    decode_frame,
    encode_difference,
    encode_replaced,
    lane_of,
    palette,
    planes,
    replaced,
    sparse,
)
from deltareg.codec.choose import decode_symbols
from deltareg.codec.frame import FRAME_HEAD
from deltareg.codec.lanes import Lane
from deltareg.codec.streams import StreamReader
from deltareg.errors import BadHeader
from deltareg.manifest import TensorEntry
from deltareg.merge import Addend, Block, linear
from deltareg.merge.linear import overwrite

__all__ = [
    "ADDITIVE",
    "DTYPES",
    "Bytes",
    "Raw",
    "Record",
    "decode",
    "encode",
    "of",
    "produced",
    "read_tensors",
    "recoded",
    "records",
    "reproduce",
    "write_checkpoint",
]

Array = NDArray[Any]

ADDITIVE = ("BF16", "F16", "F32", "F64", "C64")
DTYPES = (
    *ADDITIVE,
    *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4"),
)
"""Every dtype of safetensors."""


@dataclass(frozen=True)
class Raw:
    """A tensor: `data` are its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def of(dtype: str, bits: Array, shape: tuple[int, ...] | None = None) -> Raw:
    """The tensor whose lanes have these bits: a vector, unless `shape` says otherwise."""
    lane = lane_of(dtype)
    data = np.ascontiguousarray(bits, lane.bits).tobytes()
    if shape is None:
        elements = {"C64": bits.size // 2, "F4": bits.size * 2, "F6_E2M3": bits.size // 3 * 4}
        shape = (elements.get(dtype.replace("E3M2", "E2M3"), bits.size),)
    return Raw(dtype, shape, data)


# --- frames -------------------------------------------------------------------------------------------------------


def encode(
    base_dtype: str | None, dtype: str, base: Array | None, post: Array, preset: Preset = "fast"
) -> EncodedFrame:
    """The frame for lanes given by their bits."""
    head = RecordHead.of(base_dtype, dtype, ())
    if head.mode is Mode.REPLACE or head.base is None or base is None:
        return encode_replaced(base if head.sparse else None, post, head.post, preset)
    return encode_difference(base.view(head.base.stored), post.view(head.post.stored), head.base, head.post, preset)


def decode(data: bytes, lanes: int, base_dtype: str | None, dtype: str, delta_dtype: str | None = None) -> Frame:
    """The frame that `encode` gave."""
    head = RecordHead.of(base_dtype, dtype, (), delta_dtype)
    return decode_frame(memoryview(data), lanes, head.mended_base, head.delta)


def produced(
    frame: Frame,
    base_dtype: str | None,
    dtype: str,
    target: Array | None,
    weight: float = 1.0,
    delta_dtype: str | None = None,
) -> Array:
    """The bits of the lanes that a frame gives on a target of the base's dtype."""
    head = RecordHead.of(base_dtype, dtype, (), delta_dtype)
    if head.mode is Mode.REPLACE or head.base is None or target is None:
        return replaced(target if head.sparse else None, frame, head.post)
    out = np.empty(frame.lanes, head.post.stored)
    addend = Addend(frame, head.base, head.delta, weight)
    block = Block(target.view(head.base.stored), head.base, (addend,), out, head.post)
    linear(block)
    overwrite(block, addend)
    return out.view(head.post.bits)


def reproduce(
    base_dtype: str | None, dtype: str, base: Array | None, post: Array, preset: Preset = "fast"
) -> tuple[EncodedFrame, Frame]:
    """Encode, decode, and prove that the base with the frame at weight 1 is post, bit for bit."""
    encoded = encode(base_dtype, dtype, base, post, preset)
    frame = decode(encoded.data, post.size, base_dtype, dtype)
    got = produced(frame, base_dtype, dtype, base)
    wrong = np.flatnonzero(got != post)
    assert wrong.size == 0, _told(wrong, base, post, got)
    return encoded, frame


def _told(wrong: Array, base: Array | None, post: Array, got: Array) -> str:
    at = wrong[0]
    before = None if base is None else hex(base[at])
    return f"{wrong.size} lanes differ; lane {at}: base {before}, post {hex(post[at])}, got {hex(got[at])}"


def recoded(data: bytes, lanes: int, base_dtype: str | None, dtype: str) -> dict[str, bytes]:
    """The frame with its 16-bit symbols stored in every other way that there is, whichever is smallest."""
    lane = RecordHead.of(base_dtype, dtype, ()).post
    kind, flags, _ = FRAME_HEAD.unpack_from(data)
    body = memoryview(data)[FRAME_HEAD.size :]
    reader = StreamReader(body)
    symbols, positions = decode_symbols(reader, kind, lanes, lane)
    if symbols is None or lane.width != 2:
        return {}
    terms = bytes(body[reader.position :])
    every = np.full(lanes, lane.marker)
    every[slice(None) if positions is None else positions] = symbols
    changed = np.flatnonzero(every != lane.marker)
    places = sparse.encode_positions(changed, "fast")
    found: dict[str, bytes] = {}
    for name, kind, values in _stored(every, lane):
        found[name] = FRAME_HEAD.pack(kind, flags, len(values + terms)) + values + terms
    for name, kind, values in _stored(every[changed], lane):
        thin = places + bytes((kind,)) + values + terms
        found["sparse " + name] = FRAME_HEAD.pack(Kind.SPARSE, flags, len(thin)) + thin
    return found


def _stored(symbols: Array, lane: Lane) -> Iterator[tuple[str, Kind, bytes]]:
    histogram = palette.Histogram.of(symbols)
    yield "bytes", Kind.PALETTE, palette.encode(symbols, histogram, palette.BYTES, lane, "fast")
    yield "nibbles", Kind.PALETTE, palette.encode(symbols, histogram, palette.NIBBLES, lane, "fast")
    yield "planes", Kind.PLANES, planes.encode(symbols, lane, "fast")
    code = arithmetic.encode(symbols) if arithmetic.fits(lane) else None
    if code is not None:
        yield "arithmetic", Kind.ARITHMETIC, code


# --- checkpoints --------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, tensors: Mapping[str, Raw], files: int = 1) -> Path:
    """A directory with `tensors` in one or more safetensors files."""
    path.mkdir(parents=True)
    names = list(tensors)
    runs = [names[number::files] for number in range(files)]
    places: list[str] = []
    for number, run in enumerate(runs, 1):
        file = "model.safetensors" if files == 1 else f"model-{number:05}-of-{files:05}.safetensors"
        header = encode_header([(name, tensors[name].dtype, tensors[name].shape) for name in run], {"format": "pt"})
        (path / file).write_bytes(header + b"".join(tensors[name].data for name in run))
        places += [f'"{name}": "{file}"' for name in run]
    if files > 1:
        (path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{", ".join(places)}}}}}')
    return path


def read_tensors(path: Path) -> dict[str, Raw]:
    """All tensors of a checkpoint."""
    with deltareg.Checkpoint.open(path) as checkpoint:
        return {
            name: Raw(tensor.dtype, tensor.shape, tensor.read(0, tensor.nbytes))
            for name, tensor in checkpoint.tensors.items()
        }


# --- records ------------------------------------------------------------------------------------------------------


class Bytes:
    """A byte source in memory."""

    def __init__(self, data: bytes, name: str = "record") -> None:
        self.name = name
        self._data = data

    @property
    def size(self) -> int:
        """Bytes there are."""
        return len(self._data)

    def read_into(self, offset: int, buffer: Any) -> None:
        """Fill `buffer` from `offset` on."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(offset, len(view))

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on."""
        if offset + length > len(self._data):
            raise BadHeader(f"{self.name} ends at byte {len(self._data)}")
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Record:
    """A record, alone: its inventory entry and its bytes."""

    entry: TensorEntry
    data: bytes

    def reader(self, data: bytes | None = None) -> RecordReader:
        """Read it, or `data` in its place."""
        source = Bytes(self.data if data is None else data)
        return RecordReader(self.entry, [Part(source, 0, source.size)])

    def frames(self, data: bytes | None = None, order: Sequence[int] | None = None) -> list[Frame]:
        """All frames, read in this order."""
        reader = self.reader(data)
        numbers = range(reader.count) if order is None else order
        return [reader.read(number) for number in numbers]

    def produced(self, base: Raw | None, data: bytes | None = None) -> bytes:
        """The bytes of the tensor that the record gives on `base` at weight 1."""
        reader = self.reader(data)
        parts: list[Array] = []
        start = 0
        lanes = None if base is None else np.frombuffer(base.data, lane_of(base.dtype).bits)
        for number in range(reader.count):
            frame = reader.read(number)
            target = None if lanes is None else lanes[start : start + frame.lanes].copy()
            dtypes = self.entry.base_dtype, reader.head.post.dtype
            parts.append(produced(frame, *dtypes, target, delta_dtype=self.entry.delta_dtype))
            start += frame.lanes
        return b"".join(part.tobytes() for part in parts)


def records(
    path: Path, base: Mapping[str, Raw], post: Mapping[str, Raw], preset: Preset = "fast"
) -> tuple[dict[str, Record], dict[str, TensorEntry]]:
    """The records that `diff` stores for a pair, and the inventory's entries; `path` is a new directory to work in."""
    before = write_checkpoint(path / "base", base)
    after = write_checkpoint(path / "post", post)
    registry = deltareg.Registry(path / "home")
    deltareg.diff(before, after, registry, "acme/pair:1.0.0", preset=preset)
    artifact = registry.artifact("acme/pair:1.0.0")
    entries = {entry.name: entry for entry in artifact.inventory.tensors}
    found: dict[str, Record] = {}
    with artifact.open_packs() as packs:
        for name, entry in entries.items():
            if entry.packs:
                data = b"".join(part.source.read(part.start, part.length) for part in packs.parts(entry))
                found[name] = Record(entry, data)
    return found, entries
