"""Models of experts, whose modules have other names in transformers than in the files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import Registry
from deltareg.errors import AdapterRefused, BadAdapter
from deltareg.lora.experts import Experts
from tests.lora.models import MODELS, Adapted, adapted, load_file, peft, save_file, torch, transformers
from tests.lora.test_export import NAME as FULL
from tests.lora.test_export import loaded, outputs, taken, written
from tests.lora.test_import import NAME, applied, imported

JOINED = ["mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "dots1", "glm4_moe"]
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def merged(path: Path, base: Any, adapter: Path) -> dict[str, Any]:
    """What PEFT makes of the base, by the names of the files."""
    with_adapter = loaded(base, adapter)
    before = outputs(with_adapter)
    made = with_adapter.merge_and_unload()
    assert torch.allclose(outputs(made), before, atol=2e-6)
    made.save_pretrained(path / "merged")
    return load_file(path / "merged" / "model.safetensors")


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The square root of the sum of all squared differences."""
    assert one.keys() == other.keys()
    return sum(float(((one[name].double() - other[name].double()) ** 2).sum()) for name in one) ** 0.5


def error_in_peft(path: Path, base: Any, adapter: Path, post: str = "post") -> float:
    """‖post − what PEFT makes of the base‖ / ‖Δ‖."""
    before, after = (load_file(path / side / "model.safetensors") for side in ("base", post))
    return distance(merged(path, base, adapter), after) / distance(before, after)


def quietly_merged(path: Path, base: Any) -> dict[str, Any]:
    """The same where PEFT says that factors are missing."""
    with pytest.warns(UserWarning, match="missing adapter keys"):
        made = peft.PeftModel.from_pretrained(base, path / "adapter").merge_and_unload()
    made.save_pretrained(path / "merged")
    return load_file(path / "merged" / "model.safetensors")


def older(path: Path, model: str, settings: dict[str, Any]) -> Adapted:
    """A random adapter of single experts and of attention, as transformers 4 had these modules."""
    torch.manual_seed(0)
    base = MODELS[model]().eval()
    base.save_pretrained(path / "base")
    (path / "adapter").mkdir()
    names = ["q_proj", "v_proj", *(("w1", "w2", "w3") if model == "mixtral" else PROJECTIONS)]
    config = peft.LoraConfig(target_modules=names, **settings)
    config.save_pretrained(path / "adapter")
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(path / "base" / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in names:
            rank = config.rank_pattern.get(peft.utils.other.get_pattern_key(config.rank_pattern, module), config.r)
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, tensor.shape[1]) / 10
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(tensor.shape[0], rank) / 10
    one = Adapted(path / "base", path / "adapter", base)
    one.with_tensors(tensors)
    return one


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("rank", [3, 64])
@pytest.mark.parametrize("model", [*JOINED, "qwen2_moe", "minimax", "ernie4_5_moe", "phimoe", "gpt-oss"])
def test_peft_makes_the_error_that_the_export_tells(tmp_path: Path, model: str, rank: int, with_base: bool) -> None:
    registry, base, _ = taken(tmp_path, model)
    given = tmp_path / "base" if with_base else None
    report = deltareg.export_lora(FULL, registry, tmp_path / "adapter", rank=rank, base=given)
    assert report.error < 1
    assert error_in_peft(tmp_path, base, tmp_path / "adapter") == pytest.approx(report.error, rel=1e-4, abs=1e-6)


def test_factors_of_experts_come_out_as_they_went_in(tmp_path: Path) -> None:
    one = older(tmp_path, "mixtral", {"r": 4, "lora_alpha": 7})
    registry = imported(tmp_path, one)
    report = deltareg.export_lora(NAME, registry, tmp_path / "again", rank=4)
    assert report.error == 0 and not report.left_out
    before, after = one.tensors, written(tmp_path / "again")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert distance(merged(tmp_path, one.model, tmp_path / "again"), applied(tmp_path, one, registry)) < 1e-6


@pytest.mark.parametrize("pattern", [{"w2": 2}, {"experts.1.w3": 6}, {"layers.1.block_sparse_moe.experts.[0-9].w.": 3}])
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_experts_of_several_ranks_and_scales_get_one(tmp_path: Path, key: str, pattern: dict[str, int]) -> None:
    one = older(tmp_path, "mixtral", {"r": 4, "lora_alpha": 8, key: pattern})
    registry = imported(tmp_path, one)
    report = deltareg.export_lora(NAME, registry, tmp_path / "again", rank=8)
    assert report.error < 1e-6 and not report.left_out
    deltareg.apply(one.base, {NAME: 1.0}, registry, tmp_path / "post")
    assert error_in_peft(tmp_path, one.model, tmp_path / "again") == pytest.approx(report.error, abs=1e-6)


