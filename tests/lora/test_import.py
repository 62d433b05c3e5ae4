"""Adapters that PEFT made, imported and applied, beside PEFT's own merge."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import Registry
from deltareg.checkpoint.hub import Hub
from deltareg.errors import BadAdapter, PickleRefused
from tests.checkpoint.hub_server import serve_hub
from tests.lora.models import Adapted, adapted, load_file, peft, save_file, torch
from tests.merge.merged import merge

NAME = "acme/lora:1.0.0"
ATTENTION = ["query", "key", "value"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("bert", {"r": 4, "lora_alpha": 7, "target_modules": ATTENTION}),
    "all-linear": ("llama", {"r": 3, "target_modules": "all-linear"}),
    "rslora": ("llama", {"r": 5, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "patterns": (
        "bert",
        {
            "r": 4,
            "target_modules": ATTENTION,
            "rank_pattern": {"layer.0.attention.self.query": 2, r"layer\.\d+\.attention\.self\.key": 3},
            "alpha_pattern": {"value": 3, "encoder.layer.1.attention.self.key": 11},
        },
    ),
    "rslora-patterns": (
        "bert",
        {"r": 4, "use_rslora": True, "target_modules": ATTENTION, "rank_pattern": {"query": 2}},
    ),
    "embeddings": ("bert", {"r": 4, "target_modules": ["word_embeddings", "position_embeddings", "query"]}),
    "modules-to-save": ("bert", {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier", "LayerNorm"]}),
    "biases-of-adapted": ("bert", {"r": 2, "target_modules": ["query"], "bias": "lora_only"}),
    "biases": ("bert", {"r": 2, "target_modules": ["query"], "bias": "all"}),
    "conv1d": ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv2d": ("resnet", {"r": 2, "target_modules": ["convolution"]}),
    "tied": ("tied-llama", {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
    "lm-head": ("llama", {"r": 2, "target_modules": ["lm_head"]}),
}
DORA: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("bert", {"r": 4, "target_modules": ATTENTION}),
    "conv1d": ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "embeddings": ("bert", {"r": 4, "target_modules": ["word_embeddings"]}),
    "conv2d": ("resnet", {"r": 2, "target_modules": ["convolution"]}),
    "rslora-biases": ("bert", {"r": 4, "target_modules": ATTENTION, "use_rslora": True, "bias": "lora_only"}),
}


def imported(path: Path, one: Adapted, **options: Any) -> Registry:
    """A registry with the adapter as a delta."""
    registry = Registry(path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, NAME, **options)
    return registry


def applied(path: Path, one: Adapted, registry: Registry) -> dict[str, Any]:
    """What the delta makes of its base."""
    deltareg.apply(one.base, {NAME: 1.0}, registry, path / "out")
    return load_file(path / "out" / "model.safetensors")


@dataclass(frozen=True)
class Exact:
    """base + scale · B · A of a layer in float64, and what bounds the error of float32.

    `delta` is scale · B · A, `terms` is |scale| · |B| · |A|.
    """

    base: Any
    delta: Any
    terms: Any
    rank: int

    @property
    def total(self) -> Any:
        """The sum."""
        return self.base + self.delta

    @property
    def ours(self) -> Any:
        """How far D1 and the sum may be off, each rounded once to float32."""
        return UNIT * (self.delta.abs() + self.total.abs()) * 1.001 + 2.0**-149

    @property
    def theirs(self) -> Any:
        """How far PEFT may be off: it rounds each product, each partial sum, the product with the scale, and the sum.

        Higham, "Accuracy and Stability of Numerical Algorithms", 2002, 3.1.
        """
        return UNIT * ((self.rank + 2) * self.terms + self.total.abs()) * 1.001 + 2.0**-149


UNIT = 2.0**-24
"""Half of the distance from 1 to the next float32."""


def exact(one: Adapted, name: str) -> Exact | None:
    """What a layer with factors is due to be, None for another tensor."""
    layer = dict(one.model.get_base_model().named_modules()).get(name.removesuffix(".weight"))
    if layer is None or not isinstance(layer, peft.tuners.lora.LoraLayer):
        return None
    base = load_file(one.base / "model.safetensors")[name].double()
    if "default" in layer.lora_embedding_A:
        a, b = layer.lora_embedding_A["default"].double(), layer.lora_embedding_B["default"].double()
    else:
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    a, b = a.detach().flatten(1), b.detach().flatten(1)
    scale = layer.scaling["default"]
    found, terms = scale * (b @ a), abs(scale) * (b.abs() @ a.abs())
    if getattr(layer, "fan_in_fan_out", False) or "default" in layer.lora_embedding_A:
        found, terms = found.T, terms.T
    return Exact(base, found.reshape(base.shape), terms.reshape(base.shape), a.shape[0])


def is_near(one: Adapted, found: Any, theirs: Any, name: str) -> bool:
    """Whether a tensor is what PEFT gives: the same, or as near as float32 lets PEFT's product be."""
    due = exact(one, name)
    if due is None:
        return torch.equal(found, theirs)
    return bool(((found.double() - theirs.double()).abs() <= due.ours + due.theirs).all())


