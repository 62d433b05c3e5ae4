"""Deltas on top of others: applied together with these, or where they are already; and deltas that exclude others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deltareg
from deltareg import Registry
from deltareg.digest import Digest
from deltareg.errors import BadName, InvalidArgument, NotFound
from deltareg.manifest import Conflict, Requirement
from deltareg.merge import Schedule
from deltareg.names import parse_reference
from tests import raw
from tests.codec.oracle import FORMATS, difference, ulp
from tests.weights import Pair

BF16, F32 = FORMATS["BF16"], FORMATS["F32"]
BASE, PARENT, STACKED = "base", "acme/parent:1.0.0", "acme/stacked:1.0.0"


def bits(path: Path) -> dict[str, np.ndarray]:
    """The bit patterns of a checkpoint's floats, by name."""
    widths = {"BF16": "<u2", "F32": "<u4"}
    return {
        name: tensor.data.view(widths[tensor.spec.dtype]).reshape(-1)
        for name, tensor in raw.read(path).items()
        if tensor.spec.dtype in widths
    }


def everything(path: Path) -> dict[str, bytes]:
    """All tensors of a checkpoint."""
    return {name: tensor.data.tobytes() for name, tensor in raw.read(path).items()}


def perturbed(source: Path, goal: Path, *, width: float, seed: int = 5, side_files: bool = True) -> Path:
    """A checkpoint whose floats are those of `source`, each off by up to `width` of its magnitude."""
    draw = np.random.default_rng(seed)
    goal.mkdir()
    tensors: list[raw.RawTensor] = []
    for tensor in raw.read(source).values():
        if tensor.spec.dtype == "BF16":
            values = BF16.widen(tensor.data.view("<u2").reshape(-1))
            changed = BF16.narrow(values * (1 + draw.uniform(-width, width, values.size)))
            tensor = raw.RawTensor(tensor.spec, changed.view(np.uint8))
        elif tensor.spec.dtype == "F32":
            values = tensor.data.view("<f4").reshape(-1)
            moved = values * (1 + draw.uniform(-width, width, values.size).astype(np.float32))
            tensor = raw.RawTensor(tensor.spec, moved.astype(np.float32).view(np.uint8))
        tensors.append(tensor)
    raw.write(goal / "model.safetensors", tensors)
    for name in ("config.json", "tokenizer.json"):
        if side_files and (source / name).exists():
            (goal / name).write_bytes((source / name).read_bytes())
    return goal


# --- real weights -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Three:
    """A base, what training made of it, and what further training made of that; and both deltas."""

    registry: Registry
    base: Path
    middle: Path
    last: Path


@pytest.fixture(scope="module", params=["bf16", "fp32"])
def three(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    minilm_bf16: Pair,
    anarcii: Mapping[str, Path],
) -> Three:
    """A real model, its fine-tune, and that one perturbed by up to 1 %: MiniLM, or in fp32 the smaller. Read only."""
    path = tmp_path_factory.mktemp("three")
    pair = minilm_bf16 if request.param == "bf16" else Pair(anarcii["antibody_4_2"], anarcii["shark_4_2"])
    last = perturbed(pair.post, path / "last", width=0.01)
    registry = Registry(path / "home")
    deltareg.diff(pair.base, pair.post, registry, PARENT)
    deltareg.diff(pair.post, last, registry, STACKED, on={PARENT: 1.0})
    return Three(registry, pair.base, pair.post, last)


def test_a_stacked_delta_says_what_it_stands_on(three: Three) -> None:
    assert three.registry.artifact(STACKED).config.requires == [
        Requirement(reference="acme/parent", version="1.0.0", digest=three.registry.resolve(PARENT), weight=1.0)
    ]


