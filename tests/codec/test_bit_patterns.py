"""The contract, bit by bit: base with the delta at weight 1 is post, whatever the bits are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltareg.codec import Frame, Kind, lane_of
from tests.codec.golden import PRESETS
from tests.codec.oracle import FORMATS, Format, difference, marker
from tests.codec.tensors import ADDITIVE, DTYPES, produced, reproduce

Array = NDArray[Any]

ALL = np.arange(1 << 16, dtype=np.uint16)
SIXTEEN = ("BF16", "F16")
FLOATS = (*SIXTEEN, "F32", "F64")


def chosen(format_: Format) -> dict[str, int]:
    """Bit patterns at which a format's rules change."""
    one = int(format_.narrow(np.array([1.0]))[0])
    sign = marker(format_)
    quiet = 1 << (format_.precision - 2)
    return {
        "zero": 0,
        "minus zero": sign,
        "least subnormal": 1,
        "minus least subnormal": sign | 1,
        "greatest subnormal": (1 << (format_.precision - 1)) - 1,
        "least normal": 1 << (format_.precision - 1),
        "one": one,
        "minus one": one | sign,
        "above one": one + 1,
        "below one": one - 1,
        "two": int(format_.narrow(np.array([2.0]))[0]),
        "a third": int(format_.narrow(np.array([1 / 3]))[0]),
        "greatest": format_.infinity - 1,
        "minus greatest": (format_.infinity - 1) | sign,
        "infinity": format_.infinity,
        "minus infinity": format_.infinity | sign,
        "NaN": format_.nan,
        "minus NaN": format_.nan | sign,
        "NaN with payload": format_.nan | 5,
        "signalling NaN": format_.infinity | (quiet >> 1),
        "minus signalling NaN": format_.infinity | 1 | sign,
    }


CASES = [(dtype, name) for dtype in SIXTEEN for name in chosen(FORMATS[dtype])]


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_every_16_bit_pattern_is_reached_from_a_base(dtype: str, name: str) -> None:
    base = np.full(ALL.size, chosen(FORMATS[dtype])[name], np.uint16)
    _, frame = reproduce(dtype, dtype, base, ALL)
    check_terms(frame, base, ALL, FORMATS[dtype])


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_a_post_is_reached_from_every_16_bit_pattern(dtype: str, name: str) -> None:
    post = np.full(ALL.size, chosen(FORMATS[dtype])[name], np.uint16)
    _, frame = reproduce(dtype, dtype, ALL, post, "small")
    check_terms(frame, ALL, post, FORMATS[dtype])


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("factor", [2.0, 0.5, 1.5, -1.0, 0.998, 128.0])
def test_every_16_bit_pattern_is_reached_from_its_neighbourhood(dtype: str, factor: float) -> None:
    format_ = FORMATS[dtype]
    with np.errstate(over="ignore"):
        post = format_.narrow(format_.widen(ALL) * factor)
    _, frame = reproduce(dtype, dtype, ALL, post)
    check_terms(frame, ALL, post, format_)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_16_bit_patterns_reach_one_another(dtype: str, seed: int) -> None:
    post = np.random.default_rng(seed).permutation(ALL)
    _, frame = reproduce(dtype, dtype, ALL, post)
    check_terms(frame, ALL, post, FORMATS[dtype])


def check_terms(frame: Frame, base: Array, post: Array, format_: Format) -> None:
    """D1 is the rounded difference; overwrites stand only where no sum can give post, or cancellation is extreme."""
    symbols = dense(frame, format_)
    d1 = difference(base, post, format_, format_)
    overwritten = np.zeros(post.size, bool)
    if frame.overwrites is not None:
        overwritten[frame.overwrites.positions] = True
        assert np.array_equal(frame.overwrites.base, base[overwritten])
        assert np.array_equal(frame.overwrites.post, post[overwritten])
    assert np.array_equal(symbols[base == post], np.full((base == post).sum(), marker(format_)))
    plain = (base != post) & ~overwritten
    assert np.array_equal(symbols[plain], d1[plain])
    x, y = np.abs(format_.widen(base)), np.abs(format_.widen(post))
    close = np.isfinite(x) & np.isfinite(y) & (y > x * 2.0**-10) & np.isfinite(format_.widen(d1))
    assert not np.any(overwritten & close)


