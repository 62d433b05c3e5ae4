"""A frame: the delta of up to 1 Mi lanes of one tensor, decodable alone.

    frame := kind u8, flags u8, length of body u32, body
    body  := symbols as their kind stores them, [mending (flag 1)], [overwrites (flag 2)]

All integers are little-endian. `docs/format.md` has every byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

import numpy as np

from deltareg.codec import kernels
from deltareg.codec.choose import Kind, decode_symbols, decode_tokens, encode_bits, encode_symbols
from deltareg.codec.lanes import Array, Lane
from deltareg.codec.memory import empty
from deltareg.codec.mend import Mending, Overwrites, can_mend, find_mending
from deltareg.codec.palette import Tokens
from deltareg.codec.streams import Preset, StreamReader
from deltareg.errors import BadRecord

__all__ = [
    "FRAME_HEAD",
    "EncodedFrame",
    "Flag",
    "Frame",
    "decode_frame",
    "encode_difference",
    "encode_given",
    "encode_replaced",
    "encode_unchanged",
    "replaced",
    "zero_frame",
]

FRAME_HEAD = struct.Struct("<BBI")


class Flag(IntFlag):
    """What a frame has beside its symbols. The numbers are part of the format."""

    MENDING = 1
    OVERWRITES = 2


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    `symbols` holds one unsigned integer for each lane, or for each of `positions` (int64, ascending) where these are
    given; None where no lane changes, and where `tokens` has them, still to be looked up.
    """

    lanes: int
    symbols: Array | None
    positions: Array | None = None
    mending: Mending | None = None
    overwrites: Overwrites | None = None
    tokens: Tokens | None = None

    @property
    def unchanged(self) -> bool:
        """Whether no lane changes."""
        return self.symbols is None and self.tokens is None


@dataclass(frozen=True)
class EncodedFrame:
    """A frame's bytes and what there is to tell about it: counts of lanes, and sums of squares of base and D1."""

    data: bytes
    kind: Kind
    changed: int
    mended: int = 0
    overwritten: int = 0
    base_squares: float = 0.0
    delta_squares: float = 0.0


def encode_difference(base: Array, post: Array, base_lane: Lane, lane: Lane, preset: Preset) -> EncodedFrame:
    """The frame that turns the lanes `base` into `post`, both additive and typed as `kernels.py` says."""
    delta = empty(post.size, lane.stored)
    symbols = delta.view(lane.bits)
    states = empty(post.size, np.uint8)
    kernels.difference(base, post, delta, symbols, lane.marker, states)
    changed, wrong = map(int, kernels.count_states(states))
    mending, overwrites = None, None
    if wrong:
        positions = np.empty(wrong, np.int64)
        kernels.find_state(states, 2, positions)
        mending, overwrites = _mend(base, post, delta, symbols, positions, base_lane, lane)
    chosen = encode_symbols(symbols, lane, preset, marked=changed < post.size or overwrites is not None)
    flags = 0
    body = [chosen.body]
    if mending is not None:
        flags |= Flag.MENDING
        body.append(mending.encode(lane, preset))
    if overwrites is not None:
        flags |= Flag.OVERWRITES
        body.append(overwrites.encode(base_lane, lane, preset))
    return EncodedFrame(
        b"".join((FRAME_HEAD.pack(chosen.kind, flags, sum(map(len, body))), *body)),
        chosen.kind,
        changed,
        0 if mending is None else mending.positions.size,
        0 if overwrites is None else overwrites.positions.size,
        kernels.sum_of_squares(base),
        chosen.squares,
    )


def encode_given(delta: Array, lane: Lane, preset: Preset) -> EncodedFrame:
    """The frame that adds just the numbers `delta`, typed as `kernels.py` says; where they are zero nothing changes."""
    symbols = delta.view(lane.bits).copy()
    symbols[symbols == 0] = lane.marker
    changed = int(np.count_nonzero(symbols != lane.marker))
    chosen = encode_symbols(symbols, lane, preset, marked=changed < symbols.size)
    head = FRAME_HEAD.pack(chosen.kind, 0, len(chosen.body))
    return EncodedFrame(head + chosen.body, chosen.kind, changed, delta_squares=chosen.squares)


def encode_unchanged(base: Array, lane: Lane) -> EncodedFrame:
    """The frame for lanes (of `lane.bits`) that are the same in base and post."""
    squares = kernels.sum_of_squares(base.view(lane.stored)) if lane.additive else 0.0
    return EncodedFrame(zero_frame(), Kind.ZERO, 0, base_squares=squares)


