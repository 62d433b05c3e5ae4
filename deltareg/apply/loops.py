"""The compiled loops that an apply needs, loaded before its first frame.

Loading takes some tenths of a second in which every thread would wait, and on a machine's first use, when they are
compiled, seconds. It depends on the dtypes and not on the sizes, so that it is measured apart from the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from deltareg.apply.plan import Plan, PlannedTensor
from deltareg.codec import FRAME_HEAD, Kind, Lane, can_mend, decode_frame, lane_of
from deltareg.merge import Addend, Block

__all__ = ["load_loops"]

# Bodies for one lane, as docs/format.md has them: an escape that no rank stands for, in a palette of bytes and in one
# of nibbles, and an empty code.
_BYTES, _NIBBLES, _CODE = b"\xff\x00\x01\x00\x00", b"\x0f\x00\x01\x00\x00", b"\x00"
_MENDED = 1


def load_loops(plan: Plan, method: Callable[[Block], None]) -> None:
    """Decode and apply one lane in each combination of dtypes that the plan has."""
    for target, out, pieces in {_dtypes(tensor) for tensor in plan.tensors.values() if tensor.action == "add"}:
        target_lane, out_lane = lane_of(target), lane_of(out)
        frames = [[decode_frame(memoryview(data), 1, *lanes) for data in _samples(lanes[1])] for lanes in pieces]
        addends = tuple(Addend(found[0], *lanes, 1.0) for found, lanes in zip(frames, pieces, strict=True))
        method(Block(np.zeros(1, target_lane.stored), target_lane, addends, np.zeros(1, out_lane.stored), out_lane))


_Dtypes = tuple[str, str, tuple[tuple[Lane, Lane], ...]]


def _dtypes(tensor: PlannedTensor) -> _Dtypes:
    assert tensor.source is not None
    pieces = [(entry.base_dtype, entry.post_dtype) for _, entry in tensor.pieces]
    lanes = tuple((lane_of(base), lane_of(post)) for base, post in pieces if base is not None and post is not None)
    return tensor.source.dtype, tensor.dtype, lanes


def _samples(lane: Lane) -> Iterator[bytes]:
    """Frames of one lane of 1.0 that is mended, one for each way to code it."""
    planes = _raw(b"\x7f") + _raw(b"\0") * (lane.width - 1)
    mending = b"\1" + _raw(b"\0") * (1 + lane.width) if can_mend(lane) else b""
    bodies = [(Kind.PLANES, planes)]
    if lane.width == 2:
        palettes = [(Kind.PALETTE, body + _raw(b"\0") + planes) for body in (_BYTES, _NIBBLES)]
        bodies = [*palettes, *bodies]
    for kind, body in bodies:
        yield FRAME_HEAD.pack(kind, _MENDED if mending else 0, len(body) + len(mending)) + body + mending
    if lane.width == 2:
        yield FRAME_HEAD.pack(Kind.ARITHMETIC, 0, len(_CODE)) + _CODE


def _raw(byte: bytes) -> bytes:
    """A stream of one byte as it is."""
    return b"\0\1" + byte
