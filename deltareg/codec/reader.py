"""Reading the record of one tensor from the packs that hold its parts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np

from deltareg.artifact import Part
from deltareg.checkpoint import ByteSource
from deltareg.codec.frame import FRAME_HEAD, Frame, decode_frame, zero_frame
from deltareg.codec.lanes import FRAME_LANES, Array, Lane, view_of
from deltareg.codec.lowrank import StoredProduct, add_rest, matrix_of
from deltareg.codec.memory import empty
from deltareg.codec.record import HEAD_LIMIT, Mode, RecordHead, frame_counts
from deltareg.errors import BadRecord
from deltareg.manifest import TensorEntry

__all__ = ["FrameRange", "RecordReader"]

# What a frame can need at worst: raw planes, positions, mending and overwrites of every lane, and their heads.
_FRAME_LIMIT = 64 * 2**20
_ZERO = zero_frame()


@dataclass(frozen=True)
class FrameRange:
    """Where one frame lies: `length` bytes of `source` from byte `start` on, for `lanes` lanes.

    It is `unchanged` where it says that none of them changes, and nothing else.
    """

    source: ByteSource
    start: int
    length: int
    lanes: int
    unchanged: bool


class RecordReader:
    """The head and the frames of one record.

    Opening it reads the heads of all frames, a few bytes for each million lanes. Frames can then be read in any order
    and from any thread. Raises BadRecord, UnsupportedFormat, naming the tensor.
    """

    def __init__(self, entry: TensorEntry, parts: Sequence[Part]) -> None:
        self.name = entry.name
        with self._told():
            if not parts:
                raise BadRecord("the record has no parts")
            first = parts[0]
            head, length = RecordHead.parse(first.source.read(first.start, min(first.length, HEAD_LIMIT)))
            self.head = head
            self._check_entry(entry)
            self.frames = self._walk(parts, length)
            self._product: StoredProduct | None = None
            if head.low_rank is not None:
                self._product = StoredProduct(*matrix_of(head.shape), head.low_rank, self._factor)

    @property
    def count(self) -> int:
        """How many frames there are to read."""
        return -(-self.head.lanes // FRAME_LANES)

    @property
    def frame_size(self) -> int:
        """Bytes of the record that a frame takes on average."""
        return sum(place.length for place in self.frames) // max(self.count, 1)

    def leaves_alone(self, number: int) -> bool:
        """Whether a frame, by its number, changes nothing, as far as that is known without reading it."""
        return self._product is None and self.head.mode is not Mode.REPLACE and self.frames[number].unchanged

    def read(self, number: int, *, keep_tokens: bool = False) -> Frame:
        """Decode a frame, by its number; `keep_tokens` is as in `decode_frame`."""
        if self._product is not None:
            first = number * FRAME_LANES
            lanes = min(FRAME_LANES, self.head.lanes - first)
            symbols = self._product.symbols(first, lanes)
            rest = None if self.head.low_rank is None else self.head.low_rank.rest
            if rest is not None:
                add_rest(symbols, self._read(len(self.frames) - self.count + number, None, rest), rest)
            return Frame(lanes, symbols)
        frame = self._read(number, self.head.mended_base, self.head.delta, keep_tokens=keep_tokens)
        whole = frame.symbols is not None and frame.positions is None
        if self.head.mode is Mode.REPLACE and not self.head.sparse and not whole:
            with self._told(self._where(number)):
                raise BadRecord("a frame leaves lanes open that the target does not have")
        return frame

    def factors(self) -> tuple[Array, Array]:
        """The factors of a record that holds such, as float32 of shapes (rows, rank) and (rank, columns)."""
        assert self._product is not None
        return self._product.factors()

    def _factor(self, number: int, lane: Lane) -> Array:
        """The bits of one stored frame of a factor."""
        frame = self._read(number, None, lane)
        if frame.symbols is None or frame.positions is not None:
            with self._told(self._where(number)):
                raise BadRecord("a frame leaves lanes of a factor open")
        return frame.symbols

    def _read(self, number: int, mended_base: Lane | None, lane: Lane, *, keep_tokens: bool = False) -> Frame:
        place = self.frames[number]
        with self._told(self._where(number)):
            data = view_of(empty(place.length, np.uint8))
            place.source.read_into(place.start, data)
            return decode_frame(data, place.lanes, mended_base, lane, keep_tokens=keep_tokens)

    def _where(self, number: int) -> str:
        place = self.frames[number]
        return f" in frame {number} (byte {place.start} of {place.source.name})"

    def _walk(self, parts: Sequence[Part], skipped: int) -> list[FrameRange]:
        counts = chain.from_iterable(map(frame_counts, self._stored_lanes()))
        frames: list[FrameRange] = []
        for part in parts:
            at = part.start + skipped
            end = part.start + part.length
            skipped = 0
            while at < end:
                lanes = next(counts, None)
                if lanes is None or end - at < FRAME_HEAD.size:
                    raise BadRecord(f"{end - at} bytes are left over after the last frame")
                head = part.source.read(at, FRAME_HEAD.size)
                length = FRAME_HEAD.unpack(head)[-1] + FRAME_HEAD.size
                if length > min(end - at, _FRAME_LIMIT):
                    raise BadRecord(f"a frame of {length} bytes does not fit into {end - at}")
                frames.append(FrameRange(part.source, at, length, lanes, bytes(head) == _ZERO))
                at += length
        if next(counts, None) is not None:
            raise BadRecord(f"the record ends after {len(frames)} frames, before its {sum(self._stored_lanes())} lanes")
        return frames

    def _stored_lanes(self) -> list[int]:
        """The lanes of what the frames hold: of the tensor, or of either factor and of what their product leaves."""
        if self.head.low_rank is None:
            return [self.head.lanes]
        factors = [self.head.low_rank.rank * side for side in matrix_of(self.head.shape)]
        return factors if self.head.low_rank.rest is None else [*factors, self.head.lanes]

    def _check_entry(self, entry: TensorEntry) -> None:
        base = None if self.head.base is None else self.head.base.dtype
        low_rank = self.head.low_rank
        # With a rest, the factors alone are not the delta: the entry does not tell of them.
        rank = None if low_rank is None or low_rank.rest is not None else low_rank.rank
        if rank != entry.rank:
            raise BadRecord(f"the record is of rank {rank}, the inventory says {entry.rank}")
        found = (base, self.head.post.dtype, self.head.delta_dtype, list(self.head.shape))
        if found != (entry.base_dtype, entry.post_dtype, entry.delta_dtype, entry.shape):
            said = _shown(entry.base_dtype, entry.post_dtype, entry.delta_dtype, entry.shape)
            raise BadRecord(f"the record is of {_shown(*found)}, the inventory says {said}")

    @contextmanager
    def _told(self, where: str = "") -> Generator[None]:
        try:
            yield
        except BadRecord as error:
            raise BadRecord(
                f"the record of {self.name!r} is not valid{where}: {error.message}",
                cause=error.cause or error.message,
                hint="deltareg cache fsck, then deltareg pull",
                tensor=self.name,
            ) from error


def _shown(base: str | None, post: str | None, delta: str | None, shape: list[int]) -> str:
    return f"{base} → {post} {shape}" + ("" if delta is None else f" with a delta of {delta}")
