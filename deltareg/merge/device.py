# pyright: basic
# torch's stubs leave most of what is used here unknown.
"""The loops of a merge on torch tensors: bit for bit what the compiled ones give, on any device.

Lanes and symbols are signed integers of their width here, as torch has few operations on unsigned ones. Every product
and every sum is an operation of its own, so that no compiler makes one rounding of two; scalars are divided by as
tensors, since torch multiplies with the reciprocal of a number; NaN is written by hand, since devices disagree about
its bits. What works lane by lane does so in parts of at most `room.lanes`, which get smaller where memory runs out.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch

from deltareg.codec import FRAME_LANES, Array, Frame, Lane
from deltareg.codec.memory import empty
from deltareg.merge.block import Addend, Block

__all__ = ["DeviceLoops", "Room", "mended_terms", "narrow", "widen"]

Tensor = torch.Tensor

_RUN = 8192
_FLOATS = {np.uint16: torch.bfloat16, np.int16: torch.float16, np.float32: torch.float32, np.float64: torch.float64}
_SIGNED = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
_TYPES = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.uint16): torch.int16,
    np.dtype(np.uint32): torch.int32,
    np.dtype(np.uint64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


class Room:
    """How many lanes a device works on at a time."""

    def __init__(self, lanes: int = FRAME_LANES) -> None:
        self.lanes = lanes


# --- lanes ------------------------------------------------------------------------------------------------------------


def widen(lanes: Tensor, lane: Lane) -> Tensor:
    """The values of lanes: float32 for those of 16 bits, float64 for wider ones."""
    return lanes.view(_FLOATS[lane.stored]).to(torch.float32 if lane.width == 2 else torch.float64)


def narrow(values: Tensor, lane: Lane) -> Tensor:
    """`values` (float32 or float64), rounded once, as lanes; every NaN is the canonical one."""
    number = values == values
    if lane.stored is np.float64:
        return torch.where(number, values.to(torch.float64).view(torch.int64), 0x7FF8000000000000)
    if lane.stored is np.float32:
        return torch.where(number, values.to(torch.float32).view(torch.int32), 0x7FC00000)
    single = values if values.dtype == torch.float32 else _to_odd(values)
    bits = single.view(torch.int32)
    if lane.stored is np.uint16:
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return torch.where(number, rounded, 0x7FC0).to(torch.int16)
    return _half(bits)


def converted(lanes: Tensor, lane: Lane, to: Lane) -> Tensor:
    """Lanes in another format; untouched if it is theirs."""
    return lanes if lane.stored is to.stored else narrow(widen(lanes, lane), to)


def _to_odd(values: Tensor) -> Tensor:
    """float64 to float32, inexact results made odd: see `_to_odd` in `codec/kernels.py`."""
    near = values.to(torch.float32)
    bits = near.view(torch.int32)
    back = near.to(torch.float64)
    down = ((bits & 0x7FFFFFFF) == 0x7F800000) | ((bits & 1 == 0) & (back.abs() > values.abs()))
    odd = torch.where(down, bits - 1, bits | 1)
    return torch.where((back == values) | (values != values), bits, odd).view(torch.float32)


def _half(bits: Tensor) -> Tensor:
    """The bits of float32 as those of float16: see `_f16_bits` in `codec/kernels.py`."""
    sign = (bits >> 16) & 0x8000
    magnitude = bits & 0x7FFFFFFF
    subnormal = (magnitude.view(torch.float32) + 0.5).view(torch.int32) - 0x3F000000
    normal = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    half = torch.where(magnitude < 0x38800000, subnormal, normal)
    half = torch.where(magnitude >= 0x47800000, 0x7C00, half)
    half = torch.where(magnitude > 0x7F800000, 0x7E00, half | sign)
    return ((half << 16) >> 16).to(torch.int16)  # first the sign: a number that does not fit is not to be converted


def mended_terms(deltas: Tensor, codes: Tensor, lane: Lane) -> Tensor:
    """D1 + D2 in float64 of lanes with these codes: see `codec/mend.py`."""
    d = widen(deltas, lane).to(torch.float64)
    codes = codes.to(torch.int64) & ((1 << 8 * lane.width) - 1)
    rank = codes >> 1
    # A rank of n bits belongs to n + 1 halvings, and is the 2^(n−1) lower part of it.
    length = torch.where(rank > 0, _exponent(rank.to(torch.float64)) + 1, 0)
    first = torch.where(rank > 0, torch.ones_like(rank) << (length - 1).clamp(min=0), 0)
    odd = 2 * (rank - first) + 1
    odd = torch.where(codes & 1 == 1, -odd, odd)
    step = _power_of_two(_exponent(d).clamp(min=lane.least) - (lane.precision - 1))
    return d + step * (odd.to(torch.float64) * _power_of_two(-1 - length))


def _exponent(values: Tensor) -> Tensor:
    return ((values.view(torch.int64) >> 52) & 2047) - 1023


def _power_of_two(exponents: Tensor) -> Tensor:
    return ((exponents + 1023) << 52).view(torch.float64)


def _signed(array: Array) -> Array:
    return array if array.dtype.kind == "f" else array.view(_SIGNED[array.itemsize])


def _marker(lane: Lane) -> int:
    """The marker as a signed integer."""
    return -(1 << (8 * lane.width - 1))


def _float_type(kind: Any) -> torch.dtype:
    return torch.float64 if np.dtype(kind) == np.float64 else torch.float32


class DeviceLoops:
    """The loops on one torch device. Arrays of NumPy in frame memory come and go; tensors stay."""

    def __init__(self, device: torch.device, room: Room) -> None:
        self.device = device
        self.room = room

    # --- to the device and back ---------------------------------------------------------------------------------------

    def send(self, array: Array) -> Tensor:
        """An array, on the device; it must stay as it is until the device has done what it was asked to do."""
        host = torch.from_numpy(_signed(array))
        if self.device.type == "cpu":
            return host
        if not host.is_pinned():
            # From other memory than the frame's, a copy would keep this thread waiting.
            staged = empty(array.size, array.dtype)
            staged[:] = array
            host = torch.from_numpy(_signed(staged))
        return host.to(self.device, non_blocking=True)

    def fetch(self, lanes: Tensor, out: Array) -> None:
        """Begin to copy lanes of the device to `out`."""
        torch.from_numpy(out.view(_SIGNED[out.itemsize])).copy_(lanes, non_blocking=True)

    def parts(self, count: int, whole: int = 1) -> Generator[slice]:
        """`count` lanes in parts that there is room for, each of a multiple of `whole` lanes."""
        start = 0
        while start < count:
            stop = min(start + max(1, self.room.lanes // whole) * whole, count)
            yield slice(start, stop)
            start = stop

    def empty(self, count: int, dtype: Any) -> Tensor:
        """A tensor of `count` undefined items, of the signed type where NumPy's is unsigned."""
        return torch.empty(count, dtype=_TYPES[np.dtype(dtype)], device=self.device)

    # --- frames -------------------------------------------------------------------------------------------------------

    def symbols(self, frame: Frame, lane: Lane, part: slice) -> Tensor:
        """The bits of D1 of some lanes of a frame, the marker where nothing changes."""
        if frame.positions is None:
            if frame.unchanged:
                return self._unchanged(lane, part)
            return self._found(frame, part)
        within = slice(*np.searchsorted(frame.positions, (part.start, part.stop)).tolist())
        symbols = self._unchanged(lane, part)
        if within.start < within.stop and not frame.unchanged:
            symbols[self.send(frame.positions[within] - part.start)] = self._found(frame, within)
        return symbols

    def _unchanged(self, lane: Lane, part: slice) -> Tensor:
        kind = _TYPES[np.dtype(lane.bits)]
        return torch.full((part.stop - part.start,), _marker(lane), dtype=kind, device=self.device)

    def _found(self, frame: Frame, part: slice) -> Tensor:
        """What a frame holds, from tokens where it has such: look-up and escapes are the device's work."""
        if frame.symbols is not None:
            return self.send(frame.symbols[part])
        tokens = frame.tokens
        assert tokens is not None
        here = self.send(tokens.tokens[part])
        symbols = self.send(tokens.table).index_select(0, here.to(torch.int32))
        escapes = tokens.escapes
        if escapes.size and here.numel() < tokens.tokens.size:
            before, within = (
                int(np.count_nonzero(tokens.tokens[some] == tokens.escape)) for some in (slice(part.start), part)
            )
            escapes = escapes[before : before + within]
        if escapes.size:
            symbols.masked_scatter_(here == tokens.escape, self.send(escapes))
        return symbols

    def mended(self, frame: Frame, lane: Lane, symbols: Tensor, part: slice) -> tuple[Tensor, Tensor] | None:
        """Which of some lanes are mended, and their D1 + D2 in float64."""
        mending = frame.mending
        if mending is None:
            return None
        within = slice(*np.searchsorted(mending.positions, (part.start, part.stop)).tolist())
        if within.start == within.stop:
            return None
        places = self.send(mending.positions[within] - part.start)
        return places, mended_terms(symbols[places], self.send(mending.codes[within]), lane)

    def values_of(self, addends: Sequence[Addend], accumulator: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `deltareg.merge.values.values_of`."""
        lanes = addends[0].frame.lanes
        array = self.empty(len(addends) * lanes, accumulator).reshape(len(addends), lanes)
        symbols = tuple(self.empty(lanes, addend.lane.bits) for addend in addends)
        for row, bits, addend in zip(array, symbols, addends, strict=True):
            for part in self.parts(lanes):
                bits[part] = self.symbols(addend.frame, addend.lane, part)
                here = row[part]
                here.copy_(widen(bits[part], addend.lane))
                mended = self.mended(addend.frame, addend.lane, bits[part], part)
                if mended is not None:
                    here[mended[0]] = mended[1].to(row.dtype)
        return array, symbols

    # --- to the target ------------------------------------------------------------------------------------------------

    def linear(self, block: Block) -> None:
        """As `deltareg.merge.linear`. `block.out` has it when the device has done what it was asked to do."""
        addends = [addend for addend in block.addends if not addend.frame.unchanged]
        for part in self.parts(block.out.size):
            target = self.send(block.target[part].view(block.target_lane.bits))
            kept = converted(target, block.target_lane, block.out_lane)
            if addends:
                total, touched = self._sum(block, addends, target, part)
                kept = torch.where(touched, narrow(total, block.out_lane), kept)
            self.fetch(kept, block.out[part])

    def _sum(self, block: Block, addends: Sequence[Addend], target: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        total = widen(target, block.target_lane).to(_float_type(block.accumulator))
        touched = torch.zeros(total.shape, dtype=torch.bool, device=self.device)
        for addend in addends:
            weight = float(block.accumulator(addend.weight))
            symbols = self.symbols(addend.frame, addend.lane, part)
            product = widen(symbols, addend.lane).to(total.dtype) * weight
            summed = total + product
            mended = self.mended(addend.frame, addend.lane, symbols, part)
            if mended is not None:
                places, terms = mended
                product = terms.to(total.dtype) * weight
                summed[places] = total[places] + product
            hit = symbols != _marker(addend.lane)
            total = torch.where(hit, summed, total)
            touched |= hit
        return total, touched

    def add_merged(self, target: Array, target_lane: Lane, merged: Tensor, out: Array, out_lane: Lane) -> None:
        """As `kernels.add_merged`. `out` has it when the device has done what it was asked to do."""
        for part in self.parts(out.size):
            here = self.send(target[part].view(target_lane.bits))
            added = merged[part]
            total = widen(here, target_lane).to(merged.dtype) + added
            kept = converted(here, target_lane, out_lane)
            self.fetch(torch.where(added != 0, narrow(total, out_lane), kept), out[part])

    # --- by magnitude -------------------------------------------------------------------------------------------------

    def bits_of(self, values: Tensor, kind: Any) -> Tensor:
        """As `loops.bits_of`."""
        found = values.to(_float_type(kind))
        return found.view(torch.int64 if found.dtype == torch.float64 else torch.int32)

    def magnitude_counts(self, symbols: Tensor, mask: Any, shift: Any, prefix: Any, counts: Array) -> None:
        """As `loops.magnitude_counts`; `counts` is NumPy's."""
        for part in self.parts(symbols.numel()):
            bins = (symbols[part] & int(mask)).to(torch.int64) >> int(shift)
            # Those of another prefix are counted where nobody looks.
            bins = torch.where(bins >> 16 == int(prefix), bins & 0xFFFF, 1 << 16)
            found = torch.bincount(bins, minlength=(1 << 16) + 1)[: 1 << 16]
            counts += found.cpu().numpy().astype(counts.dtype)

    def count_magnitude(self, symbols: Tensor, mask: Any, magnitude: Any) -> int:
        """As `loops.count_magnitude`."""
        return sum(int(((symbols[part] & int(mask)) == int(magnitude)).sum()) for part in self.parts(symbols.numel()))

    def keep_at_least(self, values: Tensor, symbols: Tensor, mask: Any, least: Any, zero: Any) -> None:
        """As `loops.keep_at_least`."""
        for part in self.parts(values.numel()):
            values[part].masked_fill_(~_at_least(symbols[part], mask, least), 0)

    def keep_below(self, values: Tensor, symbols: Tensor, mask: Any, most: Any, zero: Any) -> None:
        """As `loops.keep_below`."""
        for part in self.parts(values.numel()):
            values[part].masked_fill_(_at_least(symbols[part], mask, most), 0)

    def settle_ties(
        self, values: Tensor, symbols: Tensor, mask: Any, magnitude: Any, first: int, inside: bool, zero: Any
    ) -> None:
        """As `loops.settle_ties`."""
        seen = 0
        for part in self.parts(values.numel()):
            ties = (symbols[part] & int(mask)) == int(magnitude)
            number = torch.cumsum(ties, 0)  # from 1 on
            values[part].masked_fill_(ties & ((number <= first - seen) != inside), 0)
            seen += int(number[-1])

    def rank_rows(self, symbols: Tensor, mask: Any, digits: int, width: int, ranks: Tensor) -> None:
        """As `loops.rank_rows`."""
        for part in self.parts(symbols.numel(), width):
            keys = int(mask) - (symbols[part] & int(mask))
            order = torch.sort(keys.reshape(-1, width), dim=1, stable=True).indices
            places = torch.arange(width, dtype=ranks.dtype, device=self.device).expand(order.shape)
            ranks[part].reshape(-1, width).scatter_(1, order, places)

    # --- by chance ----------------------------------------------------------------------------------------------------

    def draw(self, key: Any, first: int, chances: Tensor) -> None:
        """As `loops.draw`; the 32 bits are those of int32."""
        start = _wrapped(int(key))
        for part in self.parts(chances.numel()):
            lanes = torch.arange(first + part.start, first + part.stop, device=self.device)
            # 64-bit integers wrap around here too.
            z = ((lanes >> 13 << 12) + (lanes & 4095) + 1) * _wrapped(0x9E3779B97F4A7C15) + start
            z = (z ^ _shifted(z, 30)) * _wrapped(0xBF58476D1CE4E5B9)
            z = (z ^ _shifted(z, 27)) * _wrapped(0x94D049BB133111EB)
            z = z ^ _shifted(z, 31)
            z = torch.where((lanes >> 12) & 1 == 1, z >> 32, (z << 32) >> 32)
            chances[part] = ((z << 32) >> 32).to(torch.int32)

    def drop(self, values: Tensor, chances: Tensor, limit: int, zero: Any) -> None:
        """As `loops.drop`."""
        for part in self.parts(values.numel()):
            values[part].masked_fill_(_unsigned(chances[part]) >= limit, 0)

    def drop_by_rank(
        self, values: Tensor, chances: Tensor, ranks: Tensor, most: float, step: float, inverse: bool, zero: Any
    ) -> None:
        """As `loops.drop_by_rank`."""
        for part in self.parts(values.numel()):
            chance = most - ranks[part].to(torch.float64) * step
            kept = _unsigned(chances[part]).to(torch.float64) < chance * 4294967296.0
            here = values[part]
            if inverse:
                here.copy_(here.to(torch.float64) / chance)
            here.masked_fill_(~kept, 0)

    # --- sums over lanes ----------------------------------------------------------------------------------------------

    def dot(self, one: Tensor, other: Tensor) -> float:
        """As `loops.dot`."""
        return self._folded(one, other)

    def absolute_sum(self, values: Tensor) -> float:
        """As `loops.absolute_sum`."""
        return self._folded(values, None)

    def _folded(self, one: Tensor, other: Tensor | None) -> float:
        runs = -(-one.numel() // _RUN)
        sums = torch.zeros(1 << max(runs - 1, 0).bit_length(), dtype=torch.float64, device=self.device)
        at_once = max(1, self.room.lanes // _RUN)
        for first in range(0, runs, at_once):
            count = min(at_once, runs - first)
            terms = one[first * _RUN : (first + count) * _RUN].to(torch.float64)
            if other is None:
                terms = terms.abs()
            else:
                terms = terms * other[first * _RUN : (first + count) * _RUN].to(torch.float64)
            padded = torch.zeros(count * _RUN, dtype=torch.float64, device=self.device)
            padded[: terms.numel()] = terms
            sums[first : first + count] = _fold(padded.view(count, _RUN).t())
        return float(_fold(sums))

    def count_nonzero(self, values: Tensor) -> int:
        """As `loops.count_nonzero`."""
        return int(torch.count_nonzero(values))

    def contributions(self, values: Tensor, epsilon: Any, counts: Tensor, shared: Array, alone: Array) -> None:
        """As `loops.contributions`; `shared` and `alone` are NumPy's."""
        for part in self.parts(values.shape[1]):
            above = values[:, part].abs() > float(epsilon)
            together = above.sum(0)
            shared += (above & (together > 1)).sum(1).cpu().numpy()
            alone += (above & (together == 1)).sum(1).cpu().numpy()

    # --- from many deltas to one --------------------------------------------------------------------------------------

    def scale_rows(self, values: Tensor, factors: Array) -> None:
        """As `loops.scale_rows`."""
        for row, factor in zip(values, factors.tolist(), strict=True):
            row *= factor

    def weighted_sum(self, values: Tensor, factors: Array, merged: Tensor) -> None:
        """As `loops.weighted_sum`."""
        for part in self.parts(merged.numel()):
            total = values[0, part] * float(factors[0])
            for row, factor in zip(values[1:, part], factors[1:].tolist(), strict=True):
                product = row * factor
                total = total + product
            merged[part] = total

    def elect(
        self,
        values: Tensor,
        factors: Array,
        votes: Array,
        by_sign: bool,
        shares: Array,
        scale: Any,
        one: Any,
        merged: Tensor,
    ) -> None:
        """As `loops.elect`."""
        for part in self.parts(merged.numel()):
            rows = values[:, part]
            voted = [row * vote for row, vote in zip(rows, votes.tolist(), strict=True)]
            elected = torch.zeros_like(rows[0])
            for vote in voted:
                elected = elected + ((vote > 0).to(vote.dtype) - (vote < 0).to(vote.dtype) if by_sign else vote)
            sign = torch.where(elected >= 0, 1.0, -1.0).to(rows.dtype)
            total, divisors = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
            for row, vote, factor, share in zip(rows, voted, factors.tolist(), shares.tolist(), strict=True):
                agrees = vote * sign > 0
                total = total + (row * factor).masked_fill_(~agrees, 0)
                # Not by a product with 0 or 1: a share may be infinite, or no number.
                divisors = divisors + torch.where(agrees, self._number(share, rows), 0)
            divisors.masked_fill_(divisors == 0, 1)
            merged[part] = (total / divisors) * float(scale)

    def reinforce(self, values: Tensor, epsilon: Any, factors: Array, alone: Array, one: Any, merged: Tensor) -> None:
        """As `loops.reinforce`."""
        for part in self.parts(merged.numel()):
            rows = values[:, part]
            above = rows.abs() > float(epsilon)
            counts = above.sum(0).to(rows.dtype)
            total = torch.zeros_like(rows[0])
            for row, here, factor, lone in zip(rows, above, factors.tolist(), alone.tolist(), strict=True):
                value = row * factor
                value = torch.where(counts <= 1, value * lone, value / counts)
                total = total + value.masked_fill_(~here, 0)
            merged[part] = total

    def variance(self, values: Tensor, count: Any, zero: Any, out: Tensor) -> None:
        """As `loops.variance`."""
        divisor = self._number(count, values)
        for part in self.parts(out.numel()):
            means, total = torch.zeros_like(out[part]), torch.zeros_like(out[part])
            for row in values[:, part]:
                means = means + row
            means = means / divisor
            for row in values[:, part]:
                distance = row - means
                square = distance * distance
                total = total + square
            spread = total / divisor
            out[part] = torch.where(spread == spread, spread, float("nan"))

    def shrink(self, values: Tensor, limit: Any, one: Any) -> None:
        """As `loops.shrink`."""
        most = self._number(limit, values)
        for part in self.parts(values.numel()):
            here = values[part]
            sizes = here.abs()
            shares = torch.where(sizes > most, most / sizes, self._number(1, values))
            here.copy_(torch.where(shares > 0, here * shares, 0))

    def _number(self, number: Any, like: Tensor) -> Tensor:
        """A number as a tensor: divided by a plain one, torch would multiply with its reciprocal."""
        return torch.full((), float(number), dtype=like.dtype, device=self.device)


def _at_least(symbols: Tensor, mask: Any, least: Any) -> Tensor:
    """Where magnitudes are at least `least`, which may be one more than there are in their type."""
    if int(least) > int(mask):
        return torch.zeros(symbols.shape, dtype=torch.bool, device=symbols.device)
    return (symbols & int(mask)) >= int(least)


def _wrapped(number: int) -> int:
    """An unsigned integer of 64 bits as the signed one that has its bits."""
    return number - (1 << 64) if number >> 63 else number


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """Shifted right as unsigned integers."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)


def _unsigned(numbers: Tensor) -> Tensor:
    """int32 that stand for unsigned ones."""
    return numbers.to(torch.int64) & 0xFFFFFFFF


def _fold(rows: Tensor) -> Tensor:
    """Add the lower half of the rows to the upper half until one is left; as many as a power of two."""
    while rows.shape[0] > 1:
        half = rows.shape[0] // 2
        rows = rows[:half] + rows[half:]
    return rows[0]
