"""Every method against mergekit's and PEFT's, in float64.

Both sort magnitudes as float32 and in orders of their own among equal ones, so that what is compared here is exact in
float32, and distinct where their order is not that of the indices. Random masks are ours: the oracles are made to draw
them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deltareg.merge import METHODS, loops
from tests.merge.merged import KEYS, merge

torch = pytest.importorskip("torch")
merge_utils = pytest.importorskip("peft.utils.merge_utils", reason="needs the extra `oracle`")
sparsify = pytest.importorskip("mergekit.sparsify", reason="needs the extra `oracle`")
from mergekit.merge_methods.api import merge_tensors  # noqa: E402

Array = NDArray[np.float64]

SHAPES = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)
TOLERANCE = 1e-12
compared = settings(deadline=None)  # the first example waits for loops to be compiled


@st.composite
def deltas(draw: Any, count: int | tuple[int, int] = (1, 4), *, distinct: bool = False) -> list[Array]:
    """Deltas of one shape, of numbers that float32 has: few different ones, zeros among them, or all different."""
    shape = draw(SHAPES)
    size = int(np.prod(shape))
    number = count if isinstance(count, int) else draw(st.integers(*count))
    distinct = distinct or draw(st.booleans())
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found: list[Array] = []
    for _ in range(number):
        if distinct:
            values = (generator.permutation(4 * size) + 1)[:size] / 256.0 * generator.choice([-1, 1], size)
        else:
            values = generator.integers(-3, 4, size) / 8.0
        found.append(values.astype(np.float64).reshape(shape))
    return found


weights = st.lists(st.sampled_from([1.0, 0.5, 0.3, 2.0, -0.7]), min_size=4, max_size=4)
densities = st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.77, 0.9, 1.0])


def mergekit(method: str, given_deltas: Sequence[Array], **parameters: Any) -> Array:
    """What mergekit makes of the deltas, on a base of zeros."""
    tensors = [torch.zeros(given_deltas[0].shape, dtype=torch.float64), *map(torch.from_numpy, given_deltas)]
    with np.errstate(all="ignore"):
        result = merge_tensors(tensors, method, base_index=0, parameters=parameters)
    return result.numpy()


def _tensor(values: Sequence[float]) -> Any:
    return torch.tensor(values, dtype=torch.float64)


def same(ours: Array, theirs: Array) -> None:
    """Assert that two results agree to 1e-12 of the largest number in them."""
    assert ours.shape == theirs.shape
    scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
    assert np.abs(ours - theirs).max(initial=0.0) <= TOLERANCE * scale


# --- sums and elections -----------------------------------------------------------------------------------------------


@compared
@given(deltas(), weights, st.booleans(), st.sampled_from([1.0, 0.4]))
def test_linear_is_mergekits_task_arithmetic(
    many: list[Array], factors: list[float], normalize: bool, scale: float
) -> None:
    shares = factors[: len(many)]
    assume(abs(sum(shares)) > 1e-3)
    ours = merge("linear", many, {"normalize": normalize, "lambda": scale}, weights=shares)
    theirs = mergekit("task_arithmetic", many, weight=shares, normalize=normalize, **{"lambda": scale})
    same(ours, theirs)


@compared
@given(deltas(), weights, densities, st.booleans(), st.booleans())
def test_ties_is_mergekits(
    many: list[Array], factors: list[float], density: float, normalize: bool, rescale: bool
) -> None:
    assume(all(_clear_cut(one, max(1, int(density * one.size))) for one in many))
    shares = factors[: len(many)]
    ours = merge(
        "ties",
        many,
        {
            "density": density,
            "trim": "tensor",
            "normalize": "weights" if normalize else "none",
            "rescale": "l1" if rescale else "none",
        },
        weights=shares,
    )
    same(ours, mergekit("ties", many, weight=shares, density=density, normalize=normalize, rescale=rescale))


@compared
@given(deltas(), weights, densities, st.sampled_from(["total", "frequency"]))
def test_ties_is_pefts(many: list[Array], factors: list[float], density: float, vote: Any) -> None:
    # PEFT keeps int(density · n) elements, which can be none; mergekit and we keep one at least.
    assume(density == 0 or int(density * many[0].size) >= 1)
    assume(all(_clear_cut(one, int(density * one.size)) for one in many))
    shares = factors[: len(many)]
    elect = "unweighted" if vote == "total" else "count"
    ours = merge(
        "ties",
        many,
        {"density": density, "trim": "tensor", "elect": elect, "normalize": "count"},
        weights=shares,
    )
    with pytest.warns(UserWarning) if density >= 1 else _nothing():
        theirs = merge_utils.ties([*map(torch.from_numpy, many)], _tensor(shares), density, vote)
    same(ours, theirs.numpy())


def _clear_cut(delta: Array, kept: int) -> bool:
    """Whether magnitudes alone say which are the `kept` largest: the oracles take equal ones in no certain order."""
    falling = np.sort(np.abs(delta.ravel()))[::-1]
    return not 0 < kept < delta.size or falling[kept - 1] > falling[kept]


@compared
@given(deltas(distinct=True), weights, densities, st.sampled_from([0.0, 0.01, 0.2, 0.5]), st.booleans())
def test_breadcrumbs_is_mergekits(
    many: list[Array], factors: list[float], density: float, gamma: float, elect: bool
) -> None:
    shares = factors[: len(many)]
    theirs = mergekit(
        "breadcrumbs_ties" if elect else "breadcrumbs",
        many,
        weight=shares,
        density=density,
        gamma=gamma,
        normalize=False,
        rescale=False,
    )
    given_parameters: dict[str, Any] = {"density": density, "gamma": gamma}
    if elect:
        given_parameters["normalize"] = "none"
    same(merge("breadcrumbs_ties" if elect else "breadcrumbs", many, given_parameters, weights=shares), theirs)


# --- random masks -----------------------------------------------------------------------------------------------------


def draws(key: int, shape: tuple[int, ...]) -> Array:
    """The random numbers from 0 to 1 of a delta's lanes, as our generator gives them."""
    bits = np.empty(int(np.prod(shape)), np.uint32)
    loops.draw(np.uint64(key), 0, bits)
    return bits.reshape(shape) / 2.0**32


