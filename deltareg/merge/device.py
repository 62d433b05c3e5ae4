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

__all__ = ["DeviceLoops", "Room", "narrow", "widen"]

Tensor = torch.Tensor

_COLUMNS = 4096
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
