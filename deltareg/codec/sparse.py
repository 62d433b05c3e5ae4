"""`sparse`: the positions of the lanes that change, and their symbols."""

from __future__ import annotations

import numpy as np

from deltareg.codec import kernels
from deltareg.codec.lanes import Array
from deltareg.codec.streams import Preset, StreamReader, pack_number, pack_stream
from deltareg.errors import BadRecord

__all__ = ["decode_positions", "encode_positions", "estimate"]


def estimate(lanes: int, changed: int) -> float:
    """About how many bits `encode_positions` needs: the entropy of the mask and the loss of cutting gaps into bytes."""
    share = changed / lanes
    if share in (0.0, 1.0):
        return float(changed)
    mask = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return float(lanes * mask + 0.3 * changed)


def encode_positions(positions: Array, preset: Preset) -> bytes:
    """Ascending positions (int64): their count, then the stream of their gaps."""
    gaps = np.empty(5 * positions.size, np.uint8)
    return pack_number(positions.size) + pack_stream(gaps[: kernels.write_gaps(positions, gaps)], preset)


def decode_positions(reader: StreamReader, lanes: int) -> Array:
    """Ascending positions below `lanes`. Raises BadRecord."""
    count = reader.number()
    if count > lanes:
        raise BadRecord(f"{count} positions in {lanes} lanes")
    positions = np.empty(count, np.int64)
    if not kernels.read_gaps(reader.stream(limit=5 * count), lanes, positions):
        raise BadRecord(f"the positions are not {count} ascending ones below {lanes}")
    return positions
