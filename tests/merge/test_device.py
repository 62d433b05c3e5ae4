"""Blocks and stages on a device, bit for bit against the compiled loops: every format, pattern and size of a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltareg.apply.device import Device
from deltareg.codec import FRAME_LANES, decode_frame, kernels, lane_of
from deltareg.merge import METHODS, Addend, Block, Value, linear, loops
from deltareg.merge.device import DeviceLoops, Room, mended_terms, narrow, widen
from tests.codec.oracle import FORMATS
from tests.codec.samples import SAMPLES
from tests.codec.tensors import encode, recoded
from tests.devices import DEVICES
from tests.merge.merged import OWN, given_to, merge
from tests.merge.test_methods import COUNTS, REQUIRED

Array = NDArray[Any]

ADDITIVE = ("BF16", "F16", "F32", "F64")
SIGNED = {2: np.int16, 4: np.int32, 8: np.int64}
# Lanes at a time: all, as few as hardly any stream is cut at a round place, a power of two.
PARTS = (1 << 20, 333, 512)


@pytest.fixture(scope="module", params=DEVICES)
def name(request: pytest.FixtureRequest) -> str:
    """What torch calls the device."""
    return {"torch:cpu": "cpu", "cuda": "cuda:0", "cuda:all": f"cuda:{torch.cuda.device_count() - 1}"}[request.param]


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_16_bit_pattern_widens_as_in_the_loops(name: str, dtype: str) -> None:
    lane = lane_of(dtype)
    patterns = np.arange(1 << 16, dtype=np.uint16)
    expected = np.empty(patterns.size, np.float32)
    kernels.widen_all(patterns.view(lane.stored), expected)
    found = widen(torch.from_numpy(patterns.view(np.int16)).to(name), lane).cpu().numpy()
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])


def _narrowed_both_ways(name: str, values: Array, dtype: str) -> tuple[Array, Array]:
    lane = lane_of(dtype)
    out = np.empty(values.size, lane.stored)
    kernels.finish(np.zeros(values.size, lane.stored), values, np.ones(values.size, np.uint8), out)
    found = narrow(torch.from_numpy(values).to(name), lane).cpu().numpy()
    return found, out.view(found.dtype)


@pytest.mark.parametrize("dtype", ADDITIVE)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_between_all_16_bit_patterns_round_as_in_the_loops(name: str, dtype: str, kind: Any) -> None:
    """Each pattern's value, the middle between it and the next, and their neighbours: where rounding turns."""
    form = FORMATS[dtype if FORMATS[dtype].width == 2 else "BF16"]
    exact = form.widen(np.arange(1 << 16, dtype=np.uint16))
    with np.errstate(all="ignore"):
        middles = (exact[:-1] + exact[1:]) / 2
        wanted = np.concatenate([exact, middles]).astype(kind)
        values = np.concatenate([wanted, np.nextafter(wanted, kind(np.inf)), np.nextafter(wanted, kind(-np.inf))])
    found, expected = _narrowed_both_ways(name, values, dtype)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", ADDITIVE)
@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_any_bits_round_as_in_the_loops(name: str, dtype: str, kind: Any, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, np.iinfo(kind).max, 20_000, kind, endpoint=True)
    if kind is np.uint64:  # exponents that the narrower formats have too
        bits[::2] = bits[::2] & np.uint64(0x8FFFFFFFFFFFFFFF) | np.uint64(0x3000000000000000)
    values = bits.view(np.float32 if kind is np.uint32 else np.float64)
    found, expected = _narrowed_both_ways(name, values, dtype)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_second_terms_are_those_of_the_loops_whatever_the_codes(name: str, dtype: str, seed: int) -> None:
    """Of any D1 that may have one, subnormals too, and any code, though no encoder writes most of them."""
    draw, lane = np.random.default_rng(seed), lane_of(dtype)
    deltas = draw.integers(0, lane.marker, 20_000, lane.bits) % lane.infinity
    deltas = np.where(deltas == 0, lane.bits(1), deltas) | (draw.integers(0, 2, deltas.size, lane.bits) * lane.marker)
    codes = draw.integers(0, np.iinfo(lane.bits).max, deltas.size, lane.bits, endpoint=True)
    codes >>= draw.integers(0, 8 * lane.width, deltas.size).astype(lane.bits)
    expected = np.empty(deltas.size, np.float64)
    places = np.arange(deltas.size)
    kernels.mended_terms(deltas.view(lane.stored), places, codes, lane.precision, lane.least, expected)
    there = [torch.from_numpy(array.view(SIGNED[lane.width])).to(name) for array in (deltas, codes)]
    found = mended_terms(there[0], there[1], lane).cpu().numpy()
    assert np.array_equal(found.view(np.uint64), expected.view(np.uint64))


# --- weighted sums ----------------------------------------------------------------------------------------------------


