"""Safetensors files read and written without the product, which is compared with what this module makes of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDTHS", "RawTensor", "TensorSpec", "header", "read", "to_bf16", "write"]

WIDTHS: Mapping[str, int] = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "I16": 2,
    "U8": 1,
    "I8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
}
"""Bytes of one element of each dtype that occurs in the real weights."""


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * WIDTHS[self.dtype]


@dataclass(frozen=True)
class RawTensor:
    """A tensor as a file holds it; `data` are its bytes, (nbytes,) uint8, mapped from the file where it was read."""

    spec: TensorSpec
    data: NDArray[np.uint8]


def read(path: Path) -> dict[str, RawTensor]:
    """The tensors of a checkpoint: of one safetensors file, or of every shard in a directory, sorted by file name."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no safetensors file")
    return {tensor.spec.name: tensor for file in files for tensor in _read_file(file)}


def _read_file(path: Path) -> Iterator[RawTensor]:
    content = np.memmap(path, np.uint8, mode="r")
    length = int.from_bytes(content[:8].tobytes(), "little")
    entries: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
    entries.pop("__metadata__", None)
    data = content[8 + length :]
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        yield RawTensor(TensorSpec(name, entry["dtype"], tuple(entry["shape"])), data[start:end])


def header(specs: Iterable[TensorSpec]) -> bytes:
    """The length and the JSON that stand before the data of `specs`, laid out in their order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(path: Path, tensors: Iterable[RawTensor]) -> None:
    """Write one safetensors file."""
    tensors = list(tensors)
    with path.open("wb") as file:
        file.write(header(tensor.spec for tensor in tensors))
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.data).data)


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bit patterns of `values` rounded to bfloat16, ties to even. NaN becomes the quiet NaN of its sign."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    result = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        result[nan] = ((bits[nan] >> 16) & 0x8000 | 0x7FC0).astype(np.uint16)
    return result
