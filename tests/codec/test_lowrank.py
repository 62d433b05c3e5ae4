"""Records that hold two factors: their product bit for bit, and what is refused of them."""

from __future__ import annotations

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deltareg.artifact import Part
from deltareg.codec import FRAME_LANES, Factors, LowRank, RecordHead, RecordReader, encode_given, lane_of
from deltareg.codec.memory import frame_memory
from deltareg.codec.streams import pack_number
from deltareg.errors import BadRecord, DeltaregError, UnsupportedFormat
from deltareg.manifest import TensorEntry
from tests.codec import golden, independent
from tests.codec.golden import PRESETS
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Bytes, Record
from tests.codec.test_golden import agree, same_zstd

Array = NDArray[Any]

LOW_RANK = golden.load_low_rank()
DRAW = np.random.default_rng(0)


def factor(dtype: str, rows: int, columns: int) -> Array:
    """The bits of random numbers."""
    return FORMATS[dtype].narrow(np.random.default_rng([rows, columns]).normal(0, 1, rows * columns))


def made(
    shape: tuple[int, ...], rank: int, *, dtypes: tuple[str, str] = ("F32", "F32"), scale: float = 0.5
) -> tuple[Factors, Record]:
    """Random factors of a BF16 tensor, and their record."""
    columns = int(np.prod(shape[1:]))
    low_rank = LowRank(rank, lane_of(dtypes[0]), lane_of(dtypes[1]), scale)
    factors = Factors(low_rank, factor(dtypes[0], shape[0], rank), factor(dtypes[1], rank, columns))
    return factors, recorded(factors, shape)


def recorded(factors: Factors, shape: tuple[int, ...]) -> Record:
    """The record of factors of a BF16 tensor."""
    head = RecordHead.of_product("BF16", shape, factors.low_rank)
    return Record(entry(shape, factors.low_rank.rank), head.pack() + b"".join(factors.encode("fast")))


def entry(shape: tuple[int, ...], rank: int | None, **more: Any) -> TensorEntry:
    """The inventory's entry of a BF16 tensor with factors."""
    dtypes: dict[str, Any] = {"base_dtype": "BF16", "post_dtype": "BF16", "delta_dtype": "F32"} | more
    return TensorEntry(name="w", kind="lowrank", shape=list(shape), rank=rank, packs=[0], **dtypes)


def product(factors: Factors, shape: tuple[int, ...]) -> Array:
    """The bits of D1: sums in float64, one k after the other, each product exact."""
    low_rank = factors.low_rank
    left = FORMATS[low_rank.left.dtype].widen(factors.left).reshape(shape[0], low_rank.rank)
    right = FORMATS[low_rank.right.dtype].widen(factors.right).reshape(low_rank.rank, -1)
    total = np.zeros((shape[0], right.shape[1]))
    for k in range(low_rank.rank):
        total = total + left[:, k : k + 1] * right[k]
    with np.errstate(over="ignore"):
        values = (low_rank.scale * total).astype(np.float32)
    bits = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))
    return np.where(values == 0, np.uint32(0x80000000), bits).reshape(-1)


def symbols(record: Record, order: list[int] | None = None) -> Array:
    """The symbols of all frames, in the frames' order, whatever the order in which they were read."""
    reader = record.reader()
    numbers = list(range(reader.count)) if order is None else order
    found = {number: reader.read(number).symbols for number in numbers}
    return np.concatenate([found[number] for number in sorted(found)])  # type: ignore[arg-type]


# --- the product ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [("F32", "F32"), ("BF16", "F16"), ("F16", "F32"), ("BF16", "BF16")])
@pytest.mark.parametrize(
    ("shape", "rank"), [((5, 7), 1), ((7, 5), 5), ((3, 513), 3), ((258, 256), 16), ((6, 5, 3, 3), 6), ((2, 3), 2)]
)
def test_frames_are_the_product_of_the_factors(shape: tuple[int, ...], rank: int, dtypes: tuple[str, str]) -> None:
    factors, record = made(shape, rank, dtypes=dtypes, scale=1 / 3)
    assert np.array_equal(symbols(record), product(factors, shape))


