"""Adapters that are not supported, not whole, or meant badly: each refused with its reason, nothing stored."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import DeltaregError, Registry
from deltareg.errors import (
    AdapterRefused,
    BadAdapter,
    BadHeader,
    CheckpointNotFound,
    InvalidArgument,
    PickleRefused,
    VersionExists,
)
from deltareg.lora.config import parse_config
from tests.deltas import flip
from tests.lora.models import Adapted, adapted, load_file, peft, save_file, torch

NAME = "acme/lora:1.0.0"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """An adapter in order. Read only."""
    path = tmp_path_factory.mktemp("whole")
    return adapted(path, "bert", r=4, target_modules=["query", "word_embeddings"], modules_to_save=["classifier"])


@pytest.fixture
def one(tmp_path: Path, whole: Adapted) -> Adapted:
    """A copy of it to be spoiled."""
    shutil.copytree(whole.adapter, tmp_path / "adapter")
    return Adapted(whole.base, tmp_path / "adapter", whole.model)


def refused(tmp_path: Path, one: Adapted, kind: type[DeltaregError]) -> DeltaregError:
    """The error of an import, which leaves nothing."""
    registry = Registry(tmp_path / "home")
    with pytest.raises(kind) as caught:
        deltareg.import_lora(one.adapter, one.base, registry, NAME)
    assert registry.list() == []
    assert caught.value.hint or kind.__doc__
    return caught.value


# --- what is not supported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        peft.LoKrConfig(target_modules=["query"]),
        peft.LoHaConfig(target_modules=["query"]),
        peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
        peft.AdaLoraConfig(target_modules=["query"], total_step=10),
        peft.VeraConfig(target_modules=["query"]),
        peft.OFTConfig(target_modules=["query"], oft_block_size=4, r=0),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_adapters_of_another_type_are_refused_by_name(tmp_path: Path, config: Any) -> None:
    made = adapted(tmp_path, "bert", r=1, target_modules=["query"])
    shutil.rmtree(made.adapter)
    peft.get_peft_model(made.model.unload(), config).save_pretrained(made.adapter)
    error = refused(tmp_path, made, AdapterRefused)
    assert config.peft_type.value in error.message
    assert "deltareg diff" in (error.hint or "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_parameters", ["experts.gate_up_proj"]),
        ("layer_replication", [[0, 1], [0, 2]]),
        ("alora_invocation_tokens", [1, 2]),
        ("trainable_token_indices", [3]),
        ("megatron_config", {"a": 1}),
        ("lora_bias", True),
        ("use_qalora", True),
        ("arrow_config", {"top_k": 2}),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
    ],
)
def test_settings_that_a_delta_cannot_hold_are_refused_by_name(
    tmp_path: Path, one: Adapted, key: str, value: Any
) -> None:
    one.with_config(**{key: value})
    error = refused(tmp_path, one, AdapterRefused)
    assert key in error.message and error.hint


@pytest.mark.parametrize("value", [True, False, "gaussian", "orthogonal", "eva", None])
def test_initialisations_that_leave_the_base_alone_are_taken(one: Adapted, tmp_path: Path, value: Any) -> None:
    one.with_config(init_lora_weights=value)
    assert deltareg.import_lora(one.adapter, one.base, Registry(tmp_path / "home"), NAME).low_rank == 3


def test_every_setting_that_is_not_supported_is_named_at_once(tmp_path: Path, one: Adapted) -> None:
    one.with_config(lora_bias=True, target_parameters=["a"])
    error = refused(tmp_path, one, AdapterRefused)
    assert error.data["keys"] == ["target_parameters", "lora_bias"]


def test_factors_with_biases_are_refused_whatever_the_config_says(tmp_path: Path, one: Adapted) -> None:
    one.with_tensors(one.tensors | {f"{QUERY}.lora_B.bias": torch.zeros(16)})
    assert "biases" in refused(tmp_path, one, AdapterRefused).message


def test_trained_tokens_are_refused(tmp_path: Path, one: Adapted) -> None:
    name = "base_model.model.bert.embeddings.word_embeddings.token_adapter.trainable_tokens_delta"
    one.with_tensors(one.tensors | {name: torch.zeros(1, 16)})
    assert "trainable_tokens_delta" in refused(tmp_path, one, BadAdapter).message


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_config_that_is_no_json_object_is_refused(tmp_path: Path, one: Adapted, raw: bytes) -> None:
    (one.adapter / "adapter_config.json").write_bytes(raw)
    assert "adapter_config.json" in refused(tmp_path, one, BadAdapter).message


def test_directory_without_a_config_is_no_adapter(tmp_path: Path, one: Adapted) -> None:
    (one.adapter / "adapter_config.json").unlink()
    error = refused(tmp_path, one, CheckpointNotFound)
    assert "adapter_config.json" in error.message and "save_pretrained" in (error.hint or "")


def test_config_without_a_type_is_refused(tmp_path: Path, one: Adapted) -> None:
    (one.adapter / "adapter_config.json").write_text("{}")
    assert "peft_type" in refused(tmp_path, one, AdapterRefused).message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", 2.5),
        ("r", "8"),
        ("r", True),
        ("r", 2**40),
        ("lora_alpha", "x"),
        ("lora_alpha", 1e300),
        ("lora_alpha", None),
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("fan_in_fan_out", "no"),
        ("rank_pattern", ["query"]),
        ("rank_pattern", {"query": 0}),
        ("rank_pattern", {"query(": 4}),
        ("rank_pattern", {"(?!a+)+b": 4}),
        ("rank_pattern", {"a" * 1000: 4}),
        ("alpha_pattern", {"query": "8"}),
        ("alpha_pattern", {str(number): 1 for number in range(5000)}),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(tmp_path: Path, one: Adapted, key: str, value: Any) -> None:
    one.with_config(**{key: value})
    assert key in refused(tmp_path, one, BadAdapter).message


def test_numbers_that_json_does_not_have_are_refused() -> None:
    for value in ("NaN", "Infinity", "1e999"):
        with pytest.raises(BadAdapter, match="lora_alpha"):
            parse_config(f'{{"peft_type": "LORA", "lora_alpha": {value}}}'.encode(), "here")


def test_every_fault_of_a_config_is_told_at_once(tmp_path: Path, one: Adapted) -> None:
    one.with_config(r=0, lora_alpha="x", use_dora="y")
    assert len(refused(tmp_path, one, BadAdapter).data["faults"]) == 3  # type: ignore[arg-type]


# --- tensors ----------------------------------------------------------------------------------------------------------


def spoiled(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What `change` leaves of the tensors."""

    def apply(tensors: dict[str, Any]) -> dict[str, Any]:
        found = dict(tensors)
        change(found)
        return found

    return apply


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (spoiled(lambda found: found.pop(f"{QUERY}.lora_A.weight")), "no factor A"),
        (spoiled(lambda found: found.pop(f"{QUERY}.lora_B.weight")), "no factor B"),
        (spoiled(lambda found: found.clear()), "no tensors"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 17)})), "[16, 17]"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.zeros(5, 16)})), "rank 4"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.zeros(0, 16)})), "rank 4"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.zeros(64)})), "rank 4"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.tensor(1.0)})), "rank 4"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 16).double()})), "F64"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 16).long()})), "I64"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 16).to(torch.int8)})), "I8"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_A.a.weight": torch.zeros(4, 16)})), "same parameter"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_magnitude_vector": torch.zeros(16)})), "use_dora"),
        (spoiled(lambda found: found.update({"base_model.model.classifier.weight": torch.zeros(4, 16)})), "[4, 16]"),
        (spoiled(lambda found: found.update({"base_model.model.classifier.bias": torch.zeros(3).long()})), "I64"),
        (spoiled(lambda found: found.update({f"{QUERY}.lora_E": torch.zeros(4, 1)})), "no part of a LoRA"),
        (spoiled(lambda found: found.update({f"{QUERY}.hada_w1_a": torch.zeros(4, 1)})), "no part of a LoRA"),
        (
            spoiled(
                lambda found: found.update({f"nowhere.lora_{side}.weight": torch.zeros(4, 4) for side in ("A", "B")})
            ),
            "no tensor 'nowhere.weight'",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, one: Adapted, change: Callable[[dict[str, Any]], dict[str, Any]], word: str
) -> None:
    one.with_tensors(change(one.tensors))
    assert word in refused(tmp_path, one, BadAdapter).message


