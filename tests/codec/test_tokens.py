"""Both loops from tokens to symbols, against the plainest one."""

from __future__ import annotations

import ctypes
import mmap
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deltareg.codec import Frame, decode_frame, lane_of
from deltareg.codec.tokens import ROOM, WIDE, highest_token, symbols_of
from deltareg.errors import BadRecord
from tests.codec.samples import SAMPLES
from tests.codec.tensors import encode, recoded

Array = NDArray[Any]

UNTOUCHED = 0xA5A5
TABLE = np.random.default_rng(1).permutation(1 << 16)[:256].astype(np.uint16)
NEVER = 0xDEAD
"""What stands after the escapes."""

needs_wide = pytest.mark.skipif(not WIDE, reason="this processor has no such vectors")
loops = pytest.mark.parametrize("wide", [False, pytest.param(True, marks=needs_wide)], ids=["narrow", "wide"])


def expected_of(tokens: Array, escape: int, escapes: list[int]) -> tuple[int, list[int]]:
    """How many escapes are asked for; and the symbols, −1 where there is no escape left."""
    following = iter(escapes)
    symbols = [next(following, -1) if token == escape else int(TABLE[token]) for token in tokens.tolist()]
    return tokens.tolist().count(escape), symbols


def check(tokens: Array, escape: int, given: int, wide: bool) -> None:
    """Look them up with so many escapes, between lanes that must stay as they are."""
    escapes = np.array([*range(1, given + 1), *[NEVER] * ROOM], np.uint16)
    whole = np.full(tokens.size + 2 * ROOM, UNTOUCHED, np.uint16)
    symbols = whole[ROOM : ROOM + tokens.size]
    asked, expected = expected_of(tokens, escape, list(range(1, given + 1)))
    assert symbols_of(tokens, TABLE, escape, escapes, symbols, wide=wide) == asked
    defined = np.array(expected, np.int64) >= 0
    assert np.array_equal(symbols[defined], np.array(expected, np.int64)[defined])
    assert np.all(whole[:ROOM] == UNTOUCHED)
    assert np.all(whole[ROOM + tokens.size :] == UNTOUCHED)


@loops
@pytest.mark.parametrize("escape", [0, 1, 15, 63, 64, 127, 128, 191, 192, 254, 255])
def test_symbols_are_those_of_the_tokens(escape: int, wide: bool) -> None:
    for size in (*range(41), 63, 64, 65, 95, 96, 97):
        check_size(size, escape, wide)


def check_size(size: int, escape: int, wide: bool) -> None:
    """The escape at every place, and many of them."""
    draw = np.random.default_rng([size, escape])
    # Some differ from the escape by one bit, by the highest one, by one place, or in every bit.
    near = {0, 255, escape ^ 1, escape ^ 128, escape ^ 255, (escape + 1) % 256, (escape - 1) % 256} - {escape}
    others = draw.choice(np.array(sorted(near), np.uint8), size)
    for place in range(size):
        tokens = others.copy()
        tokens[place] = escape
        check(tokens, escape, 1, wide)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        tokens = np.where(draw.random(size) < share, np.uint8(escape), others)
        asked = int((tokens == escape).sum())
        # More than are asked for, just as many, and fewer.
        for given in {asked + 3, asked, asked - 1, asked // 2, 0}:
            check(tokens, escape, max(given, 0), wide)


@loops
def test_every_token_has_its_symbol(wide: bool) -> None:
    tokens = np.arange(256, dtype=np.uint8)
    for escape in range(256):
        for shift in (0, 1, 31):
            check(np.roll(tokens, shift), escape, 1, wide)


@loops
def test_every_set_of_escapes_among_sixteen_tokens_is_filled(wide: bool) -> None:
    escapes = np.arange(1, 17 + ROOM, dtype=np.uint16)
    symbols = np.empty(48, np.uint16)
    for hits in range(1 << 16):
        pattern = np.resize(np.array([hits >> n & 1 for n in range(16)], np.uint8), 16)
        tokens = np.zeros(48, np.uint8)
        tokens[hits % 32 : hits % 32 + 16] = pattern
        places = np.flatnonzero(tokens)
        assert symbols_of(tokens, TABLE, 1, escapes, symbols, wide=wide) == places.size
        assert symbols[places].tolist() == list(range(1, places.size + 1))
        assert np.all(symbols[tokens == 0] == TABLE[0])


@loops
@pytest.mark.parametrize("start", range(8))
def test_tokens_may_begin_at_any_byte(start: int, wide: bool) -> None:
    tokens = np.random.default_rng(start).integers(0, 4, 1000, np.uint8)[start:]
    check(tokens, 3, int((tokens == 3).sum()), wide)


def test_highest_token_is_found_at_every_place() -> None:
    assert highest_token(np.zeros(0, np.uint8)) == 0
    for size in range(1, 70):
        assert highest_token(np.full(size, 200, np.uint8)) == 200
        for place in range(size):
            tokens = np.full(size, 127, np.uint8)
            tokens[place] = 128
            assert highest_token(tokens) == 128


# --- memory that is not theirs ------------------------------------------------------------------------------------

_FORBIDDEN: list[mmap.mmap] = []


def at_an_edge(array: Array, *, end: bool) -> Array:
    """A copy that ends where nobody may read, or begins there."""
    page = mmap.PAGESIZE
    inner = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    _FORBIDDEN.append(memory)
    whole = np.frombuffer(memory, np.uint8)
    start = page + (inner - array.nbytes if end else 0)
    copy = whole[start : start + array.nbytes].view(array.dtype)
    copy[:] = array
    for at in (0, page + inner):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(whole.ctypes.data + at), ctypes.c_size_t(page), 0) == 0
    return copy