@pytest.mark.parametrize(
    ("same", "left"),
    [
        ("layers.1.block_sparse_moe.experts", 0),  # a layer of which nothing changed
        ("experts.2.", 18),
        ("layers.0.block_sparse_moe.experts.3.w2", 11),
        (".w1.", 16),
        (".w2.", 16),
    ],
)
def test_layers_with_some_experts_unchanged_are_left_out(tmp_path: Path, same: str, left: int) -> None:
    taken(tmp_path, "mixtral")
    before, post = (load_file(tmp_path / side / "model.safetensors") for side in ("base", "post"))
    save_file(
        {name: before[name] if same in name else post[name] for name in post},
        tmp_path / "post" / "model.safetensors",
        {"format": "pt"},
    )
    registry = Registry(tmp_path / "other")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, NAME)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=5, base=tmp_path / "base")
    assert sum("all experts of a layer" in one.reason for one in report.left_out) == left
    base = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "base").eval()
    # PEFT says that it misses the factors of one layer, which it has as zeros, where the other one has some.
    made = merged(tmp_path, base, tmp_path / "adapter") if left > 11 else quietly_merged(tmp_path, base)
    found = distance(made, load_file(tmp_path / "post" / "model.safetensors"))
    total = distance(before, load_file(tmp_path / "post" / "model.safetensors"))
    assert found / total == pytest.approx(report.error, rel=1e-4)


@pytest.mark.parametrize("kept", ["experts", "self_attn", "w2"])
def test_peft_finds_experts_and_attention_one_without_the_other(tmp_path: Path, kept: str) -> None:
    taken(tmp_path, "mixtral")
    before, post = (load_file(tmp_path / side / "model.safetensors") for side in ("base", "post"))
    some = {name: post[name] if kept in name or "q_proj" in name else before[name] for name in post}
    some |= {name: before[name] for name in post if kept == "experts" and "q_proj" in name}
    save_file(some, tmp_path / "post" / "model.safetensors", {"format": "pt"})
    registry = Registry(tmp_path / "other")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, NAME)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=3)
    base = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert error_in_peft(tmp_path, base, tmp_path / "adapter") == pytest.approx(report.error, rel=1e-4)


def test_experts_of_an_unknown_type_are_left_out_with_what_lies_beside_them(tmp_path: Path) -> None:
    taken(tmp_path, "mixtral")
    for side in ("base", "post"):
        config = json.loads((tmp_path / side / "config.json").read_text())
        (tmp_path / side / "config.json").write_text(json.dumps(config | {"model_type": "newest"}))
    registry = Registry(tmp_path / "other")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, NAME)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=5, base=tmp_path / "base")
    assert {one.name for one in report.left_out} == {
        name for name in load_file(tmp_path / "base" / "model.safetensors") if "block_sparse_moe" in name
    }
    assert all("transformers" in one.reason and "apply" in one.reason for one in report.left_out)


def test_every_type_whose_names_peft_converts_is_known() -> None:
    from peft.utils.transformers_weight_conversion import (
        _MODEL_TO_CONVERSION_PATTERN,  # pyright: ignore[reportPrivateImportUsage]
        _MOE_TARGET_MODULE_MAPPING,
    )

    converted = {
        one: family for one, family in _MODEL_TO_CONVERSION_PATTERN.items() if family in _MOE_TARGET_MODULE_MAPPING
    }
    assert len(converted) > 20
    for model_type, family in converted.items():
        for part in _MOE_TARGET_MODULE_MAPPING[family]:
            assert Experts(model_type, []).doubt(f"model.layers.0.mlp.{part}.weight"), (model_type, part)
            assert Experts("llama", []).doubt(f"model.layers.0.mlp.{part}.weight") is None


def test_numbers_of_experts_may_be_hostile() -> None:
    names = [f"m.experts.{number}.w1.weight" for number in ("9" * 5000, "00", "0", "999999999")]
    experts = Experts("mixtral", names)
    assert experts.incomplete(set(names)).keys() == set(names[1:])


# --- import -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"r": 4}, {"r": 3, "lora_alpha": 11, "use_rslora": False}])
@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe"])
def test_adapter_of_single_experts_is_what_peft_makes_of_it(
    tmp_path: Path, model: str, settings: dict[str, Any]
) -> None:
    one = older(tmp_path, model, settings)
    registry = imported(tmp_path, one)
    found, theirs = applied(tmp_path, one, registry), merged(tmp_path, one.model, one.adapter)
    assert distance(found, theirs) < 1e-6 < 0.1 < distance(found, load_file(one.base / "model.safetensors"))


@pytest.mark.parametrize("targets", [["w1", "w2", "w3"], ["q_proj", "gate"], ["w2"]])
def test_adapter_of_joined_experts_is_refused_by_its_setting(tmp_path: Path, targets: list[str]) -> None:
    one = adapted(tmp_path, "mixtral", r=4, target_modules=targets)
    with pytest.raises(AdapterRefused, match="target_parameters") as found:
        imported(tmp_path, one)
    assert "deltareg diff" in str(found.value.hint)


def test_router_that_was_saved_whole_is_found_under_its_older_name(tmp_path: Path) -> None:
    one = adapted(tmp_path, "mixtral", r=4, target_modules=["q_proj"], modules_to_save=["mlp.gate"])
    registry = imported(tmp_path, one)
    assert (
        distance(applied(tmp_path, one, registry), merged(tmp_path, copy.deepcopy(one.model).unload(), one.adapter))
        < 1e-6
    )


def test_experts_that_were_saved_whole_are_refused_by_name(tmp_path: Path) -> None:
    one = adapted(tmp_path, "mixtral", r=4, target_modules=["q_proj"], modules_to_save=["experts"])
    with pytest.raises(BadAdapter, match=r"no tensor 'model\.layers\.0\.mlp\.experts\.(gate_up|down)_proj'"):
        imported(tmp_path, one)
