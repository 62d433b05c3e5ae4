"""Records made by somebody who wishes us ill: each rule of the format, broken by hand."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from deltareg.artifact import Packs
from deltareg.checkpoint import encode_header
from deltareg.codec import Frame, Kind, arithmetic
from deltareg.codec.streams import StreamReader, pack_number
from deltareg.errors import BadRecord, DeltaregError, UnsupportedFormat
from deltareg.manifest import TensorEntry
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, Record, decode, of, recoded, records

ROOT = Path(__file__).resolve().parents[2]
LANES = 40
MENDED, OVERWRITTEN = 1, 2


def raw(data: bytes, *, says: int | None = None) -> bytes:
    """A stream as it is; it may lie about its length."""
    return b"\0" + pack_number(len(data) if says is None else says) + data


def zstd(frame: bytes, *, says: int) -> bytes:
    """A stream that is a zstd frame."""
    return b"\1" + pack_number(says) + pack_number(len(frame)) + frame


def constant(value: int, *, says: int) -> bytes:
    """A stream of one byte."""
    return b"\2" + pack_number(says) + bytes([value])


def frame(kind: int, body: bytes, flags: int = 0) -> bytes:
    """A frame whose length is right."""
    return struct.pack("<BBI", kind, flags, len(body)) + body


def read(data: bytes, lanes: int = LANES, dtype: str = "BF16", base_dtype: str | None = "BF16") -> Frame:
    return decode(data, lanes, base_dtype, dtype)


def gaps(*steps: int) -> bytes:
    """The stream of positions that are so far apart."""
    return raw(b"".join(map(pack_number, steps)))


def palette(most: int = 255, table: bytes = b"", ranks: int = 0, escapes: int = 0, tokens: bytes = b"") -> bytes:
    """A palette's body, up to its escapes."""
    return bytes((most, ranks)) + pack_number(escapes) + raw(table) + raw(tokens)


def code(data: bytes, *, says: int | None = None) -> bytes:
    """An arithmetic code; it may lie about its length."""
    return pack_number(len(data) if says is None else says) + data


def coded(symbol: int) -> bytes:
    """The arithmetic code of 40 lanes of one symbol."""
    found = arithmetic.encode(np.full(LANES, symbol, np.uint16))
    assert found is not None
    return found


# Without these a mistake in the helpers would look like a refusal.
def test_bodies_made_by_hand_are_read() -> None:
    assert read(frame(Kind.ZERO, b"")).symbols is None
    tokens = bytes([0] * 38 + [1, 2])
    escaped = raw(b"\x01") + raw(b"\x02")
    got = read(frame(Kind.PALETTE, palette(255, b"\x05\x00", 2, 1, tokens) + escaped)).symbols
    assert got is not None
    assert got.tolist() == [5] * 38 + [6, 0x0102 >> 1]
    nibbles = read(frame(Kind.PALETTE, palette(15, b"\x05\x00", 2, 0, b"\x10" * 20))).symbols
    assert nibbles is not None
    assert nibbles.tolist() == [5, 6] * 20
    sparse = read(frame(Kind.SPARSE, b"\x02" + gaps(3, 35) + b"\x03" + raw(b"ab") + raw(b"cd")))
    assert sparse.positions is not None
    assert sparse.positions.tolist() == [3, 39]
    planes = read(frame(Kind.PLANES, constant(0, says=LANES) + constant(2, says=LANES))).symbols
    assert planes is not None
    assert planes.tolist() == [1] * LANES
    # Every bit of one symbol halves the interval, and a 1 takes the lower half.
    single = read(frame(Kind.ARITHMETIC, code(b"\x80\xff")), lanes=1).symbols
    assert single is not None
    assert single.tolist() == [0x3F80]
    thin = read(frame(Kind.SPARSE, ONE + b"\x04" + code(b"\x80\xff")))
    assert thin.symbols is not None
    assert thin.positions is not None
    assert (thin.symbols.tolist(), thin.positions.tolist()) == ([0x3F80], [3])
    mended = read(frame(Kind.ARITHMETIC, coded(0x3F80) + ONE + raw(b"\0") + raw(b"\1"), MENDED)).mending
    assert mended is not None
    assert (mended.positions.tolist(), mended.codes.tolist()) == ([3], [1])