@pytest.mark.parametrize("case", CASES)
def test_delta_is_the_merge_of_peft(tmp_path: Path, case: str) -> None:
    model, config = CASES[case]
    one = adapted(tmp_path, model, **config)
    found, theirs = applied(tmp_path, one, imported(tmp_path, one)), one.merged()
    assert found.keys() == load_file(one.base / "model.safetensors").keys()
    changed = 0
    for name, tensor in found.items():
        assert is_near(one, tensor, theirs[name], name), name
        due = exact(one, name)
        if due is not None:
            changed += 1
            assert bool(((tensor.double() - due.total).abs() <= due.ours).all()), name
            ours_off, theirs_off = ((of.double() - due.total).norm() for of in (tensor, theirs[name]))
            # With a rank of 2 PEFT rounds hardly more often than we do: which is nearer is then a matter of chance.
            assert ours_off <= theirs_off * (1 if due.rank > 2 else 1.02), name
    assert changed == len(one.model.targeted_module_names)


@pytest.mark.parametrize("case", DORA)
def test_dora_is_the_merge_of_peft(tmp_path: Path, case: str) -> None:
    model, config = DORA[case]
    one = adapted(tmp_path, model, use_dora=True, **config)
    found, theirs = applied(tmp_path, one, imported(tmp_path, one)), one.merged()
    base = load_file(one.base / "model.safetensors")
    moved = 0
    for name, tensor in found.items():
        # Norms are sums of at most 288 squares; the sum of the layer and its rescaling are near the result's size.
        off = (tensor.double() - theirs[name].double()).abs()
        assert bool((off <= 64 * UNIT * theirs[name].double().abs() + 2 * UNIT).all()), name
        moved += name.endswith("weight") and not torch.equal(tensor, base[name])
    assert moved == len(one.model.targeted_module_names)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_sum_is_rounded_to_the_dtype_of_a_narrow_base(tmp_path: Path, dtype: str, dora: bool) -> None:
    narrow = getattr(torch, dtype)
    one = adapted(
        tmp_path, "bert", dtype=narrow, r=4, target_modules=ATTENTION, modules_to_save=["classifier"], use_dora=dora
    )
    found = applied(tmp_path, one, imported(tmp_path, one))
    assert {tensor.dtype for tensor in found.values()} == {narrow}
    theirs = one.merged()
    for name, tensor in found.items():
        # Equal, but where PEFT's float32 lies on the other side of the middle of two neighbours.
        same = tensor == theirs[name]
        assert same.float().mean() > 0.99, name
        assert torch.allclose(tensor.float(), theirs[name].float(), rtol=2.0**-7, atol=1e-4), name
        due = None if dora else exact(one, name)
        if due is not None:
            assert torch.equal(tensor, (due.base + due.delta.float().double()).to(narrow)), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_factors_in_a_narrow_dtype_are_stored_so(tmp_path: Path, dtype: str) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules=["q_proj"])
    narrow = {name: tensor.to(getattr(torch, dtype)) for name, tensor in one.tensors.items()}
    one.with_tensors(narrow)
    registry = imported(tmp_path, one)
    one = Adapted(one.base, one.adapter, peft.PeftModel.from_pretrained(one.model.unload(), one.adapter))
    theirs = one.merged()
    for name, tensor in applied(tmp_path, one, registry).items():
        assert is_near(one, tensor, theirs[name], name), name
    inventory = registry.artifact(NAME).inventory
    assert {entry.kind for entry in inventory.tensors if entry.kind != "zero"} == {"lowrank"}


