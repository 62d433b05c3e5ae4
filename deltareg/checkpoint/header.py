"""The header of a safetensors file, read strictly and written deterministically.

Nothing is allocated on the header's word: its length is bounded by the file and by 25 MB, and every offset, shape and
size in it is checked before a caller sees it.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from deltareg.checkpoint.dtypes import DTYPES, dtype_of
from deltareg.checkpoint.source import ByteSource
from deltareg.errors import BadHeader

__all__ = ["MAX_HEADER", "Header", "TensorInfo", "encode_header", "lay_out", "read_header"]

MAX_HEADER = 25_000_000
"""Bytes of JSON that a header may have."""

_METADATA = "__metadata__"
_MAX_DIMENSIONS = 64
_MAX_ELEMENTS = 2**63
_FAULTS_SHOWN = 5

_FIELDS = {"dtype", "shape", "data_offsets"}

_PATHS = {"", ".", ".."}
# Separators of paths, control characters, those that reorder text on a terminal, and halves of surrogate pairs.
_FORBIDDEN = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: `start` and `end` are byte offsets from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return _product(self.shape)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself. Tensors are in the order of their bytes, then of the header."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    data_start: int
    size: int


class _Twice(dict[str, Any]):
    """A JSON object in which a key occurs twice."""

    key: str = ""


class _NotInteger(str):
    """A JSON number with a point or an exponent, NaN or Infinity: never valid in a header."""


@dataclass(frozen=True)
class _Fault:
    """A broken rule, with the tensor it concerns. Without `byte` the tensor's place in the header is meant."""

    message: str
    tensor: str | None = None
    byte: int | None = None


def read_header(source: ByteSource) -> Header:
    """Read and check the header of a safetensors file.

    Raises BadHeader naming file, tensor and byte, and UnsupportedFormat for a dtype that this version does not know.
    """
    length = _read_length(source)
    raw = source.read(8, length)
    with _no_collection():
        return _check(source, raw, _parse(source.name, raw))


def _check(source: ByteSource, raw: bytes, entries: dict[str, Any]) -> Header:
    data_start = 8 + len(raw)
    metadata, faults = _check_metadata(entries.pop(_METADATA, {}))
    tensors: list[TensorInfo] = []
    for name, entry in entries.items():
        checked = _check_tensor(name, entry, data_start, source)
        if isinstance(checked, _Fault):
            faults.append(checked)
        else:
            tensors.append(checked)
    faults.extend(_check_names(entries))
    if not faults:
        tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
        faults.extend(_check_coverage(tensors, data_start, source.size))
    if faults:
        raise _error(source.name, raw, faults)
    return Header(tuple(tensors), metadata, data_start, source.size)


@contextmanager
def _no_collection() -> Generator[None]:
    """Pause the garbage collector, which takes half of the time of reading 100,000 entries and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The first bytes of a safetensors file whose tensors (name, dtype, shape) lie one after the other as given.

    8 bytes of length and JSON, padded with spaces to a multiple of 8. The same arguments give the same bytes. Raises
    UnsupportedFormat for an unknown dtype, BadHeader for what `read_header` would refuse.
    """
    entries: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    for tensor in lay_out(tensors):
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.start, tensor.end],
        }
    body = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    body += b" " * (-len(body) % 8)
    if len(body) > MAX_HEADER:
        raise BadHeader(
            f"the header would have {len(body)} bytes, at most {MAX_HEADER} are allowed",
            hint="split the tensors into more shards",
        )
    return len(body).to_bytes(8, "little") + body


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[TensorInfo, ...]:
    """Tensors (name, dtype, shape) one after the other, with offsets from the first one's start.

    Raises UnsupportedFormat and BadHeader as `encode_header` does.
    """
    placed: dict[str, TensorInfo] = {}
    position = 0
    for name, dtype, shape in tensors:
        nbytes = dtype_of(dtype, where=f"tensor {name!r:.120}").nbytes(_product(shape))
        fault = _name_fault(name) or _shape_fault([*shape])
        if name in placed or name == _METADATA:
            fault = "occurs twice"
        elif nbytes is None:
            fault = f"of {list(shape)} × {dtype} takes no whole number of bytes"
        if fault is not None or nbytes is None:
            raise BadHeader(f"tensor {name!r:.120} {fault}", file=None, tensor=name, byte=None)
        placed[name] = TensorInfo(name, dtype, tuple(shape), position, position + nbytes)
        position += nbytes
    return tuple(placed.values())


