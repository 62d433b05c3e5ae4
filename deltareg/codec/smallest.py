"""The smallest frames: one lane of 1.0, in every way in which such a lane can be stored.

Decoding them runs each loop once, which is how `apply` has its loops loaded before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltareg.codec.choose import Kind
from deltareg.codec.frame import FRAME_HEAD, Flag
from deltareg.codec.lanes import Lane
from deltareg.codec.mend import can_mend

__all__ = ["smallest_frames"]

_FIRST = b"\1\0\1\0"  # one position: 0
_ESCAPED = {255: b"\xff\0\1\0\0", 15: b"\x0f\0\1\0\0"}  # no rank, one escape, an empty table


def smallest_frames(lane: Lane, *, adds: bool) -> Iterator[bytes]:
    """Frames of one lane, mended where lanes of this kind can be and something is added."""
    planes = _raw(b"\x7f") + _raw(b"\0") * (lane.width - 1)
    mending = _FIRST + _raw(b"\0") * lane.width if adds and lane.additive and can_mend(lane) else b""
    bodies = [(Kind.PLANES, planes), (Kind.SPARSE, _FIRST + bytes((Kind.PLANES,)) + planes)]
    if lane.width == 2:
        bodies += [(Kind.PALETTE, escaped + _raw(b"\0") + planes) for escaped in _ESCAPED.values()]
    for kind, body in bodies:
        yield FRAME_HEAD.pack(kind, Flag.MENDING if mending else 0, len(body) + len(mending)) + body + mending
    if lane.width == 2 and lane.additive:
        yield FRAME_HEAD.pack(Kind.ARITHMETIC, 0, 1) + b"\0"


def _raw(byte: bytes) -> bytes:
    """A stream of one byte as it is."""
    return b"\0\1" + byte
