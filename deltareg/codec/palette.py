"""`palette`: 16-bit symbols as ranks among the most frequent, the rest escaped.

A token is a byte (up to 255 ranks and an escape) or, where few symbols make up most lanes, a nibble (up to 15): two of
them in a byte let a symbol cost less than the one bit that a Huffman code of bytes must spend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltareg.codec import kernels, planes
from deltareg.codec.lanes import Array, Lane
from deltareg.codec.memory import empty
from deltareg.codec.streams import Preset, StreamReader, pack_number, pack_stream
from deltareg.codec.tokens import ROOM, highest_token, symbols_of
from deltareg.errors import BadRecord

__all__ = ["BYTES", "NIBBLES", "Histogram", "Tokens", "decode", "decode_tokens", "encode", "entropy", "estimate"]

BYTES = 255
"""Ranks where tokens are bytes."""
NIBBLES = 15
"""Ranks where tokens are nibbles."""

_TABLE_BYTES = 5 * BYTES
# A rank costs its place in the table and in the Huffman code's own table, about 12 bits; an escape costs some 2 bits
# more than the rank would. Measured: 8 gives the smallest artifact of a pair with tensors of 65,536 elements.
_RARE = 8
# Below this, sorting the symbols is faster than looking through 65,536 counts.
_FEW = 4096


@dataclass(frozen=True)
class Tokens:
    """Symbols that are still to be looked up: `table` (uint16) has that of each token (uint8).

    Those of the tokens `escape` are `escapes` (uint16), in order; `room` is these with `ROOM` that are not used.
    """

    tokens: Array
    table: Array
    escape: int
    room: Array

    @property
    def escapes(self) -> Array:
        """The symbols of the tokens `escape`."""
        return self.room[: self.room.size - ROOM]

    def at(self, places: Array) -> Array:
        """The symbols of the tokens at these places."""
        tokens = self.tokens[places]
        symbols = self.table[tokens]
        escaped = tokens == self.escape
        if escaped.any():
            order = np.searchsorted(np.flatnonzero(self.tokens == self.escape), places[escaped])
            symbols[escaped] = self.escapes[order]
        return symbols


@dataclass(frozen=True)
class Histogram:
    """The symbols of a frame (uint16), most frequent first, and how often each occurs (int64)."""

    symbols: Array
    counts: Array
    total: int

    @classmethod
    def of(cls, symbols: Array) -> Histogram:
        """Count `symbols` (uint16)."""
        if symbols.size < _FEW:
            found, counts = np.unique(symbols, return_counts=True)
        else:
            every = empty(1 << 16, np.uint32)
            every.fill(0)
            kernels.histogram(symbols, every)
            found = np.flatnonzero(every).astype(np.uint16)
            counts = every[found].astype(np.int64)
        # Stable, so that equal counts fall the same way on every machine.
        order = np.argsort(-counts, kind="stable")
        return cls(found[order], counts[order], symbols.size)

    def without(self, symbol: int) -> Histogram:
        """The histogram of the other symbols."""
        kept = self.symbols != symbol
        counts = self.counts[kept]
        return Histogram(self.symbols[kept], counts, int(counts.sum()))

    def ranked(self, most: int) -> int:
        """How many symbols get a rank: up to `most`, but none that is so rare that it is cheaper as an escape."""
        return int(np.searchsorted(-self.counts[:most], -_RARE))


def entropy(counts: Array) -> float:
    """Shannon's entropy of a histogram, in bits for all of its symbols: −Σ n·log2(n/N)."""
    found = counts[counts > 0].astype(np.float64)
    return float(-(found * np.log2(found / found.sum())).sum()) if found.size else 0.0


def estimate(histogram: Histogram, most: int) -> float:
    """About how many bits `encode` needs."""
    total = float(histogram.total)
    size = histogram.ranked(most)
    rest = histogram.counts[size:]
    escaped = float(rest.sum())
    tokens = np.append(histogram.counts[:size], escaped)
    bits = entropy(tokens)
    # A Huffman code spends a whole bit at least on each byte: on a token, or on a pair of nibbles.
    top = float(tokens.max())
    if most == BYTES:
        bits += top * max(0.0, 1.0 + float(np.log2(top / total)))
    else:
        bits = max(bits, 0.5 * total)
    return bits + min(16.0 * escaped, entropy(rest) + escaped) + 10.0 * size


def encode(symbols: Array, histogram: Histogram, most: int, lane: Lane, preset: Preset) -> bytes:
    """The symbols (uint16) with a table of at most `most` ranks; `histogram` is theirs."""
    size = histogram.ranked(most)
    table = np.sort(histogram.symbols[:size]).astype(np.int64)
    token_of = empty(1 << 16, np.uint8)
    token_of.fill(size)
    token_of[table] = np.arange(size, dtype=np.uint8)
    tokens = empty(symbols.size, np.uint8)
    escapes = empty(int(histogram.counts[size:].sum()) + 1, np.uint16)
    used = kernels.tokenize(symbols, token_of, size, tokens, escapes)
    if most == NIBBLES:
        packed = empty((symbols.size + 1) // 2, np.uint8)
        kernels.pack_nibbles(tokens, packed)
        tokens = packed
    gaps = np.empty(5 * size, np.uint8)
    gaps = gaps[: kernels.write_gaps(table, gaps)]
    return b"".join(
        (
            bytes((most, size)),
            pack_number(used),
            pack_stream(gaps, preset),
            pack_stream(tokens, preset),
            planes.encode(escapes[:used], lane, preset) if used else b"",
        )
    )


def decode(reader: StreamReader, count: int, lane: Lane) -> Array:
    """The inverse of `encode` for `count` symbols. Raises BadRecord."""
    found = _read(reader, count, lane)
    symbols = empty(count, np.uint16)
    asked = symbols_of(found.tokens, found.table, found.escape, found.room, symbols)
    _check(found, asked)
    return symbols


def decode_tokens(reader: StreamReader, count: int, lane: Lane) -> Tokens:
    """As `decode`, for whoever looks the symbols up. Raises BadRecord."""
    found = _read(reader, count, lane)
    _check(found, int(np.count_nonzero(found.tokens == found.escape)))
    return found


def _read(reader: StreamReader, count: int, lane: Lane) -> Tokens:
    most, size, used = reader.byte(), reader.byte(), reader.number()
    if most not in (BYTES, NIBBLES) or size > most or used > count:
        raise BadRecord(f"a palette of {size} ranks among {most} with {used} escapes for {count} symbols")
    positions = np.empty(size, np.int64)
    if not kernels.read_gaps(reader.stream(limit=_TABLE_BYTES), 1 << 16, positions):
        raise BadRecord("a palette's table is not a list of ascending 16-bit symbols")
    if most == NIBBLES:
        packed = reader.stream(size=(count + 1) // 2)
        tokens = empty(count, np.uint8)
        kernels.unpack_nibbles(packed, tokens)
    else:
        tokens = reader.stream(size=count)
    escapes = empty(used + ROOM, np.uint16)
    escapes[used:] = 0
    if used:
        escapes[:used] = planes.decode(reader, used, lane)
    table = np.zeros(256, np.uint16)
    table[:size] = positions
    return Tokens(tokens, table, size, escapes)


def _check(found: Tokens, asked: int) -> None:
    size, used = found.escape, found.escapes.size
    highest = BYTES if size == BYTES else int(highest_token(found.tokens))
    if asked != used or highest > size:
        raise BadRecord(f"a palette's tokens ask for {asked} escapes and rank {highest}; it has {used} and {size}")