def encode_replaced(base: Array | None, post: Array, lane: Lane, preset: Preset) -> EncodedFrame:
    """The frame that puts `post`'s bits in the place of `base`'s: all of them where there is no base.

    Both are arrays of `lane.bits`.
    """
    changed = None if base is None else np.flatnonzero(base != post)
    kind, body = encode_bits(post, lane, preset, changed, marked=False)
    count = post.size if changed is None else changed.size
    return EncodedFrame(FRAME_HEAD.pack(kind, 0, len(body)) + body, kind, count)


def decode_frame(
    data: memoryview, lanes: int, base_lane: Lane | None, lane: Lane, *, keep_tokens: bool = False
) -> Frame:
    """Read one whole frame, of `lanes` lanes. Raises BadRecord.

    `lane` is that of its symbols. `base_lane` is given where the frame may mend and overwrite: where it adds to
    something, in post's own dtype. With `keep_tokens`, the frame has the tokens of a palette in place of their symbols.
    """
    if len(data) < FRAME_HEAD.size:
        raise BadRecord("a frame ends in its head")
    kind, flags, length = FRAME_HEAD.unpack_from(data)
    if length != len(data) - FRAME_HEAD.size or flags & ~3:
        raise BadRecord(f"a frame's head says {length} bytes and flags {flags}; it has {len(data)} bytes")
    if flags and base_lane is None:
        raise BadRecord("a frame mends a tensor that nothing is added to, or nothing in post's own dtype")
    reader = StreamReader(data[FRAME_HEAD.size :])
    decode = decode_tokens if keep_tokens else decode_symbols
    found, positions = decode(reader, kind, lanes, lane)
    mending, overwrites = None, None
    if flags & Flag.MENDING:
        mending = Mending.decode(reader, lanes, lane)
        if found is None or not lane.additive or not can_mend(lane):
            raise BadRecord("a frame mends lanes that do not change, or that are never mended")
        _check_mended(found, positions, mending.positions, lane)
    if flags & Flag.OVERWRITES and base_lane is not None:
        overwrites = Overwrites.decode(reader, lanes, base_lane, lane)
    reader.close()
    if isinstance(found, Tokens):
        return Frame(lanes, None, positions, mending, overwrites, found)
    return Frame(lanes, found, positions, mending, overwrites)


def _check_mended(symbols: Array | Tokens, positions: Array | None, mended: Array, lane: Lane) -> None:
    """Only a D1 that is finite and not zero has a second term: of no other the distance to its neighbours is known."""
    places = mended
    if positions is not None:
        places = np.searchsorted(positions, mended)
        if mended.size and (places[-1] == positions.size or np.any(positions[places] != mended)):
            raise BadRecord("a frame mends lanes that do not change")
    if isinstance(symbols, Tokens):
        symbols, places = symbols.at(places), np.arange(places.size)
    if not kernels.are_numbers(symbols, places, lane.marker, lane.infinity):
        raise BadRecord("a frame mends lanes whose difference is zero or not finite")


def _mend(
    base: Array, post: Array, delta: Array, symbols: Array, wrong: Array, base_lane: Lane, lane: Lane
) -> tuple[Mending | None, Overwrites | None]:
    mending, lost = find_mending(base, post, delta, wrong, lane)
    overwrites = None
    if lost.size:
        overwrites = Overwrites(lost, base[lost].view(base_lane.bits), post[lost].view(lane.bits))
        # What stands at an overwritten lane is for other bases: nothing, where the difference is no finite number.
        wide = np.empty(lost.size, np.float64)
        kernels.widen_all(delta[lost], wide)
        symbols[lost[~np.isfinite(wide)]] = lane.marker
    return (mending if mending.positions.size else None), overwrites


def zero_frame() -> bytes:
    """The frame that says that nothing changes."""
    return FRAME_HEAD.pack(Kind.ZERO, 0, 0)


def replaced(target: Array | None, frame: Frame, lane: Lane) -> Array:
    """The lanes (of `lane.bits`) that a frame of a replacing record gives, where `target` has one on that of `target`.

    Raises BadRecord where the frame leaves lanes to a target that is not there.
    """
    if frame.symbols is not None and frame.positions is None:
        return frame.symbols
    if target is None:
        raise BadRecord("a frame leaves lanes open that the target does not have")
    out = target.copy()
    if frame.symbols is not None:
        out[frame.positions] = frame.symbols
    return out
