"""A second reader of the format, written from `docs/format.md` alone: plain Python, zstandard and nothing of deltareg.

It decodes records, applies them at weight 1, and finds its way through an OCI image layout. It is slow and trusts what
it reads no more than it must; its only purpose is to prove that the document is enough.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blake3
import zstandard

__all__ = ["Delta", "Frame", "Record", "inventory_digest", "read_safetensors", "tensors_digest"]

FRAME = 1 << 20


class Dtype(NamedTuple):
    """A row of the table of dtypes. `elements` and `lanes` tell how many of the one make how many of the other."""

    code: int
    name: str
    width: int
    elements: int = 1
    lanes: int = 1
    precision: int = 0
    least: int = 0

    @property
    def additive(self) -> bool:
        return self.precision > 0

    @property
    def marker(self) -> int:
        return 1 << (8 * self.width - 1)


_TABLE = [
    Dtype(1, "BF16", 2, 1, 1, 8, -126),
    Dtype(2, "F16", 2, 1, 1, 11, -14),
    Dtype(3, "F32", 4, 1, 1, 24, -126),
    Dtype(4, "F64", 8, 1, 1, 53, -1022),
    Dtype(5, "C64", 4, 1, 2, 24, -126),
    *(Dtype(code, name, 1) for code, name in enumerate(["BOOL", "U8", "I8"], 16)),
    *(Dtype(code, name, 2) for code, name in enumerate(["U16", "I16"], 19)),
    *(Dtype(code, name, 4) for code, name in enumerate(["U32", "I32"], 21)),
    *(Dtype(code, name, 8) for code, name in enumerate(["U64", "I64"], 23)),
    *(Dtype(32 + n, f"F8_{name}", 1) for n, name in enumerate(["E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ"])),
    Dtype(40, "F6_E2M3", 1, 4, 3),
    Dtype(41, "F6_E3M2", 1, 4, 3),
    Dtype(42, "F4", 1, 2, 1),
]
BY_CODE = {dtype.code: dtype for dtype in _TABLE}
BY_NAME = {dtype.name: dtype for dtype in _TABLE}


# --- numbers of floating point ------------------------------------------------------------------------------------


def value_of(bits: int, dtype: Dtype) -> float:
    """The value of a lane's bits."""
    fraction_bits = dtype.precision - 1
    exponent_bits = 8 * dtype.width - dtype.precision
    fraction = bits & ((1 << fraction_bits) - 1)
    exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1)
    if exponent == (1 << exponent_bits) - 1:
        value = math.nan if fraction else math.inf
    elif exponent == 0:
        value = math.ldexp(fraction, dtype.least - fraction_bits)
    else:
        value = math.ldexp(fraction + (1 << fraction_bits), exponent - 1 + dtype.least - fraction_bits)
    return -value if bits & dtype.marker else value


def ulp_exponent(value: float, dtype: Dtype) -> int:
    """The exponent of ulp(value)."""
    return max(math.frexp(value)[1] - 1, dtype.least) - (dtype.precision - 1)


def bits_of(value: float, dtype: Dtype) -> int:
    """The bits of a value rounded to nearest, ties to even; every NaN the canonical one."""
    fraction_bits = dtype.precision - 1
    infinity = ((1 << (8 * dtype.width - dtype.precision)) - 1) << fraction_bits
    if math.isnan(value):
        return infinity | 1 << (fraction_bits - 1)
    sign = dtype.marker if math.copysign(1, value) < 0 else 0
    if math.isinf(value):
        return sign | infinity
    if value == 0:
        return sign
    exponent = ulp_exponent(value, dtype)
    count = round(math.ldexp(abs(value), -exponent))  # Python rounds ties to even
    if count >= 1 << fraction_bits:
        # The count's leading bit is the hidden one: added, it raises the exponent field to where it belongs.
        count += (exponent - (dtype.least - fraction_bits)) << fraction_bits
    return sign | min(count, infinity)


