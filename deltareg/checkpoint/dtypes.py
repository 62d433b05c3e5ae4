"""The data types of safetensors and how many bits an element of each takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deltareg.errors import UnsupportedFormat

__all__ = ["DTYPES", "Dtype", "dtype_of"]


@dataclass(frozen=True)
class Dtype:
    """A data type by the name that a safetensors header gives it."""

    name: str
    bits: int

    def nbytes(self, elements: int) -> int | None:
        """Bytes that `elements` elements take; None where they do not fill whole bytes (F4, F6)."""
        count, rest = divmod(elements * self.bits, 8)
        return None if rest else count


_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

DTYPES: Mapping[str, Dtype] = MappingProxyType({name: Dtype(name, bits) for name, bits in _BITS.items()})
"""Every data type of safetensors 0.8, by name."""


def dtype_of(name: str, *, where: str) -> Dtype:
    """The data type called `name`. Raises UnsupportedFormat; `where` names the tensor and its file."""
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedFormat(
            f"{where} has the data type {name!r}, which this version does not know",
            hint=f"known data types: {', '.join(DTYPES)}",
            dtype=name,
        ) from None
