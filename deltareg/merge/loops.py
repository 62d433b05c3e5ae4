# pyright: basic
"""The compiled loops of the merge methods, self-contained as `codec/kernels.py` says that they must be.

They work on float32 or float64 values of deltas (`values`, one row for each delta) and on the symbols of D1, whose
magnitude is what is left without the sign bit: `symbols & mask`. Products and sums are rounded one by one, deltas are
taken in their order, and sums over lanes in an order that depends on nothing but their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from deltareg.codec.kernels import kernel
from deltareg.codec.memory import empty

__all__ = [
    "absolute_sum",
    "bits_of",
    "contributions",
    "count_magnitude",
    "count_nonzero",
    "dot",
    "draw",
    "drop",
    "drop_by_rank",
    "elect",
    "empty",
    "keep_at_least",
    "keep_below",
    "magnitude_counts",
    "rank_rows",
    "reinforce",
    "scale_rows",
    "settle_ties",
    "shrink",
    "variance",
    "weighted_sum",
]

_CHUNK = 2048
_RUN = 8192


def bits_of(values: Any, kind: Any) -> Any:
    """The bits of the values as float32 or float64, whichever `kind` is."""
    return values.astype(kind, copy=False).view(np.uint64 if kind == np.float64 else np.uint32)


# --- by magnitude -----------------------------------------------------------------------------------------------------


@kernel
def magnitude_counts(symbols: Any, mask: Any, shift: Any, prefix: Any, counts: Any) -> Any:
    """Count bits `shift` to `shift` + 15 of those magnitudes whose higher bits are `prefix`; `counts` has 65,536."""
    # Two counts in turn: one that was just written is not read again at once, for which the processor would wait.
    other = np.zeros(65536, np.uint32)
    if symbols.itemsize == 2:
        half = symbols.size // 2 * 2
        for i in range(0, half, 2):
            counts[symbols[i] & mask] += np.uint32(1)
            other[symbols[i + 1] & mask] += np.uint32(1)
        for i in range(half, symbols.size):
            counts[symbols[i] & mask] += np.uint32(1)
        for i in range(65536):
            counts[i] += other[i]
        return
    for i in range(symbols.size):
        part = np.uint64(symbols[i] & mask) >> np.uint64(shift)
        if part >> np.uint64(16) == np.uint64(prefix):
            if i & 1:
                other[part & np.uint64(0xFFFF)] += np.uint32(1)
            else:
                counts[part & np.uint64(0xFFFF)] += np.uint32(1)
    for i in range(65536):
        counts[i] += other[i]


@kernel
def count_magnitude(symbols: Any, mask: Any, magnitude: Any) -> Any:
    """How many lanes have just this magnitude."""
    found = 0
    for i in range(symbols.size):
        found += np.int64((symbols[i] & mask) == magnitude)
    return found


@kernel
def keep_at_least(values: Any, symbols: Any, mask: Any, least: Any, zero: Any) -> Any:
    """Zero the values whose magnitude is below `least`."""
    for i in range(values.size):
        values[i] = values[i] if (symbols[i] & mask) >= least else zero


@kernel
def keep_below(values: Any, symbols: Any, mask: Any, most: Any, zero: Any) -> Any:
    """Zero the values whose magnitude is `most` or more."""
    for i in range(values.size):
        values[i] = values[i] if (symbols[i] & mask) < most else zero


@kernel
def settle_ties(values: Any, symbols: Any, mask: Any, magnitude: Any, first: Any, inside: Any, zero: Any) -> Any:
    """Of the lanes with just this magnitude zero those after the first `first`; or these, where not `inside`."""
    seen = 0
    for i in range(values.size):
        if (symbols[i] & mask) == magnitude:
            if (seen < first) != inside:
                values[i] = zero
            seen += 1


@kernel
def rank_rows(symbols: Any, mask: Any, digits: Any, width: Any, ranks: Any) -> Any:
    """The rank of each lane in its row of `width` lanes: 0 for the largest magnitude, equal ones by their places.

    `digits` is the bytes of a symbol. Magnitudes of 16 bits are few: they are numbered from the largest on, and counted
    in each row. Where there are more of them than a row has lanes, and wider ones, are sorted.
    """
    if digits == 2:
        present = np.zeros(65536, np.uint8)
        for i in range(symbols.size):
            present[symbols[i] & mask] = np.uint8(1)
        numbers = np.empty(65536, np.uint16)
        found = 0
        for magnitude in range(65535, -1, -1):
            if present[magnitude]:
                numbers[magnitude] = np.uint16(found)
                found += 1
        if found <= 2 * width and found < 65536:
            _rank_by_counts(symbols, mask, numbers, found, width, ranks)
            return
    _rank_by_digits(symbols, mask, digits, width, ranks)


@njit
def _rank_by_counts(symbols, mask, numbers, found, width, ranks):
    # Four rows side by side: a count that is read just after it was written makes the processor wait, and four chains
    # of such waits take no longer than one.
    counts = np.empty((4, found), ranks.dtype)
    keys = np.empty((4, width), np.uint16)
    rows = symbols.size // width
    one = ranks.dtype.type(1)
    for first in range(0, rows, 4):
        counts[:] = 0
        for r in range(4):
            # Where fewer than four are left, the last is ranked more than once.
            row = symbols[min(first + r, rows - 1) * width :]
            for i in range(width):
                keys[r, i] = numbers[row[i] & mask]
        for i in range(np.uint64(width)):
            for r in range(4):
                counts[r, np.uint64(keys[r, i])] += one
        for r in range(4):
            total = one - one
            for n in range(found):
                count = counts[r, n]
                counts[r, n] = total
                total += count
        for i in range(np.uint64(width)):
            for r in range(4):
                key = np.uint64(keys[r, i])
                place = counts[r, key]
                counts[r, key] = place + one
                ranks[np.uint64(min(first + r, rows - 1) * width) + i] = place


@kernel
def _rank_by_digits(symbols, mask, digits, width, ranks):
    # A radix sort, least significant byte first, whose last pass gives the ranks; four rows side by side here too.
    keys = np.empty((4, width), symbols.dtype)
    order = np.empty((4, width), np.int32)
    other = np.empty((4, width), np.int32)
    counts = np.empty((4, 256), np.int32)
    rows = symbols.size // width
    for first in range(0, rows, 4):
        for r in range(4):
            row = symbols[min(first + r, rows - 1) * width :]
            for i in range(width):
                keys[r, i] = mask - (row[i] & mask)
                order[r, i] = i
        for digit in range(digits):
            shift = np.uint64(8 * digit)
            counts[:] = 0
            for i in range(np.uint64(width)):
                for r in range(4):
                    counts[r, (np.uint64(keys[r, i]) >> shift) & np.uint64(255)] += np.int32(1)
            for r in range(4):
                total = np.int32(0)
                for n in range(256):
                    count = counts[r, n]
                    counts[r, n] = total
                    total += count
            last = digit + 1 == digits
            for i in range(np.uint64(width)):
                for r in range(4):
                    j = np.uint64(order[r, i])
                    key = (np.uint64(keys[r, j]) >> shift) & np.uint64(255)
                    place = counts[r, key]
                    counts[r, key] = place + np.int32(1)
                    if last:
                        ranks[np.uint64(min(first + r, rows - 1) * width) + j] = place
                    else:
                        other[r, np.uint64(place)] = np.int32(j)
            order, other = other, order


# --- by chance --------------------------------------------------------------------------------------------------------


@kernel
def draw(key: Any, first: Any, chances: Any) -> Any:
    """The 32 random bits (uint32) of each lane from the tensor's lane `first` on.

    Lane l has the low half of output (l >> 13 << 12) + (l & 4095) of the generator SplitMix64 that starts at `key`
    (uint64) where bit 12 of l is 0, and the high half where it is 1: two lanes for each output, in runs that vectorise.
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    i = 0
    while i < chances.size:
        lane = first + i
        low = chances[i:]
        start = key + np.uint64((lane >> 13 << 12) + (lane & 4095) + 1) * np.uint64(0x9E3779B97F4A7C15)
        if lane & 8191 == 0 and chances.size - i >= 8192:
            high = chances[i + 4096 :]
            for j in range(4096):
                z = _mixed(start, j)
                low[j] = np.uint32(z)
                high[j] = np.uint32(z >> np.uint64(32))
            i += 8192
            continue
        run = min(4096 - (lane & 4095), chances.size - i)
        shift = np.uint64(32 * ((lane >> 12) & 1))
        for j in range(run):
            low[j] = np.uint32(_mixed(start, j) >> shift)
        i += run


