"""Every method of mergekit: its own merge of real checkpoints beside what the imported recipe gives.

In float32 both differ by how mergekit rounds its steps, a dozen at most: by less than 16 units in the last place of the
largest number.

Checkpoints in bfloat16 are computed by mergekit in float32 and rounded at the end. A delta between them is in bfloat16,
too: it is exact where post is within a factor 2 of base, and else half a unit from post − base, whatever mends it on
its own base. So results differ by a unit of bfloat16, and by 2⁻⁷ of the deltas' sizes (half a unit of each, times
weights and rescaling of up to 4). What is chosen by sign or rank (`CHOOSING`) may be chosen otherwise where that half
unit decides: in one of a hundred numbers at most.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltareg.apply.run import random_key
from deltareg.digest import Digest
from deltareg.errors import BadMergeConfig
from deltareg.merge import loops
from deltareg.mergekit.methods import METHODS
from tests.mergekit.models import POSTS, Imported, Models, load, make_models, save_file, torch

CHOOSING = {"ties", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ramplus_tl"}
GROUP = [0.7, -0.4, 1.3]
BY_LAYER = [0.2, 0.9, 0.5]
CONDITIONS = [
    {"filter": "layers.1.mlp", "value": 0.9},
    {"filter": "mlp", "value": [0.1, 0.8]},
    {"filter": "nowhere", "value": 7},
    {"value": 0.4},
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"), request.param)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Fine-tunes that changed little."""
    return make_models(tmp_path_factory.mktemp("light"), "float32", size=0.01)


def same(models: Models, ours: Any, theirs: Any, *, choosing: bool = False) -> None:
    """Assert that two results agree as far as their numbers are known."""
    assert ours.keys() == theirs.keys()
    base, *posts = (load(models.path / name) for name in ("base", *POSTS))
    beyond = 0
    for name, mine in ours.items():
        their = theirs[name]
        assert mine.dtype == their.dtype and mine.shape == their.shape, name
        apart = (mine.double() - their.double()).abs()
        if models.dtype == "bfloat16":
            before = base[name].double()
            sizes = sum((post[name].double() - before).abs() for post in posts)
            unit = their.double().abs().clamp(min=2**-100).log2().floor().exp2() * 2**-7
            beyond += int((apart > unit + 2**-7 * sizes).sum())
        else:
            assert apart.max() <= 16 * 2**-23 * max(1.0, float(their.abs().max())), (name, float(apart.max()))
    assert beyond <= (0.01 * sum(tensor.numel() for tensor in ours.values()) if choosing else 0)


def differs(ours: Any, other: Any) -> bool:
    """Whether two results are more than roundings apart."""
    return any((ours[name].double() - other[name].double()).abs().max() > 1e-3 for name in ours)


def weighted(*, extra: Any = None) -> dict[str, Any]:
    return {name: {"weight": weight, **(extra or {})} for name, weight in zip(POSTS, GROUP, strict=True)}


def weighted_each(name: str, *values: Any) -> dict[str, Any]:
    """The weighted models, each with a value of its own; None is that for all."""
    own = [{} if value is None else {name: value} for value in values]
    return {post: {"weight": weight, **extra} for post, weight, extra in zip(POSTS, GROUP, own, strict=True)}


def out_of(models: Models) -> dict[str, Any]:
    """What has mergekit compute in float32 and write what came in."""
    return {"dtype": "float32", "out_dtype": models.dtype}


# --- sums and elections -----------------------------------------------------------------------------------------------

