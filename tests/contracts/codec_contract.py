"""What every record kind must do. A test class of a kind inherits from this and gives a sample of it."""

from __future__ import annotations

import random
import struct
import tracemalloc
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from deltareg.codec import EncodedFrame, Frame, Kind, Preset, lane_of
from deltareg.errors import BadRecord
from tests.codec.tensors import ADDITIVE, decode, encode, produced, reproduce

__all__ = ["CodecContract"]

Array = NDArray[Any]

_HEAD = struct.Struct("<BBI")


def _ends(length: int) -> list[int]:
    """Where to cut: everywhere, or at a sample of places where these are too many."""
    if length <= 3000:
        return list(range(length))
    middle = random.Random(length).sample(range(300, length - 50), 1000)
    return [*range(300), *sorted(middle), *range(length - 50, length)]


PRESETS: tuple[Preset, ...] = ("fast", "small")


class CodecContract:
    """Subclasses name the kind, and a number of lanes that it is chosen for, and define `sample`."""

    kind: ClassVar[Kind]
    size: ClassVar[int]
    base_dtype: ClassVar[str | None] = "BF16"
    dtype: ClassVar[str] = "BF16"

    def sample(self, size: int) -> tuple[Array | None, Array]:
        """The bits of base (None where it lacks the tensor) and post, `size` lanes, that this kind is chosen for."""
        raise NotImplementedError

    def encoded(self, preset: Preset = "fast") -> EncodedFrame:
        base, post = self.sample(self.size)
        return encode(self.base_dtype, self.dtype, base, post, preset)

    def decoded(self, data: bytes, size: int | None = None) -> Frame:
        return decode(data, self.size if size is None else size, self.base_dtype, self.dtype)

    # --- what it is for ---

    def test_sample_is_reproduced_bit_for_bit(self) -> None:
        base, post = self.sample(self.size)
        fast, _ = reproduce(self.base_dtype, self.dtype, base, post, "fast")
        small, _ = reproduce(self.base_dtype, self.dtype, base, post, "small")
        assert fast.kind is self.kind
        assert len(small.data) <= len(fast.data)
        assert small.changed == fast.changed

    @pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17])
    def test_few_lanes_are_reproduced_bit_for_bit(self, size: int) -> None:
        base, post = self.sample(self.size)
        reproduce(self.base_dtype, self.dtype, None if base is None else base[:size], post[:size])

    @pytest.mark.parametrize("preset", PRESETS)
    def test_same_lanes_give_the_same_bytes(self, preset: Preset) -> None:
        assert self.encoded(preset) == self.encoded(preset)

    def test_lanes_that_do_not_change_are_left_as_any_target_has_them(self) -> None:
        base, post = self.sample(self.size)
        frame = self.decoded(self.encoded().data)
        target = None if base is None else base ^ base.dtype.type(1)
        got = produced(frame, self.base_dtype, self.dtype, target)
        adds = self.base_dtype in ADDITIVE and self.dtype in ADDITIVE
        # A tensor that is replaced may be replaced as a whole.
        thin = frame.symbols is None or frame.positions is not None
        kept = np.zeros(post.size, bool)
        if base is not None and target is not None and self.base_dtype == self.dtype and (adds or thin):
            kept = base == post
            assert np.array_equal(got[kept], target[kept])
        if not adds:
            assert np.array_equal(got[~kept], post[~kept])

    # --- what it is not taken in by ---

    def test_truncated_frame_is_refused(self) -> None:
        data = self.encoded().data
        for end in _ends(len(data)):
            with pytest.raises(BadRecord):
                self.decoded(data[:end])

    def test_truncated_body_is_refused(self) -> None:
        data = self.encoded().data
        kind, flags, length = _HEAD.unpack_from(data)
        for end in _ends(length):
            with pytest.raises(BadRecord):
                self.decoded(_HEAD.pack(kind, flags, end) + data[_HEAD.size : _HEAD.size + end])

    def test_bytes_after_the_body_are_refused(self) -> None:
        data = self.encoded().data
        kind, flags, length = _HEAD.unpack_from(data)
        with pytest.raises(BadRecord):
            self.decoded(data + b"\0")
        with pytest.raises(BadRecord):
            self.decoded(_HEAD.pack(kind, flags, length + 1) + data[_HEAD.size :] + b"\0")

    @pytest.mark.parametrize("lanes", [0, 1, 2999, 3001, 20001, 1 << 20])
    def test_other_number_of_lanes_is_refused_or_safe(self, lanes: int) -> None:
        self.check_safe(self.encoded().data, lanes)

    def test_flipped_bits_are_refused_or_safe(self) -> None:
        data = self.encoded().data
        draw = random.Random(self.kind)
        bits = range(8 * len(data))
        for bit in bits if len(bits) <= 2000 else draw.sample(bits, 2000):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            self.check_safe(bytes(damaged), self.size)

    def test_memory_is_bounded_by_the_lanes(self) -> None:
        data = self.encoded().data
        draw = random.Random(self.kind)
        self.check_safe(data, self.size)
        tracemalloc.start()
        try:
            for _ in range(300):
                damaged = bytearray(data)
                at = draw.randrange(len(data))
                damaged[at : at + draw.choice((1, 4, 5))] = draw.choice((b"\xff" * 4 + b"\x7f", b"\xff\xff\x7f"))
                length = len(damaged) - _HEAD.size
                if at >= _HEAD.size:
                    damaged[2:6] = length.to_bytes(4, "little")
                self.check_safe(bytes(damaged), self.size)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 * self.size * lane_of(self.dtype).width + (1 << 20)

    def check_safe(self, data: bytes, lanes: int) -> None:
        """Either the frame is refused, or it is one of so many lanes, which can be used."""
        try:
            frame = self.decoded(data, lanes)
        except BadRecord:
            return
        lane = lane_of(self.dtype)
        assert frame.lanes == lanes
        for part in (frame, frame.mending, frame.overwrites):
            positions = None if part is None else part.positions
            if positions is not None and positions.size:
                assert positions[0] >= 0 and positions[-1] < lanes and np.all(np.diff(positions) > 0)
        if frame.symbols is not None:
            assert frame.symbols.dtype == lane.bits
            assert frame.symbols.size == (lanes if frame.positions is None else frame.positions.size)
        if self.base_dtype is None and (frame.symbols is None or frame.positions is not None):
            return  # `RecordReader` refuses it
        target = None if self.base_dtype is None else np.zeros(lanes, lane_of(self.base_dtype).bits)
        assert produced(frame, self.base_dtype, self.dtype, target).size == lanes
