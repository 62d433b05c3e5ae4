"""`linear` against the rounding contract, followed step by step in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltareg.codec import Frame, lane_of
from deltareg.merge import Addend, Block, linear
from deltareg.merge.linear import overwrite
from tests.codec.oracle import FORMATS, accumulate, accumulator, marker, ulp
from tests.codec.samples import SAMPLES
from tests.codec.tensors import decode, encode
from tests.codec.test_mend import meaning

Array = NDArray[Any]

# Lengths that are no multiple of any vector: the tail must round as the body does.
SIZES = (1, 7, 64, 1023, 5000)


@dataclass(frozen=True)
class Delta:
    """A decoded frame of one delta, and its weight."""

    frame: Frame
    base_dtype: str
    dtype: str
    weight: float

    @classmethod
    def of(cls, base: Array, post: Array, base_dtype: str, dtype: str, weight: float) -> Delta:
        """The delta between lanes of these bits."""
        data = encode(base_dtype, dtype, base, post).data
        return cls(decode(data, post.size, base_dtype, dtype), base_dtype, dtype, weight)

    @property
    def addend(self) -> Addend:
        """What the product makes of it."""
        return Addend(self.frame, lane_of(self.base_dtype), lane_of(self.dtype), self.weight)

    def terms(self) -> tuple[Array, Array]:
        """D1 + D2 of every lane in float64, and where the delta changes something."""
        format_ = FORMATS[self.dtype]
        symbols = np.full(self.frame.lanes, marker(format_), format_.bits)
        if self.frame.symbols is not None:
            where = slice(None) if self.frame.positions is None else self.frame.positions
            symbols[where] = self.frame.symbols
        values = format_.widen(symbols)
        if self.frame.mending is not None:
            positions = self.frame.mending.positions
            halves = [meaning(int(code)) for code in self.frame.mending.codes]
            values[positions] += np.array([odd * 2.0**-s for s, odd in halves]) * ulp(values[positions], format_)
        return values, symbols != marker(format_)


def merged(target: Array, target_dtype: str, deltas: Sequence[Delta], out_dtype: str) -> Array:
    """What the product gives."""
    out = np.empty(target.size, lane_of(out_dtype).stored)
    block = Block(
        target.view(lane_of(target_dtype).stored),
        lane_of(target_dtype),
        tuple(delta.addend for delta in deltas),
        out,
        lane_of(out_dtype),
    )
    linear(block)
    return out.view(lane_of(out_dtype).bits)


def expected(target: Array, target_dtype: str, deltas: Sequence[Delta], out_dtype: str) -> Array:
    """What the contract says: each product and each sum rounded to the accumulator, the total once to the output."""
    before, after = FORMATS[target_dtype], FORMATS[out_dtype]
    kind = accumulator(before, after, *(FORMATS[delta.dtype] for delta in deltas))
    total = before.widen(target).astype(kind)
    touched = np.zeros(target.size, bool)
    for delta in deltas:
        values, changed = delta.terms()
        with np.errstate(over="ignore"):
            total = np.where(changed, accumulate(total, values.astype(kind), delta.weight), total)
        touched |= changed
    unchanged = target if target_dtype == out_dtype else after.narrow(before.widen(target))
    return np.where(touched, after.narrow(total.astype(np.float64)), unchanged)


def lanes(dtype: str, size: int, seed: int) -> Array:
    """Weights, and among them what is rare: zeros of both signs, subnormals, infinities, NaN."""
    draw, format_ = np.random.default_rng([seed, size]), FORMATS[dtype]
    bits = format_.narrow(draw.normal(0, 1, size))
    rare = draw.integers(0, 2 ** (8 * format_.width), size, format_.bits)
    return np.where(draw.random(size) < 0.05, rare, bits)


def delta(dtype: str, size: int, seed: int, weight: float, base_dtype: str | None = None) -> Delta:
    """A light delta with some mended and overwritten lanes, which leaves a third of them as they are."""
    draw = np.random.default_rng([seed, size, 1])
    before, after = FORMATS[base_dtype or dtype], FORMATS[dtype]
    base = lanes(before.dtype, size, seed)
    with np.errstate(all="ignore"):
        values = before.widen(base)
        moved = after.narrow(values * draw.choice([1.001, 0.98, 0.01, -1.5], size, p=[0.6, 0.3, 0.05, 0.05]))
        still = after.narrow(values) if before != after else base
    post = np.where(draw.random(size) < 1 / 3, still, moved)
    return Delta.of(base, post, before.dtype, dtype, weight)


WEIGHTS = (0.7, -0.3, 1.0, 1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "C64"])
def test_sums_follow_the_contract(dtype: str, count: int, size: int) -> None:
    target = lanes(dtype, size, 9)
    deltas = [delta(dtype, size, seed, WEIGHTS[seed]) for seed in range(count)]
    assert np.array_equal(merged(target, dtype, deltas, dtype), expected(target, dtype, deltas, dtype))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("target_dtype", "delta_dtypes", "out_dtype"),
    [
        ("F32", ("BF16", "BF16", "BF16"), "F32"),
        ("BF16", ("F32", "F32", "F32"), "BF16"),
        ("F16", ("BF16", "F32", "F64"), "F16"),
        ("BF16", ("F16", "BF16", "F16"), "BF16"),
        ("BF16", ("F32", "BF16", "F32"), "F32"),
        ("F64", ("F16", "F32", "BF16"), "F64"),
        ("F32", ("F64", "F64", "F64"), "BF16"),
        ("BF16", ("F16", "F16", "F16"), "F32"),
        ("F16", ("F16", "F16", "F16"), "BF16"),
    ],
)
def test_mixed_dtypes_follow_the_contract(
    target_dtype: str, delta_dtypes: tuple[str, ...], out_dtype: str, count: int
) -> None:
    target = lanes(target_dtype, 3001, 4)
    deltas = [delta(dtype, 3001, seed, WEIGHTS[seed]) for seed, dtype in enumerate(delta_dtypes[:count])]
    got = merged(target, target_dtype, deltas, out_dtype)
    assert np.array_equal(got, expected(target, target_dtype, deltas, out_dtype))


@pytest.mark.parametrize(
    "name", ["zero", "sparse", "palette of bytes", "palette of nibbles", "arithmetic", "mended", "overwritten"]
)
def test_every_record_kind_is_summed_alike(name: str) -> None:
    sample = SAMPLES[name]
    base, post = sample.make(sample.size)
    assert base is not None
    target = lanes("BF16", sample.size, 3)
    first = Delta.of(base, post, "BF16", "BF16", 0.25)
    other = delta("BF16", sample.size, 5, -0.5)
    for deltas in ([first], [first, other], [other, first]):
        assert np.array_equal(merged(target, "BF16", deltas, "BF16"), expected(target, "BF16", deltas, "BF16"))


def test_target_keeps_its_bits_where_no_delta_changes_it() -> None:
    target = np.arange(1 << 16, dtype=np.uint16)
    zero = Delta.of(target, target, "BF16", "BF16", 2.0)
    sparse = Delta.of(target, np.where(target == 77, target + 1, target), "BF16", "BF16", 2.0)
    for deltas in ([], [zero], [zero, zero], [sparse], [sparse, zero, sparse]):
        got = merged(target, "BF16", deltas, "BF16")
        same = np.ones(target.size, bool)
        same[77] = all(delta is not sparse for delta in deltas)
        assert np.array_equal(got[same], target[same])


def test_no_delta_converts_the_target() -> None:
    target = lanes("F32", 5000, 1)
    got = merged(target, "F32", [], "BF16")
    assert np.array_equal(got, FORMATS["BF16"].narrow(FORMATS["F32"].widen(target)))


def test_many_small_deltas_are_not_lost() -> None:
    # Each moves 1.0 by a quarter of its neighbour's distance, 2^-7: rounded one by one to bf16 they would all vanish.
    size, format_ = 64, FORMATS["BF16"]
    base = format_.narrow(np.full(size, 2.0**-9))
    post = format_.narrow(np.full(size, 2.0**-8))
    deltas = [Delta.of(base, post, "BF16", "BF16", 1.0)] * 4
    got = merged(format_.narrow(np.ones(size)), "BF16", deltas, "BF16")
    assert np.array_equal(format_.widen(got), np.full(size, 1 + 2.0**-7))


def test_product_and_sum_are_rounded_apart() -> None:
    # target + weight · delta where the rounded product falls on a tie that the exact one does not.
    format_ = FORMATS["F32"]
    draw = np.random.default_rng(8)
    target = format_.narrow(draw.normal(0, 1, 4000))
    change = Delta.of(format_.narrow(np.ones(4000)), format_.narrow(draw.normal(1, 0.3, 4000)), "F32", "F32", 1 / 3)
    values, _ = change.terms()
    exact = np.longdouble(values) * np.longdouble(1 / 3) + np.longdouble(format_.widen(target))
    assert np.array_equal(merged(target, "F32", [change], "F32"), expected(target, "F32", [change], "F32"))
    # Were they fused, some totals would differ already before they are rounded.
    assert np.any(exact.astype(np.float64) != format_.widen(target) + values * (1 / 3))


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 1500), max_size=6),
    count=st.integers(1, 3),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
)
def test_lanes_do_not_depend_on_where_frames_are_cut(cuts: list[int], count: int, dtype: str) -> None:
    size = 1500
    target = lanes(dtype, size, 2)
    sides = [(lanes(dtype, size, seed), lanes(dtype, size, seed + 10)) for seed in range(count)]
    whole = [Delta.of(base, post, dtype, dtype, WEIGHTS[n]) for n, (base, post) in enumerate(sides)]
    pieces: list[Array] = []
    edges = [0, *sorted(cuts), size]
    for start, end in pairwise(edges):
        part = slice(start, end)
        deltas = [Delta.of(base[part], post[part], dtype, dtype, WEIGHTS[n]) for n, (base, post) in enumerate(sides)]
        pieces.append(merged(target[part], dtype, deltas, dtype))
    assert np.array_equal(np.concatenate(pieces), merged(target, dtype, whole, dtype))


# --- overwrites ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A pair whose post has two lanes that no sum gives: a NaN with payload, and −0.0 from +0.0."""

    base: Array
    post: Array

    def run(self, target: Array, *, weight: float = 1.0, deltas: int = 1, target_dtype: str = "BF16") -> Any:
        """Lanes of the output, how many were overwritten, how many were not."""
        change = Delta.of(self.base, self.post, "BF16", "BF16", weight)
        assert change.frame.overwrites is not None
        out_lane = lane_of(target_dtype)
        out = np.empty(target.size, out_lane.stored)
        block = Block(target.view(out_lane.stored), out_lane, (change.addend,) * deltas, out, out_lane)
        linear(block)
        counts = [overwrite(block, addend) for addend in block.addends]
        return out.view(out_lane.bits), sum(done for done, _ in counts), sum(left for _, left in counts)


