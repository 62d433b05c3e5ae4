"""Stages that put off what they do, for one pass over all of it, give the bits of those that do it at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltareg.apply.merging import Merging, Part
from deltareg.codec import FRAME_LANES, Frame, lane_of
from deltareg.codec.mend import Mending
from deltareg.errors import InvalidArgument
from deltareg.merge import METHODS, Value
from deltareg.merge.deferred import Deferred
from deltareg.merge.processor import CPU
from tests.merge.merged import KEYS, OWN, given_to

Array = NDArray[Any]

BF16 = lane_of("BF16")
DEFERRING: list[tuple[str, Mapping[str, Value]]] = [
    ("linear", {"normalize": True, "lambda": 0.7}),
    ("ties", {"density": 0.3, "trim": "tensor"}),
    ("ties", {"density": 0.3, "trim": "tensor", "elect": "count", "normalize": "none", "lambda": -0.4}),
    ("ties", {"density": 0.3, "trim": "tensor", "elect": "unweighted", "normalize": "count"}),
    ("ties", {"density": 0.0, "trim": "tensor"}),
    ("ties", {"density": 1.0, "trim": "tensor"}),
    ("dare_linear", {"density": 0.4}),
    ("dare_linear", {"density": 0.0}),
    ("dare_ties", {"density": 0.4}),
    ("dare_ties", {"density": 1.0, "rescale": "none"}),
    ("della_linear", {"density": 0.5, "ramp": "ends"}),
    ("della", {"density": 0.4}),
    ("della", {"density": 0.4, "rescale": "none"}),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.2}),
    ("breadcrumbs_ties", {"density": 0.3, "gamma": 0.3}),
    ("breadcrumbs_ties", {"density": 0.9, "gamma": 0.9}),
    ("sce", {"select_topk": 0.3}),
    ("sce", {"select_topk": 0.0}),
    ("sce", {"select_topk": 1.0}),
    ("model_stock", {}),
    ("multislerp", {}),
    ("karcher", {}),
]
DEFERRING += [(name, {"own": True, **({"trim": "tensor"} if name == "ties" else {})}) for name in OWN]
BY_ROW = [(name, given) for name, given in DEFERRING if name.startswith("della")]
NAMES = [f"{name}-{'-'.join(map(str, given.values()))}" for name, given in DEFERRING]


def _frames(symbols: Array, mended: Array, number: int, lanes: int) -> Frame:
    """A frame with every way in which symbols can be told; `mended` are lanes of the tensor with second terms."""
    first = number * FRAME_LANES
    here = symbols[first : first + lanes]
    if (here == BF16.marker).all():
        return Frame(lanes, None)
    places = mended[(mended >= first) & (mended < first + lanes)] - first
    mending = Mending(places, np.arange(places.size, dtype=np.uint16) % 7) if places.size else None
    changed = np.flatnonzero(here != BF16.marker)
    if changed.size < lanes // 4:
        return Frame(lanes, here[changed].copy(), changed, mending)
    return Frame(lanes, here.copy(), None, mending)


def _merged(
    method: str,
    given: Mapping[str, Value],
    target: Array,
    deltas: Sequence[tuple[Array, Array]],
    weights: Sequence[float],
    row: int,
    *,
    defers: bool,
) -> tuple[Array, int]:
    """What becomes of `target`, and how many blocks were done in one pass."""
    parts = [
        Part(number, partial(_frames, symbols, mended), BF16, BF16, weight, key)
        for number, ((symbols, mended), weight, key) in enumerate(zip(deltas, weights, KEYS, strict=False))
    ]
    merging = Merging(
        target.size,
        row,
        parts,
        METHODS[method].stages(*given_to(method, given, len(deltas))),
        np.float32,
        defers=defers,
    )
    out = np.empty_like(target)
    deferred = 0

    def add(block: int, pairs: Any) -> None:
        nonlocal deferred
        first = block * merging.block_lanes
        lanes = min(merging.block_lanes, target.size - first)
        for here, merged in pairs:
            deferred += isinstance(merged, Deferred)
            before, after = (array[first : first + lanes][here] for array in (target, out))
            CPU.add_merged(before, BF16, merged, after, BF16)

    if merging.blocks == 1:
        CPU.step(lambda: add(0, merging.merge_alone()))
    else:
        for steps in merging.measuring():
            for step in steps:
                step()
        for block in range(merging.blocks):
            CPU.step(lambda block=block: add(block, merging.merge(block)))
    return out, deferred


def _both(method: str, given: Mapping[str, Value], *arguments: Any) -> None:
    try:
        at_once, none = _merged(method, given, *arguments, defers=False)
    except InvalidArgument as error:
        with pytest.raises(InvalidArgument, match=re.escape(error.message)):
            _merged(method, given, *arguments, defers=True)
        return
    in_one_pass, some = _merged(method, given, *arguments, defers=True)
    assert none == 0
    assert some > 0
    assert np.array_equal(at_once, in_one_pass)


def _delta(generator: np.random.Generator, lanes: int, unchanged: float) -> tuple[Array, Array]:
    """Few magnitudes, so that there are ties everywhere, unchanged lanes, and second terms at some of the others."""
    symbols = generator.integers(0x3700, 0x3740, lanes).astype(np.uint16)
    symbols |= generator.integers(0, 2, lanes).astype(np.uint16) << 15
    symbols[generator.random(lanes) < unchanged] = BF16.marker
    changed = np.flatnonzero(symbols != BF16.marker)
    return symbols, changed[generator.random(changed.size) < 0.05]


@pytest.mark.parametrize(("method", "given"), DEFERRING, ids=NAMES)
@pytest.mark.parametrize("count", [2, 3])
def test_a_tensor_of_several_frames_is_the_same_in_one_pass(
    method: str, given: Mapping[str, Value], count: int
) -> None:
    generator = np.random.default_rng(len(method) + count)
    lanes = FRAME_LANES + 3 * 4096
    target = generator.integers(0x3C00, 0x3F80, lanes).astype(np.uint16)
    deltas = [_delta(generator, lanes, share) for share in (0.2, 0.9, 0.0)[:count]]
    weights = (0.5, 0.25 if method == "karcher" else -0.25, 1.0)[:count]
    _both(method, given, target, deltas, weights, 4096)


@pytest.mark.parametrize(("method", "given"), DEFERRING, ids=NAMES)
def test_a_delta_that_leaves_a_frame_alone_is_the_same_in_one_pass(method: str, given: Mapping[str, Value]) -> None:
    generator = np.random.default_rng(5)
    lanes = 2 * FRAME_LANES
    target = generator.integers(0, 1 << 16, lanes).astype(np.uint16)
    deltas = [_delta(generator, lanes, 0.1), _delta(generator, lanes, 0.5)]
    symbols, mended = deltas[1]
    symbols[FRAME_LANES:] = BF16.marker
    deltas[1] = symbols, mended[mended < FRAME_LANES]
    _both(method, given, target, deltas, (0.6, 0.4), 4096)


@pytest.mark.parametrize(("method", "given"), BY_ROW, ids=[name for name, _ in BY_ROW])
@pytest.mark.parametrize("row", [5632, 11008, 24576])
def test_blocks_that_are_no_frames_are_the_same_in_one_pass(method: str, given: Mapping[str, Value], row: int) -> None:
    generator = np.random.default_rng(row)
    lanes = 3 * FRAME_LANES // row * row
    target = generator.integers(0x3C00, 0x3F80, lanes).astype(np.uint16)
    deltas = [_delta(generator, lanes, share) for share in (0.3, 0.9)]
    _both(method, given, target, deltas, (0.5, 0.75), row)


@pytest.mark.parametrize(("method", "given"), DEFERRING, ids=NAMES)
@settings(max_examples=15, deadline=None)  # the first compiles loops
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), row=st.integers(1, 3000), count=st.integers(1, 4))
def test_any_bits_are_the_same_in_one_pass(
    method: str, given: Mapping[str, Value], seed: int, rows: int, row: int, count: int
) -> None:
    generator = np.random.default_rng(seed)
    lanes = rows * row
    if METHODS[method].least > count:
        count = METHODS[method].least
    target = generator.integers(0, 1 << 16, lanes).astype(np.uint16)
    nothing = np.zeros(0, np.int64)
    # Every NaN, infinity, subnormal and zero among them.
    deltas = [(generator.integers(0, 1 << 16, lanes).astype(np.uint16), nothing) for _ in range(count)]
    weights = generator.choice([1.0, 0.5, -2.0, 1e-30, 3e38], count).tolist()
    if method == "karcher":
        weights = [abs(weight) for weight in weights]
    with np.errstate(all="ignore"):
        _both(method, given, target, deltas, weights, row)
