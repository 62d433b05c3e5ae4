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

__all__ = ["KEYS", "OWN", "frames_of", "given_to", "merge"]

Array = NDArray[Any]

KEYS = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0xABC98388FB8FAC03)


OWN: Mapping[str, Mapping[str, Sequence[float]]] = {
    "ties": {"density": (0.1, 0.6, 1.0, 0.0)},
    "dare_linear": {"density": (0.3, 0.0, 0.8, 1.0)},
    "dare_ties": {"density": (0.7, 0.2, 0.5, 1.0)},
    "della_linear": {"density": (0.5, 1.0, 0.3, 0.6), "epsilon": (0.2, 0.1, 0.3, 0.0)},
    "della": {"density": (0.5, 0.3, 0.0, 0.6), "epsilon": (0.2, 0.1, 0.3, 0.0)},
    "breadcrumbs": {"density": (0.4, 0.7, 0.0, 0.1), "gamma": (0.0, 0.2, 0.1, 0.9)},
    "breadcrumbs_ties": {"density": (0.4, 0.9, 0.2, 0.1), "gamma": (0.3, 0.0, 0.1, 0.9)},
}
"""Parameters that each delta has for itself, where a case says `own`."""


def given_to(
    method: str, given: Mapping[str, Value], deltas: int
) -> tuple[dict[str, Value], Sequence[Mapping[str, Value]]]:
    """The parameters of a case for all deltas, and for each of them."""
    shared = {name: value for name, value in given.items() if name != "own"}
    if "own" not in given:
        return shared, ()
    return shared, [{name: values[number] for name, values in OWN[method].items()} for number in range(deltas)]


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
    own: Sequence[Mapping[str, Value]] = (),
    weights: Sequence[float] | None = None,
    dtype: str = "F64",
    keys: Sequence[int] = KEYS,
    processor: Processor = CPU,
) -> Array:
    """What `method` makes of `deltas`, arrays of one shape whose items are lanes of `dtype`.

    `own` are the parameters that each delta has for itself.
    """
    shape = deltas[0].shape
    lane = lane_of(dtype)
    parts = [
        Part(number, partial(frames_of, delta, dtype), lane, lane, weight, key)
        for number, (delta, weight, key) in enumerate(zip(deltas, weights or [1.0] * len(deltas), keys, strict=False))
    ]
    stages = METHODS[method].stages(parameters or {}, own)
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