def test_every_tensor_that_does_not_fit_is_told_at_once(tmp_path: Path, one: Adapted) -> None:
    one.with_tensors({name: tensor[:2] if "lora_A" in name else tensor for name, tensor in one.tensors.items()})
    faults = refused(tmp_path, one, BadAdapter).data["faults"]
    assert len(faults) == 2  # type: ignore[arg-type]


def test_several_adapters_in_one_file_are_refused(tmp_path: Path, one: Adapted) -> None:
    tensors = {name.replace("lora_A.weight", "lora_A.one.weight"): tensor for name, tensor in one.tensors.items()}
    one.with_tensors({name.replace("lora_B.weight", "lora_B.two.weight"): each for name, each in tensors.items()})
    assert "one, two" in refused(tmp_path, one, BadAdapter).message


def test_dora_without_magnitudes_is_refused(tmp_path: Path, one: Adapted) -> None:
    one.with_config(use_dora=True)
    assert "magnitude" in refused(tmp_path, one, BadAdapter).message


def test_adapter_of_another_model_is_refused(tmp_path: Path, one: Adapted) -> None:
    other = adapted(tmp_path / "other", "llama", r=1, target_modules=["q_proj"])
    error = refused(tmp_path, Adapted(other.base, one.adapter, None), BadAdapter)
    assert "attention.self.query.weight" in error.message