DETERMINED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "task_arithmetic": ("task_arithmetic", weighted(), {}),
    "task_arithmetic normalised": ("task_arithmetic", weighted(), {"normalize": True, "lambda": 0.5}),
    "task_arithmetic by layer": ("task_arithmetic", {"a": {"weight": BY_LAYER}, "b": {"weight": CONDITIONS}}, {}),
    "task_arithmetic with weights for all": ("task_arithmetic", ["a", "b"], {"weight": 0.3, "lambda": BY_LAYER}),
    "ties": ("ties", weighted(extra={"density": 0.5}), {}),
    "ties keeps all": ("ties", weighted(), {"normalize": False}),
    "ties by tensor": ("ties", weighted(), {"density": CONDITIONS, "normalize": False, "rescale": True}),
    "ties by condition": (
        "ties",
        weighted(),
        {"density": 0.6, "normalize": [{"filter": "mlp", "value": False}, {"value": True}], "int8_mask": True},
    ),
    "dare_linear keeps all": ("dare_linear", weighted(), {}),
    "dare_ties keeps all": ("dare_ties", weighted(), {"lambda": 0.5}),
    "della keeps all": ("della", weighted(), {}),
    "della_linear keeps all": ("della_linear", weighted(), {"normalize": True}),
    "breadcrumbs": ("breadcrumbs", weighted(extra={"density": 0.7, "gamma": 0.1}), {}),
    "breadcrumbs as it is": ("breadcrumbs", weighted(extra={"density": 0.9}), {"rescale": True}),
    "breadcrumbs_ties": ("breadcrumbs_ties", weighted(extra={"density": 0.7, "gamma": 0.1}), {}),
    "ties by model": ("ties", weighted_each("density", 0.3, None, 0.8), {"density": 0.5}),
    "ties by model and layer": ("ties", weighted_each("density", BY_LAYER, [0.9, 0.1], CONDITIONS), {}),
    "breadcrumbs by model": ("breadcrumbs", weighted_each("density", 0.7, 0.5, 0.9), {"gamma": 0.1}),
    "breadcrumbs_ties by model": (
        "breadcrumbs_ties",
        {"a": {"weight": 0.5, "density": 0.6, "gamma": 0.2}, "b": {"weight": 0.7, "gamma": 0.0}, "c": {"weight": 1.0}},
        {"density": 0.8},
    ),
    "sce": ("sce", list(POSTS), {"select_topk": 0.5}),
    "sce as it is": ("sce", weighted(), {}),
    "ram": ("ram", list(POSTS), {"epsilon": 0.01}),
    "ramplus_tl": ("ramplus_tl", list(POSTS), {"r": 0.3, "alpha": 0.5, "epsilon": 0.01}),
    "model_stock": ("model_stock", list(POSTS), {"filter_wise": False}),
    "nearswap": ("nearswap", ["a"], {"t": 0.02}),
    "nearswap by layer": ("nearswap", ["a"], {"t": [0.01, 0.1]}),
    "multislerp": ("multislerp", {"a": {"weight": 0.3}, "b": {"weight": 0.9}, "c": {"weight": 0.2}}, {"eps": 1e-7}),
    "multislerp as weighed": ("multislerp", {"a": {"weight": 0.3}, "b": {"weight": 0.4}}, {"normalize_weights": False}),
    "nuslerp": ("nuslerp", {"a": {"weight": 0.3}, "b": {"weight": 0.9}}, {}),
    "nuslerp by layer": ("nuslerp", {"a": {"weight": [0, 0.5, 1]}, "b": {"weight": [1, 0.5, 0]}}, {}),
}


@pytest.mark.parametrize("case", DETERMINED)
def test_recipe_gives_what_mergekit_gives(models: Models, case: str, tmp_path: Path) -> None:
    method, listed, parameters = DETERMINED[case]
    config = models.config(method, listed, parameters=parameters, **out_of(models))
    ours, theirs, done = models.both(config, tmp_path)
    same(models, ours, theirs, choosing=method in CHOOSING)
    assert differs(ours, load(models.path / "base"))
    assert (done.report.merge_method, done.report.method) == (method, done.recipe.build.method)


def test_base_among_the_models_counts_for_nothing(models: Models, tmp_path: Path) -> None:
    config = models.config("ties", {"base": {"weight": 5.0}, "a": {"weight": 0.5}, "b": {"weight": 0.5}})
    ours, theirs, done = models.both(config, tmp_path)
    same(models, ours, theirs, choosing=True)
    assert len(done.recipe.delta) == 2
    assert "line 3: parameters of the base itself change nothing" in done.report.notes