def test_report_counts_what_became_of_the_tensors(tmp_path: Path) -> None:
    one = adapted(
        tmp_path, "bert", r=4, target_modules=ATTENTION, rank_pattern={"key": 2}, modules_to_save=["classifier"]
    )
    registry = Registry(tmp_path / "home")
    report = deltareg.import_lora(
        one.adapter, one.base, registry, NAME, licence="apache-2.0", description="learned in a test"
    )
    assert (report.low_rank, report.full, report.added) == (6, 2, 0)
    assert report.ranks == {"2": 2, "4": 4}
    assert report.adapter_size == sum(4 * tensor.numel() for tensor in one.tensors.values())
    artifact = registry.artifact(NAME)
    assert report.digest == artifact.digest
    assert report.artifact_size == artifact.size
    assert (artifact.config.licence, artifact.config.description) == ("apache-2.0", "learned in a test")
    assert (artifact.config.base.id, artifact.config.post.id) == ("base", "adapter")
    entries = {entry.name: entry for entry in artifact.inventory.tensors}
    found = entries["bert.encoder.layer.0.attention.self.key.weight"]
    assert (found.kind, found.rank, found.base_dtype, found.delta_dtype) == ("lowrank", 2, "F32", None)
    moved = {name: entry.delta_norm for name, entry in entries.items() if entry.kind == "lowrank"}
    for name, length in moved.items():
        due = exact(one, name)
        assert due is not None
        assert length == pytest.approx(float(due.delta.norm()), rel=1e-5)


def test_delta_of_an_adapter_is_as_small_as_the_adapter(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules="all-linear")
    report = deltareg.import_lora(one.adapter, one.base, Registry(tmp_path / "home"), NAME)
    assert report.kinds["lowrank"] < report.adapter_size + 40 * report.low_rank


def test_verify_knows_what_the_adapter_makes_of_its_base(tmp_path: Path) -> None:
    one = adapted(tmp_path, "bert", dtype=torch.bfloat16, r=4, target_modules=ATTENTION, modules_to_save=["classifier"])
    registry = imported(tmp_path, one)
    applied(tmp_path, one, registry)
    assert deltareg.verify(NAME, registry, base=one.base, post=tmp_path / "out").reproduced
    wrong = load_file(tmp_path / "out" / "model.safetensors")
    wrong["bert.encoder.layer.0.attention.self.key.weight"][0, 0] += 1
    save_file(wrong, tmp_path / "out" / "model.safetensors")
    with pytest.raises(deltareg.DeltaregError, match=r"layer\.0\.attention\.self\.key"):
        deltareg.verify(NAME, registry, base=one.base, post=tmp_path / "out")


def test_digest_of_post_is_that_of_the_merged_checkpoint(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules=["q_proj", "embed_tokens"])
    registry = imported(tmp_path, one)
    applied(tmp_path, one, registry)
    deltareg.diff(one.base, tmp_path / "out", registry, "acme/full:1.0.0")
    low, full = (registry.artifact(name).config.post.digest for name in (NAME, "acme/full:1.0.0"))
    assert low == full


def test_the_same_adapter_gives_the_same_digest(tmp_path: Path) -> None:
    one = adapted(tmp_path, "gpt2", r=4, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True)
    digests = {
        deltareg.import_lora(one.adapter, one.base, Registry(tmp_path / str(threads)), NAME, threads=threads).digest
        for threads in (1, 3)
    }
    assert len(digests) == 1


def test_dry_run_stores_nothing(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules=["q_proj"])
    registry = Registry(tmp_path / "home")
    would = deltareg.import_lora(one.adapter, one.base, registry, NAME, dry_run=True)
    assert would.digest is None and would.low_rank == 2
    with pytest.raises(deltareg.DeltaregError):
        registry.artifact(NAME)
    assert deltareg.import_lora(one.adapter, one.base, registry, NAME).artifact_size == would.artifact_size


