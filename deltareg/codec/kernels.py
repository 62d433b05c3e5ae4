# pyright: basic
# numba compares the annotations of an overload with those of its body, so that neither carries any.
"""The compiled loops over lanes, and how a lane is widened and rounded bit by bit.

Lanes travel as NumPy arrays whose type names the format: uint16 is BF16, int16 is F16, float32 and float64 are
themselves. BF16 and F16 widen to float32, F32 and F64 to float64, so that mixed operands meet in the wider of the two.
Every rounding is to nearest, ties to even (IEEE 754-2019, 4.3.1), subnormals kept, and every NaN that comes out is the
one canonical quiet NaN: hardware disagrees about the payload, the result must not.

Symbols are the bits of D1 as unsigned integers of the lane's width, with `marker` (the bits of −0.0) where nothing
changes. No loop trusts a length that it was not given.

All of it (but for `tokens.py`) is one file because numba keeps compiled code by the time stamp of the file that a loop
stands in: a change to a function imported from elsewhere would go unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

__all__ = [
    "accumulate",
    "add_merged",
    "add_rest",
    "apply_one",
    "apply_terms",
    "are_numbers",
    "arithmetic_decode",
    "arithmetic_encode",
    "count_states",
    "difference",
    "equal",
    "find_codes",
    "find_state",
    "finish",
    "histogram",
    "mended_terms",
    "multiply",
    "narrow_all",
    "pack_nibbles",
    "read_gaps",
    "squared_distance",
    "subtract",
    "sum_of_squares",
    "tokenize",
    "unpack_nibbles",
    "weighted_squares",
    "widen_all",
    "write_gaps",
]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on first use, without the interpreter lock; keep the machine code for later processes."""
    # No fastmath: the order of operations and two separate roundings (no fused multiply-add) are part of the format.
    # error_model: a division cannot raise, which would keep loops from being vectorised.
    try:
        compiled = njit(function, nogil=True, cache=True, error_model="numpy")
    except RuntimeError:  # numba finds no directory that it may write its cache to
        return njit(function, nogil=True, error_model="numpy")
    _forgive(getattr(compiled, "_cache", None))
    return compiled


def _forgive(cache: Any) -> None:
    """Let a damaged cache, or a full disk under it, mean that the loop is compiled anew, and nothing worse."""
    if cache is None:
        return
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:
            with suppress(Exception):
                cache.flush()
            return None

    def save_overload(*arguments: Any) -> None:
        with suppress(Exception):
            save(*arguments)

    cache.load_overload, cache.save_overload = load_overload, save_overload


def widen(lane: Any) -> Any:
    """The lane's value in the accumulator's type. For use inside kernels."""
    raise NotImplementedError


def narrow(value: Any, like: Any) -> Any:
    """`value` rounded once to the format of the lane `like`, as the array stores it. For use inside kernels."""
    raise NotImplementedError


def scaled(value: Any, weight: Any, partner: Any) -> Any:
    """weight · value, rounded in the wider type of `value` and `partner`. For use inside kernels."""
    raise NotImplementedError


def rounded(value: Any, like: Any) -> Any:
    """The float64 `value` in the accumulator type of `like`. For use inside kernels."""
    raise NotImplementedError


def bits(lane: Any) -> Any:
    """The lane's bits as an unsigned integer. For use inside kernels."""
    raise NotImplementedError


def converted(lane: Any, like: Any) -> Any:
    """`lane` in the format of `like`: untouched if it has that format already. For use inside kernels."""
    raise NotImplementedError


@overload(rounded)
def _rounded(value, like):
    if like == types.float32:
        return lambda value, like: np.float32(value)
    return lambda value, like: np.float64(value)


@overload(bits)
def _bits(lane):
    if lane == types.uint16:
        return lambda lane: lane
    if lane == types.int16:
        return lambda lane: np.uint16(lane)
    if lane == types.float32:
        return lambda lane: np.float32(lane).view(np.uint32)
    return lambda lane: np.float64(lane).view(np.uint64)