def _summed_both_ways(
    name: str,
    target: tuple[str, Array],
    out: str,
    frames: Sequence[tuple[str, str, bytes, float]],
    lanes: int,
) -> tuple[Array, Array]:
    """On the device, from tokens, and with the compiled loops, from symbols."""
    found: list[Array] = []
    for device in (Device([name], lanes=lanes), None):
        addends: list[Addend] = []
        for base, post, data, weight in frames:
            both = lane_of(base), lane_of(post)
            frame = decode_frame(memoryview(data), target[1].size, *both, keep_tokens=device is not None)
            addends.append(Addend(frame, *both, weight))
        lane, out_lane = lane_of(target[0]), lane_of(out)
        result = np.zeros(target[1].size, out_lane.stored)
        block = Block(target[1].view(lane.stored), lane, tuple(addends), result, out_lane)
        if device is None:
            linear(block)
        else:
            device.step(lambda device=device, block=block: device.linear(block))
        found.append(result.view(out_lane.bits))
    return found[0], found[1]


def _lanes(draw: np.random.Generator, dtype: str, size: int, wild: bool) -> Array:
    """Numbers near 1, or any bits at all, NaN, infinities and subnormals among them."""
    form = FORMATS[dtype]
    if wild:
        return draw.integers(0, 2 ** (8 * form.width), size, form.bits, endpoint=False)
    return form.narrow(draw.normal(0, 1, size))