@contextmanager
def our_masks() -> Generator[None]:
    """Make the oracles draw the masks that we draw, delta by delta."""
    keys = iter(KEYS)

    def bernoulli(chances: Any) -> Any:
        mask = draws(next(keys), tuple(chances.shape)) < chances.double().numpy()
        return torch.from_numpy(np.asarray(mask)).to(chances.dtype)

    original = torch.bernoulli
    torch.bernoulli = bernoulli
    try:
        yield
    finally:
        torch.bernoulli = original


@contextmanager
def _nothing() -> Generator[None]:
    yield


@compared
@given(deltas(), weights, st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
def test_dare_is_mergekits(many: list[Array], factors: list[float], density: float, elect: bool) -> None:
    # Chances as float32 has them: that is what mergekit compares with.
    density = float(np.float32(density))
    shares = factors[: len(many)]
    method = "dare_ties" if elect else "dare_linear"
    with our_masks():
        theirs = mergekit(method, many, weight=shares, density=density, normalize=False, rescale=False)
    normalize: dict[str, Any] = {"normalize": "none"} if elect else {}
    ours = merge(method, many, {"density": density, "rescale": "none", **normalize}, weights=shares)
    same(ours, theirs)


@compared
@given(deltas(), weights, st.sampled_from([0.125, 0.25, 0.5]))
def test_dare_is_pefts_which_divides_by_the_chance(many: list[Array], factors: list[float], density: float) -> None:
    shares = factors[: len(many)]
    with our_masks():
        theirs = merge_utils.dare_linear([*map(torch.from_numpy, many)], _tensor(shares), density)
    same(merge("dare_linear", many, {"density": density}, weights=shares), theirs.numpy())
    with our_masks():
        theirs = merge_utils.dare_ties([*map(torch.from_numpy, many)], _tensor(shares), density)
    ours = merge("dare_ties", many, {"density": density, "elect": "unweighted", "normalize": "count"}, weights=shares)
    same(ours, theirs.numpy())


@compared
@given(deltas(distinct=True), weights, st.sampled_from([0.25, 0.5, 0.75]), st.booleans())
def test_della_is_mergekits(many: list[Array], factors: list[float], density: float, elect: bool) -> None:
    # mergekit ranks along the second dimension, which is the last of a matrix; and divides 0 by 0 for a width of 1.
    assume(many[0].ndim <= 2 and (many[0].shape[-1:] or (1,))[0] > 1)
    shares = factors[: len(many)]
    method = "della" if elect else "della_linear"
    with our_masks():
        theirs = mergekit(method, many, weight=shares, density=density, epsilon=0.125, normalize=False, rescale=False)
    given_parameters = {"density": density, "epsilon": 0.125, "ramp": "ends", "rescale": "none"}
    if elect:
        given_parameters["normalize"] = "none"
    same(merge(method, many, given_parameters, weights=shares), theirs)


# --- variance, agreement, angles --------------------------------------------------------------------------------------


@compared
@given(deltas((2, 4), distinct=True), st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))
def test_sce_is_mergekits(many: list[Array], share: float) -> None:
    variance = np.sort(np.var(np.stack(many), axis=0).ravel())
    assume(np.all(np.diff(variance) > 1e-9))  # torch.topk takes equal ones in no particular order
    same(merge("sce", many, {"select_topk": share}), mergekit("sce", many, select_topk=share))


