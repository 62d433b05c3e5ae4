"""Merge methods on whole checkpoints: against the stages alone, on any number of threads, by tensor, with bad input."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import deltareg
from deltareg import Registry
from deltareg.apply.limits import Limits
from deltareg.apply.run import random_key
from deltareg.codec import FRAME_LANES, RecordReader
from deltareg.errors import InvalidArgument
from deltareg.merge import METHODS, Gradient, Schedule, Value
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.merge.merged import merge
from tests.merge.test_methods import REQUIRED

Array = NDArray[Any]

BF16, F32 = FORMATS["BF16"], FORMATS["F32"]
NAMES = ("a", "b")
# One tensor of several frames, rows that frames cut, one lane, several layers.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (1100, 1001),
    "model.layers.0.self_attn.q_proj.weight": (33, 17),
    "model.layers.0.mlp.up_proj.weight": (40, 9),
    "model.layers.1.self_attn.q_proj.weight": (33, 17),
    "model.layers.1.mlp.up_proj.weight": (40, 9),
    "model.norm.weight": (9,),
    "scalar": (),
}


class Models:
    """A base and two deltas of it, which differ in sign here and there, and a target of the same space."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.dtype = dtype
        self.format = FORMATS[dtype]
        self.registry = Registry(path / "home")
        generator = np.random.default_rng(5)
        self.base = self._random(generator, 1.0)
        self.posts = [self._moved(generator) for _ in NAMES]
        self.target = self._random(generator, 1.0)
        base = self.write("base", self.base)
        for name, post in zip(NAMES, self.posts, strict=True):
            deltareg.diff(base, self.write(f"post-{name}", post), self.registry, f"acme/{name}:1.0.0")
        self.target_path = self.write("target", self.target)
        self._made = 0

    def _random(self, generator: np.random.Generator, size: float) -> dict[str, Array]:
        return {
            name: self.format.narrow(size * generator.standard_normal(shape).reshape(-1))
            for name, shape in SHAPES.items()
        }

    def _moved(self, generator: np.random.Generator) -> dict[str, Array]:
        moved: dict[str, Array] = {}
        for name, bits in self.base.items():
            change = 0.01 * generator.standard_normal(bits.size) * (generator.random(bits.size) < 0.7)
            moved[name] = self.format.narrow(self.format.widen(bits).astype(np.float64) + change)
        return moved

    def write(self, name: str, tensors: Mapping[str, Array]) -> Path:
        """A checkpoint with these bits."""
        raws = {key: Raw(self.dtype, SHAPES[key], of(self.dtype, bits).data) for key, bits in tensors.items()}
        return write_checkpoint(self.path / name, raws)

    def apply(
        self,
        method: str = "linear",
        parameters: Any = None,
        *,
        weights: Any = None,
        target: Path | None = None,
        **options: Any,
    ) -> tuple[dict[str, Raw], deltareg.apply.ApplyReport]:
        """What comes out, and the report."""
        self._made += 1
        out = self.path / f"out-{self._made}"
        names = NAMES[: 1 if METHODS[method].most == 1 else 2]
        deltas = weights or {f"acme/{name}:1.0.0": 1.0 for name in names}
        report = deltareg.apply(
            target or self.target_path,
            deltas,
            self.registry,
            out,
            method=method,
            parameters=parameters,
            force=True,
            **options,
        )
        return read_tensors(out), report

    def exact(self, number: int, name: str) -> Array:
        """post − base, as the delta has it: rounded to the dtype, and mended where that is not enough."""
        base, post = (self.format.widen(bits[name]).astype(np.float64) for bits in (self.base, self.posts[number]))
        return self.format.widen(self.format.narrow(post - base)).astype(np.float64)