def dense(frame: Frame, format_: Format) -> Array:
    """The symbol of every lane."""
    symbols = np.full(frame.lanes, marker(format_), format_.bits)
    if frame.symbols is not None:
        symbols[slice(None) if frame.positions is None else frame.positions] = frame.symbols
    return symbols


# --- the same against torch ---------------------------------------------------------------------------------------

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16}


def tensor(bits: Array, dtype: str) -> torch.Tensor:
    """The torch tensor with these bits."""
    return torch.from_numpy(bits.copy().view(np.int16)).view(TORCH[dtype])


def pattern(values: torch.Tensor, dtype: str) -> Array:
    """The bits of a torch tensor, every NaN the canonical one."""
    bits = values.view(torch.int16).numpy().view(np.uint16)
    return np.where(torch.isnan(values).numpy(), np.uint16(FORMATS[dtype].nan), bits)


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("weight", [1.0, 0.5, -1.0, 0.3, 1e-3, 1.7e38])
def test_sums_are_those_of_torch(dtype: str, weight: float) -> None:
    random = np.random.default_rng(5)
    base, target = random.permutation(ALL), random.permutation(ALL)
    # A neighbouring post keeps D1 free of mending, so that the delta is what torch sees.
    post = base ^ random.integers(0, 4, base.size, np.uint16)
    _, frame = reproduce(dtype, dtype, base, post)
    symbols = dense(frame, FORMATS[dtype])
    assert frame.mending is None or frame.mending.positions.size < 100
    d1 = pattern((tensor(post, dtype).float() - tensor(base, dtype).float()).to(TORCH[dtype]), dtype)
    changed = symbols != 0x8000
    finite = torch.isfinite(tensor(d1, dtype)).numpy()
    assert np.array_equal(symbols[changed & finite], d1[changed & finite])
    product = tensor(symbols, dtype).float() * torch.tensor(weight, dtype=torch.float32)
    expected = pattern((tensor(target, dtype).float() + product).to(TORCH[dtype]), dtype)
    expected = np.where(changed, expected, target)
    got = produced(frame, dtype, dtype, target, weight)
    plain = np.ones(base.size, bool)
    for marked in (frame.mending, frame.overwrites):
        if marked is not None:
            plain[marked.positions] = False
    assert np.array_equal(got[plain], expected[plain])
    assert np.count_nonzero(plain) > 60000


def test_float32_sums_are_those_of_torch() -> None:
    random = np.random.default_rng(6)
    base = random.integers(0, 1 << 32, 1 << 16, np.uint32)
    post = base ^ random.integers(0, 1 << 12, base.size, np.uint32)
    target = random.integers(0, 1 << 32, base.size, np.uint32)
    _, frame = reproduce("F32", "F32", base, post)
    symbols = dense(frame, FORMATS["F32"])
    product = torch.from_numpy(symbols.view(np.float32)).double() * 0.3
    total = (torch.from_numpy(target.view(np.float32)).double() + product).float().numpy()
    expected = np.where(np.isnan(total), np.uint32(0x7FC00000), total.view(np.uint32))
    expected = np.where(symbols == 0x80000000, target, expected)
    got = produced(frame, "F32", "F32", target, 0.3)
    if frame.mending is not None:
        expected[frame.mending.positions] = got[frame.mending.positions]
    assert np.array_equal(got, expected)


# --- any bits of any dtype ----------------------------------------------------------------------------------------


