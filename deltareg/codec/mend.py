"""What D1 alone cannot do: second terms D2 that mend a sum, and overwrites where no sum gives post.

D2 = m · 2^−s · ulp(D1) with m odd, and s the smallest that makes base + (D1 + D2) round to post. The pair (s, m) is
one code: 2q + (m < 0), where q = 0 for s = 1 and q = 2^(s−2) + (|m| − 1)/2 for s ≥ 2. As |D2| ≤ ulp(D1)/2, |m| is at
most 2^(s−1), and every code has one meaning. Nearly all mended lanes need s ≤ 3: the codes' high bytes are zero and
cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltareg.codec import kernels, planes, sparse
from deltareg.codec.lanes import Array, Lane
from deltareg.codec.streams import Preset, StreamReader

__all__ = ["Mending", "Overwrites", "can_mend", "find_mending"]

_MOST_HALVINGS = {2: 15, 4: 29}
"""The largest s by lane width. Where D1 + D2 does not fit the accumulator, its rounded value is what must mend."""


@dataclass(frozen=True)
class Mending:
    """Second terms of one frame: `positions` (int64, ascending) and `codes` (unsigned, of the lane's width)."""

    positions: Array
    codes: Array

    def encode(self, lane: Lane, preset: Preset) -> bytes:
        """The positions, then the codes' planes."""
        return sparse.encode_positions(self.positions, preset) + planes.encode(self.codes, _plain(lane), preset)

    def terms(self, delta: Array, lane: Lane, accumulator: type[np.floating]) -> Array:
        """D1 + D2 of the mended lanes, rounded to `accumulator`; `delta` is the whole frame's D1."""
        terms = np.empty(self.positions.size, accumulator)
        kernels.mended_terms(delta, self.positions, self.codes, lane.precision, lane.least, terms)
        return terms

    def within(self, start: int, stop: int) -> Mending:
        """The second terms of the lanes from `start` to `stop`, whose positions are counted from there."""
        first, last = np.searchsorted(self.positions, (start, stop)).tolist()
        return Mending(self.positions[first:last] - start, self.codes[first:last])

    @classmethod
    def joined(cls, mendings: Sequence[Mending]) -> Mending:
        """Those of several, whose positions follow one another."""
        return cls(np.concatenate([one.positions for one in mendings]), np.concatenate([one.codes for one in mendings]))

    @classmethod
    def decode(cls, reader: StreamReader, lanes: int, lane: Lane) -> Mending:
        """The inverse of `encode`. Raises BadRecord."""
        positions = sparse.decode_positions(reader, lanes)
        return cls(positions, planes.decode(reader, positions.size, _plain(lane)))


@dataclass(frozen=True)
class Overwrites:
    """Lanes of one frame that no sum can give.

    Where the target has the base's bits, `post` (bits of post's lanes) replaces them; elsewhere they say nothing.
    """

    positions: Array
    base: Array
    post: Array

    def encode(self, base_lane: Lane, lane: Lane, preset: Preset) -> bytes:
        """The positions, the planes of base's bits, the planes of post's."""
        return b"".join(
            (
                sparse.encode_positions(self.positions, preset),
                planes.encode(self.base, base_lane, preset),
                planes.encode(self.post, lane, preset),
            )
        )

    @classmethod
    def decode(cls, reader: StreamReader, lanes: int, base_lane: Lane, lane: Lane) -> Overwrites:
        """The inverse of `encode`. Raises BadRecord."""
        positions = sparse.decode_positions(reader, lanes)
        base = planes.decode(reader, positions.size, base_lane)
        return cls(positions, base, planes.decode(reader, positions.size, lane))


def _plain(lane: Lane) -> Lane:
    # Codes are small integers: unrotated, their high bytes are zero.
    return Lane(0, "code", lane.bits, lane.bits, additive=False)


def can_mend(lane: Lane) -> bool:
    """Whether lanes of this kind can have second terms: not those of 64 bits, whose accumulator is no wider."""
    return lane.width in _MOST_HALVINGS


def find_mending(base: Array, post: Array, delta: Array, positions: Array, lane: Lane) -> tuple[Mending, Array]:
    """Second terms for the lanes at `positions`, and those of the positions that none can mend.

    `base`, `post` and `delta` (D1) are whole frames of typed lanes.
    """
    codes = np.zeros(positions.size, lane.bits)
    mended = np.zeros(positions.size, bool)
    if can_mend(lane):
        most = _MOST_HALVINGS[lane.width]
        kernels.find_codes(base, post, delta, positions, lane.precision, lane.least, most, codes, mended)
    return Mending(positions[mended], codes[mended]), positions[~mended]
