"""Whether two models point nearly the same way, tensor by tensor: where they do, mergekit's slerp is linear."""

from __future__ import annotations

import math

import numpy as np

from deltareg.checkpoint import Checkpoint, Tensor
from deltareg.codec import FRAME_LANES, lane_of
from deltareg.codec.lowrank import widened
from deltareg.codec.memory import read_lanes

__all__ = ["THRESHOLD", "furthest"]

THRESHOLD = 0.9995
"""The |cosine| beyond which mergekit interpolates linearly."""

_LEAST = 1e-8
"""A shorter tensor is left at its length by mergekit."""
_FLOATS = ("F64", "F32", "F16", "BF16")


def furthest(one: Checkpoint, other: Checkpoint) -> tuple[str, float] | None:
    """The tensor with the least |cosine| between two checkpoints, and that; None where they share no floats."""
    found = {
        name: abs(_cosine(tensor, other.tensors[name]))
        for name, tensor in one.tensors.items()
        if name in other.tensors and tensor.dtype in _FLOATS and other.tensors[name].dtype in _FLOATS
        if tensor.shape == other.tensors[name].shape and tensor.elements
    }
    return min(found.items(), key=lambda item: item[1], default=None)


def _cosine(one: Tensor, other: Tensor) -> float:
    sums: list[tuple[float, float, float]] = []
    for first in range(0, one.elements, FRAME_LANES):
        count = min(FRAME_LANES, one.elements - first)
        left, right = (widened(read_lanes(tensor, first, count), lane_of(tensor.dtype)) for tensor in (one, other))
        sums.append((float(np.dot(left, left)), float(np.dot(right, right)), float(np.dot(left, right))))
    squares, others, product = (math.fsum(column) for column in zip(*sums, strict=True))
    lengths = [length if length > _LEAST else 1.0 for length in (math.sqrt(squares), math.sqrt(others))]
    return product / lengths[0] / lengths[1]
