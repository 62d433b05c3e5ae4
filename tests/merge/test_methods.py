"""What oracles do not tell: ties by index, blocks, lanes of every dtype, random masks, parameters, extremes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltareg.codec import FRAME_LANES, lane_of
from deltareg.errors import InvalidArgument
from deltareg.merge import METHODS, Value, loops
from deltareg.merge.combine import EnergyShares, SelectVariance
from deltareg.merge.geometry import Karcher, ModelStock, MultiSlerp, Slerp
from deltareg.merge.processor import Processor
from deltareg.merge.values import Extent
from tests.merge.merged import KEYS, merge

Array = NDArray[Any]

REQUIRED: dict[str, dict[str, Value]] = {
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della_linear": {"density": 0.5},
    "della": {"density": 0.5},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.1},
    "nearswap": {"t": 0.01},
}
# Deltas that each method gets here.
COUNTS = {name: 1 if method.most == 1 else 2 for name, method in METHODS.items()}


def _stages(method: str) -> Sequence[Any]:
    return METHODS[method].stages(REQUIRED.get(method, {}))


def _settles(method: str) -> bool:
    """Whether the method measures something of the whole tensor before it merges."""
    lane = lane_of("F64")
    return any(stage.passes(Extent(7, 1, (0, 1), (lane, lane))) for stage in _stages(method))


BY_ROW = [method for method in METHODS if any(stage.whole_rows for stage in _stages(method))]
LANE_BY_LANE = [method for method in METHODS if not _settles(method) and method not in BY_ROW]
SUMMING = [
    method
    for method in METHODS
    if any(
        isinstance(stage, EnergyShares | SelectVariance | Karcher | ModelStock | MultiSlerp | Slerp)
        for stage in _stages(method)
    )
]


def numbers(seed: int, shape: tuple[int, ...], dtype: str = "F64") -> Array:
    """Random lanes of a dtype, as the compiled loops take them."""
    wide = np.random.default_rng(seed).standard_normal(shape)
    lane = lane_of(dtype)
    if dtype == "F64":
        return wide
    if dtype == "F32":
        return wide.astype(np.float32)
    if dtype == "F16":
        return wide.astype(np.float16).view(lane.stored)
    return (wide.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def largest(delta: Array, count: int) -> Array:
    """A mask of the `count` largest magnitudes, equal ones by their places."""
    order = np.argsort(-np.abs(delta.ravel()), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[order[:count]] = True
    return mask.reshape(delta.shape)


# --- parameters of each delta -----------------------------------------------------------------------------------------

OWN: list[tuple[str, dict[str, Value], list[dict[str, Value]]]] = [
    ("dare_linear", {}, [{"density": 0.2}, {"density": 0.0}, {"density": 0.7}]),
    ("dare_linear", {"density": 0.5, "rescale": "l1"}, [{"density": 0.9}, {}, {"density": 1.0}]),
    ("della_linear", {"density": 0.4}, [{"epsilon": 0.3}, {"density": 1.0}, {"density": 0.7, "epsilon": 0.5}]),
    ("della_linear", {"density": 0.5, "ramp": "ends", "rescale": "none"}, [{"density": 0.8}, {"density": 0.0}, {}]),
    ("breadcrumbs", {"gamma": 0.1}, [{"density": 0.3}, {"density": 0.8, "gamma": 0.0}, {"density": 0.6, "gamma": 0.5}]),
    ("breadcrumbs", {"density": 0.5, "rescale": "l1"}, [{"gamma": 0.2}, {"density": 0.0}, {}]),
]
"""Methods that sum what is left of the deltas: with parameters for all, and for each of three."""


@pytest.mark.parametrize(("method", "shared", "own"), OWN)
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
@pytest.mark.parametrize("shape", [(7,), (70, 91), (1100, 1001)])
def test_each_delta_is_thinned_by_its_own_parameters(
    method: str, shared: dict[str, Value], own: list[dict[str, Value]], dtype: str, shape: tuple[int, ...]
) -> None:
    """Together they are the sum of what each of them is alone."""
    deltas = [numbers(seed, shape, dtype) for seed in range(3)]
    together = merge(method, deltas, shared, own=own, dtype=dtype)
    alone = [
        merge(method, [delta], {**shared, **one}, dtype=dtype, keys=(key,))
        for delta, one, key in zip(deltas, own, KEYS, strict=False)
    ]
    assert np.array_equal(together, alone[0] + alone[1] + alone[2])
    assert not np.array_equal(together, merge(method, deltas, {"density": 0.5, **shared}, dtype=dtype))


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("dtype", ["BF16", "F64"])
def test_each_delta_is_trimmed_to_its_own_density(scope: str, dtype: str) -> None:
    """Where deltas are all positive none is out-voted, and their mean has what was kept of each."""
    shape = (3 * FRAME_LANES + 77,)
    densities = (0.25, 0.0, 1.0)
    wide = [np.abs(numbers(seed, shape)) + 0.5 for seed in range(3)]
    deltas = [_lanes_of(one, dtype) for one in wide]
    merged = [
        merge("ties", [delta], {"trim": scope, "density": density}, dtype=dtype)
        for delta, density in zip(deltas, densities, strict=True)
    ]
    shared: dict[str, Value] = {"trim": scope, "density": 0.25, "normalize": "none"}
    together = merge("ties", deltas, shared, own=[{}, {"density": 0.0}, {"density": 1.0}], dtype=dtype)
    assert [np.count_nonzero(one) for one in merged] == [int(0.25 * shape[0]), 0, shape[0]]
    assert np.array_equal(together, merged[0] + merged[1] + merged[2])


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if "density" in one.parameters])
def test_the_same_parameter_of_each_is_that_of_all(method: str) -> None:
    deltas = [numbers(seed, (70, 91)) for seed in range(2)]
    of_all = merge(method, deltas, {"density": 0.4})
    assert np.array_equal(merge(method, deltas, {}, own=[{"density": 0.4}] * 2), of_all)
    assert METHODS[method].stages({}, [{"density": 0.4}] * 2) == METHODS[method].stages({"density": 0.4})


def test_what_each_delta_has_for_itself_must_be_what_it_can_have() -> None:
    with pytest.raises(InvalidArgument, match="dare_ties needs density"):
        METHODS["dare_ties"].stages({}, [{"density": 0.4}, {}])
    with pytest.raises(InvalidArgument, match=r"chances from -0\.1 to 0\.3 are none"):
        METHODS["della"].stages({"density": 0.5}, [{}, {"density": 0.1, "epsilon": 0.4}])
    with pytest.raises(InvalidArgument, match="ties has one normalize for all deltas") as caught:
        METHODS["ties"].check_own("normalize", "none")
    assert caught.value.hint == "what may differ by delta in ties: density"
    with pytest.raises(InvalidArgument, match="density is 2"):
        METHODS["ties"].check_own("density", 2)


# --- ties at the threshold --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.9, 1.0]))
def test_equal_magnitudes_are_kept_by_their_places(seed: int, size: int, density: float) -> None:
    delta = np.random.default_rng(seed).integers(-2, 3, size) / 4.0
    kept = max(1, int(density * size)) if density else 0
    expected = np.where(largest(delta, kept), delta, 0.0)
    assert np.array_equal(merge("ties", [delta], {"density": density, "trim": "tensor"}), expected)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.05, 0.4]))
def test_breadcrumbs_leaves_out_the_first_of_equal_magnitudes(
    seed: int, size: int, density: float, gamma: float
) -> None:
    delta = np.random.default_rng(seed).integers(-2, 3, size) / 4.0
    kept = int(density * size)
    top = min(int(gamma * size), size - kept)
    expected = np.where(largest(delta, kept + top) & ~largest(delta, top), delta, 0.0)
    assert np.array_equal(merge("breadcrumbs", [delta], {"density": density, "gamma": gamma}), expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_ties_are_settled_across_many_blocks(dtype: str) -> None:
    size = 3 * FRAME_LANES + 77
    values = np.random.default_rng(1).integers(-2, 3, size) / 4.0
    merged = merge("ties", [_lanes_of(values, dtype)], {"density": 0.5, "trim": "tensor"}, dtype=dtype)
    assert np.array_equal(merged, np.where(largest(values, size // 2), values, 0.0))


def _lanes_of(values: Array, dtype: str) -> Array:
    """Numbers that every format has, as lanes of this one."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    if dtype == "F16":
        return values.astype(np.float16).view(np.int16)
    return values.astype(np.float32 if dtype == "F32" else np.float64)


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", LANE_BY_LANE)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_what_lies_behind_a_tensor_in_memory_does_not_matter(method: str, dtype: str) -> None:
    """The same lanes as a tensor of one block and as the first of many, where the method sees lanes one by one."""
    short = [numbers(seed, (1000,), dtype) for seed in range(COUNTS[method])]
    long = [np.concatenate([one, numbers(9, (2 * FRAME_LANES,), dtype)]) for one in short]
    alone = merge(method, short, REQUIRED.get(method), dtype=dtype)
    assert np.array_equal(merge(method, long, REQUIRED.get(method), dtype=dtype)[:1000], alone)