@overload(converted)
def _converted(lane, like):
    if lane == like:
        return lambda lane, like: lane
    return lambda lane, like: narrow(widen(lane), like)


@overload(scaled)
def _scaled(value, weight, partner):
    if value == types.float32 and partner == types.float32:
        return lambda value, weight, partner: np.float32(value * np.float32(weight))
    return lambda value, weight, partner: np.float64(value) * np.float64(weight)


@overload(widen)
def _widen(lane):
    if lane == types.uint16:

        def bf16(lane):
            return np.uint32(np.uint32(lane) << np.uint32(16)).view(np.float32)

        return bf16
    if lane == types.int16:

        def f16(lane):
            pattern = np.uint32(np.uint16(lane))
            magnitude = np.uint32(pattern & np.uint32(0x7FFF))
            # From the integer, not by scaling a subnormal float32: processors take a slow path for those.
            tiny = np.float32(np.float32(np.int32(magnitude)) * np.float32(5.960464477539063e-08))  # 2**-24
            shifted = np.uint32((magnitude << np.uint32(13)) + np.uint32(0x38000000))
            shifted = np.uint32(shifted | np.uint32(0x7F800000)) if magnitude >= np.uint32(0x7C00) else shifted
            value = np.float32(tiny).view(np.uint32) if magnitude < np.uint32(0x0400) else shifted
            sign = np.uint32((pattern & np.uint32(0x8000)) << np.uint32(16))
            return np.uint32(value | sign).view(np.float32)

        return f16
    if lane == types.float32:
        return lambda lane: np.float64(lane)
    return lambda lane: lane


@overload(narrow)
def _narrow(value, like):
    if like == types.uint16:
        return _bf16_from_float32 if value == types.float32 else _bf16_from_float64
    if like == types.int16:
        return _f16_from_float32 if value == types.float32 else _f16_from_float64
    if like == types.float32:

        def f32(value, like):
            return np.float32(value) if value == value else np.uint32(0x7FC00000).view(np.float32)

        return f32

    def f64(value, like):
        return np.float64(value) if value == value else np.uint64(0x7FF8000000000000).view(np.float64)

    return f64


@njit
def _to_odd(value):
    # float64 to float32, inexact results made odd: rounding that again to a narrower format rounds just once
    # (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
    near = np.float32(value)
    bits = np.float32(near).view(np.uint32)
    back = np.float64(near)
    if back == value or value != value:
        return near
    if (bits & np.uint32(0x7FFFFFFF)) == np.uint32(0x7F800000):
        # Overflow of the conversion: the largest finite float32 is odd and overflows again where it must.
        return np.uint32(bits - np.uint32(1)).view(np.float32)
    if bits & np.uint32(1):
        return near
    if abs(back) > abs(value):
        return np.uint32(bits - np.uint32(1)).view(np.float32)
    return np.uint32(bits | np.uint32(1)).view(np.float32)


def _bf16_from_float32(value, like):
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
    return np.uint16(rounded) if value == value else np.uint16(0x7FC0)


