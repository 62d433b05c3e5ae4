"""Deltas on models in memory: what they become, and that they come back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deltareg
from deltareg import Registry
from deltareg.errors import DigestMismatch, InvalidArgument, NotFound, NotHomologous, UnsupportedFormat
from deltareg.merge import Schedule
from tests.deltas import flip
from tests.weights import Pair

SHARK = "acme/shark:1.0.0"
LLAMA = "acme/llama:1.0.0"


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {name: value for file in sorted(path.glob("*.safetensors")) for name, value in load_file(file).items()}


def same(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Whether two models have the same bits."""
    return state.keys() == expected.keys() and all(bits(state[name]) == bits(expected[name]) for name in expected)


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def copied(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of all tensors."""
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.fixture
def base(anarcii_bf16: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    return tensors_of(anarcii_bf16["antibody_4_2"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, minilm: Pair) -> Iterator[tuple[Registry, Pair]]:
    """`acme/search:1.0.0` of the real sentence encoder."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    deltareg.diff(minilm.base, minilm.post, registry, "acme/search:1.0.0")
    yield registry, minilm


# --- a state dict -----------------------------------------------------------------------------------------------------


def test_weight_1_gives_post_and_taking_it_off_the_bits_before(
    registry: Registry, base: dict[str, torch.Tensor], anarcii_bf16: Mapping[str, Path]
) -> None:
    before, places = copied(base), {name: tensor.data_ptr() for name, tensor in base.items()}
    model = deltareg.live(base, registry)
    report = model.apply(SHARK)
    assert same(base, tensors_of(anarcii_bf16["shark_4_2"]))
    assert report.changed_tensors > 0
    assert report.restored_tensors == 0
    report = model.remove(SHARK)
    assert same(base, before)
    assert report.restored_tensors > 0
    assert {name: tensor.data_ptr() for name, tensor in base.items()} == places


def test_what_is_on_a_model_is_what_apply_writes(
    tmp_path: Path, registry: Registry, base: dict[str, torch.Tensor], anarcii_bf16: Mapping[str, Path]
) -> None:
    deltareg.apply(anarcii_bf16["antibody_4_2"], {SHARK: 0.3}, registry, tmp_path / "out")
    deltareg.live(base, registry).apply(SHARK, weight=0.3)
    assert same(base, tensors_of(tmp_path / "out"))


def test_weights_do_not_build_up(registry: Registry, base: dict[str, torch.Tensor]) -> None:
    once = copied(base)
    deltareg.live(once, registry).apply(SHARK, weight=0.7)
    model = deltareg.live(base, registry)
    model.apply(SHARK, weight=3.0)
    model.set(SHARK, 0.1)
    model.set(SHARK, 0.7)
    assert same(base, once)
    assert model.deltas == {SHARK: 0.7}


def test_a_context_takes_everything_off_even_after_an_error(registry: Registry, base: dict[str, torch.Tensor]) -> None:
    before = copied(base)
    with pytest.raises(ZeroDivisionError), deltareg.live(base, registry) as model:
        model.apply(SHARK, weight=0.5)
        assert not same(base, before)
        raise ZeroDivisionError
    assert same(base, before)


def test_weight_0_and_rules_change_only_what_they_are_for(registry: Registry, base: dict[str, torch.Tensor]) -> None:
    before = copied(base)
    model = deltareg.live(base, registry)
    model.apply(SHARK, weight=0)
    assert same(base, before)
    model.set(SHARK, Schedule(((None, 0.0), ("*decoder*", 1.0))))
    changed = {name for name in base if bits(base[name]) != bits(before[name])}
    assert changed
    assert all("decoder" in name for name in changed)
    model.clear()
    assert same(base, before)


def test_all_deltas_are_replaced_in_one_change(
    tmp_path: Path, base: dict[str, torch.Tensor], anarcii_bf16: Mapping[str, Path]
) -> None:
    registry = Registry(tmp_path / "home")
    names = ("acme/one:1.0.0", "acme/two:1.0.0")
    for name in names:
        deltareg.diff(anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"], registry, name)
    before, expected = copied(base), copied(base)
    other = deltareg.live(expected, registry)
    other.apply(names[1], 0.3)
    other.apply(names[0], 0.5)
    model = deltareg.live(base, registry)
    model.apply(names[0], 2.0)
    report = model.replace([(names[1], 0.3, None), (names[0], 0.5, None)])
    assert same(base, expected)
    assert list(model.deltas) == [names[1], names[0]]
    assert report.changed_tensors > 0
    with pytest.raises(InvalidArgument, match="is given twice"):
        model.replace([(names[0], 1.0, None), (names[0], 0.5, None)])
    with pytest.raises(NotFound):
        model.replace([("acme/none:1.0.0", 1.0, None)])
    assert same(base, expected)
    model.replace([])
    assert same(base, before)


def test_two_deltas_and_another_method(
    tmp_path: Path, registry: Registry, base: dict[str, torch.Tensor], anarcii_bf16: Mapping[str, Path]
) -> None:
    both = Registry(tmp_path / "home")
    deltareg.diff(anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"], both, SHARK)
    deltareg.diff(anarcii_bf16["shark_4_2"], anarcii_bf16["antibody_4_2"], both, "acme/back:1.0.0")
    before = copied(base)
    model = deltareg.live(base, both)
    model.apply(SHARK)
    model.apply("acme/back:1.0.0", weight=0.5)
    model.merge("ties", {"density": 0.5})
    target = anarcii_bf16["antibody_4_2"]
    deltas = {SHARK: 1.0, "acme/back:1.0.0": 0.5}
    deltareg.apply(target, deltas, both, tmp_path / "out", method="ties", parameters={"density": 0.5})
    assert same(base, tensors_of(tmp_path / "out"))
    model.set(SHARK, 1.0, parameters={"density": 0.1})
    own = [(SHARK, 1.0, {"density": 0.1}), ("acme/back:1.0.0", 0.5)]
    deltareg.apply(target, own, both, tmp_path / "own", method="ties", parameters={"density": 0.5})
    assert same(base, tensors_of(tmp_path / "own"))
    assert not same(base, tensors_of(tmp_path / "out"))
    on = copied(base)
    with pytest.raises(InvalidArgument, match=f"{SHARK}: linear has no parameter density"):
        model.merge("linear")
    assert same(base, on)
    model.set(SHARK, 0.7)
    model.remove(SHARK)
    model.apply(SHARK, parameters={"density": 0.1})
    assert same(base, on)
    model.clear()
    assert same(base, before)


@pytest.mark.parametrize("kind", ["strided", "transposed"])
def test_tensors_that_are_not_in_one_piece(registry: Registry, base: dict[str, torch.Tensor], kind: str) -> None:
    straight = copied(base)
    deltareg.live(straight, registry).apply(SHARK, weight=0.5)
    name = next(name for name, tensor in base.items() if tensor.dim() == 2)
    rows, columns = base[name].shape
    if kind == "strided":
        odd = torch.zeros(rows, 2 * columns, dtype=base[name].dtype)[:, ::2]
    else:
        odd = torch.zeros(columns, rows, dtype=base[name].dtype).T
    odd.copy_(base[name])
    before = bits(odd)
    base[name] = odd
    model = deltareg.live(base, registry)
    model.apply(SHARK, weight=0.5)
    assert same(base, straight)
    model.clear()
    assert bits(odd) == before


# --- modules ----------------------------------------------------------------------------------------------------------


def test_a_real_model_computes_what_post_computes(models: tuple[Registry, Pair]) -> None:
    transformers = pytest.importorskip("transformers")
    registry, pair = models
    model = transformers.AutoModel.from_pretrained(pair.base).eval()
    post = transformers.AutoModel.from_pretrained(pair.post).eval()
    words = {"input_ids": torch.tensor([[101, 7592, 2088, 102]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        before = model(**words).last_hidden_state
        with deltareg.live(model, registry, tokenizer=pair.base) as loaded:
            loaded.apply("acme/search:1.0.0")
            assert torch.equal(model(**words).last_hidden_state, post(**words).last_hidden_state)
            assert "1.0 × acme/search:1.0.0" in repr(loaded)
        assert torch.equal(model(**words).last_hidden_state, before)


def test_what_post_lacks_stays(models: tuple[Registry, Pair]) -> None:
    registry, pair = models
    state = tensors_of(pair.base)
    report = deltareg.live(state, registry).apply("acme/search:1.0.0")
    assert report.warnings == ["embeddings.position_ids stays, which post lacks"]
    post = tensors_of(pair.post)
    assert same({name: value for name, value in state.items() if name in post}, post)


def test_parameters_stay_the_same_objects_that_optimisers_hold(models: tuple[Registry, Pair]) -> None:
    transformers = pytest.importorskip("transformers")
    registry, pair = models
    model = transformers.AutoModel.from_pretrained(pair.base)
    held = {name: (id(one), one.requires_grad) for name, one in model.named_parameters()}
    with deltareg.live(model, registry) as loaded:
        loaded.apply("acme/search:1.0.0")
        assert {name: (id(one), one.requires_grad) for name, one in model.named_parameters()} == held


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.01)
    model.save_pretrained(tmp_path / "post")
    registry = Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, "acme/tied:1.0.0")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    deltareg.live(loaded, registry).apply("acme/tied:1.0.0")
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert same(copied(loaded.state_dict()), copied(model.state_dict()))


# --- what cannot be ---------------------------------------------------------------------------------------------------


# Near the end of the pack no frame can be decoded; in the middle of it frames have other numbers.
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_a_damaged_delta_leaves_the_model_as_it_was(
    tmp_path: Path, small_llama: Pair, llama: Registry, share: float
) -> None:
    home = tmp_path / "home"
    shutil.copytree(llama.store.root.parent, home)
    registry = Registry(home)
    deltareg.diff(small_llama.post, small_llama.base, registry, "acme/back:1.0.0")
    state = tensors_of(small_llama.base)
    model = deltareg.live(state, registry)
    model.apply(LLAMA, weight=0.5)
    before = copied(state)
    pack = max(registry.artifact("acme/back:1.0.0").packs, key=lambda blob: blob.size)
    (file,) = home.rglob(pack.digest.removeprefix("sha256:"))
    flip(file, int(share * file.stat().st_size) - 100)
    with pytest.raises(DigestMismatch):
        model.apply("acme/back:1.0.0", weight=0.5)
    assert same(state, before)
    assert model.deltas == {LLAMA: 0.5}
    model.clear()
    assert same(state, tensors_of(small_llama.base))


def test_a_delta_of_another_model_is_refused(registry: Registry, small_llama: Pair) -> None:
    state = tensors_of(small_llama.base)
    before = copied(state)
    with pytest.raises(NotHomologous):
        deltareg.live(state, registry).apply(SHARK)
    assert same(state, before)


def test_what_is_on_already_and_what_is_not_are_told(registry: Registry, base: dict[str, torch.Tensor]) -> None:
    model = deltareg.live(base, registry)
    model.apply(SHARK)
    with pytest.raises(InvalidArgument, match="is on the model already"):
        model.apply(SHARK, weight=0.5)
    with pytest.raises(NotFound, match="is not on the model"):
        model.remove("acme/shark-fp32:1.0.0")
    with pytest.raises(NotFound):
        model.apply("acme/nothing:1.0.0")
    with pytest.raises(InvalidArgument, match="the weight is nan"):
        model.set(SHARK, float("nan"))
    with pytest.raises(InvalidArgument, match="slerp takes 2 deltas"):
        model.merge("slerp")
    assert model.deltas == {SHARK: 1.0}


def test_a_model_that_would_get_another_dtype_is_refused(tmp_path: Path, anarcii: Mapping[str, Path]) -> None:
    base = {name: value for name, value in tensors_of(anarcii["antibody_4_2"]).items()}
    from safetensors.torch import save_file

    (tmp_path / "post").mkdir()
    half = {name: value.half() if value.is_floating_point() else value for name, value in base.items()}
    save_file(half, tmp_path / "post" / "model.safetensors")
    registry = Registry(tmp_path / "home")
    deltareg.diff(anarcii["antibody_4_2"], tmp_path / "post", registry, "acme/half:1.0.0")
    before = copied(base)
    with pytest.raises(NotHomologous, match="would be F16, it is F32"):
        deltareg.live(base, registry).apply("acme/half:1.0.0")
    assert same(base, before)


def test_weights_that_are_not_loaded_are_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="not loaded"):
        deltareg.live({"w": torch.empty(3, device="meta")}, Registry())
    with pytest.raises(InvalidArgument, match="is no model"):
        deltareg.live(5, Registry())  # type: ignore[arg-type]


def test_an_empty_model_takes_no_delta(registry: Registry) -> None:
    nothing: dict[str, Any] = {}
    with pytest.raises(NotHomologous):
        deltareg.live(nothing, registry).apply(SHARK)