@pytest.mark.parametrize(("shape", "rank"), [((1025, 1031), 3), ((3, 700_001), 2), ((700_001, 3), 3)])
def test_frames_may_begin_within_a_row(shape: tuple[int, ...], rank: int) -> None:
    factors, record = made(shape, rank)
    assert record.reader().count > 1
    assert np.array_equal(symbols(record), product(factors, shape))


def test_a_left_factor_of_many_frames_is_read_as_it_is_needed() -> None:
    shape, rank = (300_000, 16), 16
    factors, record = made(shape, rank)
    due = product(factors, shape)
    assert len(record.reader().frames) > record.reader().count
    assert np.array_equal(symbols(record), due)
    order = list(np.random.default_rng(1).permutation(record.reader().count))
    assert np.array_equal(symbols(record, order), due)


def test_frames_are_the_same_in_whatever_order_and_thread_they_are_read() -> None:
    factors, record = made((1500, 1500), 5)
    due = product(factors, (1500, 1500))
    reader = record.reader()

    def read(number: int) -> Array:
        with frame_memory():
            found = reader.read(number).symbols
            assert found is not None
            return found.copy()

    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(read, [*range(reader.count), *reversed(range(reader.count))]))
    for number, found in zip([*range(reader.count), *reversed(range(reader.count))], frames, strict=True):
        assert np.array_equal(found, due[number * FRAME_LANES :][: found.size])


def test_a_record_may_lie_in_several_packs() -> None:
    factors, record = made((300_000, 16), 16)
    reader = record.reader()
    cuts = [0, *(place.start for place in reader.frames[1:4]), len(record.data)]
    parts = [Part(Bytes(record.data[start:stop]), 0, stop - start) for start, stop in pairwise(cuts)]
    divided = RecordReader(record.entry, parts)
    found = divided.read(2).symbols
    assert found is not None
    assert np.array_equal(found, product(factors, (300_000, 16))[2 * FRAME_LANES :][:FRAME_LANES])


def test_zeros_change_nothing_and_nan_is_the_canonical_one() -> None:
    shape, rank = (4, 6), 2
    low_rank = LowRank(rank, lane_of("F32"), lane_of("F32"), -1.0)
    left, right = np.ones((4, rank), np.float32), np.ones((rank, 6), np.float32)
    left[0] = [0, -0.0]
    left[1] = [1, -1]
    left[2] = [np.inf, 1]
    right[:, 5] = np.frombuffer(b"\x01\x00\xa0\xff", np.float32)[0]  # a signalling NaN with its sign set
    factors = Factors(low_rank, left.view(np.uint32).reshape(-1), right.view(np.uint32).reshape(-1))
    found = symbols(recorded(factors, shape)).reshape(shape)
    assert set(found[:2, :5].reshape(-1).tolist()) == {0x80000000}
    assert found[2].tolist() == [0xFF800000] * 5 + [0x7FC00000]
    assert found[3].tolist() == [0xC0000000] * 5 + [0x7FC00000]


def test_sums_that_float32_cannot_hold_overflow_to_infinity() -> None:
    low_rank = LowRank(1, lane_of("F32"), lane_of("F32"), 4.0)
    large = np.array([3e38], np.float32).view(np.uint32)
    factors = Factors(low_rank, np.repeat(large, 2), np.repeat(large, 2))
    assert symbols(recorded(factors, (2, 2))).tolist() == [0x7F800000] * 4


# --- golden -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", LOW_RANK, ids=lambda case: case.name)
def test_golden_factors_are_read(case: golden.LowRankGolden, preset: str) -> None:
    own = None if case.base.dtype == "F32" else "F32"
    rank = case.left.shape[1] if case.rest is None else None
    told = entry(case.base.shape, rank, base_dtype=case.base.dtype, post_dtype=case.post.dtype, delta_dtype=own)
    record = Record(told, case.records[preset])
    assert record.produced(case.base) == case.post.data
    theirs = independent.Record.read(case.records[preset])
    assert theirs.on(case.base.data) == case.post.data
    assert agree(theirs, record.frames())


@same_zstd
def test_golden_factors_are_those_that_the_script_writes() -> None:
    assert sorted(golden.low_rank_cases(), key=lambda case: case.name) == LOW_RANK


# --- hostile ----------------------------------------------------------------------------------------------------------