def _read_length(source: ByteSource) -> int:
    if source.size < 8:
        raise _plain_error(source.name, f"the file has {source.size} bytes, its header's length alone takes 8", 0)
    prefix = source.read(0, min(source.size, len(_LFS_POINTER)))
    if prefix == _LFS_POINTER:
        raise BadHeader(
            f"{source.name} is a git-lfs pointer, not the file itself",
            hint="run `git lfs pull` in the checkpoint's directory",
            file=source.name,
            tensor=None,
            byte=0,
        )
    length = int.from_bytes(prefix[:8], "little")
    if length > source.size - 8:
        raise _plain_error(
            source.name, f"the header's length is {length} bytes, but only {source.size - 8} bytes follow it", 0
        )
    if length > MAX_HEADER:
        raise _plain_error(source.name, f"the header's length is {length} bytes, at most {MAX_HEADER} are allowed", 0)
    return length


def _parse(name: str, raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise _plain_error(name, f"the header starts with {raw[:1]!r}, not with '{{'", 8)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _plain_error(name, f"the header is not UTF-8: {error.reason}", 8 + error.start) from error
    try:
        return json.loads(text, object_pairs_hook=_as_object, parse_float=_NotInteger, parse_constant=_NotInteger)
    except json.JSONDecodeError as error:
        byte = 8 + len(text[: error.pos].encode("utf-8"))
        raise _plain_error(name, f"the header is not JSON: {error.msg}", byte) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise _plain_error(name, f"the header has a number that is too long: {error}", 8) from error
    except RecursionError as error:
        raise _plain_error(name, "the header is nested too deeply", 8) from error


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    twice = _Twice(found)
    twice.key = next(key for key, _ in pairs if key in seen or seen.add(key))
    return twice


def _check_metadata(entry: Any) -> tuple[dict[str, str], list[_Fault]]:
    if not isinstance(entry, dict):
        return {}, [_Fault(f"{_METADATA} is no object", _METADATA)]
    metadata = cast("dict[str, Any]", entry)
    faults = [
        _Fault(f"{_METADATA} has {value!r:.80} for {key!r:.80}, only strings are allowed", _METADATA)
        for key, value in metadata.items()
        if type(value) is not str
    ]
    if isinstance(entry, _Twice):
        faults.append(_Fault(f"{_METADATA} has the key {entry.key!r:.120} twice", _METADATA))
    if any(_is_no_text(key) or (type(value) is str and _is_no_text(value)) for key, value in metadata.items()):
        faults.append(_Fault(f"{_METADATA} has half of a surrogate pair", _METADATA))
    return metadata, faults


def _is_no_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _check_names(entries: dict[str, Any]) -> Iterator[_Fault]:
    if isinstance(entries, _Twice):
        yield _Fault(f"the name {entries.key!r:.120} occurs twice", entries.key)
    # All names in one search: one for each takes longer than the rest of its checks.
    if entries.keys() & _PATHS or _FORBIDDEN.search("".join(entries)):
        for name in entries:
            fault = _name_fault(name)
            if fault is not None:
                yield _Fault(f"tensor {name!r:.120} {fault}", name)


def _name_fault(name: str) -> str | None:
    if name in _PATHS:
        return "has a name that is a path" if name else "has an empty name"
    found = _FORBIDDEN.search(name)
    if found is None:
        return None
    character = found.group()
    return "has a name that is a path" if character in "/\\" else f"has U+{ord(character):04X} in its name"


def _check_tensor(name: str, entry: Any, data_start: int, source: ByteSource) -> TensorInfo | _Fault:
    fault = _fields_fault(entry)
    if fault is not None:
        return _Fault(f"tensor {name!r:.120} {fault}", name)
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    fault = _shape_fault(shape) or _range_fault(begin, end, source.size - data_start)
    if fault is not None:
        return _Fault(f"tensor {name!r:.120} {fault}", name)
    kind = DTYPES.get(dtype) or dtype_of(dtype, where=f"tensor {name!r:.120} of {source.name}")
    elements = _product(shape)
    nbytes = kind.nbytes(elements) if elements < _MAX_ELEMENTS else -1
    if nbytes != end - begin:
        wanted = {None: "no whole number of bytes", -1: "too many bytes to count"}.get(nbytes, f"{nbytes} bytes")
        fault = f"of {shape!s:.80} × {dtype} takes {wanted}, but data_offsets give it {end - begin}"
        return _Fault(f"tensor {name!r:.120} {fault}", name)
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _fields_fault(entry: Any) -> str | None:
    """The first fault of an entry's keys and of their types."""
    if type(entry) is not dict:
        return f"has the key {entry.key!r:.80} twice" if isinstance(entry, _Twice) else f"is {entry!r:.80}, no object"
    fields: dict[str, Any] = entry  # pyright: ignore[reportUnknownVariableType]
    if fields.keys() != _FIELDS:
        return f"has the keys {sorted(fields)!s:.200}, not dtype, shape and data_offsets"
    if type(fields["dtype"]) is not str:
        return f"has the dtype {fields['dtype']!r:.80}, which is no string"
    if type(fields["shape"]) is not list:
        return f"has the shape {fields['shape']!r:.80}, which is no list"
    offsets = fields["data_offsets"]
    if type(offsets) is not list or len(cast("list[Any]", offsets)) != 2:
        return f"has the data_offsets {offsets!r:.80}, which are no pair"
    return None


def _shape_fault(shape: list[Any]) -> str | None:
    if len(shape) > _MAX_DIMENSIONS:
        return f"has {len(shape)} dimensions, at most {_MAX_DIMENSIONS} are allowed"
    for size in shape:
        if type(size) is not int or not 0 <= size < _MAX_ELEMENTS:  # `type`, since a bool is an int
            return f"has {size!r:.80} in its shape"
    return None


def _range_fault(begin: Any, end: Any, room: int) -> str | None:
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        return f"has the data_offsets {begin!r:.40} and {end!r:.40}, which are no range"
    if end > room:
        return f"ends at byte {end!s:.40} of the data, but the file has {room}: truncated, or not what its header says"
    return None


def _check_coverage(tensors: list[TensorInfo], data_start: int, size: int) -> Iterator[_Fault]:
    position = data_start
    previous: TensorInfo | None = None
    for tensor in tensors:
        if tensor.start > position:
            yield _Fault(
                f"bytes {position} to {tensor.start} belong to no tensor: a gap before {tensor.name!r:.120}",
                tensor.name,
                position,
            )
        elif tensor.start < position and previous is not None:
            yield _Fault(f"tensors {previous.name!r:.120} and {tensor.name!r:.120} overlap", tensor.name, tensor.start)
        if tensor.end >= position:
            position, previous = tensor.end, tensor
    if position < size:
        yield _Fault(
            f"{size - position} trailing bytes belong to no tensor", previous.name if previous else None, position
        )


def _product(shape: Iterable[int]) -> int:
    """Product of the sizes; any value of at least `_MAX_ELEMENTS` where it would be larger than that."""
    product = 1
    for size in shape:
        if size == 0:
            return 0
        if product < _MAX_ELEMENTS:
            product *= size
    return product


def _plain_error(file: str, message: str, byte: int) -> BadHeader:
    return BadHeader(f"{file}, byte {byte}: {message}", file=file, tensor=None, byte=byte)


def _error(file: str, raw: bytes, faults: list[_Fault]) -> BadHeader:
    shown = faults[:_FAULTS_SHOWN]
    places = _key_places(raw, {fault.tensor for fault in shown if fault.tensor is not None and fault.byte is None})
    bytes_ = [places.get(fault.tensor or "", 8) if fault.byte is None else fault.byte for fault in shown]
    lines = [f"{file}, byte {byte}: {fault.message}" for fault, byte in zip(shown, bytes_, strict=True)]
    if len(faults) > len(shown):
        lines.append(f"and {len(faults) - len(shown)} more faults")
    return BadHeader("; ".join(lines), file=file, tensor=shown[0].tensor, byte=bytes_[0], faults=len(faults))


def _key_places(raw: bytes, names: set[str]) -> dict[str, int]:
    """The byte in the file at which the last key of each name starts in the header."""
    places: dict[str, int] = {}
    depth = 0
    for token in re.finditer(rb'("(?:[^"\\]++|\\.)*+")(\s*:)?|[\[{\]}]', raw):
        text = token.group(1)
        if text is None:
            depth += 1 if token.group() in (b"{", b"[") else -1
        elif depth == 1 and token.group(2) is not None:
            name = json.loads(text)
            if name in names:
                places[name] = 8 + token.start()
    return places
