"""The chooser: symbols become the body of whichever record kind is smallest for them.

16-bit symbols have a histogram, from which the size of each coding is estimated without encoding: `fast` encodes the
best estimate, `small` (and `fast`, where lanes are few) the best three. Where an arithmetic code is quick enough, it is
tried too. Wider symbols have planes alone, whole or of the lanes that change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from deltareg.codec import arithmetic, kernels, palette, planes, sparse
from deltareg.codec.lanes import Array, Lane
from deltareg.codec.palette import Histogram, Tokens
from deltareg.codec.streams import Preset, StreamReader
from deltareg.errors import BadRecord

__all__ = ["Chosen", "Kind", "decode_symbols", "decode_tokens", "encode_bits", "encode_symbols"]

_TRIES = {"fast": 1, "small": 3}
# So few lanes that every try is quick.
_FEW = 1 << 12
# Above this share of changed lanes the mask costs more than the markers do among the symbols.
_DENSE_SHARE = 0.9


class Kind(IntEnum):
    """How a frame's symbols are stored. The numbers are part of the format."""

    ZERO = 0
    PALETTE = 1
    SPARSE = 2
    PLANES = 3
    ARITHMETIC = 4


@dataclass(frozen=True)
class Chosen:
    """The smallest body for a frame's symbols. `squares` is Σ D1²."""

    kind: Kind
    body: bytes
    squares: float


@dataclass(frozen=True)
class _Choice:
    bits: int  # whole ones: the last places of a logarithm differ from machine to machine
    ranks: int  # 0 for planes
    thin: bool  # only the lanes that change


def encode_symbols(symbols: Array, lane: Lane, preset: Preset, *, marked: bool) -> Chosen:
    """The smallest body for one frame's `symbols` of D1; `marked` tells whether the marker can be among them."""
    if lane.width != 2:
        changed = np.flatnonzero(symbols != lane.marker) if marked else None
        kind, body = encode_bits(symbols, lane, preset, changed, marked=True)
        return Chosen(kind, body, kernels.sum_of_squares(symbols.view(lane.stored)))
    histogram = Histogram.of(symbols)
    squares = kernels.weighted_squares(histogram.symbols.view(lane.stored), histogram.counts)
    moving = histogram.without(int(lane.marker))
    if moving.total == 0:
        return Chosen(Kind.ZERO, b"", squares)
    choices = _estimates(histogram, thin=False, mask=0.0)
    if moving.total < _DENSE_SHARE * symbols.size:
        choices += _estimates(moving, thin=True, mask=sparse.estimate(symbols.size, moving.total))
    choices.sort(key=lambda choice: (choice.bits, choice.thin, choice.ranks))
    tried = choices[: _TRIES["small" if symbols.size <= _FEW else preset]]
    changed = np.flatnonzero(symbols != lane.marker) if any(choice.thin for choice in tried) else None
    bodies: list[tuple[Kind, bytes]] = []
    for choice in tried:
        if choice.thin and changed is not None:
            bodies.append(_encode_thin(symbols, changed, moving, choice.ranks, lane, preset))
        else:
            bodies.append(_encode_values(symbols, histogram, choice.ranks, lane, preset))
    if arithmetic.fits(lane) and symbols.size <= arithmetic.MOST_LANES[preset]:
        coded = arithmetic.encode(symbols)
        if coded is not None:
            bodies.append((Kind.ARITHMETIC, coded))
    kind, body = min(bodies, key=lambda body: len(body[1]))
    return Chosen(kind, body, squares)


def encode_bits(
    symbols: Array, lane: Lane, preset: Preset, changed: Array | None, *, marked: bool
) -> tuple[Kind, bytes]:
    """The body for symbols that have no histogram: planes of all, or of those at `changed` where that is given.

    `marked` tells that the others hold the marker, so that all may be stored where hardly any are unchanged.
    """
    if changed is None:
        return _encode_values(symbols, None, 0, lane, preset)
    if changed.size == 0:
        return Kind.ZERO, b""
    if changed.size <= (_DENSE_SHARE * symbols.size if marked else symbols.size - 1):
        return _encode_thin(symbols, changed, None, 0, lane, preset)
    return _encode_values(symbols, None, 0, lane, preset)


def decode_symbols(reader: StreamReader, kind: int, lanes: int, lane: Lane) -> tuple[Array | None, Array | None]:
    """The symbols of a body, and the positions that they belong to where these are not all `lanes`.

    Raises BadRecord.
    """
    if kind == Kind.ZERO:
        return None, None
    if kind == Kind.SPARSE:
        positions = sparse.decode_positions(reader, lanes)
        return _decode_values(reader, reader.byte(), positions.size, lane), positions
    return _decode_values(reader, kind, lanes, lane), None


def decode_tokens(
    reader: StreamReader, kind: int, lanes: int, lane: Lane
) -> tuple[Array | Tokens | None, Array | None]:
    """As `decode_symbols`, but those of a palette are still to be looked up. Raises BadRecord."""
    if kind == Kind.SPARSE:
        positions = sparse.decode_positions(reader, lanes)
        kind = reader.byte()
        if kind == Kind.PALETTE and lane.width == 2:
            return palette.decode_tokens(reader, positions.size, lane), positions
        return _decode_values(reader, kind, positions.size, lane), positions
    if kind == Kind.PALETTE and lane.width == 2:
        return palette.decode_tokens(reader, lanes, lane), None
    return decode_symbols(reader, kind, lanes, lane)


def _encode_thin(
    symbols: Array, changed: Array, histogram: Histogram | None, ranks: int, lane: Lane, preset: Preset
) -> tuple[Kind, bytes]:
    coding, values = _encode_values(symbols[changed], histogram, ranks, lane, preset)
    return Kind.SPARSE, sparse.encode_positions(changed, preset) + bytes((coding,)) + values


def _encode_values(
    symbols: Array, histogram: Histogram | None, ranks: int, lane: Lane, preset: Preset
) -> tuple[Kind, bytes]:
    if histogram is not None and ranks:
        return Kind.PALETTE, palette.encode(symbols, histogram, ranks, lane, preset)
    return Kind.PLANES, planes.encode(symbols, lane, preset)


def _decode_values(reader: StreamReader, kind: int, count: int, lane: Lane) -> Array:
    if kind == Kind.PALETTE and lane.width == 2:
        return palette.decode(reader, count, lane)
    if kind == Kind.PLANES:
        return planes.decode(reader, count, lane)
    if kind == Kind.ARITHMETIC and arithmetic.fits(lane):
        return arithmetic.decode(reader, count, lane)
    raise BadRecord(f"record kind {kind} is unknown, or not for lanes of {lane.dtype}")


def _estimates(histogram: Histogram, *, thin: bool, mask: float) -> list[_Choice]:
    total = histogram.total
    sizes = {ranks: palette.estimate(histogram, ranks) for ranks in (palette.BYTES, palette.NIBBLES)}
    if sizes[palette.BYTES] > 8.0 * total:  # low bytes are stored as they are, more or less
        high = np.bincount(planes.rotate(histogram.symbols, 1) >> 8, weights=histogram.counts, minlength=256)
        sizes[0] = palette.entropy(high) + 8.0 * total
    return [_Choice(round(mask + bits), ranks, thin) for ranks, bits in sizes.items()]