@pytest.mark.parametrize("method", BY_ROW)
def test_rows_that_blocks_cut_give_what_whole_rows_give(method: str) -> None:
    """A tensor of several blocks, whose rows are no divisor of a block, against its halves where these are merged."""
    shape = (1500, 1001)
    deltas = [numbers(seed, shape, "BF16") for seed in range(2)]
    merged = merge(method, deltas, REQUIRED[method], dtype="BF16")
    row = 1400
    mine = [delta[row] for delta in deltas]
    ranks = [np.argsort(np.argsort(-(one & 0x7FFF).astype(np.int64), kind="stable"), kind="stable") for one in mine]
    kept = np.zeros(shape[1], bool)
    for rank, key in zip(ranks, KEYS, strict=False):
        bits = np.empty(shape[1], np.uint32)
        loops.draw(np.uint64(key), row * shape[1], bits)
        kept |= bits / 2.0**32 < 0.5 + 0.1 / 2 - 0.1 * rank / shape[1]
    changed = merged[row] != 0
    assert not (changed & ~kept).any()
    assert changed.sum() > 0.9 * kept.sum()


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_parts_does_not_change_a_bit(method: str, dtype: str) -> None:
    # A few magnitudes that are all common, so that cuts go through the midst of them; a row that two blocks share.
    shape = (3, FRAME_LANES // 2)
    wide = [np.rint(np.random.default_rng(seed).standard_normal(shape) * 8) / 64 for seed in range(COUNTS[method])]
    deltas = [one.astype(np.float32) for one in wide]
    if dtype == "BF16":
        deltas = [(one.view(np.uint32) >> np.uint32(16)).astype(np.uint16) for one in deltas]
    whole = merge(method, deltas, REQUIRED.get(method), dtype=dtype, processor=Processor(None))
    assert np.any(whole)
    for lanes in (7_777, 1 << 18, FRAME_LANES - 1):
        parts = merge(method, deltas, REQUIRED.get(method), dtype=dtype, processor=Processor(lanes))
        assert np.array_equal(parts.view(np.uint8), whole.view(np.uint8)), lanes


@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_change_a_bit(method: str) -> None:
    deltas = [numbers(seed, (2 * FRAME_LANES + 5,), "BF16") for seed in range(COUNTS[method])]
    alone = merge(method, deltas, REQUIRED.get(method), dtype="BF16")
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(merge, method, deltas, REQUIRED.get(method), dtype="BF16") for _ in range(4)]
        assert all(np.array_equal(run.result(), alone, equal_nan=True) for run in runs)


