"""Tensors whose bytes are computed when they are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from deltareg.checkpoint import Tensor
from deltareg.checkpoint.header import TensorInfo
from deltareg.checkpoint.source import bytes_of
from deltareg.codec import FRAME_LANES, Array, Factors, Frame, Lane, lane_of
from deltareg.codec.lanes import view_of
from deltareg.codec.lowrank import Product, widened
from deltareg.codec.memory import empty, read_typed
from deltareg.merge import Addend, Block, linear

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["Computed", "Converted", "Rescaled", "Summed", "bits_of", "computed", "info_of", "named"]


@dataclass
class Computed:
    """A tensor's bytes, made of whole lanes when they are read."""

    tensor: Tensor
    dtype: str
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.tensor.elements * lane_of(self.dtype).width

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer`, which starts and ends with a lane."""
        view = bytes_of(buffer)
        width = lane_of(self.dtype).width
        if offset % width or len(view) % width:
            raise ValueError(f"{len(view)} bytes from byte {offset} on are no whole lanes of {self.name!r}")
        view[:] = view_of(self._lanes(offset // width, len(view) // width))

    def read(self, offset: int, length: int) -> bytes:
        """The same as bytes."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def close(self) -> None:
        """Nothing is held."""

    def _lanes(self, first: int, count: int) -> Array:
        raise NotImplementedError


class Converted(Computed):
    """A tensor in another dtype, each number rounded once."""

    def _lanes(self, first: int, count: int) -> Array:
        return _converted(read_typed(self.tensor, first, count), lane_of(self.tensor.dtype), lane_of(self.dtype))


class Summed(Computed):
    """base + scale · B · A, as an apply of the record at weight 1 gives it."""

    def __init__(self, base: Tensor, load: Callable[[], Factors]) -> None:
        super().__init__(base, base.dtype)
        self._load = load

    def _lanes(self, first: int, count: int) -> Array:
        lane, delta = lane_of(self.dtype), lane_of("F32")
        symbols = self._load().product.symbols(first, count)
        out = empty(count, lane.stored)
        addend = Addend(Frame(count, symbols), lane, delta, 1.0)
        linear(Block(read_typed(self.tensor, first, count), lane, (addend,), out, lane))
        return out


class Rescaled(Computed):
    """m / ‖W₀ + scale · B · A‖ · (W₀ + scale · B · A): DoRA (arXiv 2402.09353, equation 5).

    The norms are those of outputs: of rows, or of columns where the tensor has inputs before outputs. Sums of squares
    are in float64 and in order.
    """

    def __init__(self, base: Tensor, magnitude: Tensor, load: Callable[[], Factors], *, transposed: bool) -> None:
        super().__init__(base, base.dtype)
        self._magnitude = magnitude
        self._transposed = transposed
        self._load = load
        self._scales: Array | None = None

    def _lanes(self, first: int, count: int) -> Array:
        product = self._load().product
        with self._lock:
            if self._scales is None:
                self._scales = self._ratios(product)
        lanes = np.arange(first, first + count)
        scales = self._scales[lanes % product.columns if self._transposed else lanes // product.columns]
        return _converted(self._sum(product, first, count) * scales, lane_of("F64"), lane_of(self.dtype))

    def _sum(self, product: Product, first: int, count: int) -> Array:
        lane = lane_of(self.dtype)
        base = np.empty(count, np.float64)
        base[:] = widened(read_typed(self.tensor, first, count).view(lane.bits), lane)
        return base + product.symbols(first, count).view(np.float32)

    def _ratios(self, product: Product) -> Array:
        """Magnitude by norm, of each output."""
        magnitude = widened(bits_of(self._magnitude), lane_of(self._magnitude.dtype))
        squares = np.zeros(product.columns if self._transposed else product.rows, np.float64)
        for row, rows in _stretches(product):
            sums = self._sum(product, row * product.columns, rows * product.columns).reshape(rows, -1)
            with np.errstate(over="ignore", invalid="ignore"):
                if self._transposed:
                    # Row after row: the order of the additions is the same on every machine.
                    for each in sums:
                        squares += each * each
                else:
                    for column in np.ascontiguousarray(sums.T):
                        squares[row : row + rows] += column * column
        with np.errstate(all="ignore"):
            return magnitude / np.sqrt(squares)


def _stretches(product: Product) -> Iterator[tuple[int, int]]:
    """Runs of whole rows of about a frame: the first, and how many."""
    step = max(1, FRAME_LANES // max(product.columns, 1))
    for row in range(0, product.rows, step):
        yield row, min(step, product.rows - row)


def _converted(lanes: Array, lane: Lane, to: Lane) -> Array:
    out = empty(lanes.size, to.stored)
    linear(Block(lanes, lane, (), out, to))
    return out


def computed(like: Tensor, source: Computed) -> Tensor:
    """A tensor of that name, dtype and shape, with numbers that are computed."""
    return Tensor(info_of(like), source, like.shard)


def info_of(like: Tensor) -> TensorInfo:
    """Name, dtype and shape of a tensor that lies nowhere."""
    return TensorInfo(like.name, like.dtype, like.shape, 0, like.nbytes)


def named(tensor: Tensor, name: str) -> Tensor:
    """The same tensor under another name."""
    info = TensorInfo(name, tensor.dtype, tensor.shape, 0, tensor.nbytes)
    return Tensor(info, _Part(tensor), tensor.shard)


@dataclass(frozen=True)
class _Part:
    """A tensor as a source of its own."""

    tensor: Tensor

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.tensor.nbytes

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from a byte of the tensor on."""
        self.tensor.read_into(offset, buffer)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from a byte of the tensor on."""
        return self.tensor.read(offset, length)

    def close(self) -> None:
        """The adapter's file is closed by who opened it."""


def bits_of(tensor: Tensor) -> Array:
    """All of a tensor, in memory of its own."""
    lane = lane_of(tensor.dtype)
    bits = np.empty(lane.lanes_of(tensor.elements), lane.bits)
    tensor.read_into(0, view_of(bits))
    return bits