@given(
    target=st.sampled_from(ADDITIVE),
    out=st.sampled_from(ADDITIVE),
    deltas=st.lists(
        st.tuples(
            st.sampled_from(ADDITIVE),
            st.sampled_from(ADDITIVE),
            st.sampled_from([1.0, -1.0, 0.5, 0.1, 3e38, 1e-40, 1 / 3]),
            st.booleans(),
            st.sampled_from([1.0, 0.3, 0.01, 0.0]),
        ),
        max_size=3,
    ),
    size=st.sampled_from([1, 7, 1000, 6000]),
    part=st.sampled_from(PARTS),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_sums_of_any_formats_are_those_of_the_loops(
    name: str, target: str, out: str, deltas: Any, size: int, part: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    frames: list[tuple[str, str, bytes, float]] = []
    for base_dtype, dtype, weight, wild, share in deltas:
        base = _lanes(draw, base_dtype, size, wild)
        post = _lanes(draw, dtype, size, wild)
        if not wild:
            moved = FORMATS[base_dtype].widen(base) + 0.001 * draw.normal(0, 1, size)
            post = FORMATS[dtype].narrow(moved)
        if base_dtype == dtype:
            post = np.where(draw.random(size) < share, post, base)
        frames.append((base_dtype, dtype, encode(base_dtype, dtype, base, post).data, weight))
    lanes = target, _lanes(draw, target, size, bool(seed % 2))
    found, expected = _summed_both_ways(name, lanes, out, frames, part)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("sample", [name for name, one in SAMPLES.items() if one.base_dtype in ADDITIVE])
def test_every_kind_of_frame_is_added_as_in_the_loops(name: str, sample: str, part: int) -> None:
    """Tokens of bytes and of nibbles, with escapes, thin ones, planes, mending: as chosen, and stored otherwise."""
    one = SAMPLES[sample]
    base, post = one.make(one.size)
    assert base is not None and one.base_dtype is not None
    data = encode(one.base_dtype, one.dtype, base, post).data
    draw = np.random.default_rng(3)
    for stored in (data, *recoded(data, one.size, one.base_dtype, one.dtype).values()):
        for target in (base, _lanes(draw, one.base_dtype, one.size, wild=True)):
            frames = [(one.base_dtype, one.dtype, stored, 1.0), (one.base_dtype, one.dtype, stored, -0.3)]
            for some in (frames[:1], frames):
                found, expected = _summed_both_ways(name, (one.base_dtype, target), one.dtype, some, part)
                assert np.array_equal(found, expected)


def test_samples_have_tokens_escapes_and_mending() -> None:
    """So that the tests above see them."""
    seen: set[str] = set()
    for one in SAMPLES.values():
        base, post = one.make(one.size)
        if base is None or one.base_dtype not in ADDITIVE:
            continue
        data = encode(one.base_dtype, one.dtype, base, post).data
        for stored in (data, *recoded(data, one.size, one.base_dtype, one.dtype).values()):
            frame = decode_frame(
                memoryview(stored), one.size, lane_of(one.base_dtype), lane_of(one.dtype), keep_tokens=True
            )
            if frame.tokens is not None:
                seen.add("thin tokens" if frame.positions is not None else "tokens")
                seen |= {"escapes"} if frame.tokens.escapes.size else set()
                seen |= {"mended tokens"} if frame.mending is not None else set()
            seen |= {f"mended {one.dtype}"} if frame.mending is not None else set()
    assert seen >= {"tokens", "thin tokens", "escapes", "mended tokens", "mended BF16", "mended F32"}


# --- the loops of the stages ------------------------------------------------------------------------------------------


def test_a_device_has_every_loop_that_stages_use(name: str) -> None:
    assert not [loop for loop in loops.__all__ if not callable(getattr(DeviceLoops, loop, None))]


# Beside what each method has by default: every way that its stages can go.
VARIANTS: Sequence[tuple[str, dict[str, Value]]] = [
    *((method, REQUIRED.get(method, {})) for method in METHODS),
    ("linear", {"normalize": True}),
    ("ties", {"density": 0.3, "trim": "tensor", "elect": "count", "normalize": "count"}),
    ("ties", {"density": 0.3, "elect": "unweighted", "normalize": "none", "lambda": 0.7}),
    ("dare_linear", {"density": 0.4, "rescale": "l1"}),
    ("dare_ties", {"density": 0.4, "rescale": "none"}),
    ("della", {"density": 0.4, "ramp": "ends", "rescale": "l1"}),
    ("della_linear", {"density": 0.4, "epsilon": 0.5, "rescale": "none"}),
    ("breadcrumbs", {"density": 0.2, "gamma": 0.3, "rescale": "l1"}),
    ("sce", {"select_topk": 0.2}),
    ("sce", {"select_topk": 0.0}),
    ("slerp", {"t": 0.2}),
    *((method, {"own": True}) for method in OWN),
]
SHAPES = ((1,), (4097,), (70, 91), (3, 5, 37))


def _deltas(draw: np.random.Generator, dtype: str, shape: tuple[int, ...], count: int, kind: str) -> list[Array]:
    """Numbers of many sizes; few sizes, so that magnitudes are equal; or any bits at all."""
    form, stored = FORMATS[dtype], lane_of(dtype).stored
    if kind == "wild":
        return [_lanes(draw, dtype, int(np.prod(shape)), wild=True).view(stored).reshape(shape) for _ in range(count)]
    numbers = [draw.normal(0, 0.01, shape) * (draw.random(shape) < 0.8) for _ in range(count)]
    if kind == "ties":
        numbers = [np.rint(rows * 200) / 200 for rows in numbers]
    return [form.narrow(rows.reshape(-1)).view(stored).reshape(shape) for rows in numbers]


def _merged_both_ways(name: str, method: str, parameters: Any, deltas: list[Array], dtype: str, lanes: int) -> None:
    weights = [0.6, 0.3, -0.2][: len(deltas)]
    shared, own = given_to(method, parameters, len(deltas))
    given = {"own": own, "weights": weights, "dtype": dtype}
    with np.errstate(all="ignore"):
        expected = merge(method, deltas, shared, **given)
        found = merge(method, deltas, shared, **given, processor=Device([name], lanes=lanes))
    # Which NaN it is does not matter before the sum is rounded.
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    bits = f"u{expected.itemsize}"
    numbers = ~np.isnan(expected)
    assert np.array_equal(found.view(bits)[numbers], expected.view(bits)[numbers])


@pytest.mark.parametrize("dtype", ADDITIVE)
@pytest.mark.parametrize(("method", "parameters"), VARIANTS, ids=[method for method, _ in VARIANTS])
@given(
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from(["numbers", "ties", "wild"]),
    part=st.sampled_from(PARTS),
    seed=st.integers(0, 2**32 - 1),
)
@example(shape=(3, 5, 37), kind="wild", part=512, seed=6)  # energies that are infinite, weights that are NaN
@settings(max_examples=12, deadline=None)
def test_every_method_gives_what_the_loops_give(
    name: str, method: str, parameters: Any, dtype: str, shape: tuple[int, ...], kind: str, part: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    if kind == "wild" and METHODS[method].name in GEOMETRIC:
        kind = "numbers"
    deltas = _deltas(draw, dtype, shape, COUNTS[method], kind)
    _merged_both_ways(name, method, parameters, deltas, dtype, part)


# Scalar products of infinities and NaN: what angles follow from them is not defined.
GEOMETRIC = ("slerp", "multislerp", "karcher", "model_stock")


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("method", ["ties", "della", "sce", "karcher", "ramplus_tl", "breadcrumbs"])
def test_tensors_of_several_blocks_give_what_the_loops_give(name: str, method: str, dtype: str) -> None:
    shape = (1100, 1001)
    assert np.prod(shape) > FRAME_LANES
    deltas = _deltas(np.random.default_rng(6), dtype, shape, COUNTS[method], "ties")
    _merged_both_ways(name, method, REQUIRED.get(method, {}), deltas, dtype, FRAME_LANES)


@given(key=st.integers(0, 2**64 - 1), first=st.integers(0, 2**40), size=st.sampled_from([1, 100, 9000]))
@settings(max_examples=40, deadline=None)
def test_chances_are_those_of_the_loops(name: str, key: int, first: int, size: int) -> None:
    expected = np.empty(size, np.uint32)
    loops.draw(np.uint64(key), first, expected)
    there = DeviceLoops(torch.device(name), Room(4000))
    found = there.empty(size, np.uint32)
    there.draw(np.uint64(key), first, found)
    assert np.array_equal(found.cpu().numpy().view(np.uint32), expected)