def head(
    shape: tuple[int, ...] = (4, 6),
    rank: int = 2,
    *,
    left: int = 3,
    right: int = 3,
    scale: float = 1.0,
    base: int = 1,
    post: int = 1,
    rest: int | None = None,
) -> bytes:
    """The head of a record of mode 3, or of 4 where there is a rest, made by hand."""
    fixed = struct.pack("<4sBBBBB", b"DRec", 1, 3 if rest is None else 4, base, post, len(shape))
    extents = b"".join(map(pack_number, shape))
    factors = pack_number(rank) + struct.pack("<BBd", left, right, scale)
    return fixed + extents + factors + (b"" if rest is None else bytes((rest,)))


def constant_frame(lanes: int, width: int = 4) -> bytes:
    """A frame of planes, each of one byte that is said to be there `lanes` times."""
    body = (b"\2" + pack_number(lanes) + b"\x3f") * width
    return struct.pack("<BBI", 3, 0, len(body)) + body


def frame(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("<BBI", kind, flags, len(body)) + body


WHOLE = head() + constant_frame(8) + constant_frame(12)


def refused(data: bytes, told: TensorEntry | None = None) -> DeltaregError:
    """The error of a record, which names the tensor."""
    with pytest.raises((BadRecord, UnsupportedFormat)) as caught:
        Record(told or entry((4, 6), 2), data).frames()
    return caught.value


def test_a_record_made_by_hand_is_read() -> None:
    assert Record(entry((4, 6), 2), WHOLE).frames()[0].lanes == 24


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (head(rank=0), "rank 0"),
        (head(rank=5), "rank 5"),
        (head(shape=(24,), rank=1), "rank 1"),
        (head(shape=(), rank=1), "rank 1"),
        (head(shape=(0, 6), rank=1), "rank 1"),
        (head(rank=2**63), "rank"),
        (head(left=4), "F64"),
        (head(right=18), "I8"),
        (head(scale=float("nan")), "scale nan"),
        (head(scale=float("inf")), "scale inf"),
        (head(base=18, post=18), "mode"),
        (head(base=0), "mode"),
        (head(base=5, post=5), "C64"),
        (head(shape=(2**19, 2**19), rank=2**10), "rank 1024"),
    ],
)
def test_factors_that_a_tensor_cannot_have_are_refused(data: bytes, word: str) -> None:
    assert word in refused(data + constant_frame(8) + constant_frame(12)).message


@pytest.mark.parametrize("code", [0, 6, 255])
def test_a_factor_of_an_unknown_dtype_is_refused(code: int) -> None:
    assert "dtype" in refused(head(left=code)).message


@pytest.mark.parametrize(
    "told", [entry((4, 6), 3), entry((4, 6), None), entry((6, 4), 2), entry((4, 6), 2, delta_dtype=None)]
)
def test_factors_that_the_inventory_does_not_know_are_refused(told: TensorEntry) -> None:
    assert "inventory" in refused(WHOLE, told).message


@pytest.mark.parametrize(
    "frames",
    [
        b"",
        constant_frame(8),
        constant_frame(8) + constant_frame(12) + constant_frame(12),
        constant_frame(12) + constant_frame(8),
        constant_frame(8) + frame(0, b""),
        constant_frame(8) + frame(2, b"\1\0\1\0\3" + b"\2\1\x3f" * 4),
        constant_frame(8) + constant_frame(12)[:-1],
        constant_frame(8) + frame(3, constant_frame(12)[6:], flags=1),
        constant_frame(8, width=2) + constant_frame(12),
    ],
)
def test_frames_that_are_no_factor_are_refused(frames: bytes) -> None:
    error = refused(head() + frames)
    assert "'w'" in error.message


def test_every_cut_is_refused() -> None:
    _, record = made((6, 5), 3)
    for end in range(len(record.data)):
        refused(record.data[:end], record.entry)