def test_output_that_is_tied_to_the_embeddings_is_refused_with_the_remedy(tmp_path: Path) -> None:
    made = adapted(tmp_path, "tied-llama", r=2, target_modules=["lm_head"])
    assert "untie" in refused(tmp_path, made, BadAdapter).message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, one: Adapted, share: float) -> None:
    file = one.adapter / "adapter_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    refused(tmp_path, one, BadHeader)


def test_flipped_bits_of_the_header_are_refused_or_change_a_name(tmp_path: Path, one: Adapted) -> None:
    file = one.adapter / "adapter_model.safetensors"
    for number, bit in enumerate(range(0, 8 * 600, 101)):
        flip(file, bit)
        registry = Registry(tmp_path / f"home-{number}")
        try:
            deltareg.import_lora(one.adapter, one.base, registry, NAME, dry_run=True)
        except DeltaregError as error:
            assert error.message
        flip(file, bit)


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_pickled_adapter_is_refused_unread(tmp_path: Path, one: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (one.adapter / "adapter_model.safetensors").unlink()
    (one.adapter / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    error = refused(tmp_path, one, PickleRefused)
    assert "adapter_model.bin" in (error.hint or "")
    assert not (tmp_path / "exploded").exists()


def test_rank_that_the_file_does_not_have_takes_no_memory(tmp_path: Path, one: Adapted) -> None:
    registry = Registry(tmp_path / "home")
    with pytest.raises(VersionExists):  # which has loaded everything
        for alpha in (1, 2):
            one.with_config(lora_alpha=alpha)
            deltareg.import_lora(one.adapter, one.base, registry, NAME)
    one.with_config(r=2**30)
    tracemalloc.start()
    try:
        with pytest.raises(BadAdapter, match=f"rank {2**30}"):
            deltareg.import_lora(one.adapter, one.base, registry, NAME)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_numbers_that_are_not_finite_go_through(tmp_path: Path, one: Adapted) -> None:
    tensors = one.tensors
    tensors[f"{QUERY}.lora_A.weight"][1, 2] = float("nan")
    tensors[f"{QUERY}.lora_A.weight"][0, 3] = float("inf")
    one.with_tensors(tensors)
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, NAME)
    deltareg.apply(one.base, {NAME: 1.0}, registry, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["bert.encoder.layer.0.attention.self.query.weight"]
    assert bool(found[:, 2].isnan().all()) and bool(found[:, 3].isinf().all())
    assert bool(found[:, 4:].isfinite().all())
    assert deltareg.verify(NAME, registry, base=one.base, post=tmp_path / "out").reproduced


def test_name_that_is_a_path_is_refused(tmp_path: Path, one: Adapted) -> None:
    tensors = one.tensors
    tensors["base_model.model.../../etc.lora_A.weight"] = torch.zeros(4, 4)
    one.with_tensors(tensors)
    refused(tmp_path, one, BadHeader)


def test_base_that_is_no_float_is_refused(tmp_path: Path, one: Adapted) -> None:
    base = tmp_path / "base"
    shutil.copytree(one.base, base)
    tensors = load_file(base / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors[name] = tensors[name].to(torch.int32)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert "I32" in refused(tmp_path, Adapted(base, one.adapter, None), BadAdapter).message


def test_config_that_names_unknown_settings_is_read(tmp_path: Path, one: Adapted) -> None:
    one.with_config(something_new={"a": 1}, another=None)
    assert json.loads((one.adapter / "adapter_config.json").read_text())["something_new"] == {"a": 1}
    assert deltareg.import_lora(one.adapter, one.base, Registry(tmp_path / "home"), NAME).low_rank == 3


def test_two_names_for_one_tensor_of_the_base_are_refused(tmp_path: Path, one: Adapted) -> None:
    base = tmp_path / "base"
    shutil.copytree(one.base, base)
    tensors = load_file(base / "model.safetensors")
    save_file({n.removeprefix("bert."): t for n, t in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    norm = torch.ones(16)
    name = "embeddings.LayerNorm.weight"
    more = {f"base_model.model.{name}": norm, f"base_model.model.bert.{name}": norm * 2}
    one.with_tensors(one.tensors | more)
    error = refused(tmp_path, Adapted(base, one.adapter, None), BadAdapter)
    assert f"model.{name}" in error.message and f"bert.{name}" in error.message


def test_adapter_of_another_model_altogether_is_refused(tmp_path: Path, one: Adapted) -> None:
    one.with_tensors({"base_model.model.elsewhere.weight": torch.ones(3)})
    assert "nothing of what it changes" in refused(tmp_path, one, BadAdapter).message


@pytest.mark.parametrize("rank", ["4", 1.5, True])
def test_ranks_that_are_no_whole_numbers_are_refused(tmp_path: Path, rank: Any) -> None:
    with pytest.raises(InvalidArgument, match="is no rank"):
        deltareg.export_lora(NAME, Registry(tmp_path / "home"), tmp_path / "adapter", rank=rank)
