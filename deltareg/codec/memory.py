"""Memory for one frame's work, kept by each thread from frame to frame.

Asking the operating system for megabytes anew for every frame costs a page fault for each 4 KiB, which took a third of
the time of an apply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deltareg.codec.lanes import Array, lane_of, view_of

if TYPE_CHECKING:
    from deltareg.checkpoint import Tensor

__all__ = ["Recycled", "empty", "frame_memory", "part_memory", "read_lanes", "read_typed", "take_frame_memory_from"]

_BLOCK = 16 * 2**20
_ALIGNMENT = 64
# What is smaller the allocator has at hand, and sizes of which each is met once would fill the memory.
_WORTH_KEEPING = 1 << 19


def _from_system(nbytes: int) -> Array:
    return np.empty(nbytes, np.uint8)


class _Arena(threading.local):
    """Blocks of bytes that are given out from the front; all of them become free together."""

    def __init__(self) -> None:
        self.source: Callable[[int], Array] = _from_system
        self.depth = 0
        self.blocks: list[Array] = []
        self.number = 0
        self.used = 0

    def take(self, nbytes: int) -> Array:
        while self.number < len(self.blocks):
            block = self.blocks[self.number]
            if self.used + nbytes <= block.size:
                start = self.used
                self.used += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
                return block[start : start + nbytes]
            self.number += 1
            self.used = 0
        self.blocks.append(self.source(max(_BLOCK, nbytes)))
        return self.take(nbytes)


_arena = _Arena()


@contextmanager
def frame_memory() -> Generator[None]:
    """Within it, `empty` gives memory that is given again to the next frame: no array of it may be kept."""
    _arena.depth += 1
    try:
        yield
    finally:
        _arena.depth -= 1
        if _arena.depth == 0:
            _arena.number = _arena.used = 0


@contextmanager
def part_memory() -> Generator[None]:
    """Within frame memory: what `empty` gives in here is given again as soon as it is left."""
    number, used = _arena.number, _arena.used
    try:
        yield
    finally:
        _arena.number, _arena.used = number, used


class Recycled:
    """Memory that outlives a frame, and is given again once it was given back. Used from many threads.

    What the operating system hands out anew it clears first, page by page, which takes longer than what is done in it.
    At most `most` bytes are in use or wait for their next use.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._free: dict[int, list[Array]] = {}
        self._held = 0

    def copy(self, array: Array) -> Array | None:
        """The same numbers (one-dimensional) in memory from here; None where there is no more of it."""
        with self._lock:
            free = self._free.get(array.nbytes)
            block = free.pop() if free else None
            if block is None and not self._make_room(array.nbytes):
                return None
        taken = np.empty(array.nbytes, np.uint8) if block is None else block
        found = taken.view(array.dtype)
        found[:] = array
        return found

    def give_back(self, array: Array) -> None:
        """Take memory back that `copy` gave; nobody may look at it any more."""
        with self._lock:
            if array.nbytes < _WORTH_KEEPING:
                self._held -= array.nbytes
            else:
                self._free.setdefault(array.nbytes, []).append(array.view(np.uint8))

    def _make_room(self, nbytes: int) -> bool:
        """Count so many bytes in, where what waits for its next use can go for them; what is largest goes first."""
        waiting = sorted((size for size, free in self._free.items() if free), reverse=True)
        room = self._most - self._held + sum(size * len(self._free[size]) for size in waiting)
        if room < nbytes:
            return False
        while self._held + nbytes > self._most:
            size = next(size for size in waiting if self._free[size])
            self._free[size].pop()
            self._held -= size
        self._held += nbytes
        return True


def take_frame_memory_from(source: Callable[[int], Array]) -> None:
    """From now on this thread's frame memory is bytes (uint8) that `source` gives: such as a device can copy from."""
    if _arena.source != source:
        _arena.source, _arena.blocks = source, []


def empty(count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A one-dimensional array of `count` undefined items."""
    if _arena.depth == 0:
        return np.empty(count, dtype)
    kind = np.dtype(dtype)
    return _arena.take(count * kind.itemsize).view(kind)


def read_lanes(tensor: Tensor, first: int, count: int) -> Array:
    """The bits of `count` stored lanes of a tensor from lane `first` on, of `lane.bits`."""
    lane = lane_of(tensor.dtype)
    bits = empty(count, lane.bits)
    if count:
        tensor.read_into(first * lane.width, view_of(bits))
    return bits


def read_typed(tensor: Tensor, first: int, count: int) -> Array:
    """As `read_lanes`, typed as `kernels.py` says."""
    return read_lanes(tensor, first, count).view(lane_of(tensor.dtype).stored)