def test_flipped_bits_are_refused_or_give_numbers() -> None:
    _, record = made((6, 5), 3)
    for bit in range(8 * len(record.data)):
        data = bytearray(record.data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            frames = record.frames(bytes(data))
        except (BadRecord, UnsupportedFormat):
            continue
        assert [one.lanes for one in frames] == [30]


def test_a_large_claim_takes_no_memory() -> None:
    shape, rank = (2**20, 2**20), 64
    told = entry(shape, rank)
    tracemalloc.start()
    try:
        refused(head(shape, rank) + constant_frame(FRAME_LANES) * 9, told)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


# --- a rest beside the product ----------------------------------------------------------------------------------------


def with_rest(shape: tuple[int, ...], rank: int, dtype: str, rest: Array) -> tuple[Array, Record]:
    """The symbols that a record of random factors and a rest has to have, and the record."""
    lane = lane_of(dtype)
    factors, _ = made(shape, rank)
    low_rank = replace(factors.low_rank, rest=lane)
    frames = [
        encode_given(rest[start : start + FRAME_LANES].view(lane.stored), lane, "fast").data
        for start in range(0, rest.size, FRAME_LANES)
    ]
    head = RecordHead.of_product("BF16", shape, low_rank)
    record = Record(entry(shape, None), head.pack() + b"".join([*factors.encode("fast"), *frames]))
    moved = product(factors, shape).view(np.float32).astype(np.float64) + FORMATS[dtype].widen(rest)
    values = moved.astype(np.float32)
    return np.where(values == 0, np.uint32(0x80000000), values.view(np.uint32)), record


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize(("shape", "rank"), [((5, 7), 1), ((258, 256), 4), ((1025, 1031), 3), ((6, 5, 3, 3), 6)])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_rest_is_added_to_the_product(shape: tuple[int, ...], rank: int, dtype: str, share: float) -> None:
    draw = np.random.default_rng(3)
    count = int(np.prod(shape))
    rest = FORMATS[dtype].narrow(np.where(draw.random(count) < share, draw.normal(0, 0.5, count), 0.0))
    due, record = with_rest(shape, rank, dtype, rest)
    assert np.array_equal(symbols(record), due)


def test_rest_that_undoes_the_product_leaves_the_lane_as_it_is() -> None:
    factors, _ = made((4, 4), 2)
    rest = product(factors, (4, 4)) ^ np.uint32(0x80000000)
    due, record = with_rest((4, 4), 2, "F32", rest)
    assert due.tolist() == [0x80000000] * 16
    assert np.array_equal(symbols(record), due)


REST = (WHOLE_REST := head(rest=1) + constant_frame(8) + constant_frame(12)) + constant_frame(24, width=2)


def test_a_record_with_a_rest_made_by_hand_is_read() -> None:
    assert Record(entry((4, 6), None), REST).frames()[0].lanes == 24


@pytest.mark.parametrize(
    "data",
    [
        WHOLE_REST,
        REST[:-1],
        REST + constant_frame(24, width=2),
        WHOLE_REST + constant_frame(23, width=2),
        WHOLE_REST + constant_frame(24, width=4),
        WHOLE_REST + frame(3, constant_frame(24, width=2)[6:] + b"\1\0\1\0" + b"\0\1\0" * 2, flags=1),
        WHOLE_REST + frame(3, constant_frame(24, width=2)[6:] + b"\1\0\1\0" + b"\0\1\0" * 4, flags=2),
        head(rest=5) + constant_frame(8) + constant_frame(12) + constant_frame(24),
        head(rest=17) + constant_frame(8) + constant_frame(12) + constant_frame(24, width=1),
    ],
)
def test_rest_that_is_none_is_refused(data: bytes) -> None:
    assert "'w'" in refused(data, entry((4, 6), None)).message


@pytest.mark.parametrize("code", [0, 6, 255])
def test_rest_of_an_unknown_dtype_is_refused(code: int) -> None:
    assert "dtype" in refused(head(rest=code), entry((4, 6), None)).message


def test_factors_with_a_rest_are_not_told_as_the_delta() -> None:
    assert "inventory" in refused(REST, entry((4, 6), 2)).message


def test_every_cut_and_flipped_bit_of_a_rest_is_refused_or_safe() -> None:
    draw = np.random.default_rng(4)
    _, record = with_rest((6, 5), 2, "BF16", FORMATS["BF16"].narrow(draw.choice([0.5, -0.5], 30)))
    for end in range(len(record.data)):
        refused(record.data[:end], record.entry)
    for bit in range(8 * len(record.data)):
        data = bytearray(record.data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            frames = record.frames(bytes(data))
        except (BadRecord, UnsupportedFormat):
            continue
        assert [one.lanes for one in frames] == [30]