@pytest.fixture
def case() -> Case:
    base = np.array([0x3F80, 0x0000, 0x4000, 0x3F80], np.uint16)
    post = np.array([0xFF81, 0x8000, 0x4010, 0x3F80], np.uint16)
    return Case(base, post)


def test_overwrites_are_used_on_the_base(case: Case) -> None:
    out, done, left = case.run(case.base)
    assert (out.tolist(), done, left) == (case.post.tolist(), 2, 0)


def test_overwrites_are_used_lane_by_lane(case: Case) -> None:
    target = case.base.copy()
    target[0] = 0x3F81
    out, done, left = case.run(target)
    assert (done, left) == (1, 1)
    assert out.tolist() == [0x3F81, 0x8000, 0x4010, 0x3F80]


@pytest.mark.parametrize("weight", [0.5, -1.0, 1.0000001, 2.0])
def test_overwrites_are_left_at_other_weights(case: Case, weight: float) -> None:
    out, done, left = case.run(case.base, weight=weight)
    assert (done, left) == (0, 2)
    assert out[[0, 1, 3]].tolist() == case.base[[0, 1, 3]].tolist()


def test_overwrites_are_left_among_several_deltas(case: Case) -> None:
    _, done, left = case.run(case.base, deltas=2)
    assert (done, left) == (0, 4)


def test_overwrites_are_left_on_another_dtype(case: Case) -> None:
    target = case.base.astype(np.uint32) << 16
    out, done, left = case.run(target, target_dtype="F32")
    assert (done, left) == (0, 2)
    assert out[[0, 1, 3]].tolist() == target[[0, 1, 3]].tolist()