def test_module_that_was_not_trained_changes_nothing(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=2, target_modules=["q_proj", "v_proj"])
    tensors = one.tensors
    for name in tensors:
        if "v_proj.lora_B" in name:
            tensors[name] = torch.zeros_like(tensors[name])
    one.with_tensors(tensors)
    registry = imported(tmp_path, one)
    kinds = {entry.name: (entry.kind, entry.size) for entry in registry.artifact(NAME).inventory.tensors}
    assert kinds["model.layers.1.self_attn.v_proj.weight"] == ("zero", 0)
    assert kinds["model.layers.1.self_attn.q_proj.weight"][0] == "lowrank"


def test_factors_of_a_rank_beyond_the_matrix_become_a_plain_difference(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=24, target_modules=["q_proj"])
    registry = imported(tmp_path, one)
    entries = [entry for entry in registry.artifact(NAME).inventory.tensors if entry.kind != "zero"]
    assert {(entry.kind, entry.rank) for entry in entries} <= {("planes", None)}
    theirs = one.merged()
    for name, tensor in applied(tmp_path, one, registry).items():
        assert is_near(one, tensor, theirs[name], name), name


# --- names ------------------------------------------------------------------------------------------------------------


def renamed(one: Adapted, path: Path, change: Any) -> Adapted:
    """The same adapter for a base whose tensors are called otherwise."""
    shutil.copytree(one.base, path)
    tensors = {change(name): tensor for name, tensor in load_file(one.base / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return Adapted(path, one.adapter, one.model)


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (lambda name: name.removeprefix("bert."), lambda name: f"bert.{name}" if "classifier" not in name else name),
        (lambda name: f"model.{name}", lambda name: name.removeprefix("model.")),
        (
            lambda name: f"text.model.{name}",
            lambda name: name.removeprefix("text.model."),
        ),
    ],
    ids=["bare", "wrapped", "nested"],
)
def test_base_may_have_another_prefix_than_the_adapter(tmp_path: Path, change: Any, back: Any) -> None:
    one = adapted(tmp_path, "bert", r=4, target_modules=ATTENTION, bias="lora_only")
    theirs = one.merged()
    other = renamed(one, tmp_path / "other", change)
    for name, tensor in applied(tmp_path, other, imported(tmp_path, other)).items():
        assert is_near(one, tensor, theirs[back(name)], back(name)), name


def test_prefix_is_never_exchanged_for_another(tmp_path: Path) -> None:
    one = adapted(tmp_path, "bert", r=4, target_modules=ATTENTION)
    other = renamed(one, tmp_path / "other", lambda name: name.replace("bert.encoder.", "bert.decoder."))
    with pytest.raises(BadAdapter, match=r"no tensor 'bert\.encoder\.layer\.0"):
        imported(tmp_path, other)


def test_text_part_of_a_model_that_sees_is_found_under_either_name(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules=["q_proj"])
    theirs = one.merged()
    other = renamed(one, tmp_path / "other", lambda name: name.replace("model.", "model.language_model."))
    one.with_tensors(
        {
            name.replace("base_model.model.model.", "base_model.model.language_model.model."): tensor
            for name, tensor in one.tensors.items()
        }
    )
    for name, tensor in applied(tmp_path, other, imported(tmp_path, other)).items():
        plain = name.replace("model.language_model.", "model.")
        assert is_near(one, tensor, theirs[plain], plain), name


def test_adapter_name_may_stand_in_the_names_of_tensors(tmp_path: Path) -> None:
    one = adapted(tmp_path, "bert", r=4, target_modules=["word_embeddings", "query"], modules_to_save=["classifier"])
    theirs = one.merged()
    named = {
        name.replace(".lora_A.", ".lora_A.mine.")
        .replace(".lora_B.", ".lora_B.mine.")
        .replace("lora_embedding_A", "lora_embedding_A.mine")
        .replace("lora_embedding_B", "lora_embedding_B.mine")
        .replace("classifier.", "classifier.modules_to_save.mine."): tensor
        for name, tensor in one.tensors.items()
    }
    named["base_model.model.classifier.original_module.weight"] = torch.ones(3, 16)
    one.with_tensors(named)
    for name, tensor in applied(tmp_path, one, imported(tmp_path, one)).items():
        assert is_near(one, tensor, theirs[name], name), name