def reach_for_the_edges() -> None:
    """Look up tokens whose memory, and that of all that belongs to them, has such neighbours."""
    draw = np.random.default_rng(3)
    for size in (0, 1, 7, 8, 9, 31, 32, 33, 64, 100, 127, 5003):
        for end in (False, True):
            table, symbols = at_an_edge(TABLE, end=end), at_an_edge(np.zeros(size, np.uint16), end=end)
            for drawn in ([3, 7, 255], [7]):
                tokens = at_an_edge(draw.choice(np.array(drawn, np.uint8), size), end=end)
                for given in {0, size // 3, size}:
                    escapes = at_an_edge(np.arange(given + ROOM, dtype=np.uint16), end=end)
                    for wide in {False, WIDE}:
                        asked = symbols_of(tokens, table, 7, escapes, symbols, wide=wide)
                        assert asked == int((tokens == 7).sum())
    print("inside")


def test_no_loop_leaves_its_arrays() -> None:
    command = [sys.executable, "-c", "from tests.codec import test_tokens; test_tokens.reach_for_the_edges()"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr[-2000:]


def test_an_edge_is_one() -> None:
    """Without it the test before could not fail."""
    script = "import numpy, ctypes; from tests.codec.test_tokens import at_an_edge\n"
    script += "at = at_an_edge(numpy.zeros(3, numpy.uint16), end=True).ctypes.data\nctypes.string_at(at, {})"
    for size, code in ((6, 0), (7, -signal.SIGSEGV)):
        command = [sys.executable, "-c", script.format(size)]
        done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True)
        assert done.returncode == code


# --- tokens that a device looks up ------------------------------------------------------------------------------------


def _both(data: bytes, lanes: int, dtype: str) -> list[Frame | None]:
    """A frame with its symbols, and with its tokens; None where it is refused."""
    found: list[Frame | None] = []
    for keep in (False, True):
        try:
            found.append(decode_frame(memoryview(data), lanes, lane_of(dtype), lane_of(dtype), keep_tokens=keep))
        except BadRecord:
            found.append(None)
    return found


@pytest.mark.parametrize("name", [name for name, one in SAMPLES.items() if one.base_dtype == one.dtype == "BF16"])
def test_kept_tokens_are_the_symbols_and_are_refused_where_these_are(name: str) -> None:
    """Whole, and with any byte damaged: what a device would stumble over never reaches it."""
    sample = SAMPLES[name]
    base, post = sample.make(sample.size)
    assert base is not None
    data = encode("BF16", "BF16", base, post).data
    for stored in (data, *recoded(data, sample.size, "BF16", "BF16").values()):
        plain, kept = _both(stored, sample.size, "BF16")
        assert plain is not None and kept is not None
        _must_agree(plain, kept)
        draw = random.Random(name)
        for place in draw.sample(range(6, len(stored)), min(400, len(stored) - 6)):
            damaged = bytearray(stored)
            damaged[place] ^= draw.choice([1, 0x80, 0xFF])
            plain, kept = _both(bytes(damaged), sample.size, "BF16")
            assert (plain is None) == (kept is None), place
            if plain is not None and kept is not None:
                _must_agree(plain, kept)


def _must_agree(plain: Frame, kept: Frame) -> None:
    tokens = kept.tokens
    if tokens is None:
        assert (plain.symbols is None) == (kept.symbols is None)
        return
    assert kept.symbols is None and plain.symbols is not None and not kept.unchanged
    places = np.arange(tokens.tokens.size)
    assert np.array_equal(tokens.at(places), plain.symbols)
    assert np.array_equal(tokens.at(places[::7]), plain.symbols[::7])
    assert np.count_nonzero(tokens.tokens == tokens.escape) == tokens.escapes.size