# --- random masks -----------------------------------------------------------------------------------------------------


def test_masks_are_those_that_were_published() -> None:
    bits = np.empty(8, np.uint32)
    loops.draw(np.uint64(0), 0, bits)
    # The low halves of SplitMix64's outputs for the seed 0: e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f …
    assert [f"{one:08x}" for one in bits[:3]] == ["7b1dcdaf", "a1b965f4", "8009454f"]
    upper = np.empty(3, np.uint32)
    loops.draw(np.uint64(0), 4096, upper)
    assert [f"{one:08x}" for one in upper] == ["e220a839", "6e789e6a", "06c45d18"]


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 20_000), st.integers(1, 9_000))
def test_masks_do_not_depend_on_where_a_block_begins(key: int, first: int, count: int) -> None:
    whole, part = np.empty(first + count, np.uint32), np.empty(count, np.uint32)
    loops.draw(np.uint64(key), 0, whole)
    loops.draw(np.uint64(key), first, part)
    assert np.array_equal(whole[first:], part)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_share_that_it_is_told_and_the_mean(density: float) -> None:
    delta = np.ones(1 << 18)
    merged = merge("dare_linear", [delta], {"density": density})
    kept = float((merged != 0).mean())
    assert abs(kept - density) < 5 * np.sqrt(density * (1 - density) / delta.size)
    assert np.allclose(merged[merged != 0], 1 / density)