def test_head_that_the_base_lacks_is_added(tmp_path: Path) -> None:
    one = adapted(tmp_path, "bert", r=4, target_modules=["query"], modules_to_save=["classifier"])
    bare = {name: one_ for name, one_ in load_file(one.base / "model.safetensors").items() if "classifier" not in name}
    save_file(bare, one.base / "model.safetensors", {"format": "pt"})
    registry = Registry(tmp_path / "home")
    assert deltareg.import_lora(one.adapter, one.base, registry, NAME).added == 2
    found = applied(tmp_path, one, registry)
    assert torch.equal(found["classifier.weight"], one.merged()["classifier.weight"])


def test_frozen_weights_that_came_with_the_adapter_take_the_base_s_place(tmp_path: Path) -> None:
    one = adapted(tmp_path, "bert", r=4, target_modules=["word_embeddings"])
    other = torch.randn(50, 16)
    key = "base_model.model.bert.embeddings.word_embeddings.base_layer.weight"
    one.with_tensors(one.tensors | {key: other})
    found = applied(tmp_path, one, imported(tmp_path, one))
    name = "bert.embeddings.word_embeddings.weight"
    due = exact(one, name)
    assert due is not None
    assert bool(((found[name].double() - other.double() - due.delta).abs() <= due.ours + UNIT * other.abs()).all())


def test_tied_embeddings_are_told_of(tmp_path: Path) -> None:
    one = adapted(tmp_path, "tied-llama", r=2, target_modules=["embed_tokens"])
    report = deltareg.import_lora(one.adapter, one.base, Registry(tmp_path / "home"), NAME)
    (note,) = report.notes
    assert "model.embed_tokens.weight" in note and "both" in note


def test_tokenizer_of_the_adapter_travels_with_the_delta(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=2, target_modules=["q_proj"])
    (one.base / "chat_template.jinja").write_text("of the base")
    plain = imported(tmp_path, one)
    assert plain.artifact(NAME).side_files()["chat_template.jinja"] == b"of the base"
    (one.adapter / "chat_template.jinja").write_text("of the adapter")
    (one.adapter / "tokenizer_config.json").write_text("{}")
    registry = Registry(tmp_path / "other")
    deltareg.import_lora(one.adapter, one.base, registry, NAME)
    files = registry.artifact(NAME).side_files()
    assert files == {"chat_template.jinja": b"of the adapter", "tokenizer_config.json": b"{}"}


def test_chat_template_that_came_without_a_tokenizer_takes_the_place_of_the_base_s(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=2, target_modules=["q_proj"])
    (one.base / "tokenizer_config.json").write_text("{}")
    (one.base / "chat_template.json").write_text("of the base")
    (one.adapter / "chat_template.jinja").write_text("of the adapter")
    registry = imported(tmp_path, one)
    files = registry.artifact(NAME).side_files()
    assert files["chat_template.jinja"] == b"of the adapter" and files["tokenizer_config.json"] == b"{}"
    assert "chat_template.json" not in files
    deltareg.apply(one.base, {NAME: 1.0}, registry, tmp_path / "out", side_files="post")
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == b"of the adapter"


def test_licence_is_that_of_the_adapter_s_card(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=2, target_modules=["q_proj"])
    (one.adapter / "README.md").write_text("---\nlicense: mit\n---\n")
    assert imported(tmp_path, one).artifact(NAME).config.licence == "mit"


def test_adapter_on_the_hub_is_imported(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=2, target_modules=["q_proj"])
    files = {file.name: file.read_bytes() for file in one.adapter.iterdir()}
    registry = Registry(tmp_path / "home")
    with serve_hub("acme/chat-lora", files) as server:
        hub = Hub(endpoint=server.url, cache=tmp_path / "cache")
        with deltareg.Checkpoint.open("hf://acme/chat-lora", hub=hub, as_adapter=True) as adapter:
            report = deltareg.import_lora(adapter, one.base, registry, NAME)
    assert report.adapter == registry.artifact(NAME).config.post.id == "hf://acme/chat-lora"
    theirs = one.merged()
    for name, tensor in applied(tmp_path, one, registry).items():
        assert is_near(one, tensor, theirs[name], name), name