@pytest.mark.slow
def test_base_with_both_deltas_is_the_last_checkpoint_up_to_rounding(three: Three, tmp_path: Path) -> None:
    """What holds, and why.

    The sum of both deltas is accumulated on base without rounding to the checkpoint's dtype in between, while `last`
    was made from `middle`, which is rounded. So an element is that of `last`, bit for bit, wherever base + Δ(parent) is
    just the number that `middle` has: there the rest of the sum is the one by which the stacked delta gives `last` on
    its own base. Elsewhere the accumulated number lies within half an ulp of middle's, and the result is off by no more
    than that and its own rounding: one ulp, of the largest of the numbers that take part.
    """
    report = deltareg.apply(three.base, {PARENT: 1.0, STACKED: 1.0}, three.registry, tmp_path / "out")
    assert report.overridden == []
    assert not [one for one in report.warnings if "on top of" in one]
    base, middle, last, found = (bits(path) for path in (three.base, three.middle, three.last, tmp_path / "out"))
    assert found.keys() == last.keys()
    alike = exact = total = 0
    for name, patterns in last.items():
        form = BF16 if patterns.dtype == np.dtype("<u2") else F32
        delta = form.widen(difference(base[name], middle[name], form, form))
        before, between = form.widen(base[name]), form.widen(middle[name])
        # float64 holds this sum, but where the exponents are far apart: such a sum counts as inexact, and is.
        kept = before + delta == between
        assert np.array_equal(found[name][kept], patterns[kept]), name
        after, got = form.widen(patterns), form.widen(found[name])
        largest = np.maximum.reduce([np.abs(one) for one in (before, between, delta, after, got)])
        assert np.all(np.abs(after - got) <= ulp(largest, form)), name
        alike += int(np.count_nonzero(found[name] == patterns))
        exact += int(np.count_nonzero(kept))
        total += patterns.size
    assert exact > 0.9 * total
    assert alike >= exact


def test_on_its_own_base_a_stacked_delta_needs_nothing_else(three: Three, tmp_path: Path) -> None:
    report = deltareg.apply(three.middle, {STACKED: 1.0}, three.registry, tmp_path / "out")
    assert (report.overridden, report.warnings) == ([], [])
    assert everything(tmp_path / "out") == everything(three.last)


def test_a_stacked_delta_is_verified_without_its_parent(three: Three, tmp_path: Path) -> None:
    alone = Registry(tmp_path / "alone")
    manifest = three.registry.artifact(STACKED).manifest
    for blob in manifest.blobs:
        alone.store.put(three.registry.store.read(Digest(blob.digest), limit=1 << 30))
    alone.publish(STACKED, three.registry.store.read(three.registry.resolve(STACKED)))
    assert deltareg.verify(STACKED, alone).reproduced is None
    assert deltareg.verify(STACKED, alone, base=three.middle, post=three.last).reproduced is True