def test_computing_in_bfloat16_gives_the_same_as_far_as_it_goes(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", "bfloat16")
    config = models.config("task_arithmetic", weighted(), dtype="bfloat16")
    ours, theirs, _ = models.both(config, tmp_path / "work")
    base, posts = load(models.path / "base"), [load(models.path / name) for name in POSTS]
    for name, mine in ours.items():
        # mergekit rounds each weight, delta, product and sum: 8 bits of each of them.
        parts = base[name].double().abs() + 3 * sum(
            abs(weight) * (post[name].double() - base[name].double()).abs()
            for weight, post in zip(GROUP, posts, strict=True)
        )
        assert ((mine.double() - theirs[name].double()).abs() <= 2**-7 * parts).all(), name


@pytest.mark.parametrize(("kind", "layers"), [("llama", 1), ("llama", 2), ("gpt2", 3)])
def test_gradients_are_mergekits_in_every_part_of_a_model(kind: str, layers: int, tmp_path: Path) -> None:
    models = make_models(tmp_path / "models", "float32", kind=kind, layers=layers, size=0.2)
    listed = {"a": {"weight": BY_LAYER}, "b": {"weight": [{"filter": "attention", "value": [1, 0]}, {"value": [0, 2]}]}}
    config = models.config("ties", listed, parameters={"density": [0.3, 0.9], "lambda": [1, 0.5, 2]})
    ours, theirs, _ = models.both(config, tmp_path / "work")
    # Tied weights may be left out by either.
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= len(ours) - 2
    same(models, {name: ours[name] for name in shared}, {name: theirs[name] for name in shared})


# --- averages of whole models -----------------------------------------------------------------------------------------

WHOLE: dict[str, tuple[Any, dict[str, Any]]] = {
    "shares": ({"base": {"weight": 1.0}, "a": {"weight": 2.0}, "b": {"weight": 0.5}}, {}),
    "adding up to one": ({"base": {"weight": 0.25}, "a": {"weight": 0.75}}, {"normalize": False}),
    "by layer": ({"base": {"weight": [1, 0]}, "a": {"weight": [0, 1]}}, {}),
    "base counts for nothing": ({"base": {"weight": 0}, "a": {"weight": BY_LAYER}, "b": {"weight": CONDITIONS}}, {}),
    "base is not listed": ({"a": {}, "b": {}}, {"weight": 0.5}),
}


@pytest.mark.parametrize("case", WHOLE)
def test_average_of_whole_models_is_a_sum_of_deltas(models: Models, case: str, tmp_path: Path) -> None:
    listed, parameters = WHOLE[case]
    config = models.config("linear", listed, parameters=parameters, **out_of(models))
    ours, theirs, _ = models.both(config, tmp_path)
    same(models, ours, theirs)
    assert differs(ours, load(models.path / "base"))


def test_average_without_a_base_starts_from_the_first_model_or_from_any_other(models: Models, tmp_path: Path) -> None:
    config = models.config("linear", {"a": {"weight": 0.2}, "b": {"weight": 0.6}}, no_base=True, **out_of(models))
    ours, theirs, done = models.both(config, tmp_path / "first")
    same(models, ours, theirs)
    assert (len(done.recipe.delta), done.recipe.delta[0].weight) == (1, pytest.approx(0.75))
    assert any("no base_model" in note for note in done.report.notes)
    ours, theirs, done = models.both(config, tmp_path / "other", base=str(models.path / "c"))
    same(models, ours, theirs)
    assert len(done.recipe.delta) == 2 and Path(done.recipe.build.base).name == "c"


def test_average_by_layer_without_a_base_needs_one(models: Models, tmp_path: Path) -> None:
    config = models.config("linear", {"a": {"weight": [0.2, 1]}, "b": {"weight": 0.6}}, no_base=True, **out_of(models))
    with pytest.raises(BadMergeConfig, match="no gradients any more") as caught:
        models.imported(config, tmp_path / "refused")
    assert caught.value.hint is not None and "--base" in caught.value.hint
    ours, theirs, _ = models.both(config, tmp_path / "other", base=str(models.path / "base"))
    same(models, ours, theirs)


def test_weights_that_scale_the_base_are_refused(models: Models, tmp_path: Path) -> None:
    listed = {"base": {"weight": 1.0}, "a": {"weight": 0.5}}
    with pytest.raises(BadMergeConfig, match=r"add up to 1\.5"):
        models.imported(models.config("linear", listed, parameters={"normalize": False}), tmp_path)


# --- on the sphere ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.3, [0, 0.5, 1], CONDITIONS])
def test_slerp_of_light_fine_tunes_is_linear(light: Models, t: Any, tmp_path: Path) -> None:
    ours, theirs, done = light.both(light.config("slerp", ["base", "a"], parameters={"t": t}), tmp_path)
    same(light, ours, theirs)
    assert done.recipe.build.method == "linear"


def test_slerp_that_turns_whole_models_is_refused(models: Models, tmp_path: Path) -> None:
    config = models.config("slerp", ["base", "a"], parameters={"t": 0.5}, **out_of(models))
    with pytest.raises(BadMergeConfig, match=r"slerp turns .* about the origin") as caught:
        models.imported(config, tmp_path)
    assert "line 1" in str(caught.value) and "--base" in str(caught.value.hint)
    assert not (tmp_path / "deltareg.toml").exists()


@pytest.mark.parametrize("method", ["slerp", "karcher", "multislerp", "nuslerp"])
def test_turned_deltas_of_a_base_that_is_named(models: Models, method: str, tmp_path: Path) -> None:
    """mergekit turns whole models: given the deltas as models of their own, it turns those."""
    parameters: dict[str, Any] = {"t": 0.3} if method == "slerp" else {}
    weights = {} if method in ("slerp", "karcher") else {"weight": 0.5}
    config = models.config(method, {"a": weights, "b": weights}, no_base=True, parameters=parameters, dtype="float32")
    if method == "slerp":
        config["base_model"] = str(models.path / "a")
    done = models.imported(config, tmp_path, base=str(models.path / "base"))
    assert "another result than mergekit's" in " ".join(done.report.notes)
    base = load(models.path / "base")
    renamed = Models(tmp_path / "deltas", "float32")
    for name in ("a", "b"):
        place = renamed.path / name
        place.mkdir(parents=True)
        (place / "config.json").write_bytes((models.path / name / "config.json").read_bytes())
        post = load(models.path / name)
        deltas = {key: post[key].float() - base[key].float() for key in post}
        save_file(deltas, place / "model.safetensors", metadata={"format": "pt"})
    theirs_config = renamed.config(method, {"a": weights, "b": weights}, no_base=True, parameters=parameters)
    if method == "slerp":
        theirs_config["base_model"] = str(renamed.path / "a")
    theirs = renamed.theirs(theirs_config, tmp_path / "theirs")
    same(models, done.apply(), {name: base[name].float() + theirs[name] for name in base})


# --- random masks -----------------------------------------------------------------------------------------------------


def our_masks(done: Imported) -> AbstractContextManager[None]:
    """Make mergekit draw the masks that we draw: delta by delta, tensor by tensor."""

    @contextmanager
    def drawing() -> Generator[None]:
        from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge as Theirs

        digests = [Digest(one.digest) for one in done.report.deltas if one.digest]
        merge_group, bernoulli = Theirs.merge_group, torch.bernoulli
        keys: list[int] = []

        def named(self: Any, group: Any, /, **parameters: Any) -> Any:
            keys[:] = [random_key(0, digest, group.metadata.name) for digest in digests]
            return merge_group(self, group, **parameters)

        def drawn(chances: Any) -> Any:
            bits = np.empty(chances.numel(), np.uint32)
            loops.draw(np.uint64(keys.pop(0)), 0, bits)
            mask = bits.reshape(tuple(chances.shape)) / 2.0**32 < chances.double().numpy()
            return torch.from_numpy(np.asarray(mask)).to(chances.dtype)

        Theirs.merge_group, torch.bernoulli = named, drawn
        try:
            yield
        finally:
            Theirs.merge_group, torch.bernoulli = merge_group, bernoulli

    return drawing()


RANDOM: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dare_linear": ("dare_linear", {"density": 0.5}, {}),
    "dare_linear unscaled": ("dare_linear", {"density": 0.25}, {"rescale": False, "lambda": 0.7}),
    "dare_ties": ("dare_ties", {"density": 0.5}, {}),
    "dare_ties normalised": ("dare_ties", {"density": 0.75}, {"normalize": True}),
    "della": ("della", {"density": 0.5, "epsilon": 0.25}, {}),
    "della_linear": ("della_linear", {"density": 0.5}, {}),
    "dare_linear by model": ("dare_linear", {"density": {"a": 0.25, "b": 0.75, "c": 0.5}}, {}),
    "dare_ties by model": ("dare_ties", {"density": {"a": 0.75, "c": 0.5}}, {"density": 0.25}),
    "della by model": (
        "della",
        {"density": {"a": 0.5, "b": 0.75}, "epsilon": {"b": 0.125, "c": 0.25}},
        {"density": 0.5},
    ),
    "della unscaled": ("della", {"density": 0.5, "epsilon": 0.125}, {"rescale": False, "normalize": False}),
}