# --- among other deltas -----------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Adapted, Registry]:
    """A registry with an adapter's delta and one of a full fine-tune of the same bf16 base."""
    one = adapted(tmp_path, "llama", dtype=torch.bfloat16, r=4, target_modules=["q_proj", "embed_tokens"])
    registry = imported(tmp_path, one)
    shutil.copytree(one.base, tmp_path / "tuned")
    base = load_file(one.base / "model.safetensors")
    tuned = {name: (tensor.float() + 0.02 * torch.randn(tensor.shape)).bfloat16() for name, tensor in base.items()}
    save_file(tuned, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    deltareg.diff(one.base, tmp_path / "tuned", registry, "acme/full:1.0.0")
    return one, registry


def deltas_of(one: Adapted, tuned: Path, name: str) -> tuple[Any, Any, Any]:
    """Base, and the two deltas of a tensor, in float64: D1 of the adapter is a float32."""
    base = load_file(one.base / "model.safetensors")[name].double()
    due = exact(one, name)
    low = torch.zeros_like(base) if due is None else due.delta.float().double()
    return base, low, load_file(tuned / "model.safetensors")[name].double() - base


def test_full_and_low_rank_deltas_are_summed(tmp_path: Path, mixed: tuple[Adapted, Registry]) -> None:
    one, registry = mixed
    deltareg.apply(one.base, {NAME: 0.5, "acme/full:1.0.0": 0.75}, registry, tmp_path / "sum")
    for name, tensor in load_file(tmp_path / "sum" / "model.safetensors").items():
        base, low, full = deltas_of(one, tmp_path / "tuned", name)
        wanted = base + 0.5 * low + 0.75 * full
        # Half a unit for the one rounding, and as much of post's for what a stored difference leaves open.
        near = 0.502 * ulp_of_bf16(wanted) + 0.75 * 0.5 * ulp_of_bf16(base + full)
        assert bool(((tensor.double() - wanted).abs() <= near).all()), name


def ulp_of_bf16(values: Any) -> Any:
    return 2.0 ** (torch.floor(torch.log2(values.abs().clamp(min=2.0**-126))) - 7)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("ties", {"density": 0.5, "trim": "tensor"}),
        ("sce", {"select_topk": 0.5}),
        ("breadcrumbs", {"density": 0.7}),
    ],
)
def test_full_and_low_rank_deltas_are_merged_by_methods(
    tmp_path: Path, method: str, parameters: dict[str, Any]
) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules=["q_proj", "embed_tokens"])
    # On a grid, so that differences are exact and have no second terms.
    base = {name: (one_ * 1024).round() / 1024 for name, one_ in load_file(one.base / "model.safetensors").items()}
    save_file(base, one.base / "model.safetensors", {"format": "pt"})
    registry = imported(tmp_path, one)
    tuned = {name: tensor + (torch.randn(tensor.shape) * 99).round() / 4096 for name, tensor in base.items()}
    shutil.copytree(one.base, tmp_path / "tuned")
    save_file(tuned, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    deltareg.diff(one.base, tmp_path / "tuned", registry, "acme/full:1.0.0")
    both = {NAME: 0.5, "acme/full:1.0.0": 0.75}
    files = []
    for threads in (1, 3):
        out = tmp_path / f"out-{threads}"
        deltareg.apply(one.base, both, registry, out, method=method, parameters=parameters, threads=threads)
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    for name, tensor in load_file(tmp_path / "out-1" / "model.safetensors").items():
        start, low, full = deltas_of(one, tmp_path / "tuned", name)
        # Records say −0.0 where nothing changes.
        arrays = [torch.where(delta == 0, -0.0, delta).float().numpy() for delta in (low, full)]
        added = merge(method, arrays, parameters, weights=[0.5, 0.75], dtype="F32")
        assert torch.equal(tensor, (start + torch.from_numpy(added)).float()), name


def test_low_rank_delta_goes_on_a_model_in_memory_and_off_again(
    tmp_path: Path, mixed: tuple[Adapted, Registry]
) -> None:
    one, registry = mixed
    model = load_file(one.base / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in model.items()}
    applied(tmp_path, one, registry)
    with deltareg.live(model, registry) as loaded:
        loaded.apply(NAME)
        for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
            assert torch.equal(model[name], tensor), name
    assert all(torch.equal(model[name], tensor) for name, tensor in before.items())


def test_low_rank_delta_fits_a_target_with_more_tokens(tmp_path: Path, mixed: tuple[Adapted, Registry]) -> None:
    one, registry = mixed
    larger = tmp_path / "larger"
    shutil.copytree(one.base, larger)
    tensors = load_file(one.base / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(6, 16, dtype=torch.bfloat16)])
    save_file(tensors, larger / "model.safetensors", {"format": "pt"})
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps(config | {"vocab_size": 56}))
    deltareg.apply(larger, {NAME: 1.0}, registry, tmp_path / "more")
    plain = applied(tmp_path, one, registry)
    found = load_file(tmp_path / "more" / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(found[name][:50], plain[name]) and torch.equal(found[name][50:], tensors[name][50:])


def test_low_rank_and_full_deltas_are_compared(mixed: tuple[Adapted, Registry], tmp_path: Path) -> None:
    from deltareg.analysis import compare

    one, registry = mixed
    report = compare([(name, registry.artifact(name)) for name in (NAME, "acme/full:1.0.0")], exact=True)
    dots, lows, fulls = 0.0, 0.0, 0.0
    for name in load_file(one.base / "model.safetensors"):
        _, low, full = deltas_of(one, tmp_path / "tuned", name)
        dots += float((low * full).sum())
        lows += float((low**2).sum())
        fulls += float((full**2).sum())
    (pair,) = report.pairs
    assert pair.classes["all"].cosine == pytest.approx(dots / (lows * fulls) ** 0.5, abs=1e-3)


# --- square matrices with inputs before outputs -----------------------------------------------------------------------


def classifier(path: Path, modules: list[str]) -> Adapted:
    """A GPT-2 that sorts texts: Conv1D layers, of which c_proj is square, and a Linear head."""
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    config.num_labels = 3
    base = transformers.GPT2ForSequenceClassification(config).eval()
    base.save_pretrained(path / "base")
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=modules)).eval()
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(path / "adapter")
    return Adapted(path / "base", path / "adapter", wrapped)