def test_without_its_parent_a_stacked_delta_is_refused_and_the_command_is_told(three: Three, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        deltareg.apply(three.base, {STACKED: 0.5}, three.registry, tmp_path / "out")
    digest = three.registry.resolve(PARENT)
    assert caught.value.message == (
        f"{STACKED} was taken on top of acme/parent 1.0.0 ({digest}), which is not applied with it"
    )
    assert f"deltareg apply {three.base.name} {PARENT} {STACKED}=0.5 -o OUT" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()
    # A weight of 0 leaves the parent out, and so it is not there.
    with pytest.raises(InvalidArgument, match="on top of"):
        deltareg.apply(three.base, {PARENT: 0.0, STACKED: 1.0}, three.registry, tmp_path / "out")
    report = deltareg.apply(three.base, {STACKED: 1.0}, three.registry, tmp_path / "out", force=True)
    assert report.overridden == [caught.value.message]
    assert "was taken on top of acme/parent" in (tmp_path / "out" / "README.md").read_text()


def test_check_says_what_to_apply_too(three: Three) -> None:
    report = deltareg.check(three.base, [STACKED], three.registry)
    (found,) = [one for one in report.deltas[0].findings if one.code == "delta-stacked"]
    assert (report.verdict, found.severity, found.delta) == ("adaptable", "warning", "acme/parent 1.0.0")
    at_home = deltareg.check(three.middle, [STACKED], three.registry)
    assert "delta-stacked" not in {one.code for one in at_home.deltas[0].findings}


# --- small ones ---------------------------------------------------------------------------------------------------


class Stack:
    """Small checkpoints, each trained from the one before, and deltas between them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registry = Registry(path / "home")
        draw = np.random.default_rng(1)
        (path / BASE).mkdir()
        values = draw.normal(0, 0.02, 64 * 64).astype(np.float32)
        tensors = {"model.layers.0.mlp.up_proj.weight": (64, 64), "model.layers.0.mlp.down_proj.weight": (64, 64)}
        raw.write(
            path / BASE / "model.safetensors",
            [
                raw.RawTensor(raw.TensorSpec(name, "BF16", shape), raw.to_bf16(values * number).view(np.uint8))
                for number, (name, shape) in enumerate(tensors.items(), 1)
            ],
        )
        (path / BASE / "config.json").write_text('{"model_type": "llama"}')

    def train(self, name: str, start: str, *, reference: str | None = None, **more: Any) -> str:
        """Make the checkpoint `name` of `start`, and store what it learned as `acme/NAME:1.0.0`."""
        perturbed(self.path / start, self.path / name, width=0.05, seed=len(name) + ord(name[0]))
        told = reference or f"acme/{name}:1.0.0"
        deltareg.diff(self.path / start, self.path / name, self.registry, told, **more)
        return told

    def apply(self, target: str, deltas: Mapping[str, Any], **more: Any) -> deltareg.apply.ApplyReport:
        """Apply, without writing."""
        return deltareg.apply(self.path / target, deltas, self.registry, self.path / "out", dry_run=True, **more)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """base → parent → stacked, and base → other."""
    made = Stack(tmp_path)
    made.train("parent", BASE)
    made.train("stacked", "parent", on={PARENT: 1.0})
    made.train("other", BASE)
    return made


def test_the_order_in_which_they_are_named_does_not_matter(stack: Stack) -> None:
    for names in ([PARENT, STACKED], [STACKED, PARENT], ["acme/other:1.0.0", STACKED, PARENT]):
        assert stack.apply(BASE, dict.fromkeys(names, 1.0)).overridden == []


@pytest.mark.parametrize("weights", [{PARENT: 0.5}, {PARENT: -1.0}])
def test_a_parent_at_another_weight_is_told_in_report_and_card(stack: Stack, weights: dict[str, float]) -> None:
    report = deltareg.apply(stack.path / BASE, weights | {STACKED: 1.0}, stack.registry, stack.path / "out")
    (told,) = [one for one in report.warnings if "on top of" in one]
    assert told == (
        f"{STACKED} was taken on top of {PARENT} at weight 1, which has {weights[PARENT]} here: "
        "what it taught may be lost"
    )
    assert "at weight 1, which has" in (stack.path / "out" / "README.md").read_text()


def test_a_parent_that_is_named_twice_has_the_sum_of_its_weights(stack: Stack) -> None:
    half = [(PARENT, 0.5), (STACKED, 1.0), (PARENT, 0.5)]
    report = deltareg.apply(stack.path / BASE, half, stack.registry, stack.path / "out", dry_run=True)
    assert not [one for one in report.warnings if "on top of" in one]


def test_a_parent_whose_weight_differs_by_tensor_is_told(stack: Stack) -> None:
    schedule = Schedule(((None, 1.0), ("mlp", 0.25)))
    (told,) = [one for one in stack.apply(BASE, {PARENT: schedule, STACKED: 1.0}).warnings if "on top of" in one]
    assert "mlp: 0.25" in told


def test_another_version_or_other_bytes_are_not_the_parent(stack: Stack) -> None:
    stack.train("later", BASE, reference="acme/parent:1.1.0")
    with pytest.raises(InvalidArgument, match=r"on top of acme/parent 1\.0\.0"):
        stack.apply(BASE, {"acme/parent:1.1.0": 1.0, STACKED: 1.0})
    elsewhere = Registry(stack.path / "elsewhere")
    deltareg.diff(stack.path / BASE, stack.path / "other", elsewhere, PARENT)
    deltareg.diff(stack.path / "parent", stack.path / "stacked", elsewhere, "acme/plain:1.0.0")
    manifest = stack.registry.artifact(STACKED).manifest
    for blob in manifest.blobs:
        elsewhere.store.put(stack.registry.store.path(Digest(blob.digest)).read_bytes())
    elsewhere.publish(STACKED, stack.registry.store.read(stack.registry.resolve(STACKED)))
    with pytest.raises(InvalidArgument, match=r"on top of acme/parent 1\.0\.0"):
        deltareg.apply(stack.path / BASE, {PARENT: 1.0, STACKED: 1.0}, elsewhere, stack.path / "out", dry_run=True)


def test_a_delta_on_a_delta_on_a_delta(stack: Stack) -> None:
    third = stack.train("third", "stacked", on={STACKED: 1.0, PARENT: 1.0})
    assert [one.reference for one in stack.registry.artifact(third).config.requires] == ["acme/parent", "acme/stacked"]
    assert stack.apply(BASE, {PARENT: 1.0, STACKED: 1.0, third: 1.0}).overridden == []
    assert stack.apply("stacked", {third: 1.0}).overridden == []
    with pytest.raises(InvalidArgument, match=r"acme/parent 1\.0\.0") as caught:
        stack.apply(BASE, {third: 1.0})
    assert f"{PARENT} {STACKED} {third} -o OUT" in (caught.value.hint or "")
    with pytest.raises(InvalidArgument):
        stack.apply(BASE, {third: 1.0, STACKED: 1.0})


def test_a_range_is_met_by_any_of_its_versions(stack: Stack, tmp_path: Path) -> None:
    name = republished(stack.registry, STACKED, requires=[Requirement(reference="acme/parent", version="^1.0")])
    stack.train("later", BASE, reference="acme/parent:1.4.0")
    stack.train("latest", BASE, reference="acme/parent:2.0.0")
    for version in ("1.0.0", "1.4.0"):
        assert stack.apply(BASE, {f"acme/parent:{version}": 1.0, name: 1.0}).overridden == []
    with pytest.raises(InvalidArgument, match=r"acme/parent \^1\.0") as caught:
        stack.apply(BASE, {"acme/parent:2.0.0": 1.0, name: 1.0})
    assert f"deltareg apply base acme/parent:VERSION {name} -o OUT" in (caught.value.hint or "")


# --- conflicts ----------------------------------------------------------------------------------------------------


def test_deltas_of_which_one_excludes_the_other_are_not_applied_together(stack: Stack) -> None:
    rival = stack.train("rival", BASE, conflicts=["acme/other >=1, <2", "acme/absent"])
    assert stack.registry.artifact(rival).config.conflicts == [
        Conflict(reference="acme/absent"),
        Conflict(reference="acme/other", version=">=1, <2"),
    ]
    for names in ([rival, "acme/other:1.0.0"], ["acme/other:1.0.0", rival]):
        with pytest.raises(InvalidArgument, match=r"acme/rival:1\.0\.0 excludes acme/other:1\.0\.0") as caught:
            stack.apply(BASE, dict.fromkeys(names, 1.0))
        assert "leave one of them out" in (caught.value.hint or "")
        assert stack.apply(BASE, dict.fromkeys(names, 1.0), force=True).overridden == [
            "acme/rival:1.0.0 excludes acme/other:1.0.0"
        ]
    assert stack.apply(BASE, {rival: 1.0, "acme/other:1.0.0": 0.0}).overridden == []
    stack.train("latest", BASE, reference="acme/other:2.0.0")
    assert stack.apply(BASE, {rival: 1.0, "acme/other:2.0.0": 1.0}).overridden == []


# --- on a model in memory -----------------------------------------------------------------------------------------


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name].view(torch.int16), right[name].view(torch.int16)) for name in right)


def test_a_model_in_memory_takes_a_stacked_delta_after_its_parent(stack: Stack) -> None:
    model, before = state(stack.path / BASE), state(stack.path / BASE)
    loaded = deltareg.live(model, stack.registry)
    with pytest.raises(InvalidArgument, match="on top of acme/parent") as caught:
        loaded.apply(STACKED)
    assert f"apply('{PARENT}', 1) first" in (caught.value.hint or "")
    assert (same(model, before), loaded.deltas) == (True, {})
    loaded.apply(PARENT)
    loaded.apply(STACKED, weight=0.5)
    both = {name: tensor.clone() for name, tensor in model.items()}
    for change in (lambda: loaded.remove(PARENT), lambda: loaded.set(PARENT, 0.0)):
        with pytest.raises(InvalidArgument, match="on top of acme/parent"):
            change()
        assert same(model, both)
        assert loaded.deltas == {PARENT: 1.0, STACKED: 0.5}
    (told,) = [one for one in loaded.set(PARENT, 0.5).warnings if "on top of" in one]
    assert "which has 0.5 here" in told
    loaded.remove(STACKED)
    loaded.remove(PARENT)
    assert same(model, before)


def test_a_model_in_memory_that_is_the_stacked_deltas_base_takes_it_alone(stack: Stack) -> None:
    model = state(stack.path / "parent")
    report = deltareg.live(model, stack.registry).apply(STACKED)
    assert report.warnings == []
    assert same(model, state(stack.path / "stacked"))


def test_what_was_forced_onto_a_model_in_memory_is_not_asked_again(stack: Stack) -> None:
    model = state(stack.path / BASE)
    with deltareg.live(model, stack.registry) as loaded:
        assert any("on top of acme/parent" in one for one in loaded.apply(STACKED, force=True).warnings)
        loaded.apply("acme/other:1.0.0")
        loaded.set("acme/other:1.0.0", 0.5)
        loaded.apply(PARENT)
        with pytest.raises(InvalidArgument, match="on top of acme/parent"):
            loaded.remove(PARENT)
        loaded.remove(PARENT, force=True)
        loaded.merge("ties", {"density": 0.5})
        assert loaded.deltas == {STACKED: 1.0, "acme/other:1.0.0": 0.5}
    assert same(model, state(stack.path / BASE))


def test_a_model_in_memory_takes_no_two_of_which_one_excludes_the_other(stack: Stack) -> None:
    rival = stack.train("rival", BASE, conflicts=["acme/other"])
    model = state(stack.path / BASE)
    loaded = deltareg.live(model, stack.registry)
    loaded.apply("acme/other:1.0.0")
    with pytest.raises(InvalidArgument, match="excludes acme/other") as caught:
        loaded.apply(rival)
    assert "take one of them off" in (caught.value.hint or "")
    assert loaded.deltas == {"acme/other:1.0.0": 1.0}
    loaded.remove("acme/other:1.0.0")
    loaded.apply(rival)


def test_a_yanked_delta_is_told_when_it_is_put_on_a_model(stack: Stack) -> None:
    stack.registry.store.yank(parse_reference("acme/other:1.0.0"), "forgets")
    report = deltareg.live(state(stack.path / BASE), stack.registry).apply("acme/other:1.0.0")
    assert report.warnings == ["acme/other:1.0.0 is yanked: forgets"]


# --- what diff refuses --------------------------------------------------------------------------------------------


def test_what_diff_stores_does_not_depend_on_the_order(stack: Stack) -> None:
    more: dict[str, Any] = {"dry_run": False, "conflicts": ["acme/b", "acme/a >=2", "acme/a", "acme/b"]}
    on = [(PARENT, 1.0), ("acme/other:1.0.0", 0.5)]
    base, post = stack.path / "parent", stack.path / "stacked"
    first = deltareg.diff(base, post, stack.registry, "acme/first:1.0.0", on=on, **more)
    more["conflicts"].reverse()
    second = deltareg.diff(base, post, stack.registry, "acme/second:1.0.0", on=on[::-1], **more)
    assert first.digest == second.digest
    assert [str(one) for one in first.conflicts] == ["acme/a *", "acme/a >=2", "acme/b *"]
    assert [one.weight for one in first.requires] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("on", "told"),
    [
        ({"acme/parent:9.0.0": 1.0}, NotFound),
        ({"acme/nothing": 1.0}, NotFound),
        ({"parent": 1.0}, BadName),
        ({PARENT: 0.0}, InvalidArgument),
        ({PARENT: float("nan")}, InvalidArgument),
        ({PARENT: float("inf")}, InvalidArgument),
        ({PARENT: 1e39}, InvalidArgument),
        ([(PARENT, 1.0), ("acme/parent", 1.0)], InvalidArgument),
        ({"acme/stacked:1.0.0": 1.0}, InvalidArgument),
    ],
)
def test_what_cannot_be_stood_on_is_refused_before_anything_is_stored(
    stack: Stack, on: Any, told: type[Exception]
) -> None:
    before = sorted(path.name for path in stack.registry.store.blobs_path.iterdir())
    with pytest.raises(told):
        deltareg.diff(stack.path / "parent", stack.path / "stacked", stack.registry, "acme/stacked:2.0.0", on=on)
    assert sorted(path.name for path in stack.registry.store.blobs_path.iterdir()) == before


@pytest.mark.parametrize(
    ("conflict", "told"),
    [
        ("acme/other:1.0.0", BadName),
        ("acme/other@sha256:" + "0" * 64, BadName),
        ("acme/other latest", BadName),
        ("acme/other >=", BadName),
        ("other", BadName),
        ("", BadName),
        ("acme/new", InvalidArgument),
        ("acme/new <1", InvalidArgument),
    ],
)
def test_what_cannot_be_excluded_is_refused(stack: Stack, conflict: str, told: type[Exception]) -> None:
    with pytest.raises(told) as caught:
        deltareg.diff(
            stack.path / "parent", stack.path / "stacked", stack.registry, "acme/new:1.0.0", conflicts=[conflict]
        )
    assert getattr(caught.value, "hint", None)


def test_latest_below_is_recorded_as_the_version_that_it_was(stack: Stack) -> None:
    name = stack.train("newer", "parent", on={"acme/parent": -0.5})
    (required,) = stack.registry.artifact(name).config.requires
    assert (required.name, required.weight) == (PARENT, -0.5)
    assert required.digest == stack.registry.resolve(PARENT)


def republished(registry: Registry, name: str, **config: Any) -> str:
    """The delta under another name, with other fields in its config."""
    store = registry.store
    manifest = json.loads(store.read(registry.resolve(name)))
    document = registry.artifact(name).config.model_copy(update=config)
    data = document.model_dump_json(by_alias=True, exclude_none=True).encode()
    manifest["config"] |= {"digest": store.put(data), "size": len(data)}
    registry.publish("acme/again:1.0.0", json.dumps(manifest).encode())
    return "acme/again:1.0.0"
