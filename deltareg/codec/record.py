"""A record: what a delta holds of one tensor, a head and its frames.

    head   := "DRec", version u8, mode u8, base dtype u8, post dtype u8, dimensions u8, [delta dtype u8], extent …
    record := head, frame …     (every frame but the last has 1 Mi lanes)

Extents are numbers in base 128. A base dtype of 0 means that base lacks the tensor. The delta's dtype is there in mode
2 alone; otherwise it is post's, but F32 in modes 3 and 4, where what `lowrank.py` tells of factors follows the head.
The lanes follow from post's dtype and the shape.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from deltareg.codec.lanes import DELTA_DTYPES, FRAME_LANES, Lane, lane_of
from deltareg.codec.lowrank import FACTORS_LIMIT, LowRank
from deltareg.codec.streams import StreamReader, pack_number
from deltareg.errors import BadRecord, UnsupportedFormat

__all__ = ["HEAD_LIMIT", "Mode", "RecordHead", "frame_counts"]

_MAGIC = b"DRec"
_VERSION = 1
_FIXED = struct.Struct("<4sBBBBB")
_MOST_DIMENSIONS = 64
# Frames are listed in memory, and one can be 6 bytes: a record must not say that it has millions of them.
_MOST_ELEMENTS = 2**40

HEAD_LIMIT = _FIXED.size + 1 + 10 * _MOST_DIMENSIONS + FACTORS_LIMIT
"""Bytes that a head has at most."""


# Adds, with a dtype of the delta's own: to whoever uses the record it is of mode ADD.
_ADD_OWN = 2
# Adds F32 that is the product of two factors.
_ADD_PRODUCT = 3
# The same, and a number for each lane that is added to the product.
_ADD_PRODUCT_AND_REST = 4
_PRODUCTS = (_ADD_PRODUCT, _ADD_PRODUCT_AND_REST)


class Mode(IntEnum):
    """What the frames' symbols are for. The numbers are part of the format."""

    ADD = 0
    REPLACE = 1


@dataclass(frozen=True)
class RecordHead:
    """The head of a record. `base` is None where base lacks the tensor; `delta` is the lane of the symbols.

    `low_rank` is given where the record holds factors, and its symbols are their product.
    """

    mode: Mode
    base: Lane | None
    post: Lane
    shape: tuple[int, ...]
    delta: Lane
    low_rank: LowRank | None = None

    @classmethod
    def of(
        cls, base_dtype: str | None, post_dtype: str, shape: tuple[int, ...], delta_dtype: str | None = None
    ) -> RecordHead:
        """The head for a tensor of `post_dtype`, whose D1 is held in `delta_dtype` where that is not post's.

        Numbers are added; a tensor that base lacks, or that is no number on one side, is replaced.
        """
        post = lane_of(post_dtype)
        base = None if base_dtype is None else lane_of(base_dtype)
        mode = Mode.ADD if base is not None and base.adds_to(post) else Mode.REPLACE
        return cls(mode, base, post, shape, post if delta_dtype is None else lane_of(delta_dtype))

    @classmethod
    def of_product(cls, base_dtype: str, shape: tuple[int, ...], low_rank: LowRank) -> RecordHead:
        """The head for a tensor of one dtype in base and post, to which a product of factors is added."""
        return replace(cls.of(base_dtype, base_dtype, shape, "F32"), low_rank=low_rank)

    @property
    def delta_dtype(self) -> str | None:
        """The dtype of D1, None where it is post's."""
        return None if self.delta == self.post else self.delta.dtype

    @property
    def mended_base(self) -> Lane | None:
        """The lane of base where frames may mend and overwrite: where D1 is in post's own dtype, and added."""
        own = self.delta != self.post or self.low_rank is not None
        return self.base if self.mode is Mode.ADD and not own else None

    @property
    def lanes(self) -> int:
        """Lanes of post."""
        return self.post.lanes_of(math.prod(self.shape))

    @property
    def sparse(self) -> bool:
        """Whether a replacing record may leave lanes as the target has them."""
        return self.mode is Mode.REPLACE and self.base == self.post

    def pack(self) -> bytes:
        """The head's bytes."""
        base = 0 if self.base is None else self.base.code
        mode, delta = int(self.mode), b""
        if self.low_rank is not None:
            mode = _ADD_PRODUCT if self.low_rank.rest is None else _ADD_PRODUCT_AND_REST
        elif self.delta != self.post:
            mode, delta = _ADD_OWN, bytes((self.delta.code,))
        fixed = _FIXED.pack(_MAGIC, _VERSION, mode, base, self.post.code, len(self.shape))
        factors = b"" if self.low_rank is None else self.low_rank.pack()
        return b"".join((fixed, delta, *map(pack_number, self.shape), factors))

    @classmethod
    def parse(cls, data: bytes) -> tuple[RecordHead, int]:
        """Read a head from the start of a record; also returns its length.

        Raises BadRecord, and UnsupportedFormat for another version, an unknown mode or an unknown dtype.
        """
        if len(data) < _FIXED.size:
            raise BadRecord("a record ends in its head")
        magic, version, mode, base, post, dimensions = _FIXED.unpack_from(data)
        if magic != _MAGIC:
            raise BadRecord(f"a record starts with {magic!r} instead of {_MAGIC!r}")
        if version != _VERSION:
            raise UnsupportedFormat(
                f"a record has version {version}; this deltareg reads version {_VERSION}",
                hint="install a newer deltareg",
            )
        if mode not in (Mode.ADD, Mode.REPLACE, _ADD_OWN, *_PRODUCTS):
            raise UnsupportedFormat(f"a record has the unknown mode {mode}", hint="install a newer deltareg", mode=mode)
        if dimensions > _MOST_DIMENSIONS:
            raise BadRecord(f"a record has {dimensions} dimensions")
        reader = StreamReader(memoryview(data)[_FIXED.size :])
        after = lane_of(post)
        delta = lane_of(reader.byte()) if mode == _ADD_OWN else lane_of("F32") if mode in _PRODUCTS else after
        shape = tuple(reader.number() for _ in range(dimensions))
        if math.prod(shape) > _MOST_ELEMENTS:
            raise BadRecord(f"a record of shape {list(shape)} has too many elements")
        has_rest = mode == _ADD_PRODUCT_AND_REST
        low_rank = LowRank.parse(reader, shape, has_rest=has_rest) if mode in _PRODUCTS else None
        own = mode == _ADD_OWN or mode in _PRODUCTS
        head = cls(Mode.ADD if own else Mode(mode), lane_of(base) if base else None, after, shape, delta, low_rank)
        due = cls.of(None if head.base is None else head.base.dtype, after.dtype, shape).mode
        if head.mode is not due:
            raise BadRecord(f"a record of {after.dtype} has mode {head.mode.name} where {due.name} is due")
        one = head.base is not None and head.base.dtype == after.dtype in DELTA_DTYPES
        fits = one if low_rank is not None else delta.holds(after)
        if own and not fits:
            raise BadRecord(f"a record that adds to {after.dtype} holds its delta in {delta.dtype}")
        return head, _FIXED.size + reader.position


def frame_counts(lanes: int) -> Iterator[int]:
    """The number of lanes of each frame of a record, in order."""
    for start in range(0, lanes, FRAME_LANES):
        yield min(FRAME_LANES, lanes - start)