@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("modules", [["c_attn", "c_proj", "score"], ["c_attn", "c_proj"], ["attn.c_proj"]])
def test_square_matrix_of_a_conv1d_is_turned_whatever_the_flag_says(
    tmp_path: Path, modules: list[str], flag: bool | None
) -> None:
    one = classifier(tmp_path, modules)
    if flag is not None:
        one.with_config(fan_in_fan_out=flag)
    out = applied(tmp_path, one, imported(tmp_path, one))
    theirs = one.merged()
    assert all(torch.allclose(out[name], theirs[name], atol=1e-6) for name in out)


def test_square_matrix_of_an_unknown_model_is_refused_where_its_neighbours_differ(tmp_path: Path) -> None:
    one = classifier(tmp_path, ["c_attn", "c_proj", "score"])
    config = json.loads((one.base / "config.json").read_text())
    del config["model_type"]
    (one.base / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadAdapter, match="is square, and nothing tells"):
        imported(tmp_path, one)


def test_adapter_beside_a_model_is_the_adapter_and_the_model_stays_one(tmp_path: Path) -> None:
    one = adapted(tmp_path, "bert", r=2, target_modules=["query"])
    for file in one.adapter.iterdir():
        shutil.copy(file, one.base / file.name)
    registry = Registry(tmp_path / "home")
    report = deltareg.import_lora(one.base, one.base, registry, NAME)
    assert (report.low_rank, report.full, report.added) == (2, 0, 0)
    out = applied(tmp_path, one, registry)
    theirs = one.merged()
    assert all(torch.allclose(out[name], theirs[name], atol=1e-6) for name in out)


def test_pickled_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    one = adapted(tmp_path, "bert", r=2, target_modules=["query"])
    shutil.copy(one.adapter / "adapter_config.json", one.base)
    torch.save(one.tensors, one.base / "adapter_model.bin")
    with pytest.raises(PickleRefused, match="pickle"):
        deltareg.import_lora(one.base, one.base, Registry(tmp_path / "home"), NAME)