@compared
@given(deltas((1, 4)), st.sampled_from([1e-5, 0.2, 0.3]))
def test_ram_is_mergekits(many: list[Array], epsilon: float) -> None:
    same(merge("ram", many, {"epsilon": epsilon}), mergekit("ram", many, epsilon=epsilon))


@compared
@given(deltas((1, 4)), st.sampled_from([0.1, 0.7]), st.sampled_from([0.0, 0.2, 3.0]))
def test_ramplus_is_mergekits(many: list[Array], r: float, alpha: float) -> None:
    theirs = mergekit("ramplus_tl", many, r=r, alpha=alpha)
    # mergekit's ratio of two counts is a float32, whatever the tensors are.
    ours = merge("ramplus_tl", many, {"r": r, "alpha": alpha})
    assert np.abs(ours - theirs).max(initial=0.0) <= 1e-7 * max(1.0, float(np.abs(theirs).max(initial=0.0)))


@compared
@given(deltas(1), st.sampled_from([1e-6, 0.01, 0.2, 5.0]))
def test_nearswap_is_mergekits(many: list[Array], t: float) -> None:
    same(merge("nearswap", many, {"t": t}), mergekit("nearswap", many, t=t))


@compared
@given(deltas((2, 4), distinct=True))
def test_model_stock_is_mergekits(many: list[Array]) -> None:
    stacked = np.stack(many).reshape(len(many), -1)
    units = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    cosine = (units @ units.T)[np.triu_indices(len(many), 1)].mean()
    assume(abs(1 + (len(many) - 1) * cosine) > 1e-3)  # else rounding decides
    same(merge("model_stock", many), mergekit("model_stock", many))


@compared
@given(deltas(2, distinct=True), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_slerp_is_mergekits(many: list[Array], t: float) -> None:
    assume(_angle(many) < 0.999)
    tensors = [*map(torch.from_numpy, many)]
    theirs = merge_tensors(tensors, "slerp", base_index=0, parameters={"t": t}).numpy()
    same(merge("slerp", many, {"t": t}), theirs)


@compared
@given(deltas(2), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1.0, -1.0, 2.5]))
def test_slerp_of_parallel_deltas_is_linear(many: list[Array], t: float, factor: float) -> None:
    pair = [many[0], np.asarray(many[0] * factor)]
    theirs = merge_tensors([*map(torch.from_numpy, pair)], "slerp", base_index=0, parameters={"t": t}).numpy()
    same(merge("slerp", pair, {"t": t}), theirs)


@compared
@given(deltas((2, 4), distinct=True), weights, st.booleans())
def test_multislerp_is_mergekits(many: list[Array], factors: list[float], normalize: bool) -> None:
    shares = [abs(factor) for factor in factors[: len(many)]]
    assume(_angle(many) < 0.999)
    theirs = mergekit("multislerp", many, weight=shares, normalize_weights=normalize)
    assume(np.isfinite(theirs).all())
    same(merge("multislerp", many, {"normalize": normalize}, weights=shares), theirs)


@compared
@given(deltas((2, 4), distinct=True))
def test_karcher_is_mergekits(many: list[Array]) -> None:
    assume(_angle(many) < 0.999)
    theirs = merge_tensors([*map(torch.from_numpy, many)], "karcher").numpy()
    same(merge("karcher", many), theirs)


def _angle(many: Sequence[Array]) -> float:
    """The largest |cosine| of two deltas."""
    stacked = np.stack(many).reshape(len(many), -1)
    units = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return float(np.abs((units @ units.T)[np.triu_indices(len(many), 1)]).max())


def test_every_method_has_an_oracle() -> None:
    known = {
        "linear", "ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties",
        "sce", "ram", "ramplus_tl", "model_stock", "nearswap", "slerp", "multislerp", "karcher",
    }  # fmt: skip
    assert known == METHODS.keys()