@pytest.mark.parametrize("ramp", ["paper", "ends"])
def test_della_keeps_large_ones_more_often(ramp: str) -> None:
    rows, width = 4000, 64
    delta = np.tile(np.arange(1, width + 1, dtype=np.float64), (rows, 1))
    merged = merge("della_linear", [delta], {"density": 0.5, "epsilon": 0.4, "ramp": ramp, "rescale": "none"})
    chances = (merged != 0).mean(axis=0)[::-1]  # the largest first
    reach = 0.2 if ramp == "paper" else 0.4
    expected = 0.5 + reach - 2 * reach * np.arange(width) / (width if ramp == "paper" else width - 1)
    assert np.abs(chances - expected).max() < 5 * np.sqrt(0.25 / rows)


def test_deltas_have_masks_of_their_own() -> None:
    ones = [np.ones(10_000), np.ones(10_000)]
    merged = merge("dare_linear", ones, {"density": 0.5, "rescale": "none"})
    shares = [(merged == count).mean() for count in (0, 1, 2)]
    assert np.allclose(shares, [0.25, 0.5, 0.25], atol=0.02)


# --- extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_deltas_of_zeros_add_nothing(method: str, dtype: str) -> None:
    zeros = [np.zeros((3, 5), lane_of(dtype).stored)] * COUNTS[method]
    assert not merge(method, zeros, REQUIRED.get(method), dtype=dtype).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5, 1), (1, 5), (2, 3, 1)])
def test_small_shapes(method: str, shape: tuple[int, ...]) -> None:
    deltas = [np.asarray(numbers(seed, shape)) for seed in range(COUNTS[method])]
    merged = merge(method, deltas, REQUIRED.get(method))
    assert merged.shape == shape
    assert np.isfinite(merged).all()


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if "density" in one.parameters])
def test_density_0_adds_nothing_and_1_keeps_all(method: str) -> None:
    deltas = [numbers(seed, (4, 8)) for seed in range(2)]
    settings_ = {**REQUIRED.get(method, {}), "density": 0.0}
    assert not merge(method, deltas, settings_).any()
    alone = merge(method, deltas[:1], {**settings_, "density": 1.0})
    assert np.array_equal(alone, deltas[0])


@pytest.mark.parametrize("method", [method for method in METHODS if method not in SUMMING])
def test_what_is_no_number_stays_where_it_is(method: str) -> None:
    """A NaN in one lane of a delta changes no lane but its own, where a method looks at lanes one by one."""
    deltas = [numbers(seed, (64,)) for seed in range(COUNTS[method])]
    sound = merge(method, deltas, REQUIRED.get(method))
    deltas[0][7] = np.nan
    merged = merge(method, deltas, REQUIRED.get(method))
    others = np.arange(64) != 7
    assert np.isfinite(merged[others]).all()
    if method in LANE_BY_LANE:
        assert np.array_equal(merged[others], sound[others])


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given_parameters", "told"),
    [
        ("ties", {"density": 1.5}, "density is 1.5"),
        ("ties", {"density": -0.1}, "density is -0.1"),
        ("ties", {"density": float("nan")}, "density is nan"),
        ("ties", {"density": True}, "density is True"),
        ("ties", {"density": "half"}, "density is 'half'"),
        ("ties", {"elect": "most"}, "elect is 'most'"),
        ("ties", {"sparsity": 0.5}, "no parameter sparsity"),
        ("dare_ties", {}, "needs density"),
        ("nearswap", {}, "needs t"),
        ("nearswap", {"t": -1.0}, "t is -1.0"),
        ("linear", {"normalize": 1.0}, "normalize is 1.0"),
        ("karcher", {"iterations": 2.5}, "iterations is 2.5"),
        ("karcher", {"iterations": 0}, "iterations is 0"),
        ("della", {"density": 0.1, "epsilon": 0.3}, "are none"),
        ("della", {"density": 0.9, "epsilon": 0.15, "ramp": "ends"}, "are none"),
    ],
)
def test_parameters_that_cannot_be_are_refused(method: str, given_parameters: dict[str, Value], told: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        METHODS[method].stages(given_parameters)
    assert told in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("method", "count"), [("slerp", 1), ("slerp", 3), ("model_stock", 1), ("nearswap", 2)])
def test_methods_refuse_a_number_of_deltas_that_they_do_not_take(method: str, count: int) -> None:
    with pytest.raises(InvalidArgument, match="takes"):
        METHODS[method].check_deltas(count)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_tell_their_paper_and_their_parameters(method: Any) -> None:
    assert method.summary.startswith("M = ") or method.summary.startswith("As `")
    doc = method.make.__doc__
    assert any(source in doc for source in ("arXiv", "Shoemake", "QuartetAnemoi", "goddard.blog"))
    assert all(parameter.meaning for parameter in method.parameters.values())