def lanes(dtype: str) -> st.SearchStrategy[int]:
    """A lane's bits: anything, or one of those at which rules change, or a neighbour of it."""
    width = 8 * lane_of(dtype).width
    anything = st.integers(0, 2**width - 1)
    if dtype not in FORMATS:
        return anything
    special = st.sampled_from(sorted(chosen(FORMATS[dtype]).values()))
    near = st.builds(lambda bits, off: (bits + off) % 2**width, special, st.integers(-2, 2))
    ordinary = st.floats(-4, 4).map(lambda value: int(FORMATS[dtype].narrow(np.array([value]))[0]))
    return anything | special | near | ordinary


def pairs(base_dtype: str, dtype: str) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Lanes of base and post; among them some that are equal, where the dtypes are."""
    different = st.tuples(lanes(base_dtype), lanes(dtype))
    same = lanes(dtype).map(lambda bits: (bits, bits))
    return st.lists(different | same if base_dtype == dtype else different, min_size=0, max_size=40)


MIXED = [(one, other) for one in FLOATS for other in FLOATS if one != other]


@pytest.mark.parametrize(("base_dtype", "dtype"), [*((dtype, dtype) for dtype in DTYPES), *MIXED])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_bits_are_reached_from_any_bits(base_dtype: str, dtype: str, data: st.DataObject) -> None:
    drawn = data.draw(pairs(base_dtype, dtype))
    base = np.array([one for one, _ in drawn], lane_of(base_dtype).bits)
    post = np.array([other for _, other in drawn], lane_of(dtype).bits)
    preset = data.draw(st.sampled_from(PRESETS))
    encoded, frame = reproduce(base_dtype, dtype, base, post, preset)
    if base_dtype == dtype:
        assert encoded.changed == np.count_nonzero(base != post)
    if dtype in ADDITIVE and base_dtype in ADDITIVE:
        # At any other weight an overwritten lane is as the sum leaves it, and no lane's change is made up.
        got = produced(frame, base_dtype, dtype, base, 0.5)
        if base_dtype == dtype:
            assert np.array_equal(got[base == post], post[base == post])


@pytest.mark.parametrize(("base_dtype", "dtype"), [("I64", "F32"), ("BOOL", "U8"), ("F8_E4M3", "BF16"), ("BF16", "F4")])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_cannot_be_added_is_replaced(base_dtype: str, dtype: str, data: st.DataObject) -> None:
    bits = data.draw(st.lists(lanes(dtype), max_size=40))
    post = np.array(bits, lane_of(dtype).bits)
    base = np.zeros(post.size, lane_of(base_dtype).bits)
    encoded, frame = reproduce(base_dtype, dtype, base, post)
    assert encoded.kind is Kind.PLANES
    assert frame.positions is None


@pytest.mark.parametrize(("base_dtype", "dtype"), [*((dtype, dtype) for dtype in FLOATS), *MIXED])
def test_random_lanes_in_bulk(base_dtype: str, dtype: str) -> None:
    random = np.random.default_rng(11)
    base = random.integers(0, 2 ** (8 * lane_of(base_dtype).width), 1 << 15, lane_of(base_dtype).bits)
    post = random.integers(0, 2 ** (8 * lane_of(dtype).width), 1 << 15, lane_of(dtype).bits)
    _, frame = reproduce(base_dtype, dtype, base, post)
    one, other = FORMATS[base_dtype], FORMATS[dtype]
    d1 = difference(base, post, one, other)
    symbols = dense(frame, other)
    plain = symbols != marker(other)
    assert np.count_nonzero(plain) > 1000
    assert np.array_equal(symbols[plain], d1[plain])


@pytest.mark.parametrize("base_dtype", SIXTEEN)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_16_bit_pattern_converts_as_it_should(base_dtype: str, dtype: str) -> None:
    one, other = FORMATS[base_dtype], FORMATS[dtype]
    post = ALL if base_dtype == dtype else other.narrow(one.widen(ALL))
    encoded, frame = reproduce(base_dtype, dtype, ALL, post)
    assert (encoded.kind, encoded.changed) == (Kind.ZERO, 0)
    assert frame.symbols is None