@pytest.mark.parametrize("case", RANDOM)
def test_random_methods_with_the_same_masks(models: Models, case: str, tmp_path: Path) -> None:
    method, extra, parameters = RANDOM[case]
    listed = weighted()
    for name, value in extra.items():
        for post, own in (value if isinstance(value, dict) else dict.fromkeys(POSTS, value)).items():
            listed[post][name] = own
    config = models.config(method, listed, parameters=parameters, **out_of(models))
    ours, theirs, _ = models.both(config, tmp_path, our_masks)
    same(models, ours, theirs, choosing=method in CHOOSING)
    assert differs(ours, load(models.path / "base"))


# --- a newer base -----------------------------------------------------------------------------------------------------


def test_new_base_that_is_added_whole_becomes_the_base(models: Models, tmp_path: Path) -> None:
    config = models.config("task_arithmetic", {"a": {"weight": 1.0}, "b": {"weight": 0.6}}, **out_of(models))
    ours, theirs, done = models.both(config, tmp_path / "new")
    same(models, ours, theirs)
    assert done.report.rewritten and Path(done.recipe.build.base).name == "a"
    assert [one.weight for one in done.recipe.delta] == [0.6] and "--keep-base" in done.report.hints[0]
    kept, _, done = models.both(config, tmp_path / "kept", keep_base=True)
    same(models, kept, theirs)
    assert not done.report.rewritten and Path(done.recipe.build.base).name == "base" and len(done.recipe.delta) == 2


