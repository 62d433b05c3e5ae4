"""Merging arrays with the product's stages, as an apply does it: block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltareg.apply.merging import Merging, Part
from deltareg.codec import FRAME_LANES, Frame, lane_of
from deltareg.merge import METHODS, Value
from deltareg.merge.processor import CPU, Processor

__all__ = ["KEYS", "frames_of", "merge"]

Array = NDArray[Any]

KEYS = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0xABC98388FB8FAC03)


def frames_of(delta: Array, dtype: str, number: int, lanes: int) -> Frame:
    """A frame of a delta that is given as an array of its own dtype."""
    lane = lane_of(dtype)
    first = number * FRAME_LANES
    return Frame(lanes, delta.reshape(-1)[first : first + lanes].view(lane.bits).copy())


def merge(
    method: str,
    deltas: Sequence[Array],
    parameters: Mapping[str, Value] | None = None,
    *,
    weights: Sequence[float] | None = None,
    dtype: str = "F64",
    keys: Sequence[int] = KEYS,
    processor: Processor = CPU,
) -> Array:
    """What `method` makes of `deltas`, arrays of one shape whose items are lanes of `dtype`."""
    shape = deltas[0].shape
    lane = lane_of(dtype)
    parts = [
        Part(partial(frames_of, delta, dtype), lane, lane, weight, key)
        for delta, weight, key in zip(deltas, weights or [1.0] * len(deltas), keys, strict=False)
    ]
    stages = METHODS[method].stages(parameters or {})
    row = shape[-1] if len(shape) > 1 else max(deltas[0].size, 1)
    accumulator = np.float64 if lane.wide else np.float32
    merging = Merging(deltas[0].size, row, parts, stages, accumulator, processor=processor)
    if merging.blocks == 1 and not processor.repeats:
        return processor.step(lambda: _whole(merging.merge_alone())).reshape(shape)
    for steps in merging.measuring():
        for step in reversed(steps):  # the order does not matter
            step()
    blocks = range(merging.blocks)
    out = [processor.step(lambda block=block: _whole(merging.merge(block))) for block in blocks]
    return np.concatenate(out).reshape(shape)


def _whole(parts: Iterable[tuple[slice, Any]]) -> Array:
    """A copy of what a block became, part by part, here."""
    found = [part.copy() if isinstance(part, np.ndarray) else part.cpu().numpy().copy() for _, part in parts]
    return np.concatenate(found)
