"""Models whose modules transformers has under other names than their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg.errors import BadAdapter, InvalidArgument
from deltareg.lora.experts import Experts
from deltareg.lora.renamed import is_renamed
from tests.lora.models import adapted, load_file, transformers
from tests.lora.test_experts import distance, error_in_peft, merged
from tests.lora.test_export import NAME, taken
from tests.lora.test_import import applied, imported


def conversions() -> dict[str, list[Any]]:
    """What transformers itself does to the names in files, by the type of the model."""
    from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN, _build_checkpoint_conversion_mapping
    from transformers.models.auto import modeling_auto

    known = _build_checkpoint_conversion_mapping()
    known |= {one: known[other] for one, other in _MODEL_TO_CONVERSION_PATTERN.items() if other in known}
    types: dict[str, set[str]] = {one: {one} for one in transformers.CONFIG_MAPPING}
    for mapping in (value for name, value in vars(modeling_auto).items() if name.endswith("MAPPING_NAMES")):
        for one, classes in mapping.items():
            for each in classes if isinstance(classes, (tuple, list)) else [classes]:
                types.setdefault(each, set()).add(one)
    found: dict[str, list[Any]] = {}
    for key, steps in known.items():
        for one in types.get(key, ()):
            found.setdefault(one, []).extend(steps)
    return found


def test_every_type_that_transformers_renames_is_known() -> None:
    from transformers.core_model_loading import PrefixChange

    found = conversions()
    assert len(found) > 150
    # Gammas of layer norms, which PEFT does not take in silence; a model of one tensor.
    legacy = {"esm", "jev"}
    for one, steps in found.items():
        members = [f"m.{step.source_patterns[0].replace('*', '0')}" for step in steps if "*" in step.source_patterns[0]]
        experts = Experts(one, members)
        names = ["embed_out.weight", "m.block_sparse_moe.router.weight", "m.q_bias", "m.mid_position_embeddings"]
        told = any(is_renamed(name, one) for name in names) or any(map(experts.doubt_whole, members))
        assert told or one in legacy or all(isinstance(step, PrefixChange) for step in steps), one


def test_model_all_of_whose_modules_are_renamed_is_refused_with_the_reason(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "vit")
    with pytest.raises(InvalidArgument, match="changes nothing that an adapter can have") as found:
        deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=tmp_path / "base")
    assert "under another name" in str(found.value.cause) and "deltareg apply" in str(found.value.hint)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("with_base", [False, True])
def test_module_that_is_renamed_is_left_out(tmp_path: Path, with_base: bool) -> None:
    registry, base, _ = taken(tmp_path, "gpt_neox")
    assert "embed_out.weight" in load_file(tmp_path / "base" / "model.safetensors")
    given = tmp_path / "base" if with_base else None
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=given)
    assert "under another name" in {one.name: one.reason for one in report.left_out}["embed_out.weight"]
    assert error_in_peft(tmp_path, base, tmp_path / "adapter") == pytest.approx(report.error, rel=1e-4)


def test_head_that_was_saved_whole_is_found_under_its_older_name(tmp_path: Path) -> None:
    one = adapted(tmp_path, "gpt_neox", r=2, target_modules=["query_key_value"], modules_to_save=["lm_head"])
    registry = imported(tmp_path, one)
    base = transformers.GPTNeoXForCausalLM.from_pretrained(one.base).eval()
    assert distance(applied(tmp_path, one, registry), merged(tmp_path, base, one.adapter)) < 1e-6


@pytest.mark.parametrize(
    ("targets", "saved", "named"),
    [
        (["q_proj"], None, "vit.layers.0.attention.q_proj.weight"),
        (["classifier"], ["layernorm_before"], "vit.layers.0.layernorm_before.weight"),
    ],
)
def test_adapter_of_renamed_modules_is_refused_by_name(
    tmp_path: Path, targets: list[str], saved: list[str] | None, named: str
) -> None:
    one = adapted(tmp_path, "vit", r=2, target_modules=targets, modules_to_save=saved)
    with pytest.raises(BadAdapter) as found:
        imported(tmp_path, one)
    assert f"no tensor {named!r}" in found.value.message
