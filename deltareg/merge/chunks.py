# pyright: basic, reportCallIssue=false
"""The compiled loops that do all stages of a merge of BF16 deltas in one pass, chunk by chunk.

A chunk of all deltas stays in the processor's caches from its symbols to the output, where the loops of `loops.py`,
which do one thing each, send it to memory and back. Both give the same bits: what is computed, and in which order, is
told there. Self-contained, as `codec/kernels.py` says that such a file must be.

The lanes of a merge are told by arrays with one entry for each delta: where its symbols (uint16) lie in memory; in
`ends`, where its second terms end among `places` (the lane in the block) and `terms` (D1 + D2, float32); `weigh`, by
which it is multiplied first (float32). `Lanes` says what is left of it then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from deltareg.codec.kernels import kernel

__all__ = [
    "BY_CHANCE",
    "BY_RANK",
    "BY_RANK_INVERSE",
    "Lanes",
    "add_elected",
    "add_sum",
    "count_spreads",
    "fill",
    "products",
]

_CHUNK = 8192  # lanes whose random bits come from the same 4,096 numbers

BY_CHANCE = 1
"""A lane is kept where its random bits are below a limit."""
BY_RANK = 2
"""A lane is kept with a chance that falls with its rank."""
BY_RANK_INVERSE = 3
"""As `BY_RANK`, and divided by that chance."""


class Lanes(NamedTuple):
    """A block of lanes of all deltas, and what is left of them, as the loops take it.

    `first`, a multiple of 8,192, is the block's first lane in its tensor, `lanes` how many it has. `least` and `most`
    are the magnitudes (int64) from which on, and below which, lanes of a delta are kept; of those with just the
    magnitude `least` only the first `least_ties`, of those with `most` all but the first `most_ties`, where these are
    not negative. `how` is 0 where none is dropped by chance; `keys` (uint64) start the random bits of each delta,
    `limits` (int64) are for `BY_CHANCE`, and `ranks` (where uint16 lie), `tops` and `steps` (float64) for `BY_RANK`.
    `spread` is the least variance, by the bits of a float32, of lanes that are kept, and `spread_ties` is as
    `least_ties`.
    """

    first: int
    lanes: int
    symbols: Any
    places: Any
    terms: Any
    ends: Any
    weigh: Any
    least: Any
    least_ties: Any
    most: Any
    most_ties: Any
    how: int
    keys: Any
    limits: Any
    ranks: Any
    tops: Any
    steps: Any
    spread: int
    spread_ties: int


# As `kernel` has it: a division that could raise would keep loops from being vectorised.
_inner = njit(error_model="numpy")


@intrinsic
def _pointer(typing, address):
    """Where 16-bit words lie: the caller keeps the array that they are in."""

    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint16)(types.uint64), generate


@_inner
def _mixed(start, step):
    z = start + np.uint64(step) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_inner
def _draw(key, lane, chances):
    # The random bits of `loops.draw` for 8,192 lanes at most, from a multiple of that on.
    start = key + np.uint64((lane >> 1) + 1) * np.uint64(0x9E3779B97F4A7C15)
    low, high = chances[:4096], chances[4096:]
    if low.size == high.size:
        for j in range(low.size):
            z = _mixed(start, j)
            low[j] = np.uint32(z)
            high[j] = np.uint32(z >> np.uint64(32))
        return
    for j in range(low.size):
        low[j] = np.uint32(_mixed(start, j))
    for j in range(high.size):
        high[j] = np.uint32(_mixed(start, j) >> np.uint64(32))


@_inner
def _drop(row, chances, limit):
    # `loops.drop`.
    zero = np.float32(0)
    for j in range(row.size):
        row[j] = row[j] if np.int64(chances[j]) < limit else zero


@_inner
def _drop_by_rank(row, chances, ranks, top, step, inverse):
    # `loops.drop_by_rank`.
    for j in range(row.size):
        chance = top - step * np.float64(ranks[j])
        kept = np.float64(chances[j]) < chance * 4294967296.0
        value = np.float64(row[j]) / chance if inverse else np.float64(row[j])
        row[j] = np.float32(value if kept else 0.0)


@_inner
def _widen(symbols, row):
    for j in range(row.size):
        row[j] = np.uint32(np.uint32(symbols[j]) << np.uint32(16)).view(np.float32)


@_inner
def _weigh(row, weight):
    for j in range(row.size):
        row[j] = row[j] * weight


@_inner
def _keep_at_least(row, symbols, least):
    zero = np.float32(0)
    for j in range(row.size):
        row[j] = row[j] if np.uint32(symbols[j]) & np.uint32(32767) >= least else zero


@_inner
def _keep_below(row, symbols, most):
    zero = np.float32(0)
    for j in range(row.size):
        row[j] = row[j] if np.uint32(symbols[j]) & np.uint32(32767) < most else zero


@_inner
def _settle_ties(row, symbols, magnitude, first, inside, seen):
    # `loops.settle_ties`, after `seen` lanes with this magnitude; returns how many there are then.
    for j in range(row.size):
        if np.int64(symbols[j]) & 32767 == magnitude:
            if (seen < first) != inside:
                row[j] = np.float32(0)
            seen += 1
    return seen


@_inner
def _copy(row, out):
    for j in range(row.size):
        out[j] = row[j]


@_inner
def _select(row, spreads, least):
    zero = np.float32(0)
    for j in range(row.size):
        bits = np.uint32(np.float32(spreads[j]).view(np.uint32) & np.uint32(0x7FFFFFFF))
        row[j] = row[j] if bits >= least else zero


@_inner
def _count_nonzero(spreads):
    found = 0
    for j in range(spreads.size):
        found += np.int64(spreads[j] != np.float32(0))
    return found


@_inner
def _find(spreads, shift, prefix, found):
    # Bits `shift` to `shift` + 15 of the magnitudes whose higher bits are `prefix`; returns how many these are.
    if shift == 16:
        for j in range(spreads.size):
            found[j] = np.uint16((np.float32(spreads[j]).view(np.uint32) >> np.uint32(16)) & np.uint32(0x7FFF))
        return spreads.size
    used = 0
    for j in range(spreads.size):
        bits = np.uint32(np.float32(spreads[j]).view(np.uint32) & np.uint32(0x7FFFFFFF))
        found[used] = np.uint16(bits)
        used += np.int64(bits >> np.uint32(16) == prefix)
    return used


@_inner
def _count_four(counts, found):
    whole = found.size // 4 * 4
    for j in range(0, whole, 4):
        counts[0, found[j]] += np.uint32(1)
        counts[1, found[j + 1]] += np.uint32(1)
        counts[2, found[j + 2]] += np.uint32(1)
        counts[3, found[j + 3]] += np.uint32(1)
    for j in range(whole, found.size):
        counts[0, found[j]] += np.uint32(1)


@_inner
def _settle_spread_ties(rows, spreads, least, first, seen):
    for j in range(spreads.size):
        if np.float32(spreads[j]).view(np.uint32) & np.uint32(0x7FFFFFFF) == least:
            if seen >= first:
                rows[:, j] = np.float32(0)
            seen += 1
    return seen


@_inner
def _mend(row, start, places, terms):
    for i in range(places.size):
        row[places[i] - start] = terms[i]


@_inner
def _spreads(rows, size, spreads, means):
    # `loops.variance`.
    zero = np.float32(0)
    nan = zero / zero
    count = np.float32(rows.shape[0])
    total = spreads[:size]
    if rows.shape[0] == 2:
        one = rows[0, :size]
        other = rows[1, :size]
        for j in range(size):
            mean = ((zero + one[j]) + other[j]) / count
            spread = ((zero + (one[j] - mean) * (one[j] - mean)) + (other[j] - mean) * (other[j] - mean)) / count
            total[j] = spread if spread == spread else nan
        return
    means[:] = zero
    total[:] = zero
    for n in range(rows.shape[0]):
        row = rows[n, :size]
        for j in range(size):
            means[j] = means[j] + row[j]
    for j in range(size):
        means[j] = means[j] / count
    for n in range(rows.shape[0]):
        row = rows[n, :size]
        for j in range(size):
            distance = row[j] - means[j]
            total[j] = total[j] + distance * distance
    for j in range(size):
        spread = total[j] / count
        total[j] = spread if spread == spread else nan


@_inner
def _read(block, start, size, rows, at, spreads, spare):
    """Fill `rows` with what is left of `size` lanes from `start` on.

    `at` (int64) counts what lies before them: the terms of each delta, and the lanes of the magnitudes that are split.
    """
    chances = spare.view(np.uint32)[:size]
    for n in range(rows.shape[0]):
        row = rows[n, :size]
        symbols = carray(_pointer(block.symbols[n]), (block.lanes,))[start : start + size]
        _widen(symbols, row)
        first = at[n, 0]
        while at[n, 0] < block.ends[n] and block.places[at[n, 0]] < start + size:
            at[n, 0] += 1
        _mend(row, start, block.places[first : at[n, 0]], block.terms[first : at[n, 0]])
        if block.weigh[n] != np.float32(1):
            _weigh(row, block.weigh[n])
        least, most = block.least[n], block.most[n]
        if least > 0:
            _keep_at_least(row, symbols, np.uint32(least))
        if block.least_ties[n] >= 0:
            at[n, 1] = _settle_ties(row, symbols, least, block.least_ties[n], True, at[n, 1])
        if most <= 32767:
            _keep_below(row, symbols, np.uint32(most + (block.most_ties[n] >= 0)))
        if block.most_ties[n] >= 0:
            at[n, 2] = _settle_ties(row, symbols, most, block.most_ties[n], False, at[n, 2])
        if block.how > 0:
            _draw(block.keys[n], block.first + start, chances)
        if block.how == BY_CHANCE:
            _drop(row, chances, block.limits[n])
        elif block.how > BY_CHANCE:
            ranks = carray(_pointer(block.ranks[n]), (block.lanes,))[start : start + size]
            _drop_by_rank(row, chances, ranks, block.tops[n], block.steps[n], block.how == BY_RANK_INVERSE)
    if block.spread > 0 or block.spread_ties >= 0:
        _spreads(rows, size, spreads, spare)
        least = np.uint32(block.spread)
        for n in range(rows.shape[0]):
            _select(rows[n, :size], spreads[:size], least)
        if block.spread_ties >= 0:
            at[0, 3] = _settle_spread_ties(rows[:, :size], spreads[:size], least, block.spread_ties, at[0, 3])


@_inner
def _multiply(one, other, terms):
    for j in range(one.size):
        terms[j] = np.float64(one[j]) * np.float64(other[j])
    terms[one.size :] = 0.0


@_inner
def _fold(terms):
    # As `loops._fold`.
    half = terms.size // 2
    while half > 0:
        lower, upper = terms[:half], terms[half : 2 * half]
        for j in range(half):
            lower[j] += upper[j]
        half //= 2
    return terms[0]


@_inner
def _elect_of_two(row0, row1, factors, votes, shares, scale, totals):
    zero = np.float32(0)
    one = np.float32(1)
    vote0, vote1 = votes[0], votes[1]
    factor0, factor1 = factors[0], factors[1]
    share0, share1 = shares[0], shares[1]
    for j in range(row0.size):
        x = row0[j] * vote0
        y = row1[j] * vote1
        sign = one if (zero + x) + y >= zero else -one
        first = x * sign > zero
        second = y * sign > zero
        total = (zero + (row0[j] * factor0 if first else zero)) + (row1[j] * factor1 if second else zero)
        divisor = (share0 if first else zero) + (share1 if second else zero)
        divisor = divisor if divisor != zero else one
        totals[j] = (total / divisor) * scale


@_inner
def _vote(row, vote, by_sign, first, elected):
    zero = np.float32(0)
    one = np.float32(1)
    if first:
        elected[:] = zero
    if by_sign:
        for j in range(row.size):
            x = row[j] * vote
            elected[j] = elected[j] + (one if x > zero else (-one if x < zero else zero))
    else:
        for j in range(row.size):
            elected[j] = elected[j] + row[j] * vote


@_inner
def _gather(row, vote, factor, share, first, elected, totals, divisors):
    zero = np.float32(0)
    one = np.float32(1)
    if first:
        totals[:] = zero
        divisors[:] = zero
    for j in range(row.size):
        sign = one if elected[j] >= zero else -one
        agrees = (row[j] * vote) * sign > zero
        totals[j] = totals[j] + (row[j] * factor if agrees else zero)
        divisors[j] = divisors[j] + (share if agrees else zero)


@_inner
def _divide(totals, divisors, scale):
    zero = np.float32(0)
    one = np.float32(1)
    for j in range(totals.size):
        divisor = divisors[j] if divisors[j] != zero else one
        totals[j] = (totals[j] / divisor) * scale


@_inner
def _add(before, total, after):
    # `kernels.add_merged` of BF16 lanes.
    for j in range(after.size):
        value = np.float32(np.uint32(np.uint32(before[j]) << np.uint32(16)).view(np.float32) + total[j])
        bits = np.float32(value).view(np.uint32)
        near = np.uint32((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
        rounded = np.uint16(near) if value == value else np.uint16(0x7FC0)
        after[j] = rounded if total[j] != 0 else before[j]


@_inner
def _begin(block):
    # For `_read`: what lies before the first lane, and room for a chunk.
    at = np.zeros((block.ends.size, 4), np.int64)
    at[1:, 0] = block.ends[:-1]
    rows = np.empty((block.symbols.size, _CHUNK), np.float32)
    return at, rows, np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.float32)


@kernel
def fill(block: Any, values: Any) -> Any:
    """What is left of the deltas: `values` is float32 of shape (deltas, lanes)."""
    at, rows, spreads, spare = _begin(block)
    for start in range(0, block.lanes, _CHUNK):
        size = min(_CHUNK, block.lanes - start)
        _read(block, start, size, rows, at, spreads, spare)
        for n in range(values.shape[0]):
            _copy(rows[n, :size], values[n, start : start + size])


@kernel
def count_spreads(block: Any, shift: Any, prefix: Any, counts: Any) -> Any:
    """Count bits `shift` to `shift` + 15 of those variances whose higher bits are `prefix`; `counts` has 65,536.

    Returns how many variances are not zero.
    """
    at, rows, spreads, spare = _begin(block)
    # Four counts in turn: one that was just written is not read again at once, for which the processor would wait.
    others = np.zeros((4, 65536), np.uint32)
    found = np.empty(_CHUNK, np.uint16)
    varying = 0
    for start in range(0, block.lanes, _CHUNK):
        size = min(_CHUNK, block.lanes - start)
        _read(block, start, size, rows, at, spreads, spare)
        _spreads(rows, size, spreads, spare)
        varying += _count_nonzero(spreads[:size])
        _count_four(others, found[: _find(spreads[:size], np.uint32(shift), np.uint32(prefix), found)])
    for n in range(4):
        for i in range(65536):
            counts[i] += others[n, i]
    return varying


@kernel
def products(block: Any, left: Any, right: Any) -> Any:
    """`loops.dot` of the deltas `left` and `right` (int64, one for each product), as float64."""
    at, rows, spreads, spare = _begin(block)
    terms = np.empty(_CHUNK, np.float64)
    chunks = 1
    while chunks * _CHUNK < block.lanes:
        chunks *= 2
    sums = np.zeros((left.size, chunks), np.float64)
    for start in range(0, block.lanes, _CHUNK):
        size = min(_CHUNK, block.lanes - start)
        _read(block, start, size, rows, at, spreads, spare)
        for n in range(left.size):
            _multiply(rows[left[n], :size], rows[right[n], :size], terms)
            sums[n, start // _CHUNK] = _fold(terms)
    found = np.empty(left.size, np.float64)
    for n in range(left.size):
        found[n] = _fold(sums[n])
    return found


@kernel
def add_sum(block: Any, factors: Any, target: Any, out: Any) -> Any:
    """out = round(target + `loops.weighted_sum`)."""
    deltas = block.symbols.size
    at, rows, spreads, spare = _begin(block)
    totals = np.empty(_CHUNK, np.float32)
    for start in range(0, block.lanes, _CHUNK):
        size = min(_CHUNK, block.lanes - start)
        _read(block, start, size, rows, at, spreads, spare)
        total = totals[:size]
        row = rows[0, :size]
        factor = factors[0]
        for j in range(size):
            total[j] = row[j] * factor
        for n in range(1, deltas):
            row = rows[n, :size]
            factor = factors[n]
            for j in range(size):
                total[j] = total[j] + row[j] * factor
        _add(target[start : start + size], total, out[start : start + size])


@kernel
def add_elected(
    block: Any, factors: Any, votes: Any, by_sign: Any, shares: Any, scale: Any, target: Any, out: Any
) -> Any:
    """out = round(target + `loops.elect`)."""
    deltas = block.symbols.size
    at, rows, spreads, spare = _begin(block)
    elected = np.empty(_CHUNK, np.float32)
    divisors = np.empty(_CHUNK, np.float32)
    totals = np.empty(_CHUNK, np.float32)
    for start in range(0, block.lanes, _CHUNK):
        size = min(_CHUNK, block.lanes - start)
        _read(block, start, size, rows, at, spreads, spare)
        if deltas == 2 and not by_sign:
            _elect_of_two(rows[0, :size], rows[1, :size], factors, votes, shares, scale, totals[:size])
        else:
            for n in range(deltas):
                _vote(rows[n, :size], votes[n], by_sign, n == 0, elected)
            for n in range(deltas):
                _gather(rows[n, :size], votes[n], factors[n], shares[n], n == 0, elected, totals, divisors)
            _divide(totals[:size], divisors, scale)
        _add(target[start : start + size], totals, out[start : start + size])