def rounded(value: float, dtype: Dtype) -> float:
    """A value rounded to a format."""
    return value if dtype.name == "F64" else value_of(bits_of(value, dtype), dtype)


# --- arithmetic codes ---------------------------------------------------------------------------------------------


class Chances:
    """What the coder knows of each context: the chance that its bit is 1, and how many bits it has seen."""

    def __init__(self) -> None:
        self.known: dict[str | bool, tuple[int, int]] = {}

    @staticmethod
    def context(earlier: str) -> str | bool:
        """The context of a symbol's next bit: its earlier bits; of the last one, whether all of them are zero."""
        return earlier if len(earlier) < 15 else "1" not in earlier

    def middle(self, earlier: str, low: int, high: int) -> int:
        """Where the next bit cuts the interval."""
        chance, _ = self.known.get(self.context(earlier), (32768, 0))
        return low + (high - low) * chance // 65536

    def learn(self, earlier: str, bit: str) -> None:
        """The next bit is known."""
        context = self.context(earlier)
        c, k = self.known.get(context, (32768, 0))
        step = 131072 // (2 * k + 3)
        c = c + (65536 - c) * step // 65536 if bit == "1" else c - c * step // 65536
        self.known[context] = c, min(k + 1, 60)


# --- the bytes of a record ----------------------------------------------------------------------------------------