@njit
def _mixed(start, step):
    z = start + np.uint64(step) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def drop(values: Any, chances: Any, limit: Any, zero: Any) -> Any:
    """Zero the values whose random bits are `limit` or more."""
    for i in range(values.size):
        values[i] = values[i] if np.int64(chances[i]) < limit else zero


@kernel
def drop_by_rank(values: Any, chances: Any, ranks: Any, most: Any, step: Any, inverse: Any, zero: Any) -> Any:
    """Keep each value with the chance `most` − `step` · rank, and divide it by that where `inverse`."""
    for i in range(values.size):
        chance = most - step * np.float64(ranks[i])
        kept = np.float64(chances[i]) < chance * 4294967296.0
        value = np.float64(values[i]) / chance if inverse else np.float64(values[i])
        values[i] = value if kept else zero


# --- sums over lanes --------------------------------------------------------------------------------------------------


@kernel
def dot(one: Any, other: Any) -> Any:
    """Σ one · other in float64.

    Lanes lie in runs of 8,192, the missing ones of the last zero. Of each run the upper half is added to the lower half
    until one is left; so are the sums of the runs, as many as a power of two, the missing ones zero.
    """
    terms = np.zeros(_RUN, np.float64)
    sums = np.zeros(_power_of_two(-(-one.size // _RUN)), np.float64)
    for run in range(-(-one.size // _RUN)):
        left, right = one[run * _RUN : (run + 1) * _RUN], other[run * _RUN : (run + 1) * _RUN]
        for j in range(left.size):
            terms[j] = np.float64(left[j]) * np.float64(right[j])
        terms[left.size :] = 0.0
        sums[run] = _fold(terms)
    return _fold(sums)


@kernel
def absolute_sum(values: Any) -> Any:
    """Σ |value| in float64, in the order of `dot`."""
    terms = np.zeros(_RUN, np.float64)
    sums = np.zeros(_power_of_two(-(-values.size // _RUN)), np.float64)
    for run in range(-(-values.size // _RUN)):
        part = values[run * _RUN : (run + 1) * _RUN]
        for j in range(part.size):
            terms[j] = abs(np.float64(part[j]))
        terms[part.size :] = 0.0
        sums[run] = _fold(terms)
    return _fold(sums)


@njit
def _power_of_two(least):
    found = 1
    while found < least:
        found *= 2
    return found


@njit
def _fold(terms):
    half = terms.size // 2
    while half > 0:
        lower, upper = terms[:half], terms[half : 2 * half]
        for j in range(half):
            lower[j] += upper[j]
        half //= 2
    return terms[0]


@kernel
def contributions(values: Any, epsilon: Any, counts: Any, shared: Any, alone: Any) -> Any:
    """For each delta the lanes above `epsilon` in which another one is too, and those in which none is.

    `counts` (uint8) becomes how many deltas are above it in each lane, 255 where there are more.
    """
    counts[:] = np.uint8(0)
    for n in range(values.shape[0]):
        row = values[n]
        for i in range(row.size):
            counts[i] += np.uint8((abs(row[i]) > epsilon) & (counts[i] < np.uint8(255)))
    for n in range(values.shape[0]):
        row = values[n]
        together = 0
        single = 0
        for i in range(row.size):
            above = abs(row[i]) > epsilon
            together += np.int64(above & (counts[i] > np.uint8(1)))
            single += np.int64(above & (counts[i] == np.uint8(1)))
        shared[n] += together
        alone[n] += single


@kernel
def count_nonzero(values: Any) -> Any:
    """How many values are not zero."""
    found = 0
    for i in range(values.size):
        found += np.int64(values[i] != 0)
    return found


# --- from many deltas to one ------------------------------------------------------------------------------------------


@kernel
def scale_rows(values: Any, factors: Any) -> Any:
    """Multiply each delta with its factor."""
    for n in range(values.shape[0]):
        row = values[n]
        factor = factors[n]
        for i in range(row.size):
            row[i] = row[i] * factor


@kernel
def weighted_sum(values: Any, factors: Any, merged: Any) -> Any:
    """merged = Σ factor · value, one after another."""
    for start in range(0, merged.size, _CHUNK):
        total = merged[start : start + _CHUNK]
        row = values[0, start : start + _CHUNK]
        factor = factors[0]
        for j in range(total.size):
            total[j] = row[j] * factor
        for n in range(1, values.shape[0]):
            row = values[n, start : start + _CHUNK]
            factor = factors[n]
            for j in range(total.size):
                total[j] = total[j] + row[j] * factor


@kernel
def elect(values: Any, factors: Any, votes: Any, by_sign: Any, shares: Any, scale: Any, one: Any, merged: Any) -> Any:
    """The sum of those of factor · value that have the elected sign, over the sum of their `shares`, times `scale`.

    The sign is that of Σ vote · value, or of the sum of their signs (`by_sign`); it is positive where that is zero. A
    sum of shares that is 0 counts as 1. `one` is 1 in the type of the values.
    """
    zero = one - one
    elected = np.empty(_CHUNK, values.dtype)
    divisors = np.empty(_CHUNK, values.dtype)
    for start in range(0, merged.size, _CHUNK):
        size = min(_CHUNK, merged.size - start)
        total = merged[start : start + size]
        for n in range(values.shape[0]):
            row = values[n, start : start + size]
            vote = votes[n]
            # The first sum is begun with zero, as the others are gone on with: zero + −0 is zero.
            if by_sign:
                for j in range(size):
                    x = row[j] * vote
                    before = zero if n == 0 else elected[j]
                    elected[j] = before + (one if x > zero else (-one if x < zero else zero))
            elif n == 0:
                for j in range(size):
                    elected[j] = zero + row[j] * vote
            else:
                for j in range(size):
                    elected[j] = elected[j] + row[j] * vote
        for n in range(values.shape[0]):
            row = values[n, start : start + size]
            vote = votes[n]
            factor = factors[n]
            share = shares[n]
            if n == 0:
                for j in range(size):
                    x = row[j] * vote
                    agrees = x > zero if elected[j] >= zero else x < zero
                    total[j] = zero + (row[j] * factor if agrees else zero)
                    divisors[j] = share if agrees else zero
            else:
                for j in range(size):
                    x = row[j] * vote
                    agrees = x > zero if elected[j] >= zero else x < zero
                    total[j] = total[j] + (row[j] * factor if agrees else zero)
                    divisors[j] = divisors[j] + (share if agrees else zero)
        for j in range(size):
            divisor = divisors[j] if divisors[j] != zero else one
            total[j] = (total[j] / divisor) * scale


@kernel
def reinforce(values: Any, epsilon: Any, factors: Any, alone: Any, one: Any, merged: Any) -> Any:
    """Where one delta is above `epsilon`: factor · alone · value. Where several are: the mean of theirs."""
    zero = one - one
    counts = np.empty(_CHUNK, values.dtype)
    for start in range(0, merged.size, _CHUNK):
        total = merged[start : start + _CHUNK]
        counts[:] = zero
        total[:] = zero
        for n in range(values.shape[0]):
            row = values[n, start : start + _CHUNK]
            for j in range(total.size):
                counts[j] = counts[j] + (one if abs(row[j]) > epsilon else zero)
        for n in range(values.shape[0]):
            row = values[n, start : start + _CHUNK]
            factor = factors[n]
            lone = alone[n]
            for j in range(total.size):
                value = row[j] * factor
                value = value * lone if counts[j] <= one else value / counts[j]
                total[j] = total[j] + (value if abs(row[j]) > epsilon else zero)


@kernel
def variance(values: Any, count: Any, zero: Any, out: Any) -> Any:
    """The variance of each lane over the deltas, that of a population; `count` is how many they are.

    Every NaN is the same one: magnitudes are compared by their bits.
    """
    nan = zero / zero
    means = np.empty(_CHUNK, values.dtype)
    for start in range(0, out.size, _CHUNK):
        size = min(_CHUNK, out.size - start)
        total = out[start : start + size]
        if values.shape[0] == 2:  # the same sums, without a way to memory between them
            one = values[0, start : start + size]
            other = values[1, start : start + size]
            for j in range(size):
                mean = ((zero + one[j]) + other[j]) / count
                spread = ((zero + (one[j] - mean) * (one[j] - mean)) + (other[j] - mean) * (other[j] - mean)) / count
                total[j] = spread if spread == spread else nan
            continue
        means[:] = zero
        total[:] = zero
        for n in range(values.shape[0]):
            row = values[n, start : start + size]
            for j in range(size):
                means[j] = means[j] + row[j]
        for j in range(size):
            means[j] = means[j] / count
        for n in range(values.shape[0]):
            row = values[n, start : start + size]
            for j in range(size):
                distance = row[j] - means[j]
                total[j] = total[j] + distance * distance
        for j in range(size):
            spread = total[j] / count
            total[j] = spread if spread == spread else nan


@kernel
def shrink(values: Any, limit: Any, one: Any) -> Any:
    """Bring each value to the absolute value `limit` where it is larger."""
    zero = one - one
    for i in range(values.size):
        share = limit / abs(values[i]) if abs(values[i]) > limit else one
        values[i] = values[i] * share if share > zero else zero
