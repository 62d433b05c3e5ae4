"""One frame after the other of a tensor's delta, and of what that makes of its base."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deltareg.checkpoint import Tensor
from deltareg.codec import FRAME_LANES, Array, RecordReader, delta_lane_of, is_additive, lane_of, replaced
from deltareg.codec.lanes import view_of
from deltareg.codec.memory import frame_memory
from deltareg.errors import InvalidArgument
from deltareg.manifest import TensorEntry
from deltareg.merge import Addend, Block, accumulator_of, linear
from deltareg.merge.linear import overwrite
from deltareg.merge.values import values_of

__all__ = ["delta_values", "post_lanes", "stretches_of"]


def delta_values(reader: RecordReader, number: int) -> Array:
    """D1 + D2 of one frame as numbers, a zero where nothing changes."""
    head = reader.head
    assert head.base is not None
    addend = Addend(reader.read(number), head.base, head.delta, 1.0)
    values = values_of([addend], accumulator_of([lane_of("F64")]))[0]
    if not np.isfinite(values).all():
        raise InvalidArgument(
            f"the delta of {reader.name!r:.120} has numbers that are not finite",
            hint="no adapter can have these; apply the delta instead: deltareg apply",
        )
    return values


def stretches_of(reader: RecordReader, rows: int, columns: int) -> Iterator[tuple[int, Array]]:
    """The delta in runs of whole rows, each of about a frame."""
    rest = np.empty(0, np.float64)
    row = 0
    for number in range(reader.count):
        with frame_memory():
            rest = np.concatenate((rest, delta_values(reader, number)))
        whole = rest.size // columns
        if whole:
            yield row, rest[: whole * columns].reshape(whole, columns)
            rest = rest[whole * columns :]
            row += whole


def post_lanes(entry: TensorEntry, reader: RecordReader | None, base: Tensor | None, start: int, count: int) -> Array:
    """One frame of post, typed as `codec/kernels.py` says."""
    assert entry.post_dtype is not None
    lane = lane_of(entry.post_dtype)
    bits = None
    if base is not None:
        before = lane_of(base.dtype)
        bits = np.empty(count, before.bits)
        base.read_into(start * before.width, view_of(bits))
    if reader is None and base is not None and base.dtype == entry.post_dtype:
        assert bits is not None
        return bits.view(lane.stored)
    if not is_additive(entry):
        assert reader is not None
        return replaced(bits, reader.read(start // FRAME_LANES), lane).view(lane.stored)
    assert bits is not None and base is not None
    before = lane_of(base.dtype)
    out = np.empty(count, lane.stored)
    if reader is None:
        linear(Block(bits.view(before.stored), before, (), out, lane))
        return out
    addend = Addend(reader.read(start // FRAME_LANES), before, delta_lane_of(entry), 1.0)
    block = Block(bits.view(before.stored), before, (addend,), out, lane)
    linear(block)
    overwrite(block, addend)
    return out
