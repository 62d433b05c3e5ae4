"""One tensor of a lossy delta: what must be known of all of it first, and its frames.

Where a delta is asked for that need not be exact, matrices are approximated; what is small and matters (norms, biases),
what is no number, and what holds an infinity or a NaN is stored exactly all the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from deltareg.checkpoint import Tensor
from deltareg.codec import (
    FRAME_LANES,
    Array,
    EncodedFrame,
    Mode,
    Preset,
    RecordHead,
    decode_frame,
    encode_given,
    kernels,
    lane_of,
)
from deltareg.codec.lanes import view_of
from deltareg.codec.memory import empty, frame_memory
from deltareg.codec.quantise import Cut, counts_of, cut_at, greatest, keep_greatest, levelled, rounded
from deltareg.codec.tiers import Tier
from deltareg.errors import DeltaregError
from deltareg.merge import Addend
from deltareg.progress import SILENT, Progress

__all__ = ["Approximated", "LossyTensor", "lossy_tensor"]

# Beyond the outermost level: what is rarer is kept as it is. Measured on the MiniLM pair: a few values far out would
# otherwise set the levels of 8 bits apart; of 4 bits, each of 0, 0.1, 0.3 and 1 % buys more than a finer step for the
# same bits would, and 2 % less.
_BEYOND = {"int8": (255, 0.0001), "int4": (15, 0.01)}
# A magnitude that float16 does not have; differences are judged by their bfloat16, the last below which is 65,280.
_TOO_MUCH = {"fp16": 65_536.0}

_Step = Callable[[], None]


@dataclass(frozen=True)
class Approximated:
    """A frame of an approximation, and D1 in it (typed as `kernels.py` says).

    `squares` is Σ Δ² of the difference that there is, `apart` Σ (Δ − D1)².
    """

    frame: EncodedFrame
    delta: Array
    squares: float
    apart: float


@dataclass(frozen=True)
class _Survey:
    """What is known of a whole tensor: whether it can be approximated, and where its greatest differences begin."""

    fits: bool
    cut: Cut | None = None


def lossy_tensor(
    base: Tensor | None, post: Tensor | None, tier: Tier, preset: Preset, progress: Progress = SILENT
) -> LossyTensor | None:
    """The tensor, where this tier approximates such ones; None where they are stored exactly."""
    if not tier.lossy or base is None or post is None or len(post.shape) < 2 or not post.nbytes:
        return None
    if RecordHead.of(base.dtype, post.dtype, post.shape).mode is not Mode.ADD:
        return None
    return LossyTensor(base, post, tier, preset, progress)


class LossyTensor:
    """A tensor that is approximated, unless surveying it shows that this cannot be.

    The steps of `survey` come before `head` and `encode`, which wait for them; all can be done in any thread.
    """

    def __init__(self, base: Tensor, post: Tensor, tier: Tier, preset: Preset, progress: Progress) -> None:
        self._base = base
        self._post = post
        self._tier = tier
        self._preset: Preset = preset
        self._progress = progress
        self._lanes = RecordHead.of(base.dtype, post.dtype, post.shape).lanes
        self._frames = -(-self._lanes // FRAME_LANES)
        self._missing = self._frames
        self._counts = np.zeros(1 << 15, np.int64)
        self._lock = threading.Lock()
        self._surveyed: Future[_Survey] = Future()

    def survey(self) -> list[_Step]:
        """The steps that look at all of it."""
        return [partial(self._look, number) for number in range(self._frames)]

    @property
    def nbytes(self) -> int:
        """Bytes that surveying it reads."""
        return self._base.nbytes + self._post.nbytes

    @property
    def head(self) -> RecordHead | None:
        """The head of its record; None where it is stored exactly."""
        if not self._surveyed.result().fits:
            return None
        lane = lane_of("F16" if self._tier.kind == "fp16" else "BF16")
        own = lane.dtype if lane.holds(lane_of(self._post.dtype)) else None
        return RecordHead.of(self._base.dtype, self._post.dtype, self._post.shape, own)

    def encode(self, head: RecordHead, base: Array, post: Array) -> Approximated:
        """The frame for these lanes (bits of base and of post). In frame memory.

        Raises DeltaregError where decoding the frame does not give what was put into it.
        """
        assert head.base is not None
        typed = base.view(head.base.stored)
        difference = empty(post.size, np.float64)
        kernels.subtract(typed, post.view(head.post.stored), difference)
        delta = self._approximated(difference)
        frame = replace(encode_given(delta, head.delta, self._preset), base_squares=kernels.sum_of_squares(typed))
        decoded = decode_frame(memoryview(frame.data), post.size, head.mended_base, head.delta)
        found = Addend(decoded, head.base, head.delta, 1.0)
        expected = np.where(delta.view(head.delta.bits) == 0, head.delta.marker, delta.view(head.delta.bits))
        if not kernels.equal(found.symbols, expected):
            raise DeltaregError(
                f"encoding {self._post.name!r} did not give what was put into it; nothing was stored",
                hint="this is a defect of deltareg: please report it with the names of both checkpoints",
                tensor=self._post.name,
            )
        apart = kernels.squared_distance(difference, found.delta)
        return Approximated(frame, found.delta, kernels.sum_of_squares(difference), apart)

    def _approximated(self, difference: Array) -> Array:
        kind = self._tier.kind
        if kind in _BEYOND:
            return levelled(difference, *_BEYOND[kind])
        if kind == "topk":
            cut = self._surveyed.result().cut
            assert cut is not None
            return keep_greatest(difference, cut)
        return rounded(difference, lane_of("F16" if kind == "fp16" else "BF16"))

    def _look(self, number: int) -> None:
        try:
            with frame_memory():
                first = number * FRAME_LANES
                count = min(FRAME_LANES, self._lanes - first)
                difference = empty(count, np.float64)
                kernels.subtract(_read(self._base, first, count), _read(self._post, first, count), difference)
                counts = counts_of(difference)
            self._progress.advance(count * (self.nbytes // self._lanes))
            with self._lock:
                # Integers: the order in which frames come makes no difference.
                self._counts += counts
                self._missing -= 1
                done = self._missing == 0
            if done:
                self._surveyed.set_result(self._settled())
        except BaseException as error:
            with self._lock:
                if not self._surveyed.done():
                    self._surveyed.set_exception(error)
            raise

    def _settled(self) -> _Survey:
        fits = greatest(self._counts) < _TOO_MUCH.get(self._tier.kind, math.inf)
        cut = cut_at(self._counts, self._tier.share) if fits and self._tier.kind == "topk" else None
        return _Survey(fits, cut)


def _read(tensor: Tensor, first: int, count: int) -> Array:
    """Lanes of a tensor, typed as `kernels.py` says."""
    lane = lane_of(tensor.dtype)
    bits = empty(count, lane.bits)
    tensor.read_into(first * lane.width, view_of(bits))
    return bits.view(lane.stored)
