"""Where an adapter's modules belong in the base: found by names, once through all of them, and never guessed."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import Registry
from deltareg.errors import BadAdapter
from deltareg.lora.places import Places
from tests.lora.models import MODELS, load_file, peft, torch

NAME = "acme/lora:1.0.0"


def test_adapter_of_tens_of_thousands_of_modules_finds_its_places() -> None:
    base = [f"a{number}.b{number}.c{number}.mlp.weight" for number in range(40_000)]
    places = Places(base, [f"x.{name}" for name in base])
    assert not places.unclear and all(places.of(f"x.{name}") == name for name in base)


@pytest.mark.parametrize("seed", range(20))
def test_the_prefix_that_finds_most_is_put_or_taken_away(seed: int) -> None:
    draw = random.Random(seed)
    inner = [f"layers.{draw.randint(0, 9)}.{draw.choice('abc')}.weight" for _ in range(6)]
    fronts = ["", "m.", "m.n.", "text.", "vision.model."]
    base = {draw.choice(fronts) + name for name in inner for _ in range(2)}
    asked = [*dict.fromkeys(draw.choice(fronts) + draw.choice(inner) for _ in range(6))]
    choices = [(old, new) for old in fronts for new in fronts if not (old and new)]
    found = {
        (old, new): sum(name.startswith(old) and new + name[len(old) :] in base for name in asked)
        for old, new in choices
    }
    best = [choice for choice in choices if found[choice] == max(found.values())]
    places = Places(base, asked)
    if len(best) == 1 and max(found.values()) > 0:
        ((old, new),) = best
        assert not places.unclear
        for name in asked:
            due = new + name[len(old) :] if name.startswith(old) else name
            assert places.of(name) == (name if name in base or due not in base else due)
    elif ("", "") in best:
        assert not places.unclear and all(places.of(name) == name for name in asked)


@pytest.mark.parametrize(
    ("base", "asked", "due"),
    [
        (["text.e.0.q.weight", "vision.e.0.q.weight"], ["e.0.q.weight"], ["text.e.0.q.weight", "vision.e.0.q.weight"]),
        (["e.0.q.weight", "vision.e.0.q.weight"], ["e.0.q.weight"], []),
        (["text.e.0.q.weight", "vision.e.0.q.weight"], ["vision.e.0.q.weight"], []),
        (["text.e.0.q.weight", "vision.e.0.q.weight"], ["m.vision.e.0.q.weight"], []),
        (["text.e.0.q.weight", "vision.e.0.q.weight", "vision.e.1.q.weight"], ["e.0.q.weight", "e.1.q.weight"], []),
        (["b.e.0.q.weight", "e.0.q.weight"], ["a.b.e.0.q.weight"], []),
        (["e.0.q.weight", "m.a.e.0.q.weight"], ["a.e.0.q.weight"], ["e.0.q.weight", "m.a.e.0.q.weight"]),
        (["x.y.weight"], ["e.0.q.weight"], []),
    ],
)
def test_parts_that_are_built_alike_are_unclear_unless_the_names_decide(
    base: list[str], asked: list[str], due: list[str]
) -> None:
    assert Places(base, asked).unclear == due


def test_what_else_the_adapter_has_decides_between_parts_that_are_built_alike() -> None:
    base = ["text.e.0.q.weight", "vision.e.0.q.weight", "vision.patch.conv.weight"]
    places = Places(base, ["e.0.q.weight"], ["patch.conv.weight", "classifier.out.weight"])
    assert not places.unclear and places.of("e.0.q.weight") == "vision.e.0.q.weight"


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    return MODELS["clip"]().eval()


def trained(part: Any, path: Path, **more: Any) -> None:
    """A random adapter of the attention of a model, or of a part of it."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], **more)
    wrapped = peft.get_peft_model(copy.deepcopy(part), config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(path, save_embedding_layers=False)


@pytest.mark.parametrize("tower", ["text_model", "vision_model"])
def test_adapter_of_one_of_two_equal_towers_is_refused(tmp_path: Path, clip: Any, tower: str) -> None:
    clip.save_pretrained(tmp_path / "base")
    trained(getattr(clip, tower).encoder, tmp_path / "adapter")
    registry = Registry(tmp_path / "home")
    with pytest.raises(BadAdapter, match="which part") as caught:
        deltareg.import_lora(tmp_path / "adapter", tmp_path / "base", registry, NAME)
    assert caught.value.hint and registry.list() == []
    places: Any = caught.value.data["places"]
    assert [place.partition(".")[0] for place in places] == ["text_model", "vision_model"]
    assert all(place in caught.value.message for place in places)


@pytest.mark.parametrize("tower", ["text_model", "vision_model"])
def test_adapter_that_names_its_tower_is_imported(tmp_path: Path, clip: Any, tower: str) -> None:
    clip.save_pretrained(tmp_path / "base")
    trained(clip, tmp_path / "adapter", layers_pattern=None, exclude_modules=rf"(?!{tower}).*")
    registry = Registry(tmp_path / "home")
    assert deltareg.import_lora(tmp_path / "adapter", tmp_path / "base", registry, NAME).low_rank == 2
    deltareg.apply(tmp_path / "base", {NAME: 1.0}, registry, tmp_path / "out")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("base", "out"))
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} == {tower}
