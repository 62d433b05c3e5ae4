"""`lowrank`: a delta as the product of two factors, as an adapter has them.

    factors := rank number, left dtype u8, right dtype u8, scale f64, [rest dtype u8]
    record  := head, factors, frame …       (those of the left factor, those of the right one, those of the rest)

A tensor of shape (m, …) is a matrix of m rows. Its D1 is F32: D1[i, j] = scale · Σₖ left[i, k] · right[k, j], the sum
in float64 with k ascending, rounded once to float32. The product of two float32 is exact in float64, so that fused or
not, with whatever vectors, the bits are the same. Where there is a rest, a number for each lane, it is added to that,
and the sum is rounded to float32.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deltareg.checkpoint import Tensor
from deltareg.checkpoint.header import TensorInfo
from deltareg.checkpoint.source import ByteSource
from deltareg.codec import kernels
from deltareg.codec.frame import Frame, encode_replaced
from deltareg.codec.lanes import DELTA_DTYPES, FRAME_LANES, Array, Lane, lane_of
from deltareg.codec.memory import empty, frame_memory
from deltareg.codec.streams import Preset, StreamReader, pack_number
from deltareg.errors import BadRecord

__all__ = [
    "FACTORS_LIMIT",
    "FACTOR_DTYPES",
    "Factors",
    "LowRank",
    "LowRankTensor",
    "Product",
    "StoredProduct",
    "add_rest",
    "fits",
    "matrix_of",
    "widened",
]

FACTOR_DTYPES = ("F32", "BF16", "F16")
"""What factors can be stored in: products of these are exact in float64."""

_FIXED = struct.Struct("<BBd")
# The right factor is held as float64 while its record is read: 512 MiB at most.
_MOST_RIGHT = 2**26

FACTORS_LIMIT = 10 + _FIXED.size
"""Bytes that a record's head has at most of its factors."""


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix."""
    return (shape[0], math.prod(shape[1:])) if shape else (0, 0)


def fits(shape: Sequence[int], rank: int) -> bool:
    """Whether a tensor's delta can be stored as factors of this rank."""
    rows, columns = matrix_of(shape)
    return len(shape) > 1 and 0 < rank <= min(rows, columns) and rank * columns <= _MOST_RIGHT


@dataclass(frozen=True)
class LowRank:
    """What a record's head says of its factors, and in which dtype it has what they leave, if it has that."""

    rank: int
    left: Lane
    right: Lane
    scale: float
    rest: Lane | None = None

    def pack(self) -> bytes:
        """The bytes that follow the record's head."""
        rest = b"" if self.rest is None else bytes((self.rest.code,))
        return pack_number(self.rank) + _FIXED.pack(self.left.code, self.right.code, self.scale) + rest

    @classmethod
    def parse(cls, reader: StreamReader, shape: Sequence[int], *, has_rest: bool) -> LowRank:
        """The inverse of `pack`, for a tensor of this shape. Raises BadRecord, UnsupportedFormat."""
        rank = reader.number()
        left, right, scale = _FIXED.unpack(reader.plain(_FIXED.size).tobytes())
        if not fits(shape, rank):
            raise BadRecord(f"a record of shape {list(shape)} has factors of rank {rank}")
        rest = lane_of(reader.byte()) if has_rest else None
        if rest is not None and rest.dtype not in DELTA_DTYPES:
            raise BadRecord(f"a record has a rest of {rest.dtype}")
        found = cls(rank, lane_of(left), lane_of(right), scale, rest)
        if found.left.dtype not in FACTOR_DTYPES or found.right.dtype not in FACTOR_DTYPES or not math.isfinite(scale):
            raise BadRecord(f"a record has factors of {found.left.dtype} and {found.right.dtype}, scale {scale}")
        return found


