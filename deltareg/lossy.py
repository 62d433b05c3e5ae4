"""One tensor of a lossy delta: what must be known of all of it first, and its frames.

Where a delta is asked for that need not be exact, matrices are approximated; what is small and matters (norms, biases),
what is no number, and what holds an infinity or a NaN is stored exactly all the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from deltareg.checkpoint import Tensor
from deltareg.codec import (
    FRAME_LANES,
    Array,
    EncodedFrame,
    Factors,
    Kind,
    Lane,
    LowRank,
    Mode,
    Preset,
    RecordHead,
    decode_frame,
    encode_given,
    kernels,
    lane_of,
)
from deltareg.codec.lanes import DELTA_DTYPES
from deltareg.codec.lowrank import add_rest, fits, matrix_of
from deltareg.codec.memory import empty, frame_memory, read_typed
from deltareg.codec.quantise import Cut, counts_of, cut_at, greatest, keep_greatest, last_of, levelled, rounded, signs
from deltareg.codec.tiers import Tier
from deltareg.codec.truncate import nearest_factors
from deltareg.errors import DeltaregError
from deltareg.merge import Addend
from deltareg.progress import SILENT, Progress

__all__ = ["Approximated", "LossyTensor", "lossy_tensor"]

# Beyond the outermost level: what is rarer is kept as it is. Measured on the MiniLM pair: a few values far out would
# otherwise set the levels of 8 bits apart; of 4 bits, each of 0, 0.1, 0.3 and 1 % buys more than a finer step for the
# same bits would, and 2 % less.
_BEYOND = {"int8": (255, 0.0001), "int4": (15, 0.01)}
# Magnitudes that cannot be approximated: those that float16 lacks (differences are judged by their bfloat16, the last
# below is 65,280), and those whose factors might have an infinite product.
_TOO_MUCH = {"fp16": 65_536.0, "rank": 1e30, "bit1": 1e30}
# Sides of a matrix for each rank of what `bit1` keeps of it beside the signs: for a square one half a bit a number.
_SIDES_A_RANK = 64

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
    """What is known of a whole tensor: whether it can be approximated, and where its greatest differences begin.

    `first` is the frame that keeps at least one of them, where each frame's share of those might be none.
    """

    fits: bool
    cut: Cut | None = None
    first: int | None = None


@dataclass(frozen=True)
class _Product:
    """Factors of a tensor, and their frames as the record has them."""

    factors: Factors
    frames: list[bytes]


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
        self._greatest = [0] * self._frames
        self._lock = threading.Lock()
        self._surveyed: Future[_Survey] = Future()
        self._product: Future[_Product | None] = Future()
        self._rank = self._wanted_rank()
        if self._rank == 0:
            self._product.set_result(None)

    def survey(self) -> list[_Step]:
        """The steps that look at all of it."""
        looking: list[_Step] = [partial(self._look, number) for number in range(self._frames)]
        return [*looking, self._factorise] if self._rank else looking

    @property
    def nbytes(self) -> int:
        """Bytes that looking at all of it reads."""
        return self._base.nbytes + self._post.nbytes

    @property
    def factor_frames(self) -> list[bytes]:
        """The frames that come before those of the tensor: of its factors, if it has such."""
        product = self._product.result()
        return [] if product is None else product.frames

    @property
    def head(self) -> RecordHead | None:
        """The head of its record; None where it is stored exactly."""
        if not self._surveyed.result().fits:
            return None
        product = self._product.result()
        if product is not None:
            return RecordHead.of_product(self._post.dtype, self._post.shape, product.factors.low_rank)
        lane = lane_of("F16" if self._tier.kind == "fp16" else "BF16")
        own = lane.dtype if lane.holds(lane_of(self._post.dtype)) else None
        return RecordHead.of(self._base.dtype, self._post.dtype, self._post.shape, own)

    def encode(self, head: RecordHead, number: int, base: Array, post: Array) -> Approximated:
        """Frame `number`, for these lanes (bits of base and of post). In frame memory.

        Raises DeltaregError where decoding the frame does not give what was put into it.
        """
        assert head.base is not None
        typed = base.view(head.base.stored)
        difference = empty(post.size, np.float64)
        kernels.subtract(typed, post.view(head.post.stored), difference)
        if head.low_rank is None:
            frame, delta = self._stored(self._approximated(difference, number), head.delta)
        else:
            frame, delta = self._product_and_rest(head.low_rank, number, difference)
        return Approximated(
            replace(frame, base_squares=kernels.sum_of_squares(typed)),
            delta,
            kernels.sum_of_squares(difference),
            kernels.squared_distance(difference, delta),
        )

    def _stored(self, delta: Array, lane: Lane) -> tuple[EncodedFrame, Array]:
        """The frame that stores `delta`, and what decoding it gives, the marker for zero."""
        frame = encode_given(delta, lane, self._preset)
        decoded = decode_frame(memoryview(frame.data), delta.size, None, lane)
        found = Addend(decoded, lane, lane, 1.0).symbols
        bits = delta.view(lane.bits)
        self._expect(found, np.where(bits == 0, lane.marker, bits))
        return frame, found.view(lane.stored)

    def _product_and_rest(self, low_rank: LowRank, number: int, difference: Array) -> tuple[EncodedFrame, Array]:
        product = self._product.result()
        assert product is not None
        symbols = product.factors.product.symbols(number * FRAME_LANES, difference.size)
        frame = EncodedFrame(b"", Kind.ZERO, 0)
        if low_rank.rest is not None:
            wide = empty(symbols.size, np.float64)
            kernels.widen_all(symbols.view(np.float32), wide)
            frame, _ = self._stored(signs(difference - wide), low_rank.rest)
            add_rest(symbols, decode_frame(memoryview(frame.data), symbols.size, None, low_rank.rest), low_rank.rest)
        delta = symbols.view(np.float32)
        changed = int(np.count_nonzero(symbols != lane_of("F32").marker))
        return replace(frame, changed=changed, delta_squares=kernels.sum_of_squares(delta)), delta

    def _expect(self, found: Array, expected: Array) -> None:
        if not kernels.equal(found, expected):
            raise DeltaregError(
                f"encoding {self._post.name!r} did not give what was put into it; nothing was stored",
                hint="this is a defect of deltareg: please report it with the names of both checkpoints",
                tensor=self._post.name,
            )

    def _approximated(self, difference: Array, number: int) -> Array:
        kind = self._tier.kind
        if kind in _BEYOND:
            return levelled(difference, *_BEYOND[kind])
        if kind == "bit1":
            return signs(difference)
        if kind == "topk":
            survey = self._surveyed.result()
            assert survey.cut is not None
            return keep_greatest(difference, survey.cut, least=int(number == survey.first))
        return rounded(difference, lane_of("F16" if kind == "fp16" else "BF16"))

    def _wanted_rank(self) -> int:
        """The rank of its factors; 0 where it gets none: where there cannot be, or where they would not be smaller."""
        rows, columns = matrix_of(self._post.shape)
        rank = {"rank": self._tier.rank, "bit1": max(1, min(rows, columns) // _SIDES_A_RANK)}.get(self._tier.kind, 0)
        rank = min(rank, rows, columns)
        smaller = rank * (rows + columns) < rows * columns / (16 if self._tier.kind == "bit1" else 1)
        alike = self._base.dtype == self._post.dtype and self._post.dtype in DELTA_DTYPES
        return rank if rank and smaller and alike and fits(self._post.shape, rank) else 0

    def _factorise(self) -> None:
        try:
            product = None
            if self._surveyed.result().fits:
                shape = matrix_of(self._post.shape)
                found = nearest_factors(self._stretches, shape, self._rank, self._post.name)
                half = lane_of("BF16")
                rest = half if self._tier.kind == "bit1" else None
                bits = [rounded(factor.reshape(-1).astype(np.float64), half) for factor in found]
                factors = Factors(LowRank(self._rank, half, half, 1.0, rest), *bits)
                product = _Product(factors, self._verified(factors))
            self._product.set_result(product)
        except BaseException as error:
            self._product.set_exception(error)
            raise

    def _verified(self, factors: Factors) -> list[bytes]:
        """The frames of factors, decoded again."""
        frames = list(factors.encode(self._preset))
        at = 0
        for bits, lane in ((factors.left, factors.low_rank.left), (factors.right, factors.low_rank.right)):
            for start in range(0, bits.size, FRAME_LANES):
                part = bits[start : start + FRAME_LANES]
                found = decode_frame(memoryview(frames[at]), part.size, None, lane).symbols
                self._expect(np.empty(0, lane.bits) if found is None else found, part)
                at += 1
        return frames

    def _stretches(self) -> Iterator[tuple[int, Array]]:
        """The difference in stretches of rows, about a frame each: the number of the first, and the rows."""
        rows, columns = matrix_of(self._post.shape)
        step = max(1, FRAME_LANES // columns)
        for row in range(0, rows, step):
            count = min(step, rows - row)
            difference = np.empty(count * columns, np.float64)
            with frame_memory():
                both = [read_typed(tensor, row * columns, count * columns) for tensor in (self._base, self._post)]
                kernels.subtract(*both, difference)
            yield row, difference.reshape(count, columns)

    def _look(self, number: int) -> None:
        try:
            with frame_memory():
                first = number * FRAME_LANES
                count = min(FRAME_LANES, self._lanes - first)
                difference = empty(count, np.float64)
                kernels.subtract(read_typed(self._base, first, count), read_typed(self._post, first, count), difference)
                counts = counts_of(difference)
            self._progress.advance(count * (self.nbytes // self._lanes))
            with self._lock:
                # Integers: the order in which frames come makes no difference.
                self._counts += counts
                self._greatest[number] = last_of(counts)
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
        most = greatest(self._counts)
        # Where nothing differs, or the signs of zeros at most, what is exact is the smallest.
        able = 0 < most < _TOO_MUCH.get(self._tier.kind, math.inf)
        if not able or self._tier.kind != "topk":
            return _Survey(able)
        cut, last = cut_at(self._counts, self._tier.share), last_of(self._counts)
        return _Survey(able, cut, self._greatest.index(last) if cut.magnitude == last else None)
