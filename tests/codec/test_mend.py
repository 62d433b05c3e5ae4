"""Second terms: what their codes mean, and that the encoder uses the shortest that mends."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from deltareg.codec import lane_of
from deltareg.codec.mend import Mending
from tests.codec.oracle import FORMATS, marker, ulp
from tests.codec.tensors import produced, reproduce


def meaning(code: int) -> tuple[int, int]:
    """(s, m) of a code: D2 = m · 2^−s · ulp(D1). As `docs/format.md` has it."""
    rank, sign = code >> 1, -1 if code & 1 else 1
    halvings = rank.bit_length() + 1
    first = 0 if rank == 0 else 1 << (halvings - 2)
    return halvings, sign * (2 * (rank - first) + 1)


def code_of(halvings: int, odd: int) -> int:
    """The inverse of `meaning`."""
    rank = 0 if halvings == 1 else (1 << (halvings - 2)) + (abs(odd) - 1) // 2
    return 2 * rank + (odd < 0)


def test_first_codes_are_those_of_the_document() -> None:
    assert [meaning(code) for code in range(16)] == [
        (1, 1),
        (1, -1),
        (2, 1),
        (2, -1),
        (3, 1),
        (3, -1),
        (3, 3),
        (3, -3),
        (4, 1),
        (4, -1),
        (4, 3),
        (4, -3),
        (4, 5),
        (4, -5),
        (4, 7),
        (4, -7),
    ]


def test_every_16_bit_code_has_one_meaning() -> None:
    meanings = [meaning(code) for code in range(1 << 16)]
    assert [code_of(*pair) for pair in meanings] == list(range(1 << 16))
    assert all(odd % 2 and abs(odd) <= 2 ** (halvings - 1) for halvings, odd in meanings)
    assert len({Fraction(odd, 2**halvings) for halvings, odd in meanings}) == 1 << 16


# A D1 of each sort: normal, a power of two, subnormal, the greatest; with every code.
@pytest.mark.parametrize("value", [1.0, -1.5, 0.09375, 2.0**-14, -(2.0**-24), 65504.0])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_decoded_terms_are_what_the_codes_mean(dtype: str, value: float) -> None:
    format_, lane = FORMATS[dtype], lane_of(dtype)
    codes = np.arange(1 << 16, dtype=np.uint16)
    delta = np.full(codes.size, format_.narrow(np.array([value]))[0], np.uint16)
    exact = format_.widen(delta[:1])[0]
    step = Fraction(float(ulp(np.array([exact]), format_)[0]))
    terms = Mending(np.arange(codes.size), codes).terms(delta.view(lane.stored), lane, np.float64)
    for code in [*range(2000), *range(2000, 1 << 16, 97), (1 << 16) - 1]:
        halvings, odd = meaning(code)
        second = Fraction(odd, 2**halvings) * step
        assert Fraction(float(terms[code])) == Fraction(exact) + second, code
        assert abs(second) <= step / 2
    rounded = Mending(np.arange(codes.size), codes).terms(delta.view(lane.stored), lane, np.float32)
    assert np.array_equal(rounded, terms.astype(np.float32))


@pytest.mark.parametrize(("base_dtype", "dtype"), [("BF16", "BF16"), ("F16", "F16"), ("F32", "F32"), ("F32", "BF16")])
def test_encoder_takes_the_shortest_term_within_half_an_ulp(base_dtype: str, dtype: str) -> None:
    random = np.random.default_rng(3)
    before, after, lane = FORMATS[base_dtype], FORMATS[dtype], lane_of(dtype)
    base = before.narrow(random.normal(0, 1, 200_000))
    post = after.narrow(before.widen(base) * random.normal(0, 3, base.size))
    _, frame = reproduce(base_dtype, dtype, base, post)
    mending = frame.mending
    assert mending is not None
    assert frame.overwrites is None
    assert mending.positions.size > 1000
    symbols = np.full(frame.lanes, marker(after), after.bits)
    symbols[slice(None) if frame.positions is None else frame.positions] = frame.symbols
    first = after.widen(symbols[mending.positions])
    second = mending.terms(symbols.view(lane.stored), lane, np.float64) - first
    assert np.all(np.abs(second) <= ulp(first, after) / 2)
    # No shorter one would do: every (s, m) below the code is tried on a sample.
    kind = np.float32 if base_dtype != "F32" else np.float64
    for number in range(0, mending.positions.size, max(1, mending.positions.size // 50)):
        at = mending.positions[number]
        halvings, _ = meaning(int(mending.codes[number]))
        shorter = [odd * 2.0**-s for s in range(1, min(halvings, 9)) for odd in range(-(2**s) + 1, 2**s, 2)]
        terms = (first[number] + np.array(shorter) * ulp(first[number : number + 1], after)[0]).astype(kind)
        sums = (before.widen(base[at : at + 1]).astype(kind) + terms).astype(np.float64)
        within = np.abs(np.array(shorter)) <= 0.5
        assert not np.any(after.narrow(sums[within]) == post[at])


def test_mended_lanes_are_scaled_as_one_term() -> None:
    # base 1, post 2^-9 (bf16): D1 = −1 (rounded), D1 + D2 = −0.998046875. Half of it on 1 is not what half of D1 gives.
    format_ = FORMATS["BF16"]
    base, post = format_.narrow(np.array([1.0])), format_.narrow(np.array([2.0**-9]))
    _, frame = reproduce("BF16", "BF16", base, post)
    assert frame.mending is not None
    assert format_.widen(produced(frame, "BF16", "BF16", base, 0.5))[0] == 0.5
    target = format_.narrow(np.array([0.5]))
    expected = format_.narrow(np.array([0.5 - 0.5 * (1 - 2.0**-9)]))
    assert np.array_equal(produced(frame, "BF16", "BF16", target, 0.5), expected)


def test_64_bit_lanes_are_overwritten_rather_than_mended() -> None:
    random = np.random.default_rng(4)
    base = random.normal(0, 1, 5000).view(np.uint64)
    post = (base.view(np.float64) * random.normal(0, 3, base.size)).view(np.uint64)
    _, frame = reproduce("F64", "F64", base, post)
    assert frame.mending is None
    assert frame.overwrites is not None