class Product:
    """scale · left · right, of which any stretch of lanes can be computed, in any thread.

    `right` is float64 of shape (rank, columns). `left` gives the lanes from the first to the last row that is asked
    for, as float64; left[i, k] is lane i · rank + k.
    """

    def __init__(self, rows: int, right: Array, left: Callable[[int, int], Array], scale: float) -> None:
        self.rows = rows
        self.rank, self.columns = right.shape
        self._right = right
        self._left = left
        self._scale = scale

    def symbols(self, first: int, lanes: int) -> Array:
        """The bits of D1 (uint32) of `lanes` lanes from the lane `first` on; the marker where D1 is zero."""
        row = first // self.columns
        last = -(-(first + lanes) // self.columns)
        left = self._left(row * self.rank, last * self.rank).reshape(-1, self.rank)
        symbols = empty(lanes, np.uint32)
        kernels.multiply(left, self._right, self._scale, first - row * self.columns, symbols)
        return symbols


@dataclass(frozen=True)
class Factors:
    """Two factors in memory: their bits, each a flat array of its lane's `bits`, rows after rows."""

    low_rank: LowRank
    left: Array
    right: Array

    @cached_property
    def product(self) -> Product:
        """What they give."""
        rank = self.low_rank.rank
        left, right = widened(self.left, self.low_rank.left), widened(self.right, self.low_rank.right)
        return Product(
            left.size // rank, right.reshape(rank, -1), lambda start, stop: left[start:stop], self.low_rank.scale
        )

    def encode(self, preset: Preset) -> Iterator[bytes]:
        """The frames of both."""
        for bits, lane in ((self.left, self.low_rank.left), (self.right, self.low_rank.right)):
            for start in range(0, bits.size, FRAME_LANES):
                yield encode_replaced(None, bits[start : start + FRAME_LANES], lane, preset).data


class LowRankTensor(Tensor):
    """A tensor of post that is base's and a product of factors; `source` reads as their sum."""

    __slots__ = ("_load", "low_rank")

    def __init__(
        self, info: TensorInfo, source: ByteSource, shard: str, low_rank: LowRank, load: Callable[[], Factors]
    ) -> None:
        super().__init__(info, source, shard)
        self.low_rank = low_rank
        self._load = load

    @property
    def factors(self) -> Factors:
        """The factors, read when they are asked for."""
        return self._load()


class StoredProduct:
    """The product of a record's factors, whose frames `decode(number, lane)` gives as bits.

    Holds the right factor, and of the left one the frames that were asked for last.
    """

    _KEPT = 4

    def __init__(self, rows: int, columns: int, low_rank: LowRank, decode: Callable[[int, Lane], Array]) -> None:
        self._rows = rows
        self._columns = columns
        self._low_rank = low_rank
        self._decode = decode
        self._lock = threading.Lock()
        self._product: Product | None = None
        self._kept: dict[int, Array] = {}

    def symbols(self, first: int, lanes: int) -> Array:
        """As `Product.symbols`. Raises BadRecord."""
        with self._lock:
            if self._product is None:
                self._product = Product(self._rows, self._right(), self._left, self._low_rank.scale)
        return self._product.symbols(first, lanes)

    def factors(self) -> tuple[Array, Array]:
        """Both factors as float32, of shapes (rows, rank) and (rank, columns). Raises BadRecord."""
        size = self._rows * self._low_rank.rank
        left = np.empty(size, np.float32)
        for start in range(0, size, FRAME_LANES):
            part = left[start : start + FRAME_LANES]
            with frame_memory():
                kernels.widen_all(self._left(start, start + part.size), part)
        return left.reshape(self._rows, -1), self._right().astype(np.float32)

    def _right(self) -> Array:
        size = self._low_rank.rank * self._columns
        right = np.empty(size, np.float64)
        before = -(-self._rows * self._low_rank.rank // FRAME_LANES)
        for number, start in enumerate(range(0, size, FRAME_LANES)):
            bits = self._decode(before + number, self._low_rank.right)
            kernels.widen_all(bits.view(self._low_rank.right.stored), right[start : start + FRAME_LANES])
        return right.reshape(self._low_rank.rank, self._columns)

    def _left(self, start: int, stop: int) -> Array:
        left = empty(stop - start, np.float64)
        for number in range(start // FRAME_LANES, -(-stop // FRAME_LANES)):
            origin = number * FRAME_LANES
            here = slice(max(start - origin, 0), min(stop - origin, FRAME_LANES))
            bits = self._frame(number)[here]
            kernels.widen_all(bits.view(self._low_rank.left.stored), left[origin + here.start - start :][: bits.size])
        return left

    def _frame(self, number: int) -> Array:
        with self._lock:
            found = self._kept.pop(number, None)
            if found is None:
                # A copy: memory of one frame's work may not be kept.
                found = self._decode(number, self._low_rank.left).copy()
            self._kept[number] = found
            if len(self._kept) > self._KEPT:
                del self._kept[next(iter(self._kept))]
            return found


def add_rest(symbols: Array, frame: Frame, lane: Lane) -> None:
    """Add a frame's numbers, of `lane`, to the product whose bits are `symbols` (uint32), in place."""
    if frame.symbols is None:
        return
    rest = frame.symbols
    if frame.positions is not None:
        rest = empty(symbols.size, lane.bits)
        rest.fill(lane.marker)
        rest[frame.positions] = frame.symbols
    kernels.add_rest(symbols.view(np.float32), rest.view(lane.stored), symbols)


def widened(bits: Array, lane: Lane) -> Array:
    """Lanes as float64."""
    wide = np.empty(bits.size, np.float64)
    kernels.widen_all(bits.view(lane.stored), wide)
    return wide