PLANES = constant(0x7F, says=LANES) + constant(0, says=LANES)
"""Planes that make every symbol of 40 lanes 1.0."""
ONE = b"\x01" + gaps(3)
"""One position, 3."""

BROKEN = {
    # --- heads ---
    "unknown kind": frame(5, PLANES),
    "kind 255": frame(255, PLANES),
    "unknown flag": frame(Kind.PLANES, PLANES, flags=4),
    "all flags": frame(Kind.PLANES, PLANES, flags=255),
    "zero with a body": frame(Kind.ZERO, PLANES),
    "length that is too small": struct.pack("<BBI", Kind.PLANES, 0, 3) + PLANES,
    "length of 4 GiB": struct.pack("<BBI", Kind.PLANES, 0, 2**32 - 1) + PLANES,
    # --- streams ---
    "no body": frame(Kind.PLANES, b""),
    "one plane of two": frame(Kind.PLANES, constant(0, says=LANES)),
    "three planes of two": frame(Kind.PLANES, PLANES + constant(0, says=LANES)),
    "plane of one byte more": frame(Kind.PLANES, raw(bytes(LANES + 1)) + raw(bytes(LANES))),
    "plane of one byte less": frame(Kind.PLANES, raw(bytes(LANES - 1)) + raw(bytes(LANES))),
    "stream that ends early": frame(Kind.PLANES, raw(b"abc", says=LANES)),
    "stream of 2^32 − 1 bytes": frame(Kind.PLANES, raw(b"abc", says=2**32 - 1)),
    "stream of 2^63 bytes": frame(Kind.PLANES, raw(b"abc", says=2**63)),
    "constant of 2^63 bytes": frame(Kind.PLANES, constant(0, says=2**63)),
    "constant without its byte": frame(Kind.PLANES, b"\2" + pack_number(LANES)),
    "unknown stream coding": frame(Kind.PLANES, b"\3" + pack_number(LANES) + bytes(LANES)),
    "number that does not end": frame(Kind.PLANES, b"\0" + b"\x80" * 40),
    "number of eleven digits": frame(Kind.PLANES, b"\0" + b"\x80" * 10 + b"\x01" + bytes(99)),
    # --- palettes ---
    "palette of 16 ranks": frame(Kind.PALETTE, palette(16, b"", 0, 0, bytes(LANES))),
    "palette of 0 ranks": frame(Kind.PALETTE, palette(0, b"", 0, 0, bytes(LANES))),
    "more ranks than nibbles have": frame(Kind.PALETTE, palette(15, bytes(16), 16, 0, bytes(20))),
    "more escapes than lanes": frame(Kind.PALETTE, palette(255, b"", 0, LANES + 1, bytes(LANES))),
    "2^32 − 1 escapes": frame(Kind.PALETTE, palette(255, b"", 0, 2**32 - 1, bytes(LANES))),
    "table shorter than its ranks": frame(Kind.PALETTE, palette(255, b"\1", 2, 0, bytes(LANES))),
    "table longer than its ranks": frame(Kind.PALETTE, palette(255, b"\1\1\1", 2, 0, bytes(LANES))),
    "table beyond 16 bits": frame(Kind.PALETTE, palette(255, b"\xff\xff\x03\x00", 2, 0, bytes(LANES))),
    "table of a digit too many": frame(Kind.PALETTE, palette(255, b"\x81\x80\x80\x80\x80\x00", 1, 0, bytes(LANES))),
    "table that is enormous": frame(Kind.PALETTE, bytes((255, 1, 0)) + constant(0, says=2**40)),
    "token without a rank": frame(Kind.PALETTE, palette(255, b"\0", 1, 0, bytes([0] * 39 + [2]))),
    "token 255 without a rank": frame(Kind.PALETTE, palette(255, b"\0", 1, 0, bytes([0] * 39 + [255]))),
    "nibble without a rank": frame(Kind.PALETTE, palette(15, b"\0", 1, 0, bytes([0] * 19 + [0x20]))),
    "escape that is not there": frame(Kind.PALETTE, palette(255, b"\0", 1, 0, bytes([0] * 39 + [1]))),
    "escape that nobody asks for": frame(Kind.PALETTE, palette(255, b"\0", 1, 1, bytes(LANES)) + raw(b"a") + raw(b"b")),
    "two escapes for one": frame(
        Kind.PALETTE, palette(255, b"\0", 1, 1, bytes([0] * 38 + [1, 1])) + raw(b"a") + raw(b"b")
    ),
    "nibbles for one lane more": frame(Kind.PALETTE, palette(15, b"\0", 1, 0, bytes(21))),
    "tokens for one lane less": frame(Kind.PALETTE, palette(255, b"\0", 1, 0, bytes(LANES - 1))),
    # --- arithmetic codes ---
    "no arithmetic code": frame(Kind.ARITHMETIC, b""),
    "arithmetic code that ends early": frame(Kind.ARITHMETIC, code(b"abc", says=4)),
    "arithmetic code of 2^32 − 1 bytes": frame(Kind.ARITHMETIC, code(b"abc", says=2**32 - 1)),
    "arithmetic code of 2^40 bytes": frame(Kind.ARITHMETIC, code(b"abc", says=2**40)),
    "arithmetic code of 2^63 bytes": frame(Kind.ARITHMETIC, code(b"abc", says=2**63)),
    "arithmetic code of 2^64 bytes": frame(Kind.ARITHMETIC, code(b"abc", says=2**64)),
    "arithmetic code whose length does not end": frame(Kind.ARITHMETIC, b"\x80" * 40),
    "bytes after an arithmetic code": frame(Kind.ARITHMETIC, coded(0x3F80) + b"\0"),
    "zeros that nobody takes from an arithmetic code": frame(Kind.ARITHMETIC, code(bytes(100))),
    "bytes that nobody takes from an arithmetic code": frame(
        Kind.ARITHMETIC, code(coded(0x3F80)[1:] + bytes(range(9)))
    ),
    "sparse arithmetic code that ends early": frame(Kind.SPARSE, ONE + b"\x04" + code(b"a", says=2)),
    "sparse arithmetic code of 2^63 bytes": frame(Kind.SPARSE, ONE + b"\x04" + code(b"a", says=2**63)),
    "sparse arithmetic code that is too long": frame(Kind.SPARSE, ONE + b"\x04" + code(bytes(9))),
    "arithmetic code of no lanes that is too long": frame(Kind.SPARSE, b"\0" + gaps() + b"\x04" + code(bytes(5))),
    # --- positions ---
    "more positions than lanes": frame(Kind.SPARSE, pack_number(LANES + 1) + gaps(*[0] * (LANES + 1)) + b"\x03"),
    "2^32 − 1 positions": frame(Kind.SPARSE, pack_number(2**32 - 1) + gaps(1) + b"\x03"),
    "2^64 positions": frame(Kind.SPARSE, pack_number(2**64) + gaps(1) + b"\x03"),
    "position beyond the frame": frame(Kind.SPARSE, b"\x01" + gaps(LANES) + b"\x03" + raw(b"a") + raw(b"b")),
    "positions that run over": frame(Kind.SPARSE, b"\x02" + gaps(20, 20) + b"\x03" + raw(b"ab") + raw(b"cd")),
    "gap of 2^35": frame(Kind.SPARSE, b"\x01" + raw(b"\xff\xff\xff\xff\x7f") + b"\x03" + raw(b"a") + raw(b"b")),
    "gap of six digits": frame(
        Kind.SPARSE, b"\x01" + raw(b"\x80\x80\x80\x80\x80\x00") + b"\x03" + raw(b"a") + raw(b"b")
    ),
    "gap that does not end": frame(Kind.SPARSE, b"\x01" + raw(b"\x80") + b"\x03" + raw(b"a") + raw(b"b")),
    "gaps left over": frame(Kind.SPARSE, b"\x01" + gaps(1, 1) + b"\x03" + raw(b"a") + raw(b"b")),
    "sparse within sparse": frame(Kind.SPARSE, ONE + b"\x02" + ONE + b"\x03" + raw(b"a") + raw(b"b")),
    "sparse zero": frame(Kind.SPARSE, ONE + b"\x00"),
    "fewer values than positions": frame(Kind.SPARSE, b"\x02" + gaps(1, 1) + b"\x03" + raw(b"a") + raw(b"b")),
    # --- mending and overwrites ---
    "mending of what does not change": frame(Kind.ZERO, ONE + raw(b"\0") + raw(b"\0"), MENDED),
    "mending beyond the frame": frame(Kind.PLANES, PLANES + b"\x01" + gaps(LANES) + raw(b"\0") + raw(b"\0"), MENDED),
    "mending without codes": frame(Kind.PLANES, PLANES + ONE, MENDED),
    "more codes than mended lanes": frame(Kind.PLANES, PLANES + ONE + raw(b"\0\0") + raw(b"\0\0"), MENDED),
    "mending of a lane that stays": frame(
        Kind.SPARSE, ONE + b"\x03" + raw(b"\x7f") + raw(b"\0") + b"\x01" + gaps(4) + raw(b"\0") + raw(b"\0"), MENDED
    ),
    "mending of +0": frame(
        Kind.PLANES, constant(0, says=LANES) + constant(0, says=LANES) + ONE + raw(b"\0") + raw(b"\0"), MENDED
    ),
    "mending of −0": frame(
        Kind.PLANES, constant(0, says=LANES) + constant(1, says=LANES) + ONE + raw(b"\0") + raw(b"\0"), MENDED
    ),
    "mending of infinity": frame(
        Kind.PLANES, constant(0xFF, says=LANES) + constant(0, says=LANES) + ONE + raw(b"\0") + raw(b"\0"), MENDED
    ),
    **{
        f"mending of {name} in an arithmetic code": frame(
            Kind.ARITHMETIC, coded(symbol) + ONE + raw(b"\0") + raw(b"\0"), MENDED
        )
        for name, symbol in {"+0": 0, "−0": 0x8000, "infinity": 0xFF80, "NaN": 0x7FC1}.items()
    },
    "mending of +0 in a sparse arithmetic code": frame(
        Kind.SPARSE, ONE + b"\x04" + code(b"\xff\xff") + ONE + raw(b"\0") + raw(b"\0"), MENDED
    ),
    "mending flag without mending": frame(Kind.PLANES, PLANES, MENDED),
    "mending without its flag": frame(Kind.PLANES, PLANES + ONE + raw(b"\0") + raw(b"\0")),
    "overwrites without base": frame(Kind.PLANES, PLANES + ONE + raw(b"\0") + raw(b"\0"), OVERWRITTEN),
    "overwrite beyond the frame": frame(
        Kind.PLANES, PLANES + b"\x01" + gaps(LANES) + (raw(b"\0") + raw(b"\0")) * 2, OVERWRITTEN
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_frame_is_refused(fault: str) -> None:
    with pytest.raises(BadRecord):
        read(BROKEN[fault])


def test_mending_of_64_bit_lanes_is_refused() -> None:
    planes = b"".join(constant(byte, says=LANES) for byte in (0x7F, 0xE0, 0, 0, 0, 0, 0, 0))
    assert read(frame(Kind.PLANES, planes), dtype="F64", base_dtype="F64").symbols is not None
    with pytest.raises(BadRecord):
        read(frame(Kind.PLANES, planes + ONE + raw(b"\xff") * 8, MENDED), dtype="F64", base_dtype="F64")


@pytest.mark.parametrize("flags", [MENDED, OVERWRITTEN])
@pytest.mark.parametrize(("base_dtype", "dtype"), [("I16", "I16"), (None, "BF16")])
def test_replaced_lanes_have_no_terms(base_dtype: str | None, dtype: str, flags: int) -> None:
    terms = ONE + (raw(b"\0") + raw(b"\0")) * flags
    assert read(frame(Kind.PLANES, PLANES), dtype=dtype, base_dtype=base_dtype).symbols is not None
    with pytest.raises(BadRecord):
        read(frame(Kind.PLANES, PLANES + terms, flags), dtype=dtype, base_dtype=base_dtype)


def test_palette_of_other_widths_than_16_bits_is_refused() -> None:
    body = palette(255, b"\0", 1, 0, bytes(LANES))
    assert read(frame(Kind.PALETTE, body)).symbols is not None
    for dtype in ("F32", "F64", "U8"):
        with pytest.raises(BadRecord):
            read(frame(Kind.PALETTE, body), dtype=dtype, base_dtype=dtype)


@pytest.mark.parametrize("dtype", ["F32", "F64", "C64", "U8", "I8", "F8_E4M3", "I16", "U16", "I32", "U64"])
def test_arithmetic_code_of_other_lanes_than_16_bit_floats_is_refused(dtype: str) -> None:
    whole = frame(Kind.ARITHMETIC, code(b"abc"))
    thin = frame(Kind.SPARSE, ONE + b"\x04" + code(b"a"))
    for data in (whole, thin):
        for other in ("BF16", "F16"):
            assert read(data, dtype=other, base_dtype=other).symbols is not None
        with pytest.raises(BadRecord, match="kind 4"):
            read(data, dtype=dtype, base_dtype=dtype)


@pytest.mark.parametrize("base_dtype", ["BF16", "F32", "I16", None])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_empty_arithmetic_code_is_ones(dtype: str, base_dtype: str | None) -> None:
    whole = read(frame(Kind.ARITHMETIC, code(b"")), dtype=dtype, base_dtype=base_dtype)
    thin = read(frame(Kind.SPARSE, b"\x02" + gaps(3, 30) + b"\x04" + code(b"")), dtype=dtype, base_dtype=base_dtype)
    for got, count in ((whole, LANES), (thin, 2)):
        assert got.symbols is not None
        assert got.symbols.tolist() == [0xFFFF] * count


def test_length_of_an_arithmetic_code_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        for log in (24, 30, 36):
            for data in (code(b"abc", says=1 << log), code(bytes(1000), says=1 << log)):
                with pytest.raises(BadRecord):
                    read(frame(Kind.ARITHMETIC, data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# --- zstd ---------------------------------------------------------------------------------------------------------

PLAIN = bytes(range(LANES))


def compressed(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def claiming(frame_: bytes, size: int) -> bytes:
    """A zstd frame of one segment, whose content size field of one or two bytes is another."""
    descriptor = frame_[4]
    assert descriptor >> 5 & 1, "a frame of one segment"
    if descriptor >> 6 == 0:
        return frame_[:5] + bytes([size]) + frame_[6:]
    assert descriptor >> 6 == 1
    return frame_[:5] + struct.pack("<H", size - 256) + frame_[7:]


def sized_window(log: int) -> bytes:
    """A frame that asks for a window of 2^log bytes and says that it holds 40."""
    descriptor, window = 0b10000000, (log - 10) << 3
    block = struct.pack("<I", 1 | len(PLAIN) << 3)[:3] + PLAIN
    return b"\x28\xb5\x2f\xfd" + bytes((descriptor, window)) + struct.pack("<I", len(PLAIN)) + block


ZSTD = {
    "decodes to more than it says": claiming(compressed(bytes(90)), LANES),
    "decodes to less than it says": claiming(compressed(bytes(20)), LANES),
    "a bomb": claiming(compressed(bytes(65000)), 256),
    "no content size": compressed(PLAIN, write_content_size=False),
    "other content size": compressed(bytes(LANES + 1)),
    "garbage after it": compressed(PLAIN) + b"garbage",
    "a second frame after it": compressed(PLAIN) * 2,
    "truncated": compressed(PLAIN)[:-1],
    "only a magic number": b"\x28\xb5\x2f\xfd",
    "not zstd": b"PK\x03\x04" + bytes(20),
    "empty": b"",
    "made with a dictionary": compressed(
        bytes(range(100, 140)),
        dict_data=zstandard.ZstdCompressionDict(bytes(range(256)) * 9, dict_type=zstandard.DICT_TYPE_RAWCONTENT),
    ),
}


@pytest.mark.parametrize("fault", ZSTD)
def test_zstd_frame_that_is_not_what_its_stream_says_is_refused(fault: str) -> None:
    good = frame(Kind.PLANES, zstd(compressed(PLAIN), says=LANES) + constant(0, says=LANES))
    assert read(good).symbols is not None
    says = 256 if fault == "a bomb" else LANES
    bad = frame(Kind.PLANES, zstd(ZSTD[fault], says=says) + constant(0, says=says))
    with pytest.raises(BadRecord):
        read(bad, lanes=says)
    # The decompressor is kept from frame to frame: a bad one must not spoil the next.
    assert read(good).symbols is not None


def test_nothing_follows_an_empty_zstd_frame() -> None:
    empty = compressed(b"")
    assert StreamReader(memoryview(zstd(empty, says=0))).stream(size=0).size == 0
    for bad in (empty + b"junk", empty + empty, empty[:-1], empty[:6]):
        with pytest.raises(BadRecord):
            StreamReader(memoryview(zstd(bad, says=0))).stream(size=0)


def test_windows_that_the_encoder_uses_are_read() -> None:
    assert read(frame(Kind.PLANES, zstd(sized_window(23), says=LANES) + constant(0, says=LANES))).symbols is not None


def test_enormous_window_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = frame(Kind.PLANES, zstd(sized_window(31), says=LANES) + constant(0, says=LANES))
    with contextlib.suppress(BadRecord):
        assert read(data).symbols is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_bomb_takes_no_memory() -> None:
    bomb = compressed(bytes(1 << 29))
    data = frame(Kind.PLANES, zstd(bomb, says=1 << 29) + constant(0, says=LANES))
    tracemalloc.start()
    try:
        with pytest.raises(BadRecord):
            read(data)
        data = frame(Kind.PLANES, zstd(bomb, says=LANES) + constant(0, says=LANES))
        with pytest.raises(BadRecord):
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# --- heads of records ---------------------------------------------------------------------------------------------

ENTRY = TensorEntry(name="w", kind="planes", base_dtype="BF16", post_dtype="BF16", shape=[LANES], packs=[0])


def head(
    magic: bytes = b"DRec",
    version: int = 1,
    mode: int = 0,
    base: int = 1,
    post: int = 1,
    shape: tuple[int, ...] = (LANES,),
    delta: int | None = None,
) -> bytes:
    """A record's head."""
    fixed = struct.pack("<4sBBBBB", magic, version, mode, base, post, len(shape))
    return fixed + (b"" if delta is None else bytes([delta])) + b"".join(map(pack_number, shape))


def entry(**changes: Any) -> TensorEntry:
    return ENTRY.model_copy(update=changes)


def test_record_made_by_hand_is_read() -> None:
    frames = Record(ENTRY, head() + frame(Kind.PLANES, PLANES)).frames()
    assert [frame.lanes for frame in frames] == [LANES]


HEADS = {
    "other magic": (head(magic=b"DREC"), ENTRY),
    "a delta of its own in what is post's": (head(mode=2, delta=1), entry(delta_dtype="BF16")),
    "a delta of integers": (head(mode=2, delta=20), entry(delta_dtype="I16")),
    "a delta of pairs": (head(mode=2, delta=5), entry(delta_dtype="C64")),
    "the halves of pairs as a delta of its own": (
        head(mode=2, base=5, post=5, delta=3),
        entry(base_dtype="C64", post_dtype="C64", delta_dtype="F32"),
    ),
    "a delta of its own where nothing is added": (
        head(mode=2, base=20, post=20, delta=3),
        entry(base_dtype="I16", post_dtype="I16", delta_dtype="F32"),
    ),
    "a delta of its own on what base lacks": (
        head(mode=2, base=0, delta=3),
        entry(base_dtype=None, delta_dtype="F32"),
    ),
    "a delta dtype that the inventory does not tell": (head(mode=2, delta=2), ENTRY),
    "no delta dtype where the inventory tells one": (head(), entry(delta_dtype="F16")),
    "another delta dtype than the inventory's": (head(mode=2, delta=2), entry(delta_dtype="F32")),
    "a head that ends before the delta's dtype": (head(mode=2, shape=()), ENTRY),
    "replacing what is added": (head(mode=1), ENTRY),
    "adding integers": (head(base=20, post=20), entry(base_dtype="I16", post_dtype="I16")),
    "adding to nothing": (head(base=0), entry(base_dtype=None)),
    "adding pairs to numbers": (head(base=3, post=5), entry(base_dtype="F32", post_dtype="C64")),
    "65 dimensions": (head(shape=(1,) * 64 + (LANES,)), entry(shape=[1] * 64 + [LANES])),
    "255 dimensions": (head(shape=(1,) * 255), ENTRY),
    "2^60 elements": (head(shape=(2**30, 2**30)), entry(shape=[2**30, 2**30])),
    "2^41 elements": (head(shape=(2**41,)), entry(shape=[2**41])),
    "an extent of 2^64": (head(shape=(2**64,)), ENTRY),
    "another shape than the inventory's": (head(shape=(LANES, 1)), ENTRY),
    "another base dtype than the inventory's": (head(base=2), ENTRY),
    "another post dtype than the inventory's": (head(post=2), ENTRY),
    "a frame too few": (head(shape=(LANES << 20,)), entry(shape=[LANES << 20])),
    "F4 in half a byte": (
        head(mode=1, base=0, post=42, shape=(81,)),
        entry(base_dtype=None, post_dtype="F4", shape=[81]),
    ),
}


@pytest.mark.parametrize("fault", HEADS)
def test_broken_head_is_refused(fault: str) -> None:
    data, told = HEADS[fault]
    with pytest.raises(BadRecord, match="'w'"):
        Record(told, data + frame(Kind.PLANES, PLANES)).frames()


@pytest.mark.parametrize(
    "data",
    [
        head(version=2),
        head(version=0),
        head(base=99),
        head(post=99),
        head(post=0),
        head(mode=5),
        head(mode=2, delta=99),
        head(mode=2, delta=0),
    ],
)
def test_unknown_version_mode_or_dtype_asks_for_an_upgrade(data: bytes) -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        Record(ENTRY, data + frame(Kind.PLANES, PLANES)).frames()
    assert "newer" in str(caught.value.hint)
    assert caught.value.exit_code == 3


def test_delta_with_a_dtype_of_its_own_has_no_second_terms_and_no_overwrites() -> None:
    told, own = entry(delta_dtype="F16"), head(mode=2, delta=2)
    assert [one.lanes for one in Record(told, own + frame(Kind.PLANES, PLANES)).frames()] == [LANES]
    mending = ONE + raw(b"\0") * 2
    overwrites = ONE + raw(b"\0") * 4
    for flags, more in ((MENDED, mending), (OVERWRITTEN, overwrites), (MENDED | OVERWRITTEN, mending + overwrites)):
        assert Record(ENTRY, head() + frame(Kind.PLANES, PLANES + more, flags)).frames()
        with pytest.raises(BadRecord):
            Record(told, own + frame(Kind.PLANES, PLANES + more, flags)).frames()


def test_frames_beyond_the_lanes_are_refused() -> None:
    with pytest.raises(BadRecord):
        Record(ENTRY, head() + frame(Kind.PLANES, PLANES) * 2).frames()
    with pytest.raises(BadRecord):
        Record(entry(shape=[0]), head(shape=(0,)) + frame(Kind.ZERO, b"")).frames()


def test_frame_that_leaves_an_added_tensor_open_is_refused() -> None:
    added = entry(base_dtype=None, kind="full")
    whole = head(mode=1, base=0)
    assert len(Record(added, whole + frame(Kind.PLANES, PLANES)).frames()) == 1
    for open_ in (frame(Kind.ZERO, b""), frame(Kind.SPARSE, ONE + b"\x03" + raw(b"a") + raw(b"b"))):
        with pytest.raises(BadRecord):
            Record(added, whole + open_).frames()


def test_error_names_tensor_frame_and_byte() -> None:
    with pytest.raises(BadRecord) as caught:
        Record(ENTRY, head() + frame(Kind.PLANES, raw(b"abc"))).frames()
    assert "'w'" in caught.value.message
    assert "frame 0" in caught.value.message
    assert f"byte {len(head())}" in caught.value.message


# --- at random ----------------------------------------------------------------------------------------------------


WAYS = [f"{sparse}{values}" for sparse in ("", "sparse ") for values in ("bytes", "nibbles", "planes", "arithmetic")]


@pytest.fixture(scope="module", params=WAYS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Raw]:
    """A record of 40 lanes with mended and overwritten ones, in every way in which its symbols can be stored."""
    draw, format_ = np.random.default_rng(1), FORMATS["BF16"]
    base = format_.narrow(draw.normal(0, 1, LANES))
    post = format_.narrow(format_.widen(base) * draw.choice([1, 1.01, 0.004, -3], LANES))
    post[3], base[4], post[4] = 0xFF81, 0, 0x8000
    before, after = of("BF16", base), of("BF16", post)
    found, _ = records(tmp_path_factory.mktemp("small") / "pair", {"w": before}, {"w": after})
    assert found["w"].entry.mended > 0
    assert found["w"].entry.overwritten > 0
    ways = recoded(found["w"].data[len(head()) :], LANES, "BF16", "BF16")
    assert sorted(ways) == sorted(WAYS)
    record = Record(found["w"].entry, head() + ways[request.param])
    assert record.produced(before) == after.data
    return record, before


def test_every_truncation_of_a_record_is_refused(small: tuple[Record, Raw]) -> None:
    record, base = small
    assert len(record.produced(base)) == 2 * LANES
    for end in range(len(record.data)):
        with pytest.raises(BadRecord):
            record.frames(record.data[:end])


def test_every_flipped_bit_of_a_record_is_refused_or_safe(small: tuple[Record, Raw]) -> None:
    record, base = small
    for bit in range(8 * len(record.data)):
        damaged = bytearray(record.data)
        damaged[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(BadRecord, UnsupportedFormat):
            assert len(record.produced(base, bytes(damaged))) == 2 * LANES


def test_every_byte_of_a_record_at_its_extremes_is_refused_or_safe(small: tuple[Record, Raw]) -> None:
    record, base = small
    for at in range(len(record.data)):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            damaged = bytearray(record.data)
            damaged[at] = value
            with contextlib.suppress(BadRecord, UnsupportedFormat):
                assert len(record.produced(base, bytes(damaged))) == 2 * LANES


def test_damaged_packs_are_refused_or_safe(tmp_path: Path, small: tuple[Record, Raw]) -> None:
    record, _ = small
    pack = encode_header([("w", "U8", (len(record.data),))]) + record.data
    draw = np.random.default_rng(2)
    path = tmp_path / "pack.safetensors"
    refused = 0
    for _ in range(600):
        damaged = bytearray(pack)
        for bit in draw.integers(0, 8 * len(pack), draw.integers(1, 4)):
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged[: len(damaged) - int(draw.choice([0, 0, 0, 1, 7]))])
        try:
            with Packs([path]) as packs:
                record.entry.model_copy()
                parts = packs.parts(record.entry)
                data = b"".join(part.source.read(part.start, part.length) for part in parts)
            record.frames(data)
        except DeltaregError:
            refused += 1
    assert refused > 400


# Compiled loops do not check their bounds: a process would read or write what is not its own. In one where they do,
# any index that is out of bounds is an IndexError.
@pytest.mark.slow
@pytest.mark.parametrize("checked", [False, True], ids=["as it is", "bounds checked"])
def test_nothing_at_random_leads_out_of_bounds(checked: bool) -> None:
    environment = dict(os.environ)
    if checked:
        # Compiled code with checks is kept apart from that without. Vectors that are written for one processor know no
        # checks: without AVX the loop is taken that does.
        environment |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(ROOT / ".cache" / "numba-boundscheck")}
        environment |= {"NUMBA_ENABLE_AVX": "0"}
    command = [sys.executable, "-m", "tests.codec.fuzz", "--seed", "1", "--rounds", "150"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "refused" in done.stdout