class Cursor:
    """Bytes that are read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError("the bytes end early")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        value = shift = 0
        while True:
            digit = self.byte()
            value |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                return value

    def stream(self) -> bytes:
        coding, size = self.byte(), self.number()
        if coding == 0:
            return self.take(size)
        if coding == 2:
            return self.take(1) * size
        if coding != 1:
            raise ValueError(f"unknown coding {coding}")
        decoded = zstandard.ZstdDecompressor().decompress(self.take(self.number()), max_output_size=size)
        if len(decoded) != size:
            raise ValueError(f"{len(decoded)} bytes instead of {size}")
        return decoded

    def planes(self, count: int, width: int, *, turned: bool) -> list[int]:
        streams = [self.stream() for _ in range(width)]
        if any(len(stream) != count for stream in streams):
            raise ValueError("a plane has another length")
        values = [int.from_bytes(bytes(lane), "big") for lane in zip(*streams, strict=True)]
        if not turned:
            return values
        top = 8 * width - 1
        return [(value >> 1) | (value & 1) << top for value in values]

    def gaps(self, count: int) -> list[int]:
        inner = Cursor(self.stream())
        positions: list[int] = []
        last = -1
        for _ in range(count):
            last += inner.number() + 1
            positions.append(last)
        if inner.at != len(inner.data):
            raise ValueError("gaps are left over")
        return positions

    def positions(self) -> list[int]:
        return self.gaps(self.number())

    def palette(self, count: int, dtype: Dtype) -> list[int]:
        most, ranks, escapes = self.byte(), self.byte(), self.number()
        table = self.gaps(ranks)
        tokens = list(self.stream())
        if most == 15:
            tokens = [token for pair in tokens for token in (pair & 15, pair >> 4)][:count]
        if len(tokens) != count:
            raise ValueError("tokens are missing")
        escaped = iter(self.planes(escapes, dtype.width, turned=dtype.additive) if escapes else [])
        symbols = [next(escaped) if token == ranks else table[token] for token in tokens]
        if next(escaped, None) is not None:
            raise ValueError("escapes are left over")
        return symbols

    def arithmetic(self, count: int) -> list[int]:
        code = self.take(self.number())
        following = iter(code[4:])
        x = int.from_bytes(code[:4].ljust(4, b"\0"), "big")
        low, high = 0, 2**32 - 1
        chances = Chances()
        symbols: list[int] = []
        for _ in range(count):
            bits = ""
            while len(bits) < 16:
                middle = chances.middle(bits, low, high)
                bit = "1" if x <= middle else "0"
                low, high = (low, middle) if bit == "1" else (middle + 1, high)
                chances.learn(bits, bit)
                bits += bit
                while low >> 24 == high >> 24:
                    low, high = low << 8 & 0xFFFFFFFF, high << 8 & 0xFFFFFFFF | 255
                    x = x << 8 & 0xFFFFFFFF | next(following, 0)
            symbols.append(int(bits[15] + bits[:15], 2))
        if next(following, None) is not None:
            raise ValueError("an arithmetic code is longer than it is read")
        return symbols

    def symbols(self, kind: int, count: int, dtype: Dtype) -> list[int]:
        if kind == 1:
            return self.palette(count, dtype)
        if kind == 3:
            return self.planes(count, dtype.width, turned=dtype.additive)
        if kind == 4:
            return self.arithmetic(count)
        raise ValueError(f"unknown kind {kind}")


@dataclass(frozen=True)
class Frame:
    """What a frame says: a symbol for each position that it names, codes of second terms, overwrites (base, post)."""

    lanes: int
    kind: int
    symbols: dict[int, int]
    codes: dict[int, int]
    overwrites: dict[int, tuple[int, int]]


@dataclass(frozen=True)
class Record:
    """A decoded record."""

    adds: bool
    base: Dtype | None
    post: Dtype
    shape: tuple[int, ...]
    frames: list[Frame]
    delta: Dtype

    @classmethod
    def read(cls, data: bytes) -> Record:
        """Decode a record."""
        cursor = Cursor(data)
        magic, version, mode, base_code, post_code, dimensions = struct.unpack("<4sBBBBB", cursor.take(9))
        if (magic, version) != (b"DRec", 1):
            raise ValueError("no record of version 1")
        base, post = BY_CODE[base_code] if base_code else None, BY_CODE[post_code]
        delta = BY_CODE[cursor.byte()] if mode == 2 else BY_NAME["F32"] if mode in (3, 4) else post
        shape = tuple(cursor.number() for _ in range(dimensions))
        if mode in (3, 4):
            return cls(True, base, post, shape, list(cls._product(cursor, shape, has_rest=mode == 4)), delta)
        lanes = math.prod(shape) * post.lanes // post.elements
        frames: list[Frame] = []
        while lanes > 0:
            frames.append(cls._frame(cursor, min(lanes, FRAME), base, post, delta))
            lanes -= FRAME
        if cursor.at != len(data):
            raise ValueError("bytes are left over")
        return cls(mode != 1, base, post, shape, frames, delta)

    @classmethod
    def _product(cls, cursor: Cursor, shape: tuple[int, ...], *, has_rest: bool) -> Iterator[Frame]:
        """The frames of a tensor whose record holds two factors."""
        rank = cursor.number()
        left_code, right_code, scale = struct.unpack("<BBd", cursor.take(10))
        rest = BY_CODE[cursor.byte()] if has_rest else None
        rows, columns = shape[0], math.prod(shape[1:])
        left = cls._factor(cursor, rows * rank, BY_CODE[left_code])
        right = cls._factor(cursor, rank * columns, BY_CODE[right_code])
        single = BY_NAME["F32"]
        added: dict[int, float] = {}
        for start in range(0, rows * columns, FRAME) if rest is not None else ():
            assert rest is not None
            frame = cls._frame(cursor, min(rows * columns - start, FRAME), None, rest, rest)
            added |= {start + lane: value_of(symbol, rest) for lane, symbol in frame.symbols.items()}
        if cursor.at != len(cursor.data):
            raise ValueError("bytes are left over")
        symbols: dict[int, int] = {}
        for lane in range(rows * columns):
            row, column = divmod(lane, columns)
            total = 0.0
            for k in range(rank):
                total += left[row * rank + k] * right[k * columns + column]
            bits = bits_of(scale * total, single)
            if lane in added:
                bits = bits_of(value_of(bits, single) + added[lane], single)
            symbols[lane] = single.marker if bits in (0, single.marker) else bits
        for start in range(0, rows * columns, FRAME):
            part = range(start, min(start + FRAME, rows * columns))
            yield Frame(len(part), 3, {lane - start: symbols[lane] for lane in part}, {}, {})

    @classmethod
    def _factor(cls, cursor: Cursor, lanes: int, dtype: Dtype) -> list[float]:
        values: list[float] = []
        while len(values) < lanes:
            frame = cls._frame(cursor, min(lanes - len(values), FRAME), None, dtype, dtype)
            values += [value_of(frame.symbols[lane], dtype) for lane in range(frame.lanes)]
        return values

    @staticmethod
    def _frame(outer: Cursor, lanes: int, base: Dtype | None, post: Dtype, delta: Dtype) -> Frame:
        kind, flags, length = struct.unpack("<BBI", outer.take(6))
        cursor = Cursor(outer.take(length))
        symbols: dict[int, int] = {}
        codes: dict[int, int] = {}
        overwrites: dict[int, tuple[int, int]] = {}
        if kind == 2:
            positions = cursor.positions()
            symbols = dict(zip(positions, cursor.symbols(cursor.byte(), len(positions), delta), strict=True))
        elif kind:
            symbols = dict(enumerate(cursor.symbols(kind, lanes, delta)))
        if flags and delta != post:
            raise ValueError("a delta with a dtype of its own is mended")
        if flags & 1:
            positions = cursor.positions()
            codes = dict(zip(positions, cursor.planes(len(positions), post.width, turned=False), strict=True))
        if flags & 2 and base is not None:
            positions = cursor.positions()
            before = cursor.planes(len(positions), base.width, turned=base.additive)
            after = cursor.planes(len(positions), post.width, turned=post.additive)
            overwrites = dict(zip(positions, zip(before, after, strict=True), strict=True))
        if cursor.at != length:
            raise ValueError("bytes are left over in a frame")
        return Frame(lanes, kind, symbols, codes, overwrites)

    # --- applying ---

    def on(self, base: bytes | None) -> bytes:
        """The bytes of post that the record gives on the bytes of base, at weight 1."""
        done = 0
        parts: list[bytes] = []
        for frame in self.frames:
            lanes: list[int] | None = None
            if base is not None and self.base is not None and (self.adds or self.base == self.post):
                width = self.base.width
                part = base[done * width : (done + frame.lanes) * width]
                lanes = [int.from_bytes(part[at : at + width], "little") for at in range(0, len(part), width)]
            out = self._add(frame, lanes or []) if self.adds else self._replace(frame, lanes)
            parts.append(b"".join(bits.to_bytes(self.post.width, "little") for bits in out))
            done += frame.lanes
        return b"".join(parts)

    def _replace(self, frame: Frame, target: list[int] | None) -> list[int]:
        if target is None:
            return [frame.symbols[lane] for lane in range(frame.lanes)]
        return [frame.symbols.get(lane, bits) for lane, bits in enumerate(target)]

    def _add(self, frame: Frame, target: list[int]) -> list[int]:
        assert self.base is not None
        base, post, delta = self.base, self.post, self.delta
        wide = BY_NAME["F64"] if max(base.width, post.width, delta.width) > 2 else BY_NAME["F32"]
        unmoved = base[3:] == post[3:] and base.width == post.width
        out: list[int] = []
        for lane, bits in enumerate(target):
            symbol = frame.symbols.get(lane, delta.marker)
            if lane in frame.overwrites and frame.overwrites[lane][0] == bits:
                out.append(frame.overwrites[lane][1])
            elif symbol == delta.marker:
                out.append(bits if unmoved else bits_of(value_of(bits, base), post))
            else:
                term = value_of(symbol, delta)
                if lane in frame.codes:
                    term += second_term(frame.codes[lane], term, post)
                out.append(bits_of(rounded(value_of(bits, base) + rounded(term, wide), wide), post))
        return out


def second_term(code: int, first: float, dtype: Dtype) -> float:
    """D2, for the code of a lane whose D1 is `first`."""
    q = code >> 1
    s = 1 + q.bit_length()
    m = 2 * (q - (1 << (s - 2))) + 1 if q else 1
    return math.ldexp(-m if code & 1 else m, ulp_exponent(first, dtype) - s)


# --- artifacts ----------------------------------------------------------------------------------------------------


def read_safetensors(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of each tensor of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    return {
        name: (entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


class Delta:
    """A delta in an OCI image layout."""

    def __init__(self, layout: Path, name: str) -> None:
        self._layout = layout
        index = json.loads((layout / "index.json").read_bytes())
        names = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry for entry in index["manifests"]}
        self.digest: str = names[name]["digest"]
        self.manifest: dict[str, Any] = json.loads(self._blob(self.digest))
        self.config: dict[str, Any] = json.loads(self._blob(self.manifest["config"]["digest"]))
        kind = "application/vnd.deltareg."
        packs = [self._blob(layer["digest"]) for layer in self._layers(kind + "pack.v1+safetensors")]
        (inventory,) = self._layers(kind + "inventory.v1+json+zstd")
        self._packs = [read_safetensors(pack) for pack in packs]
        self.tensors: list[dict[str, Any]] = json.loads(_unpacked(self._blob(inventory["digest"])))["tensors"]
        self.side_files = {
            layer["annotations"]["org.opencontainers.image.title"]: _unpacked(self._blob(layer["digest"]))
            for layer in self._layers(kind + "side-file.v1+zstd")
        }

    def record(self, name: str) -> bytes:
        """The bytes of a tensor's record."""
        (entry,) = (entry for entry in self.tensors if entry["name"] == name)
        return b"".join(self._packs[number][name][2] for number in entry["packs"])

    def on(self, base: dict[str, tuple[str, tuple[int, ...], bytes]]) -> Iterator[tuple[str, str, bytes]]:
        """Name, dtype and bytes of each tensor that the delta gives on its base."""
        for entry in self.tensors:
            name = entry["name"]
            if entry["kind"] == "removed":
                continue
            data = base[name][2] if name in base else None
            if entry["kind"] != "zero":
                data = Record.read(self.record(name)).on(data)
            elif entry["baseDtype"] != entry["postDtype"]:
                before, after = BY_NAME[entry["baseDtype"]], BY_NAME[entry["postDtype"]]
                unchanged = Record(True, before, after, tuple(entry["shape"]), [_still(entry, after)], after)
                data = unchanged.on(data)
            assert data is not None
            yield name, entry["postDtype"], data

    def _layers(self, media_type: str) -> list[dict[str, Any]]:
        return [layer for layer in self.manifest["layers"] if layer["mediaType"] == media_type]

    def _blob(self, digest: str) -> bytes:
        algorithm, _, name = digest.partition(":")
        data = (self._layout / "blobs" / algorithm / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != name:
            raise ValueError(f"{digest} is damaged")
        return data


def _still(entry: dict[str, Any], dtype: Dtype) -> Frame:
    return Frame(math.prod(entry["shape"]) * dtype.lanes // dtype.elements, 0, {}, {}, {})


def _unpacked(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)


def _canonical(rows: Iterable[object]) -> bytes:
    # Of lists, strings and integers: there RFC 8785 asks for no more.
    return json.dumps(list(rows), separators=(",", ":"), ensure_ascii=False).encode()


def tensors_digest(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> str:
    """The digest of a parent's tensors."""
    rows: list[object] = []
    for name, (dtype, shape, data) in sorted(tensors.items()):
        size = FRAME * BY_NAME[dtype].width
        chunks = [blake3.blake3(data[at : at + size]).digest() for at in range(0, len(data), size)]
        rows.append([name, dtype, list(shape), blake3.blake3(b"".join(chunks)).hexdigest()])
    return "blake3:" + blake3.blake3(_canonical(rows)).hexdigest()


def inventory_digest(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> str:
    """The digest of the fingerprint's inventory."""
    rows = [[name, list(shape)] for name, (_, shape, _) in sorted(tensors.items())]
    return "sha256:" + hashlib.sha256(_canonical(rows)).hexdigest()