def _bf16_from_float64(value, like):
    odd = _to_odd(value)
    bits = np.float32(odd).view(np.uint32)
    rounded = np.uint32((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
    return np.uint16(rounded) if value == value else np.uint16(0x7FC0)


@njit
def _f16_bits(value):
    # Every case is computed and one is chosen: a branch would keep the loops from being vectorised.
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # Below 2**-14, adding 0.5 lets the adder round the subnormal.
    aligned = np.float32(np.uint32(magnitude).view(np.float32) + np.float32(0.5))
    subnormal = np.uint32(np.float32(aligned).view(np.uint32) - np.uint32(0x3F000000))
    odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32((magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13))
    half = subnormal if magnitude < np.uint32(0x38800000) else normal
    half = np.uint32(0x7C00) if magnitude >= np.uint32(0x47800000) else half
    half = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else np.uint32(half | sign)
    return np.int16(np.uint16(half))


def _f16_from_float32(value, like):
    return _f16_bits(np.float32(value))


def _f16_from_float64(value, like):
    return _f16_bits(_to_odd(value))


@kernel
def difference(base: Any, post: Any, delta: Any, symbols: Any, marker: Any, states: Any) -> Any:
    """D1 = round(post − base); `delta` and `symbols` are two views of one array, as large as `post`.

    `states` (uint8) becomes 0 where a lane stays, 1 where D1 is finite and base + D1 rounds to post, 2 where not.
    """
    # Nothing is counted here: a sum carried from lane to lane would keep the loop from being vectorised.
    for i in range(post.size):
        x = widen(base[i])
        d = narrow(widen(post[i]) - x, post[i])
        w = widen(d)
        differs = np.uint8(bits(converted(base[i], post[i])) != bits(post[i]))
        # Inf − Inf is not equal to itself: a difference that is no finite number is of use on the base alone.
        off = np.uint8((bits(narrow(x + w, post[i])) != bits(post[i])) | (bits(d) == marker) | (w - w != w - w))
        states[i] = np.uint8(differs + (differs & off))
        symbols[i] = bits(d) if differs else marker


@kernel
def count_states(states: Any) -> Any:
    """How many lanes do not stay, and how many of these are in state 2."""
    changed = 0
    wrong = 0
    for i in range(states.size):
        changed += np.int64(states[i] != 0)
        wrong += np.int64(states[i] == 2)
    return changed, wrong


@kernel
def find_state(states: Any, state: Any, positions: Any) -> Any:
    """Write the positions of the lanes in `state`; `positions` has room for just as many as there are."""
    found = 0
    for start in range(0, states.size, 64):
        part = states[start : start + 64]
        here = 0
        for j in range(part.size):
            here += np.int64(part[j] == state)
        if here == 0 or found + here > positions.size:
            continue
        for j in range(part.size):
            if part[j] == state:
                positions[found] = start + j
                found += 1


@kernel
def find_codes(
    base: Any, post: Any, delta: Any, positions: Any, precision: Any, least: Any, most: Any, codes: Any, mended: Any
) -> Any:
    """The code of the second term that mends each of `positions`, as `mend.py` defines it; `mended` tells where."""
    for n in range(positions.size):
        x = widen(base[positions[n]])
        goal = post[positions[n]]
        d = widen(delta[positions[n]])
        step = _step(np.float64(d), precision, least)
        rest = (np.float64(widen(goal)) - np.float64(x) - np.float64(d)) / step
        mended[n] = False
        codes[n] = 0
        if not abs(rest) <= 0.5 or d == 0:
            continue
        for halvings in range(1, most + 1):
            odd = np.int64(np.rint(rest * _power_of_two(halvings)))
            if odd % 2 == 0:
                continue
            term = rounded(np.float64(d) + step * (np.float64(odd) * _power_of_two(-halvings)), x + d)
            if bits(narrow(x + term, goal)) == bits(goal):
                rank = (abs(odd) - 1) // 2 + ((1 << (halvings - 2)) if halvings > 1 else 0)
                codes[n] = 2 * rank + (1 if odd < 0 else 0)
                mended[n] = True
                break


@kernel
def mended_terms(delta: Any, positions: Any, codes: Any, precision: Any, least: Any, terms: Any) -> Any:
    """D1 + D2 of the lanes at `positions` with these `codes`, rounded to the type of `terms`."""
    for n in range(positions.size):
        d = np.float64(widen(delta[positions[n]]))
        rank = np.int64(codes[n] >> 1)
        halvings = 1
        first = 0
        while rank >= (np.int64(1) << halvings) >> 1 and halvings < 63:
            first = (np.int64(1) << halvings) >> 1
            halvings += 1
        odd = 2 * (rank - first) + 1
        odd = -odd if codes[n] & 1 else odd
        terms[n] = d + _step(d, precision, least) * (np.float64(odd) * _power_of_two(-halvings))


@njit
def _step(d, precision, least):
    # ulp(d): the distance between neighbours at d in a format of this precision and least exponent. No number of a
    # format that is mended is subnormal in float64.
    exponent = np.int64((np.float64(d).view(np.uint64) >> np.uint64(52)) & np.uint64(2047)) - 1023
    return _power_of_two(max(exponent, np.int64(least)) - (precision - 1))


@njit
def _power_of_two(exponent):
    return np.uint64(np.uint64(exponent + 1023) << np.uint64(52)).view(np.float64)


@kernel
def are_numbers(symbols: Any, positions: Any, marker: Any, infinity: Any) -> Any:
    """Whether the symbols at all of `positions` are finite and not zero; `infinity` is the bits of +Inf."""
    sound = True
    for n in range(positions.size):
        symbol = symbols[positions[n]]
        magnitude = symbol if symbol < marker else symbol ^ marker
        sound &= (magnitude != 0) & (magnitude < infinity)
    return sound


@kernel
def apply_one(target: Any, delta: Any, symbols: Any, marker: Any, weight: Any, out: Any) -> Any:
    """out = round(target + weight · delta); where nothing changes, the target's own bits in the format of `out`."""
    for i in range(out.size):
        x = widen(target[i])
        total = narrow(x + scaled(widen(delta[i]), weight, x), out[i])
        out[i] = converted(target[i], out[i]) if symbols[i] == marker else total


@kernel
def apply_terms(target: Any, positions: Any, terms: Any, weight: Any, out: Any) -> Any:
    """out = round(target + weight · term) at `positions`, one term (D1 + D2) for each in the accumulator's type."""
    for n in range(positions.size):
        i = positions[n]
        x = widen(target[i])
        out[i] = narrow(x + scaled(terms[n], weight, x), out[i])


@kernel
def widen_all(lanes: Any, out: Any) -> Any:
    """The lanes in the type of `out`, which may be wider than they need."""
    for i in range(out.size):
        out[i] = widen(lanes[i])


@kernel
def accumulate(total: Any, touched: Any, delta: Any, symbols: Any, marker: Any, weight: Any) -> Any:
    """total += weight · delta where the delta changes something; `touched` (uint8) becomes 1 there."""
    for i in range(total.size):
        hit = symbols[i] != marker
        sum_ = total[i] + scaled(widen(delta[i]), weight, total[i])
        total[i] = sum_ if hit else total[i]
        touched[i] = touched[i] | np.uint8(hit)


@kernel
def finish(target: Any, total: Any, touched: Any, out: Any) -> Any:
    """out = round(total) where touched, the target's own bits elsewhere."""
    for i in range(out.size):
        rounded = narrow(total[i], out[i])
        out[i] = rounded if touched[i] != 0 else converted(target[i], out[i])


@kernel
def add_merged(target: Any, merged: Any, out: Any) -> Any:
    """out = round(target + merged); where nothing is added, the target's own bits in the format of `out`."""
    for i in range(out.size):
        total = narrow(widen(target[i]) + merged[i], out[i])
        out[i] = total if merged[i] != 0 else converted(target[i], out[i])


@kernel
def histogram(symbols: Any, counts: Any) -> Any:
    """Add the number of occurrences of each 16-bit symbol to `counts` (uint32, 65,536 long)."""
    for i in range(symbols.size):
        counts[symbols[i]] += np.uint32(1)


@kernel
def tokenize(symbols: Any, token_of: Any, escape: Any, tokens: Any, escapes: Any) -> Any:
    """The token of each 16-bit symbol; symbols whose token is `escape` are also written to `escapes`.

    `token_of` has 65,536 entries; `escapes` is one longer than it can need. Returns the number of escapes.
    """
    used = 0
    for i in range(symbols.size):
        token = token_of[symbols[i]]
        tokens[i] = token
        if token == escape:
            escapes[used] = symbols[i]
            used += 1
    return used


# --- adaptive binary arithmetic coding, as `arithmetic.py` describes it -----------------------------------------------

_MOST_SEEN = 60
# 2 / (2·seen + 3) in 1/65,536: the share of its distance to 0 or 1 by which a chance moves.
_STEPS = np.array([131072 // (2 * seen + 3) for seen in range(_MOST_SEEN + 1)], np.int64)
# A context for each prefix of a magnitude's 15 bits, which is a node of their tree (the root is 1), and two for the
# sign: 0, and this one where the magnitude is zero.
_SIGN_OF_ZERO = 1 << 15


@njit
def _adapted(chance, seen, bit):
    step = _STEPS[seen]
    return chance + (((65536 - chance) * step) >> 16) if bit else chance - ((chance * step) >> 16)


@kernel
def arithmetic_encode(symbols: Any, stream: Any) -> Any:
    """Code 16-bit symbols into `stream` (uint8); returns the bytes used, −1 where it has no room for them."""
    chances = np.full(_SIGN_OF_ZERO + 1, 32768, np.uint16)
    seen = np.zeros(chances.size, np.uint8)
    low = 0
    high = 0xFFFFFFFF
    used = 0
    for i in range(symbols.size):
        symbol = np.int64(symbols[i])
        magnitude = symbol & 0x7FFF
        context = 1
        for n in range(16):
            bit = (magnitude >> (14 - n)) & 1
            if n == 15:
                bit = symbol >> 15
                context = 0 if magnitude else _SIGN_OF_ZERO
            chance = np.int64(chances[context])
            middle = low + (((high - low) * chance) >> 16)
            if bit:
                high = middle
            else:
                low = middle + 1
            chances[context] = np.uint16(_adapted(chance, np.int64(seen[context]), bit))
            seen[context] += np.uint8(seen[context] < _MOST_SEEN)
            context = 2 * context + bit
            while (low ^ high) < (1 << 24):
                if used == stream.size:
                    return -1
                stream[used] = np.uint8(high >> 24)
                used += 1
                low = (low << 8) & 0xFFFFFFFF
                high = ((high << 8) & 0xFFFFFFFF) | 255
    # As few bytes as name a number from low to high, if zeros follow.
    for kept in range(5):
        rest = (1 << (32 - 8 * kept)) - 1
        number = (low + rest) & ~rest
        if number <= high:
            if used + kept > stream.size:
                return -1
            for n in range(kept):
                stream[used] = np.uint8((number >> (24 - 8 * n)) & 255)
                used += 1
            break
    while used and stream[used - 1] == 0:
        used -= 1
    return used


@kernel
def arithmetic_decode(stream: Any, symbols: Any) -> Any:
    """The inverse of `arithmetic_encode`; returns how many bytes it looked at, those beyond the stream included."""
    chances = np.full(_SIGN_OF_ZERO + 1, 32768, np.uint16)
    seen = np.zeros(chances.size, np.uint8)
    low = 0
    high = 0xFFFFFFFF
    number = 0
    used = 0
    for _ in range(4):
        number = (number << 8) | np.int64(stream[used] if used < stream.size else 0)
        used += 1
    for i in range(symbols.size):
        magnitude = np.int64(0)
        context = 1
        bit = np.int64(0)
        for n in range(16):
            if n == 15:
                magnitude = np.int64(context) - (1 << 15)
                context = 0 if magnitude else _SIGN_OF_ZERO
            chance = np.int64(chances[context])
            middle = low + (((high - low) * chance) >> 16)
            bit = np.int64(number <= middle)
            if bit:
                high = middle
            else:
                low = middle + 1
            chances[context] = np.uint16(_adapted(chance, np.int64(seen[context]), bit))
            seen[context] += np.uint8(seen[context] < _MOST_SEEN)
            context = 2 * context + bit
            while (low ^ high) < (1 << 24):
                low = (low << 8) & 0xFFFFFFFF
                high = ((high << 8) & 0xFFFFFFFF) | 255
                number = (number << 8) & 0xFFFFFFFF
                number |= np.int64(stream[used] if used < stream.size else 0)
                used += 1
        symbols[i] = np.uint16(magnitude | (bit << 15))
    return used


@kernel
def equal(one: Any, other: Any) -> Any:
    """Whether two arrays of unsigned integers, of one length, are the same."""
    for start in range(0, one.size, 4096):
        a = one[start : start + 4096]
        b = other[start : start + 4096]
        difference_ = a[0] ^ b[0]
        for j in range(a.size):
            difference_ |= a[j] ^ b[j]
        if difference_ != 0:
            return False
    return True


@kernel
def pack_nibbles(tokens: Any, packed: Any) -> Any:
    """Two tokens below 16 into each byte, the first in the low half; an odd last one alone."""
    for i in range(tokens.size // 2):
        packed[i] = tokens[2 * i] | (tokens[2 * i + 1] << np.uint8(4))
    if tokens.size % 2:
        packed[tokens.size // 2] = tokens[tokens.size - 1]


@kernel
def unpack_nibbles(packed: Any, tokens: Any) -> Any:
    """The inverse of `pack_nibbles`."""
    for i in range(tokens.size // 2):
        tokens[2 * i] = packed[i] & np.uint8(15)
        tokens[2 * i + 1] = packed[i] >> np.uint8(4)
    if tokens.size % 2:
        tokens[tokens.size - 1] = packed[tokens.size // 2] & np.uint8(15)


@kernel
def write_gaps(positions: Any, stream: Any) -> Any:
    """Ascending positions as the gaps between them (the first from −1, each less one), base 128, low digit first.

    Returns the bytes used. `stream` must hold 5 bytes for each position.
    """
    used = 0
    previous = -1
    for i in range(positions.size):
        gap = positions[i] - previous - 1
        previous = positions[i]
        while gap >= 128:
            stream[used] = np.uint8(gap & 127) | np.uint8(128)
            gap >>= 7
            used += 1
        stream[used] = np.uint8(gap)
        used += 1
    return used


@kernel
def read_gaps(stream: Any, lanes: Any, positions: Any) -> Any:
    """The inverse of `write_gaps`; whether the stream holds just these positions, all below `lanes`."""
    at = 0
    position = -1
    for i in range(positions.size):
        gap = 0
        shift = 0
        while True:
            if at >= stream.size or shift > 28:
                return False
            digit = np.int64(stream[at])
            at += 1
            gap |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                break
        position += gap + 1
        if position >= lanes:
            return False
        positions[i] = position
    return at == stream.size


@kernel
def sum_of_squares(lanes: Any) -> Any:
    """Σ x² over finite lanes in float64, as 64 interleaved sums: one order on every machine."""
    sums = np.zeros(64, np.float64)
    for start in range(0, lanes.size, 64):
        part = lanes[start : start + 64]
        for j in range(part.size):
            sums[j] += _square(part[j])
    total = 0.0
    for j in range(64):
        total += sums[j]
    return total


@njit
def _square(lane):
    x = np.float64(widen(lane))
    square = x * x
    return square if square < np.inf else 0.0


_STRIP = 256


@kernel
def multiply(left: Any, right: Any, scale: Any, skipped: Any, symbols: Any) -> Any:
    """The bits of round_f32(scale · Σₖ left[i, k] · right[k, j]), row after row, the marker where that is zero.

    `left` and `right` are float64 that came from 32 bits or fewer, so that each product is exact; sums are in float64
    with k ascending. The first `skipped` lanes are left out, and what `symbols` (uint32) has no room for.
    """
    # Strips of `right` stay in the first cache while four rows at a time pass over them, two k at once.
    rank, columns = right.shape
    rows = left.shape[0]
    sums = np.empty((4, _STRIP), np.float64)
    for start in range(0, columns, _STRIP):
        width = min(_STRIP, columns - start)
        for first in range(0, rows, 4):
            l0, l1 = left[first], left[min(first + 1, rows - 1)]
            l2, l3 = left[min(first + 2, rows - 1)], left[min(first + 3, rows - 1)]
            s0, s1, s2, s3 = sums[0], sums[1], sums[2], sums[3]
            sums[:] = 0.0
            k = 0
            while k + 2 <= rank:
                x, y = right[k, start : start + width], right[k + 1, start : start + width]
                p0, p1, p2, p3 = l0[k], l1[k], l2[k], l3[k]
                q0, q1, q2, q3 = l0[k + 1], l1[k + 1], l2[k + 1], l3[k + 1]
                for j in range(width):
                    s0[j] = (s0[j] + p0 * x[j]) + q0 * y[j]
                    s1[j] = (s1[j] + p1 * x[j]) + q1 * y[j]
                    s2[j] = (s2[j] + p2 * x[j]) + q2 * y[j]
                    s3[j] = (s3[j] + p3 * x[j]) + q3 * y[j]
                k += 2
            if k < rank:
                x = right[k, start : start + width]
                p0, p1, p2, p3 = l0[k], l1[k], l2[k], l3[k]
                for j in range(width):
                    s0[j] += p0 * x[j]
                    s1[j] += p1 * x[j]
                    s2[j] += p2 * x[j]
                    s3[j] += p3 * x[j]
            for row in range(min(4, rows - first)):
                at = (first + row) * columns + start - skipped
                for j in range(max(0, -at), min(width, symbols.size - at)):
                    value = np.float32(scale * sums[row, j])
                    found = value.view(np.uint32) if value == value else np.uint32(0x7FC00000)
                    symbols[at + j] = found if value != np.float32(0) else np.uint32(0x80000000)


@kernel
def add_rest(product: Any, rest: Any, symbols: Any) -> Any:
    """The bits of round_f32(product + rest), the marker where that is zero; `product` may be a view of `symbols`."""
    for i in range(symbols.size):
        value = np.float32(np.float64(product[i]) + np.float64(widen(rest[i])))
        found = value.view(np.uint32) if value == value else np.uint32(0x7FC00000)
        symbols[i] = found if value != np.float32(0) else np.uint32(0x80000000)


@kernel
def subtract(base: Any, post: Any, out: Any) -> Any:
    """post − base in float64, which holds what numbers of every lane are worth."""
    for i in range(out.size):
        out[i] = np.float64(widen(post[i])) - np.float64(widen(base[i]))


@kernel
def narrow_all(values: Any, out: Any) -> Any:
    """The float64 `values`, each rounded once to the format of `out`."""
    for i in range(out.size):
        out[i] = narrow(values[i], out[i])


@kernel
def squared_distance(values: Any, lanes: Any) -> Any:
    """Σ (x − y)² of float64 values and lanes, as 64 interleaved sums: one order on every machine."""
    sums = np.zeros(64, np.float64)
    for start in range(0, lanes.size, 64):
        part = lanes[start : start + 64]
        for j in range(part.size):
            apart = values[start + j] - np.float64(widen(part[j]))
            sums[j] += apart * apart
    total = 0.0
    for j in range(64):
        total += sums[j]
    return total


@kernel
def weighted_squares(lanes: Any, counts: Any) -> Any:
    """Σ count · x² over finite lanes in float64, in order."""
    total = 0.0
    for i in range(lanes.size):
        total += np.float64(counts[i]) * _square(lanes[i])
    return total
