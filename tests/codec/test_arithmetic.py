"""The arithmetic code against a coder in plain Python that was written from `docs/format.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from deltareg.codec import Kind, arithmetic, kernels, lane_of, palette, planes
from deltareg.codec.choose import encode_symbols
from deltareg.codec.memory import frame_memory
from deltareg.codec.streams import StreamReader, pack_number
from deltareg.errors import BadRecord
from tests.codec.golden import PRESETS
from tests.codec.independent import Chances, Cursor
from tests.codec.oracle import FORMATS

Array = NDArray[Any]

ALL = np.arange(1 << 16, dtype=np.uint16)
ODD = (0, 0x8000, 1, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFC1, 0x7C00, 0x7E00, 0x7C01, 0x3F80, 0x3C00, 0x7FFF, 0xFFFF)
"""Zeros, infinities and NaN with payloads of either format, and ones."""

both = pytest.mark.parametrize("dtype", ["BF16", "F16"])
SYMBOLS = arrays(
    np.uint16, st.integers(0, 200), elements=st.sampled_from(ODD) | st.integers(0, 0xFFFF), fill=st.nothing()
)


def encoded(symbols: Array, dtype: str) -> bytes:
    """Their code, which may be longer than they are."""
    stream = np.empty(24 * symbols.size + 8, np.uint8)
    used = kernels.arithmetic_encode(symbols, stream)
    return stream[:used].tobytes()


def decoded(code: bytes, count: int, dtype: str) -> Array:
    """The symbols of a code."""
    return arithmetic.decode(StreamReader(memoryview(pack_number(len(code)) + code)), count, lane_of(dtype))


class Coder:
    """An encoder, step by step as the page has it."""

    def __init__(self) -> None:
        self.low, self.high = 0, 2**32 - 1
        self.chances = Chances()
        self.code = bytearray()

    def put(self, earlier: str, bit: str) -> None:
        """Code one bit of a symbol, of which these are the earlier ones."""
        middle = self.chances.middle(earlier, self.low, self.high)
        self.low, self.high = (self.low, middle) if bit == "1" else (middle + 1, self.high)
        self.chances.learn(earlier, bit)
        while self.low >> 24 == self.high >> 24:
            self.code.append(self.low >> 24)
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255

    def ended(self) -> bytes:
        """The code, zeros at its end included: the least number that so few bytes can name."""
        for size in range(5):
            unit = 1 << (32 - 8 * size)
            number = -(-self.low // unit) * unit
            if number <= self.high:
                return bytes(self.code) + number.to_bytes(4, "big")[:size]
        raise AssertionError("four bytes name every number")

    @classmethod
    def of(cls, symbols: Array) -> Coder:
        """A coder that has coded these."""
        coder = cls()
        for symbol in symbols.tolist():
            bits = f"{symbol & 0x7FFF:015b}{symbol >> 15}"
            for n, bit in enumerate(bits):
                coder.put(bits[:n], bit)
        return coder


def plainly(symbols: Array) -> bytes:
    """Their code as the page has it."""
    return Coder.of(symbols).ended().rstrip(b"\0")


# --- there and back -----------------------------------------------------------------------------------------------


@both
@settings(deadline=None)
@given(symbols=SYMBOLS)
def test_any_symbols_come_back(dtype: str, symbols: Array) -> None:
    code = encoded(symbols, dtype)
    assert np.array_equal(decoded(code, symbols.size, dtype), symbols)
    stored = arithmetic.encode(symbols)
    assert stored == (pack_number(len(code)) + code if len(code) <= 2 * symbols.size else None)


@both
def test_every_symbol_comes_back(dtype: str) -> None:
    for symbols in (ALL, ALL[::-1].copy(), np.random.default_rng(1).permutation(ALL), ALL.repeat(3)):
        assert np.array_equal(decoded(encoded(symbols, dtype), symbols.size, dtype), symbols)


@both
def test_one_symbol_comes_back(dtype: str) -> None:
    assert arithmetic.encode(ALL[:0]) == b"\0"
    assert decoded(b"", 0, dtype).size == 0
    for symbol in range(1 << 16):
        stored = arithmetic.encode(ALL[symbol : symbol + 1])
        assert stored is not None
        assert arithmetic.decode(StreamReader(memoryview(stored)), 1, lane_of(dtype)).tolist() == [symbol]


@both
def test_symbols_come_back_in_memory_that_was_used_before(dtype: str) -> None:
    for seed in range(5):
        symbols = np.random.default_rng(seed).choice(np.array(ODD, np.uint16), 3000)
        with frame_memory():
            stored = arithmetic.encode(symbols)
            assert stored is not None
            got = arithmetic.decode(StreamReader(memoryview(stored)), symbols.size, lane_of(dtype))
            assert np.array_equal(got, symbols)


# --- as the page has it -------------------------------------------------------------------------------------------


@both
@settings(deadline=None)
@given(symbols=SYMBOLS)
def test_code_is_that_of_the_page(dtype: str, symbols: Array) -> None:
    assert encoded(symbols, dtype) == plainly(symbols)


def differences(dtype: str, size: int) -> Array:
    """What weights of a small model change by."""
    return FORMATS[dtype].narrow(np.random.default_rng(2).normal(0, 2e-4, size))


INPUTS: Mapping[str, Array] = {
    "differences of BF16": differences("BF16", 3000),
    "differences of F16": differences("F16", 3000),
    "every symbol once": np.random.default_rng(3).permutation(ALL)[:20_000],
    "all unchanged": np.full(4000, 0x8000, np.uint16),
    "few changed": np.where(np.arange(4000) % 97 == 5, 0x3F80, 0x8000).astype(np.uint16),
    "all zeros and all ones": np.repeat(np.array([0, 0xFFFF, 0, 0xFFFF], np.uint16), 1000),
    "this and that": np.tile(np.array([0x7FFF, 0x8000], np.uint16), 1000),
}


@both
@pytest.mark.parametrize("name", INPUTS)
def test_long_code_is_that_of_the_page(dtype: str, name: str) -> None:
    code = encoded(INPUTS[name], dtype)
    assert code == plainly(INPUTS[name])
    assert Cursor(pack_number(len(code)) + code).arithmetic(INPUTS[name].size) == INPUTS[name].tolist()


def test_long_runs_drive_chances_to_their_bounds() -> None:
    chances = [chance for chance, _ in Coder.of(INPUTS["all zeros and all ones"]).chances.known.values()]
    assert (min(chances), max(chances)) == (61, 65_475)


@both
def test_zeros_at_the_end_of_a_code_are_left_out(dtype: str) -> None:
    draw = np.random.default_rng(4)
    left_out: set[int] = set()
    for _ in range(200):
        # A one leaves `low` as it is: after many of them there are only zeros in it.
        ones = np.full(draw.integers(0, 60), 0xFFFF, np.uint16)
        symbols = np.append(draw.integers(0, 1 << 16, draw.integers(0, 5), np.uint16), ones)
        whole, code = Coder.of(symbols).ended(), encoded(symbols, dtype)
        assert code == whole.rstrip(b"\0")
        assert np.array_equal(decoded(code, symbols.size, dtype), symbols)
        left_out.add(len(whole) - len(code))
    assert {0, 1, 2, 3} <= left_out


@both
def test_interval_that_shrinks_to_two_numbers_is_coded(dtype: str) -> None:
    coder, narrowest, symbols = Coder(), 2**32, list[int]()
    for _ in range(300):
        bits = ""
        while len(bits) < 16:
            # Whichever bit keeps the highest bytes of low and high apart.
            middle = coder.chances.middle(bits, coder.low, coder.high)
            bit = "1" if middle >= coder.high >> 24 << 24 else "0"
            coder.put(bits, bit)
            bits += bit
            narrowest = min(narrowest, coder.high - coder.low)
        symbols.append(int(bits[15] + bits[:15], 2))
    assert narrowest == 1
    array = np.array(symbols, np.uint16)
    assert encoded(array, dtype) == coder.ended().rstrip(b"\0")
    assert np.array_equal(decoded(encoded(array, dtype), array.size, dtype), array)


# --- any bytes ----------------------------------------------------------------------------------------------------


def test_no_code_is_all_ones() -> None:
    for count in (1, 2, 40, 100_000):
        assert np.array_equal(decoded(b"", count, "BF16"), np.full(count, 0xFFFF, np.uint16))
    assert Cursor(b"\0").arithmetic(40) == [0xFFFF] * 40


@both
@settings(deadline=None)
@given(code=st.binary(max_size=80), count=st.integers(0, 30))
def test_any_bytes_are_read_as_the_page_says_or_refused(dtype: str, code: bytes, count: int) -> None:
    try:
        expected = Cursor(pack_number(len(code)) + code).arithmetic(count)
    except ValueError:
        with pytest.raises(BadRecord, match="needed"):
            decoded(code, count, dtype)
    else:
        assert decoded(code, count, dtype).tolist() == expected


@both
def test_code_with_bytes_that_no_reader_takes_is_refused(dtype: str) -> None:
    symbols = differences(dtype, 500)
    code = encoded(symbols, dtype)
    stream = np.frombuffer(code, np.uint8)
    taken = int(kernels.arithmetic_decode(stream, np.empty(500, np.uint16)))
    assert len(code) <= taken <= len(code) + 4
    # What it takes beyond the code is zeros, whether they are written or not.
    assert np.array_equal(decoded(code.ljust(taken, b"\0"), 500, dtype), symbols)
    for end in (b"\0", b"\1", bytes(100_000)):
        with pytest.raises(BadRecord, match="needed"):
            decoded(code.ljust(taken, b"\0") + end, 500, dtype)


@both
def test_code_is_not_written_beyond_its_room(dtype: str) -> None:
    symbols = differences(dtype, 60)
    code = encoded(symbols, dtype)
    for room in range(len(code) + 4):
        stream = np.full(len(code) + 8, 0xA5, np.uint8)
        used = kernels.arithmetic_encode(symbols, stream[:room])
        assert used == (len(code) if room >= len(code) else -1)
        assert np.all(stream[room:] == 0xA5)


# --- what it is worth ---------------------------------------------------------------------------------------------


def skewed(dtype: str) -> Mapping[str, Array]:
    """Lanes of a few symbols, some of them far more frequent than others."""
    draw, format_, size = np.random.default_rng(5), FORMATS[dtype], 50_000
    return {
        "one": np.full(size, 0x8000, np.uint16),
        "two": draw.choice(format_.narrow(np.array([-1.0, 1.0])), size),
        "four": draw.choice(format_.narrow(np.array([-0.0, 0.25, 0.5, 0.75])), size, p=[0.5, 0.3, 0.15, 0.05]),
        "rare": draw.choice(format_.narrow(np.array([-0.0, 0.5])), size, p=[0.99, 0.01]),
        "geometric": format_.narrow((draw.geometric(0.3, size) - 1) / 256),
        "normal": format_.narrow(np.rint(draw.normal(0, 12, size)) / 64),
    }


@both
@pytest.mark.parametrize("name", skewed("BF16"))
def test_skewed_symbols_take_little_more_than_their_entropy(dtype: str, name: str) -> None:
    symbols = skewed(dtype)[name]
    _, counts = np.unique(symbols, return_counts=True)
    least = palette.entropy(counts) / 8
    assert 0.999 * least <= len(encoded(symbols, dtype)) <= 1.01 * least + 200


@both
@pytest.mark.parametrize("preset", PRESETS)
def test_noise_takes_no_more_room_than_its_planes(dtype: str, preset: Any) -> None:
    lane = lane_of(dtype)
    for size in (1000, 4096):
        symbols = np.random.default_rng(size).integers(0, 1 << 16, size, np.uint16)
        assert arithmetic.encode(symbols) is None
        chosen = encode_symbols(symbols, lane, preset, marked=True)
        assert chosen.kind is Kind.PLANES
        assert len(chosen.body) == len(planes.encode(symbols, lane, preset))


@both
@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_taken_only_where_it_is_smaller(dtype: str, preset: Any) -> None:
    lane = lane_of(dtype)
    draw = np.random.default_rng(6)
    taken: set[bool] = set()
    for size in (1, 2, 3, 10, 100, 1000, 3000):
        for bits in range(1, 17):
            symbols = draw.integers(0, 1 << bits, size, np.uint16) << (16 - bits)
            chosen = encode_symbols(symbols, lane, preset, marked=True)
            if chosen.kind is Kind.ZERO:
                continue
            coded = arithmetic.encode(symbols)
            assert coded is None or len(chosen.body) <= len(coded)
            assert chosen.kind is not Kind.ARITHMETIC or chosen.body == coded
            taken.add(chosen.kind is Kind.ARITHMETIC)
    assert taken == {False, True}