def test_new_base_in_doubt_is_asked_for(models: Models, tmp_path: Path) -> None:
    config = models.config("task_arithmetic", {"a": {"weight": 1}, "b": {"weight": 1}}, **out_of(models))
    done = models.imported(config, tmp_path / "doubt")
    assert not done.report.rewritten and "--new-base" in done.report.hints[0]
    ours, theirs, done = models.both(config, tmp_path / "said", new_base=str(models.path / "b"))
    same(models, ours, theirs)
    assert done.report.rewritten and Path(done.recipe.build.base).name == "b"


@pytest.mark.parametrize("parameters", [{"lambda": 0.5}, {"normalize": True}])
def test_sum_that_is_scaled_keeps_its_base(models: Models, parameters: Any, tmp_path: Path) -> None:
    listed = {"a": {"weight": 1}, "b": {"weight": 0.6}}
    ours, theirs, done = models.both(
        models.config("task_arithmetic", listed, parameters=parameters, **out_of(models)), tmp_path
    )
    same(models, ours, theirs)
    assert not done.report.rewritten and not done.report.hints


def test_every_method_was_compared() -> None:
    compared = {method for method, *_ in (*DETERMINED.values(), *RANDOM.values())}
    assert compared | {"linear", "slerp", "karcher"} == METHODS.keys()