@pytest.fixture(scope="module", params=["BF16", "F32"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"), request.param)


@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_threads_gives_the_same_bits(models: Models, method: str) -> None:
    parameters = REQUIRED.get(method)
    alone, _ = models.apply(method, parameters, threads=1)
    assert alone != read_tensors(models.target_path)
    for threads in (2, 3, 8):
        assert models.apply(method, parameters, threads=threads)[0] == alone


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_the_target_and_what_the_stages_give_rounded_once(models: Models, method: str) -> None:
    """Tensor by tensor, from deltas that were not mended: the stages as `tests/merge` has checked them."""
    parameters: dict[str, Value] = {**REQUIRED.get(method, {}), **({"trim": "tensor"} if method == "ties" else {})}
    found, _ = models.apply(method, parameters, seed=3)
    format_ = models.format
    count = 1 if METHODS[method].most == 1 else 2
    for name, shape in SHAPES.items():
        keys = [random_key(3, models.registry.artifact(f"acme/{one}:1.0.0").digest, name) for one in NAMES[:count]]
        deltas = [
            format_.narrow(models.exact(number, name)).view(_stored(models.dtype)).reshape(shape)
            for number in range(count)
        ]
        merged = merge(method, deltas, parameters, dtype=models.dtype, keys=keys).reshape(-1)
        target = format_.widen(models.target[name])
        wide = np.float64 if models.dtype == "F32" else np.float32
        total = format_.narrow(target.astype(wide) + merged.astype(wide))
        expected = np.where(merged == 0, models.target[name], total)
        got = np.frombuffer(found[name].data, format_.bits)
        # What a second term mends differs from its D1 by less than a place of the delta.
        differing = np.count_nonzero(got != expected)
        assert differing <= 0.02 * got.size, name


def _stored(dtype: str) -> Any:
    from deltareg.codec import lane_of

    return lane_of(dtype).stored


def test_a_model_is_trimmed_as_one(models: Models) -> None:
    """The largest of all tensors, equal ones by the tensors' names and their places."""
    found, report = models.apply("ties", {"density": 0.3}, weights={"acme/a:1.0.0": 1.0})
    assert report.settings["trim"] == "model"
    names = sorted(SHAPES)
    whole = np.abs(np.concatenate([models.exact(0, name) for name in names]))
    order = np.argsort(-whole, kind="stable")
    kept = np.zeros(whole.size, bool)
    kept[order[: int(0.3 * whole.size)]] = True
    at = 0
    for name in names:
        size = models.target[name].size
        moved = np.frombuffer(found[name].data, models.format.bits) != models.target[name]
        assert not (moved & ~kept[at : at + size]).any(), name
        # What is kept arrives: it moves the target wherever the sum does not round back to it.
        target = models.format.widen(models.target[name])
        away = models.format.narrow(target + models.exact(0, name)) != models.target[name]
        missed = kept[at : at + size] & away & ~moved
        assert np.count_nonzero(missed) <= 0.02 * size, name
        at += size


def test_seeds_give_other_masks_and_the_same_seed_the_same(models: Models) -> None:
    first, report = models.apply("dare_ties", {"density": 0.5}, seed=1)
    assert report.seed == 1
    assert models.apply("dare_ties", {"density": 0.5}, seed=1)[0] == first
    assert models.apply("dare_ties", {"density": 0.5}, seed=2)[0] != first


# --- by tensor --------------------------------------------------------------------------------------------------------


def test_weights_differ_by_module_class_and_pattern(models: Models) -> None:
    weights = {"acme/a:1.0.0": Schedule(((None, 0.5), ("attention", 0.0), ("model.layers.1.*", 2.0)))}
    found, report = models.apply(weights=weights)
    assert report.deltas[0].weight == "0.5, attention: 0.0, model.layers.1.*: 2.0"
    alone = {weight: models.apply(weights={"acme/a:1.0.0": weight})[0] for weight in (0.5, 2.0)}
    target = read_tensors(models.target_path)
    for name in SHAPES:
        if name.startswith("model.layers.1."):
            assert found[name] == alone[2.0][name]
        elif "self_attn" in name:
            assert found[name] == target[name]
        else:
            assert found[name] == alone[0.5][name]


def test_a_gradient_goes_along_the_layers(models: Models) -> None:
    found, _ = models.apply(weights={"acme/a:1.0.0": Gradient((0.25, 0.75))})
    first = models.apply(weights={"acme/a:1.0.0": 0.25})[0]
    last = models.apply(weights={"acme/a:1.0.0": 0.75})[0]
    for name in SHAPES:
        early = name.startswith(("model.layers.0.", "model.embed"))
        assert found[name] == (first if early else last)[name], name


def test_parameters_differ_by_tensor(models: Models) -> None:
    rules = Schedule(((None, 1.0), ("mlp", 0.0)))
    found, report = models.apply("ties", {"density": rules, "trim": "tensor"})
    assert report.settings["density"] == "1.0, mlp: 0.0"
    whole = models.apply("ties", {"density": 1.0, "trim": "tensor"})[0]
    target = read_tensors(models.target_path)
    for name in SHAPES:
        assert found[name] == (target if ".mlp." in name else whole)[name], name


def test_a_selector_that_matches_nothing_is_refused(models: Models) -> None:
    with pytest.raises(InvalidArgument, match=r"no tensor .* 'layers\.\*', 'attn'"):
        models.apply(
            "ties",
            {"density": Schedule(((None, 0.5), ("attn", 0.3)))},
            weights={"acme/a:1.0.0": Schedule(((None, 1.0), ("layers.*", 0.3))), "acme/b:1.0.0": 1.0},
        )


# --- by delta ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", ["tensor", "model"])
def test_deltas_have_parameters_of_their_own(models: Models, trim: str) -> None:
    """Where nothing is kept of one, the other is all that there is."""
    own = [("acme/a:1.0.0", 1.0), ("acme/b:1.0.0", 1.0, {"density": 0.0})]
    found, report = models.apply("ties", {"density": 0.4, "trim": trim}, weights=own)
    assert found == models.apply("ties", {"density": 0.4, "trim": trim}, weights={"acme/a:1.0.0": 1.0})[0]
    assert [one.settings for one in report.deltas] == [{}, {"density": 0.0}]
    assert report.settings["density"] == 0.4


@pytest.mark.parametrize("trim", ["tensor", "model"])
def test_what_a_delta_has_for_itself_may_differ_by_tensor(models: Models, trim: str) -> None:
    rules = Schedule(((None, 0.0), ("mlp", 0.7)))
    given = {"density": 0.4, "trim": trim}
    own = [("acme/a:1.0.0", 1.0), ("acme/b:1.0.0", 1.0, {"density": rules})]
    found, report = models.apply("ties", given, weights=own)
    assert report.deltas[1].settings == {"density": "0.0, mlp: 0.7"}
    # The largest of a model are those of the tensors for which the same is wanted: here all but these.
    apart = {"density": Schedule(((None, 0.4), ("mlp", 0.5))), "trim": trim}
    without = models.apply("ties", apart, weights={"acme/a:1.0.0": 1.0})[0]
    for name in SHAPES:
        assert (found[name] == without[name]) == (".mlp." not in name), name


@pytest.mark.parametrize(
    ("method", "shared", "own"),
    [
        ("ties", {"density": 0.3}, {"density": 0.8}),
        ("breadcrumbs", {"density": 0.3}, {"density": 0.8, "gamma": 0.1}),
        ("dare_ties", {"density": 0.3}, {"density": 0.8}),
        ("della", {"density": 0.3}, {"density": 0.8, "epsilon": 0.2}),
    ],
)
def test_threads_and_devices_do_not_change_what_each_delta_has(
    models: Models, method: str, shared: Any, own: Any
) -> None:
    deltas = [("acme/a:1.0.0", 1.0), ("acme/b:1.0.0", 0.5, own)]
    alone, _ = models.apply(method, shared, weights=deltas, threads=1)
    assert alone != models.apply(method, shared, weights=[one[:2] for one in deltas])[0]
    assert models.apply(method, shared, weights=deltas, threads=3)[0] == alone
    assert models.apply(method, shared, weights=deltas, threads=2, device="torch:cpu")[0] == alone


def test_each_delta_with_its_own_needs_none_for_all(models: Models) -> None:
    own = [(f"acme/{name}:1.0.0", 1.0, {"density": 0.5}) for name in NAMES]
    found, report = models.apply("dare_ties", weights=own)
    assert found == models.apply("dare_ties", {"density": 0.5})[0]
    assert "density" not in report.settings


def test_the_card_names_what_each_delta_has(models: Models) -> None:
    deltas = [("acme/a:1.0.0", 1.0), ("acme/b:1.0.0", 1.0, {"density": Gradient((0.2, 0.8)), "epsilon": 0.1})]
    models.apply("della", {"density": 0.5}, weights=deltas)
    card = (models.path / f"out-{models._made}" / "README.md").read_text()  # pyright: ignore[reportPrivateUsage]
    assert "| delta | weight | parameters | digest | licence |\n|---|---|---|---|---|\n" in card
    assert "| `acme/a:1.0.0` | 1.0 |  | `sha256:" in card
    assert "| `acme/b:1.0.0` | 1.0 | density = 0.2..0.8, epsilon = 0.1 | `sha256:" in card


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_card_names_every_parameter(models: Models) -> None:
    models.apply("dare_ties", {"density": Gradient((0.2, 0.8))}, seed=7)
    card = (models.path / f"out-{models._made}" / "README.md").read_text()  # pyright: ignore[reportPrivateUsage]
    assert (
        "method `dare_ties` (density = 0.2..0.8, elect = weighted, normalize = weights, rescale = inverse, "
        "lambda = 1.0, seed = 7)" in card
    )


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters", "weights", "told"),
    [
        ("slerp", {}, {"acme/a:1.0.0": 1.0}, "slerp takes 2 deltas, not 1"),
        ("slerp", {}, {"acme/a:1.0.0": 1.0, "acme/b:1.0.0": 0.0}, "slerp takes 2 deltas, not 1"),
        ("model_stock", {}, {"acme/a:1.0.0": 1.0}, "model_stock takes at least 2 deltas, not 1"),
        ("nearswap", {"t": 1.0}, {"acme/a:1.0.0": 1.0, "acme/b:1.0.0": 1.0}, "nearswap takes one delta"),
        ("ties", {"density": 2.0}, {"acme/a:1.0.0": 1.0}, "density is 2.0"),
        ("ties", {"density": Gradient((0.5, 1.5))}, {"acme/a:1.0.0": 1.0}, "density is 1.5"),
        ("ties", {"width": 2.0}, {"acme/a:1.0.0": 1.0}, "ties has no parameter width"),
        ("dare_ties", {}, {"acme/a:1.0.0": 1.0}, "dare_ties needs density"),
        ("linear", {}, {"acme/a:1.0.0": float("nan")}, "the weight of acme/a:1.0.0 is nan"),
        ("linear", {}, {"acme/a:1.0.0": Gradient((0.0, float("inf")))}, "the weight of acme/a:1.0.0 is inf"),
        ("fisher", {}, {"acme/a:1.0.0": 1.0}, "unknown method 'fisher'"),
        ("ties", {}, [("acme/a:1.0.0", 1.0, 0.3)], "acme/a:1.0.0 has 0.3 behind its weight"),
        ("ties", {}, [("acme/a:1.0.0", 1.0, {}, {"density": 0.3})], "acme/a:1.0.0 has {}, {'density': 0.3} behind"),
        ("ties", {}, [("acme/a:1.0.0", 1.0, {"trim": "model"})], "acme/a:1.0.0: ties has one trim for all deltas"),
        ("ties", {}, [("acme/a:1.0.0", 1.0, {"density": -0.5})], "acme/a:1.0.0: density is -0.5"),
        ("ties", {}, [("acme/a:1.0.0", 1.0, {"gamma": 0.5})], "acme/a:1.0.0: ties has no parameter gamma"),
        ("linear", {}, [("acme/a:1.0.0", 1.0, {"lambda": 0.5})], "acme/a:1.0.0: linear has one lambda for all deltas"),
        (
            "dare_ties",
            {},
            [("acme/a:1.0.0", 1.0, {"density": 0.5}), ("acme/b:1.0.0", 1.0)],
            "acme/b:1.0.0: dare_ties needs density",
        ),
        (
            "della",
            {"density": 0.5, "epsilon": 0.1},
            [("acme/a:1.0.0", 1.0, {"density": 0.99}), ("acme/b:1.0.0", 1.0)],
            "acme/a:1.0.0: chances from 0.94 to 1.04 are none",
        ),
        (
            "ties",
            {},
            [("acme/a:1.0.0", 1.0, {"density": Schedule((("layers.*", 0.3),))})],
            "no tensor of the target matches 'layers.*'",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    models: Models, tmp_path: Path, method: str, parameters: Any, weights: Any, told: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InvalidArgument) as caught:
        deltareg.apply(
            models.target_path, weights, models.registry, out, method=method, parameters=parameters, force=True
        )
    assert told in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_same_delta_twice_is_its_weights_added(models: Models) -> None:
    twice = [("acme/a:1.0.0", 0.25), ("acme/a:1.0.0", 0.5)]
    out = models.path / "twice"
    report = deltareg.apply(models.target_path, twice, models.registry, out, method="ties", force=True)
    assert any("named more than once" in warning for warning in report.warnings)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.most != 1])
def test_integers_and_truths_are_taken_from_the_strongest(tmp_path: Path, method: str) -> None:
    registry = Registry(tmp_path / "home")
    weight = of("BF16", BF16.narrow(np.linspace(-1, 1, 64)))
    base = {"w": weight, "ids": of("I64", np.arange(4)), "mask": of("BOOL", np.zeros(4, np.uint8))}
    for number, name in enumerate(NAMES, 1):
        post = {
            "w": of("BF16", BF16.narrow(np.linspace(-1, 1, 64) + 0.01 * number)),
            "ids": of("I64", np.arange(4) + number),
            "mask": of("BOOL", np.full(4, number % 2, np.uint8)),
        }
        paths = [write_checkpoint(tmp_path / f"{name}-{side}", tensors) for side, tensors in (("0", base), ("1", post))]
        deltareg.diff(paths[0], paths[1], registry, f"acme/{name}:1.0.0")
    target = write_checkpoint(tmp_path / "target", base)
    deltas = {"acme/a:1.0.0": 0.5, "acme/b:1.0.0": 1.0}
    parameters = REQUIRED.get(method)
    report = deltareg.apply(target, deltas, registry, tmp_path / "out", method=method, parameters=parameters)
    found = read_tensors(tmp_path / "out")
    assert np.frombuffer(found["ids"].data, np.int64).tolist() == [2, 3, 4, 5]
    assert np.frombuffer(found["mask"].data, np.uint8).tolist() == [1, 1, 1, 1]  # only the first changes it
    assert any("cannot be summed" in warning for warning in report.warnings)


def test_a_tensor_that_one_delta_lacks_is_merged_from_the_others(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    rows = {name: of("F32", np.linspace(-1, 1, 32, dtype=np.float32).view(np.uint32)) for name in ("shared", "own")}
    moved = {name: of("F32", np.linspace(-1, 1.5, 32, dtype=np.float32).view(np.uint32)) for name in rows}
    both = [write_checkpoint(tmp_path / f"both-{side}", one) for side, one in enumerate((rows, moved))]
    deltareg.diff(both[0], both[1], registry, "acme/both:1.0.0")
    few = [
        write_checkpoint(tmp_path / f"few-{side}", {"shared": one["shared"]}) for side, one in enumerate((rows, moved))
    ]
    deltareg.diff(few[0], few[1], registry, "acme/few:1.0.0")
    report = deltareg.apply(
        both[0],
        {"acme/both:1.0.0": 1.0, "acme/few:1.0.0": 1.0},
        registry,
        tmp_path / "out",
        method="slerp",
        force=True,
    )
    assert any("1 tensor had fewer deltas than slerp takes" in warning for warning in report.warnings)
    assert read_tensors(tmp_path / "out")["own"] == moved["own"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_number_in_a_target_stays_in_its_lanes(models: Models, method: str) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    sound, _ = models.apply(method, REQUIRED.get(method))
    odd = {key: bits.copy() for key, bits in models.target.items()}
    odd[name][3:6] = models.format.narrow(np.array([np.nan, np.inf, -np.inf]))
    found, _ = models.apply(method, REQUIRED.get(method), target=models.write(f"odd-{method}", odd))
    got, due = (np.frombuffer(one[name].data, models.format.bits) for one in (found, sound))
    others = (np.arange(got.size) < 3) | (np.arange(got.size) > 5)
    assert np.array_equal(got[others], due[others])
    assert all(found[key] == sound[key] for key in sound if key != name)
    merged = models.format.widen(got[3:6])
    assert np.isnan(merged[0]) and merged[1] == np.inf and merged[2] == -np.inf


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("karcher", "multislerp")])
@pytest.mark.parametrize("weight", [-1.5, 3e38])
def test_weights_may_be_negative_and_huge(models: Models, method: str, weight: float) -> None:
    names = NAMES[: 1 if METHODS[method].most == 1 else 2]
    weights = {f"acme/{name}:1.0.0": weight for name in names}
    found, report = models.apply(method, REQUIRED.get(method), weights=weights)
    assert [delta.weight for delta in report.deltas] == [weight] * len(names)
    assert found != read_tensors(models.target_path)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
def test_trimming_a_model_as_one_counts_no_lanes_that_a_delta_leaves_alone(tmp_path: Path, device: str) -> None:
    # A float32 delta of one tensor, beside a bfloat16 delta of both: where the first has nothing it has no bfloat16
    # zeros either.
    generator = np.random.default_rng(2)
    registry = Registry(tmp_path / "home")
    names = ("layers.0.attention.query.weight", "layers.0.mlp.up.weight")
    base = {name: generator.standard_normal(4096) for name in names}
    first = {name: base[name] + 0.01 * generator.standard_normal(4096) * (name == names[0]) for name in names}
    second = {name: base[name] + 0.05 * generator.standard_normal(4096) for name in names}

    def write(name: str, dtype: str, tensors: Mapping[str, Array]) -> Path:
        form = FORMATS[dtype]
        raws: dict[str, Raw] = {}
        for key, one in tensors.items():
            raws[key] = Raw(dtype, (64, 64), of(dtype, form.narrow(one)).data)
        return write_checkpoint(tmp_path / name, raws)

    target = write("base-32", "F32", base)
    deltareg.diff(target, write("first", "F32", first), registry, "acme/first:1.0.0")
    deltareg.diff(write("base-16", "BF16", base), write("second", "BF16", second), registry, "acme/second:1.0.0")
    deltareg.apply(
        target,
        {"acme/first:1.0.0": 1.0, "acme/second:1.0.0": 1e-30},
        registry,
        tmp_path / "out",
        method="ties",
        parameters={"density": 0.25, "normalize": "none", "trim": "model"},
        force=True,
        device=device,
    )
    found = np.frombuffer(read_tensors(tmp_path / "out")[names[0]].data, np.float32)
    change = np.abs(found - FORMATS["F32"].widen(FORMATS["F32"].narrow(base[names[0]])))
    # A quarter of the 8,192 lanes of the model, all of them in the tensor that the delta changes.
    assert np.count_nonzero(change > 1e-9) == pytest.approx(2048, rel=0.2)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
def test_a_model_of_two_dtypes_is_trimmed_as_one(tmp_path: Path, device: str) -> None:
    """The largest of the bfloat16 and of the float32 tensor together, and nothing else of either."""
    generator = np.random.default_rng(6)
    registry = Registry(tmp_path / "home")
    dtypes = {"layers.0.mlp.gate.weight": "F32", "layers.0.mlp.up.weight": "BF16"}
    # Multiples of 1/64 below 2, which no dtype here rounds.
    base = {name: generator.integers(-64, 65, 4096) / 64 for name in dtypes}
    deltas = {name: generator.integers(-40, 41, 4096) / 64 for name in dtypes}

    def write(name: str, tensors: Mapping[str, Array]) -> Path:
        raws = {key: of(dtypes[key], FORMATS[dtypes[key]].narrow(numbers)) for key, numbers in tensors.items()}
        return write_checkpoint(tmp_path / name, raws)

    before = write("base", base)
    deltareg.diff(
        before, write("post", {name: base[name] + deltas[name] for name in dtypes}), registry, "acme/one:1.0.0"
    )
    how: dict[str, Any] = {"method": "ties", "parameters": {"density": 0.25, "trim": "model"}, "device": device}
    deltareg.apply(before, {"acme/one:1.0.0": 1.0}, registry, tmp_path / "out", **how)
    kept = np.zeros(8192, bool)
    kept[np.argsort(-np.abs(np.concatenate(list(deltas.values()))), kind="stable")[:2048]] = True
    found = read_tensors(tmp_path / "out")
    for lanes, (name, dtype) in zip(np.split(kept, 2), dtypes.items(), strict=True):
        got = FORMATS[dtype].widen(np.frombuffer(found[name].data, FORMATS[dtype].bits))
        assert np.array_equal(got, base[name] + lanes * deltas[name])
        assert 0 < np.count_nonzero(lanes) < 2048


def test_a_model_is_trimmed_as_one_beside_a_delta_that_has_lanes_of_another_width_elsewhere(tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    registry = Registry(tmp_path / "home")
    dtypes = {"layers.0.mlp.gate.weight": "F32", "layers.0.mlp.up.weight": "BF16"}
    base = {name: generator.integers(-64, 65, 4096) / 64 for name in dtypes}
    deltas = {name: generator.integers(1, 41, 4096) / 64 for name in dtypes}

    def write(name: str, moved: Sequence[str]) -> Path:
        numbers = {key: base[key] + deltas[key] * (key in moved) for key in dtypes}
        raws = {key: of(dtypes[key], FORMATS[dtypes[key]].narrow(one)) for key, one in numbers.items()}
        return write_checkpoint(tmp_path / name, raws)

    before = write("base", [])
    for name, key in zip(NAMES, dtypes, strict=True):
        deltareg.diff(before, write(name, [key]), registry, f"acme/{name}:1.0.0")
    deltareg.apply(
        before,
        {f"acme/{name}:1.0.0": 1.0 for name in NAMES},
        registry,
        tmp_path / "out",
        method="ties",
        parameters={"density": 0.25, "trim": "model"},
    )
    found = read_tensors(tmp_path / "out")
    for key, dtype in dtypes.items():
        kept = np.zeros(4096, bool)  # a quarter of both tensors is half of the one that the delta changes
        kept[np.argsort(-deltas[key], kind="stable")[:2048]] = True
        got = FORMATS[dtype].widen(np.frombuffer(found[key].data, FORMATS[dtype].bits))
        assert np.array_equal(got, base[key] + kept * deltas[key])


def test_what_is_measured_of_the_model_takes_no_room_from_frames_that_are_kept_for_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(9)
    registry = Registry(tmp_path / "home")
    numbers = generator.integers(-64, 65, FRAME_LANES + 9) / 64
    base = BF16.narrow(numbers)
    post = BF16.narrow(numbers + generator.integers(1, 41, base.size) / 64)  # in bfloat16 as it is: no second terms
    before = write_checkpoint(tmp_path / "base", {"w": of("BF16", base)})
    deltareg.diff(before, write_checkpoint(tmp_path / "post", {"w": of("BF16", post)}), registry, "acme/one:1.0.0")
    reads: list[int] = []
    read = RecordReader.read

    def counted(self: RecordReader, number: int, **options: Any) -> Any:
        reads.append(number)
        return read(self, number, **options)

    monkeypatch.setattr(RecordReader, "read", counted)
    limits = Limits(1, kept=post.nbytes)
    monkeypatch.setattr(sys.modules["deltareg.apply.apply"], "limits_for", lambda *arguments: (limits, 0))
    how: dict[str, Any] = {"method": "ties", "parameters": {"density": 0.5, "trim": "model", "rescale": "l1"}}
    deltareg.apply(before, {"acme/one:1.0.0": 1.0}, registry, tmp_path / "out", **how)
    assert sorted(reads) == [0, 0, 1, 1]  # once for the model, once for its tensor


@pytest.mark.parametrize("weights", [(1.0, -1.0), (-1.0, -1.0), (1.0, -0.5)])
def test_karcher_takes_no_weights_that_are_no_shares(models: Models, weights: tuple[float, float]) -> None:
    given = {f"acme/{name}:1.0.0": weight for name, weight in zip(NAMES, weights, strict=True)}
    with pytest.raises(InvalidArgument, match="shares"):
        models.apply("karcher", weights=given)


def test_what_is_damaged_stops_a_merge_of_many_passes(models: Models, tmp_path: Path) -> None:
    """An error in one pass reaches the caller, whatever other threads wait for."""
    from deltareg.errors import BadRecord, DigestMismatch
    from tests.deltas import flip

    home = tmp_path / "home"
    registry = Registry(home)
    base, post = models.path / "base", models.path / "post-a"
    deltareg.diff(base, post, registry, "acme/a:1.0.0")
    deltareg.diff(base, models.path / "post-b", registry, "acme/b:1.0.0")
    packs = sorted(home.rglob("sha256/*"), key=lambda file: file.stat().st_size)
    flip(packs[-1], packs[-1].stat().st_size // 2)
    for threads in (1, 4):
        with pytest.raises((BadRecord, DigestMismatch)):
            deltareg.apply(
                models.target_path,
                {"acme/a:1.0.0": 1.0, "acme/b:1.0.0": 1.0},
                registry,
                tmp_path / "out",
                method="ties",
                threads=threads,
                force=True,
            )
    assert not (tmp_path / "out").exists()


def test_blocks_are_more_than_one_here() -> None:
    assert np.prod(SHAPES["model.embed_tokens.weight"]) > FRAME_LANES
