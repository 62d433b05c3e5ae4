"""Deltas as adapters: what PEFT loads, how near it is, and what is told of that."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltareg
from deltareg import Registry
from deltareg.codec.truncate import truncate
from deltareg.errors import InvalidArgument, NotFound, NotHomologous, OutputExists
from deltareg.lora.modules import Kind, kind_of
from tests.lora.models import adapted, changed, load_file, peft, tokens, torch, transformers
from tests.lora.test_import import ATTENTION, DORA

NAME = "acme/full:1.0.0"


def taken(path: Path, model: str, **options: Any) -> tuple[Registry, Any, Any]:
    """A registry with the delta of a tiny fine-tune, and the two models."""
    base, post = changed(path, model, **options)
    registry = Registry(path / "home")
    deltareg.diff(path / "base", path / "post", registry, NAME)
    return registry, base, post


def loaded(base: Any, adapter: Path) -> Any:
    """The adapter as PEFT loads it; a warning of PEFT's that something is missing is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.filterwarnings("error", message=".*unexpected keys.*")
        return peft.PeftModel.from_pretrained(copy.deepcopy(base), adapter).eval()


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model(tokens()).logits


def written(adapter: Path) -> dict[str, Any]:
    return load_file(adapter / "adapter_model.safetensors")


def independent(path: Path, rank: int) -> dict[str, tuple[float, float]]:
    """By tensor: ‖Δ‖² and the least ‖Δ − B·A‖² of that rank (Eckart and Young), by NumPy."""
    base, post = (load_file(path / side / "model.safetensors") for side in ("base", "post"))
    found: dict[str, tuple[float, float]] = {}
    for name in base:
        delta = post[name].double().numpy() - base[name].double().numpy()
        squares = float((delta**2).sum())
        least = squares
        if delta.ndim == 2:
            least = float((np.linalg.svd(delta, compute_uv=False)[rank:] ** 2).sum())
        found[name] = squares, least
    return found


@pytest.mark.parametrize("model", ["bert", "llama", "tied-llama", "gpt2"])
@pytest.mark.parametrize("rank", [1, 4, 7])
def test_peft_computes_with_the_adapter_what_the_truncated_delta_makes(tmp_path: Path, model: str, rank: int) -> None:
    registry, base, _ = taken(tmp_path, model)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=rank)
    with_adapter = loaded(base, tmp_path / "adapter")
    # What the adapter says, added by hand to the base's tensors.
    truncated = copy.deepcopy(base)
    state = truncated.state_dict()
    tensors = written(tmp_path / "adapter")
    for tensor in report.tensors:
        start = f"base_model.model.{tensor.name.removesuffix('.weight')}"
        if f"{start}.lora_embedding_A" in tensors:
            added = (tensors[f"{start}.lora_embedding_B"] @ tensors[f"{start}.lora_embedding_A"]).T
        else:
            added = tensors[f"{start}.lora_B.weight"] @ tensors[f"{start}.lora_A.weight"]
            added = added.T if model == "gpt2" and "lm_head" not in tensor.name else added
        state[tensor.name] += added
    expected = outputs(truncated)
    assert not torch.allclose(expected, outputs(base), atol=1e-3)
    assert torch.allclose(outputs(with_adapter), expected, atol=2e-6)
    assert torch.allclose(outputs(with_adapter.merge_and_unload()), expected, atol=2e-6)


@pytest.mark.parametrize("model", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_error_is_the_least_that_there_is_as_numpy_computes_it(tmp_path: Path, model: str, rank: int) -> None:
    registry, _, _ = taken(tmp_path, model)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=rank)
    due = independent(tmp_path, rank)
    for tensor in report.tensors:
        squares, least = due[tensor.name]
        assert tensor.error == pytest.approx((least / squares) ** 0.5, rel=1e-5, abs=1e-6)
        assert not tensor.exact
    expressed = {tensor.name for tensor in report.tensors}
    residue = sum(least if name in expressed else squares for name, (squares, least) in due.items())
    assert report.error == pytest.approx((residue / sum(squares for squares, _ in due.values())) ** 0.5, rel=1e-5)
    assert {one.name for one in report.left_out} == due.keys() - expressed
    for one in report.left_out:
        assert one.share == pytest.approx(due[one.name][0] / residue, rel=1e-4)


@pytest.mark.parametrize("model", ["bert", "llama", "gpt2"])
def test_with_the_base_and_the_whole_rank_nothing_is_missing(tmp_path: Path, model: str) -> None:
    registry, base, post = taken(tmp_path, model)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=64, base=tmp_path / "base")
    tied = [one.name for one in report.left_out]
    assert tied == (["transformer.wte.weight"] if model == "gpt2" else [])
    with_adapter = loaded(base, tmp_path / "adapter")
    if tied:
        post.transformer.wte.weight.data = base.transformer.wte.weight.data.clone()
    else:
        assert report.error < 1e-7
    assert torch.allclose(outputs(with_adapter), outputs(post), atol=1e-6)
    assert torch.allclose(outputs(with_adapter.merge_and_unload()), outputs(post), atol=1e-6)


def test_embeddings_that_are_tied_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "tied-llama")
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=tmp_path / "base")
    (left,) = report.left_out
    assert left.name == "model.embed_tokens.weight" and "output" in left.reason and 0 < left.share < 1
    assert not any("embed_tokens" in name for name in written(tmp_path / "adapter"))


def test_config_tells_peft_what_it_needs(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "bert")
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=tmp_path / "base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 4, "lora_only")
    assert config["base_model_name_or_path"] == "base"
    assert "bert.encoder.layer.1.attention.self.query" in config["target_modules"]
    assert "bert.embeddings.LayerNorm" in config["modules_to_save"]
    # Matrices with a shorter side than the rank: the head of three labels, the embedding of two types.
    assert config["rank_pattern"] == {"bert.embeddings.token_type_embeddings": 2, "classifier": 3}
    assert {tensor.dtype for tensor in written(tmp_path / "adapter").values()} == {torch.float32}


@pytest.mark.parametrize("rslora", [False, True])
def test_factors_that_the_delta_stores_come_out_as_they_went_in(tmp_path: Path, rslora: bool) -> None:
    one = adapted(
        tmp_path,
        "bert",
        r=4,
        lora_alpha=7,
        use_rslora=rslora,
        target_modules=[*ATTENTION, "word_embeddings"],
        rank_pattern={"key": 2},
    )
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, "acme/lora:1.0.0")
    report = deltareg.export_lora("acme/lora:1.0.0", registry, tmp_path / "again", rank=4)
    assert report.error == 0 and all(tensor.exact for tensor in report.tensors)
    before, after = one.tensors, written(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    base = copy.deepcopy(one.model).unload()
    assert torch.allclose(outputs(loaded(base, tmp_path / "again")), outputs(one.model), atol=1e-7)


def test_factors_of_a_higher_rank_are_truncated(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=6, target_modules=["q_proj"])
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, "acme/lora:1.0.0")
    report = deltareg.export_lora("acme/lora:1.0.0", registry, tmp_path / "less", rank=3)
    tensors = one.tensors
    for tensor in report.tensors:
        start = f"base_model.model.{tensor.name.removesuffix('.weight')}"
        scale = 8 / 6
        values = np.linalg.svd(
            scale * (tensors[f"{start}.lora_B.weight"].double() @ tensors[f"{start}.lora_A.weight"].double()).numpy(),
            compute_uv=False,
        )
        assert tensor.error == pytest.approx(float(np.sqrt((values[3:] ** 2).sum() / (values**2).sum())), rel=1e-5)
        assert (tensor.rank, tensor.exact) == (3, False)


def test_dora_comes_out_as_plain_factors(tmp_path: Path) -> None:
    model, config = DORA["linear"]
    one = adapted(tmp_path, model, use_dora=True, **config)
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, "acme/dora:1.0.0")
    deltareg.export_lora("acme/dora:1.0.0", registry, tmp_path / "plain", rank=16)
    base = copy.deepcopy(one.model).unload()
    assert torch.allclose(outputs(loaded(base, tmp_path / "plain")), outputs(one.model), atol=1e-6)


def test_exported_adapter_can_be_imported(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=tmp_path / "base")
    back = deltareg.import_lora(tmp_path / "adapter", tmp_path / "base", registry, "acme/lora:1.0.0")
    assert back.low_rank == len(report.tensors)
    assert back.full == 5  # the norms
    deltareg.apply(tmp_path / "base", {"acme/lora:1.0.0": 1.0}, registry, tmp_path / "out")
    found, post = (load_file(tmp_path / side / "model.safetensors") for side in ("out", "post"))
    residue = sum(float(((found[name].double() - post[name].double()) ** 2).sum()) for name in post)
    total = sum(squares for squares, _ in independent(tmp_path, 4).values())
    assert (residue / total) ** 0.5 == pytest.approx(report.error, rel=1e-4)


def test_head_that_only_post_has_goes_along_whole(tmp_path: Path) -> None:
    _, post = changed(tmp_path, "bert")
    bare = {name: one for name, one in load_file(tmp_path / "base" / "model.safetensors").items()}
    del bare["classifier.weight"], bare["classifier.bias"]
    from safetensors.torch import save_file

    save_file(bare, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    registry = Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, NAME)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4)
    assert report.saved_modules == ["classifier"]
    found = written(tmp_path / "adapter")
    assert torch.equal(found["base_model.model.classifier.weight"], post.classifier.weight)
    assert torch.equal(found["base_model.model.classifier.bias"], post.classifier.bias)


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    for number, threads in enumerate((1, 3)):
        deltareg.export_lora(NAME, registry, tmp_path / str(number), rank=4, threads=threads)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_card_tells_the_error_and_what_is_left_out(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"{report.error:.4g}" in card and report.digest in card
    assert "library_name: peft" in card and 'base_model: "base"' in card
    assert "`model.norm.weight`: it is no matrix" in card


# --- what modules are -------------------------------------------------------------------------------------------------


def hidden(model: Any) -> Any:
    with torch.no_grad():
        found = model(tokens())
    return found.logits if "logits" in found else found.last_hidden_state


@pytest.mark.parametrize(
    ("model", "whole"),
    [("clip-text", []), ("deberta", ["encoder.rel_embeddings"]), ("gpt-oss", ["model.layers.0.mlp.router"])],
)
def test_embeddings_and_routers_are_exported_so_that_peft_computes_with_them(
    tmp_path: Path, model: str, whole: list[str]
) -> None:
    registry, base, post = taken(tmp_path, model)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=64, base=tmp_path / "base")
    assert {*whole} <= {*report.saved_modules}
    with_adapter = loaded(base, tmp_path / "adapter")
    lacking = {one.name for one in report.left_out}
    assert all("experts" in name or "sinks" in name for name in lacking)
    state = post.state_dict()
    post.load_state_dict({name: base.state_dict()[name] if name in lacking else state[name] for name in state})
    assert not torch.allclose(hidden(post), hidden(base), atol=1e-3)
    assert torch.allclose(hidden(with_adapter), hidden(post), atol=2e-6)
    assert torch.allclose(hidden(with_adapter.merge_and_unload()), hidden(post), atol=2e-6)


@pytest.mark.parametrize("tower", ["text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding"])
def test_embeddings_of_clip_have_the_factors_of_embeddings(tmp_path: Path, tower: str) -> None:
    registry, _, _ = taken(tmp_path, "clip")
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=2)
    found = written(tmp_path / "adapter")
    assert (
        f"base_model.model.{tower}.lora_embedding_A" in found and f"base_model.model.{tower}.lora_A.weight" not in found
    )


def test_what_may_be_an_embedding_is_left_out_without_the_base(tmp_path: Path) -> None:
    registry, base, _ = taken(tmp_path, "deberta")
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=2)
    reasons = {one.name: one.reason for one in report.left_out}
    assert "does not tell" in reasons["encoder.rel_embeddings.weight"]
    assert not any("rel_embeddings" in name for name in written(tmp_path / "adapter"))
    loaded(base, tmp_path / "adapter")


REAL = [
    *("bart", "bert", "canine", "clip", "clvp", "ctrl", "dac", "deberta", "deberta-v2", "decision_transformer", "gpt2"),
    *("gpt_oss", "ibert", "imagegpt", "layoutlm", "markuplm", "mpnet", "openai-gpt", "sam", "t5", "tapas", "wavlm"),
    *("whisper", "xlnet"),
]


@pytest.mark.parametrize("model_type", REAL)
def test_kinds_of_modules_are_those_of_the_real_architectures(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    modules = dict(model.named_modules())
    due = {
        torch.nn.Embedding: Kind.EMBEDDING,
        transformers.pytorch_utils.Conv1D: Kind.TURNED,
        torch.nn.Linear: Kind.STRAIGHT,
    }
    told = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2 or not name.endswith(".weight"):
            continue
        module = modules[name.removesuffix(".weight")]
        kind = kind_of(name, model_type, biased=getattr(module, "bias", None) is not None)
        one = next((kind for cls, kind in due.items() if isinstance(module, cls)), Kind.UNKNOWN)
        assert kind in (one, Kind.UNKNOWN), name
        told += kind is one
    assert told or model_type in ("dac", "ibert")


# --- convolutions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 1])
def test_adapter_of_convolutions_comes_out_again(tmp_path: Path, rank: int) -> None:
    one = adapted(
        tmp_path, "resnet", r=2, target_modules=["convolution"], rank_pattern={"embedder.embedder.convolution": 1}
    )
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, NAME)
    report = deltareg.export_lora(NAME, registry, tmp_path / "again", rank=rank)
    before, after = one.tensors, written(tmp_path / "again")
    assert before.keys() == after.keys() and not report.left_out
    base = copy.deepcopy(one.model).unload()
    merged = loaded(base, tmp_path / "again").merge_and_unload().state_dict()
    if rank == 2:
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(torch.allclose(tensor, merged[name], atol=1e-6) for name, tensor in one.merged().items())
    residue = total = 0.0
    for name, tensor in one.merged().items():
        residue += float(((tensor.double() - merged[name].double()) ** 2).sum())
        total += float(((tensor.double() - base.state_dict()[name].double()) ** 2).sum())
    assert (residue / total) ** 0.5 == pytest.approx(report.error, rel=1e-3, abs=1e-6)


def test_convolutions_that_no_adapter_changed_are_left_out_by_name(tmp_path: Path) -> None:
    registry, base, post = taken(tmp_path, "resnet")
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=2)
    reasons = {one.name: one.reason for one in report.left_out}
    assert "4 dimensions" in reasons["resnet.embedder.embedder.convolution.weight"]
    report = deltareg.export_lora(NAME, registry, tmp_path / "whole", rank=64, base=tmp_path / "base")
    assert "resnet.embedder.embedder.convolution" in report.saved_modules and not report.left_out
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(base, tmp_path / "whole")(pixels).logits, post(pixels).logits, atol=1e-5)


# --- the base ---------------------------------------------------------------------------------------------------------


def test_base_of_equal_shapes_and_other_weights_is_refused_with_the_code(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    changed(tmp_path / "other", "llama", seed=7)
    other = tmp_path / "other" / "base"
    with pytest.raises(NotHomologous, match="not homologous") as caught:
        deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=other)
    findings: Any = caught.value.data["findings"]
    assert [one["code"] for one in findings] == ["lineage-unrelated"]
    assert "lineage-unrelated" in (caught.value.cause or "") and "--force" in (caught.value.hint or "")
    assert not (tmp_path / "adapter").exists()
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=other, force=True)
    assert [note.startswith("forced: lineage-unrelated") for note in report.notes] == [True]
    assert "lineage-unrelated" in (tmp_path / "adapter" / "README.md").read_text()


def test_base_that_is_related_is_taken_and_said_not_to_be_the_delta_s(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    report = deltareg.export_lora(NAME, registry, tmp_path / "own", rank=4, base=tmp_path / "base")
    assert report.notes == []
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=tmp_path / "post")
    assert len(report.notes) == 1 and "post is not base" in report.notes[0]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    one = adapted(tmp_path, "llama", r=4, target_modules=["q_proj", "v_proj"])
    tensors = one.tensors
    tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"][0, 0] = float("nan")
    one.with_tensors(tensors)
    registry = Registry(tmp_path / "home")
    deltareg.import_lora(one.adapter, one.base, registry, "acme/lora:1.0.0")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InvalidArgument, match=r"layers\.1\.self_attn\.v_proj"):
        deltareg.export_lora("acme/lora:1.0.0", registry, tmp_path / "again", rank=2)
    assert sorted(tmp_path.iterdir()) == before


def test_existing_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=2)
    first = written(tmp_path / "adapter")
    with pytest.raises(OutputExists):
        deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=3)
    assert written(tmp_path / "adapter").keys() == first.keys()
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=3, overwrite=True)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 3
    (tmp_path / "adapter" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match="exists"):
        deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=3, overwrite=True)


def test_dry_run_writes_nothing_and_tells_the_same(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    would = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, dry_run=True)
    assert not (tmp_path / "adapter").exists()
    did = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4)
    assert (would.error, would.tensors, would.size) == (did.error, did.tensors, did.size)


@pytest.mark.parametrize("rank", [0, -1, 2**17])
def test_ranks_that_no_adapter_has_are_refused(tmp_path: Path, rank: int) -> None:
    with pytest.raises(InvalidArgument, match="rank"):
        deltareg.export_lora(NAME, Registry(tmp_path / "home"), tmp_path / "adapter", rank=rank)


def test_unknown_delta_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        deltareg.export_lora(NAME, Registry(tmp_path / "home"), tmp_path / "adapter", rank=4)


def test_base_of_another_delta_is_refused(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    changed(tmp_path / "other", "bert")
    with pytest.raises(NotHomologous, match="not the base"):
        deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4, base=tmp_path / "other" / "base")


def test_delta_without_matrices_is_refused(tmp_path: Path) -> None:
    changed(tmp_path, "llama")
    base = load_file(tmp_path / "base" / "model.safetensors")
    base["model.norm.weight"] += 1
    from safetensors.torch import save_file

    save_file(base, tmp_path / "post" / "model.safetensors", {"format": "pt"})
    registry = Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, NAME)
    with pytest.raises(InvalidArgument, match="changes nothing"):
        deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4)


# --- factors of large matrices ----------------------------------------------------------------------------------------


def test_large_matrix_gets_factors_nearly_as_near_as_the_best() -> None:
    rows, columns, rank = 4096, 1024, 16
    draw = np.random.default_rng(5)
    left = np.linalg.qr(draw.normal(size=(rows, 256)))[0]
    right = np.linalg.qr(draw.normal(size=(columns, 256)))[0]
    values = np.arange(1, 257) ** -0.5
    matrix = (left * values) @ right.T
    read = [0]

    def stretches() -> Any:
        read[0] += 1
        for row in range(0, rows, 300):
            yield row, matrix[row : row + 300]

    found = truncate(stretches, (rows, columns), rank, "w")
    assert read[0] == 7  # five steps, the image, the error: no more is read of a large delta
    product = found.left.astype(np.float64) @ found.right.astype(np.float64)
    assert found.residue == pytest.approx(float(((matrix - product) ** 2).sum()), rel=1e-9)
    assert found.total == pytest.approx(float((matrix**2).sum()), rel=1e-9)
    assert found.residue <= 1.002 * float((values[rank:] ** 2).sum())
    again = truncate(stretches, (rows, columns), rank, "w")
    assert np.array_equal(found.left, again.left) and np.array_equal(found.right, again.right)


def test_matrix_of_zeros_has_factors_of_zeros() -> None:
    for shape in ((9, 7), (4096, 1024)):
        found = truncate(lambda shape=shape: iter([(0, np.zeros(shape))]), shape, 3, "w")
        assert not (found.left @ found.right).any() and found.residue == 0


# --- what is overwritten ----------------------------------------------------------------------------------------------


def test_no_model_is_overwritten_by_an_adapter(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    before = (tmp_path / "post" / "model.safetensors").read_bytes()
    with pytest.raises(OutputExists, match="exists already") as caught:
        deltareg.export_lora(NAME, registry, tmp_path / "post", rank=2, overwrite=True)
    assert "no adapter" in (caught.value.cause or "") and caught.value.hint
    # A model that also holds an adapter is a model.
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=2)
    for file in (tmp_path / "adapter").iterdir():
        (tmp_path / "post" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OutputExists):
        deltareg.export_lora(NAME, registry, tmp_path / "post", rank=2, overwrite=True)
    assert (tmp_path / "post" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("weights", ["model.safetensors", "adapter_model.safetensors"])
def test_the_base_itself_is_never_overwritten(tmp_path: Path, weights: str) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    base = tmp_path / "base"
    (base / "model.safetensors").rename(base / weights)
    (base / "adapter_config.json").write_text("{}")
    (tmp_path / "link").symlink_to(base)
    before = (base / weights).read_bytes()
    for given in (base, base / weights, tmp_path / "link"):
        for out in (base, tmp_path / "link"):
            with pytest.raises(OutputExists) as caught:
                deltareg.export_lora(NAME, registry, out, rank=2, base=given, overwrite=True)
            assert caught.value.hint
    assert (base / weights).read_bytes() == before


def test_an_adapter_is_overwritten(tmp_path: Path) -> None:
    registry, _, _ = taken(tmp_path, "llama")
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=2)
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=1, overwrite=True)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 1


# --- what is told -----------------------------------------------------------------------------------------------------


def stored(path: Path, name: str, tensors: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    (path / name).mkdir()
    save_file(tensors, path / name / "model.safetensors", {"format": "pt"})
    return path / name


def test_approximated_delta_is_never_told_to_be_exact(tmp_path: Path) -> None:
    changed(tmp_path, "llama")
    registry = Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, NAME, codec="rank:2")
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=2)
    assert report.delta_error == registry.artifact(NAME).config.exactness.relative_error
    assert (report.delta_error or 0) > 0.1 and not any(tensor.exact for tensor in report.tensors)
    assert "itself an approximation" in (tmp_path / "adapter" / "README.md").read_text()


def test_rank_of_one_module_is_not_that_of_another_with_a_longer_name(tmp_path: Path) -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = torch.nn.Linear(8, 8, bias=False)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = torch.nn.Linear(8, 2, bias=False)
            self.z = Inner()

    model = Outer()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    post = {name: tensor + torch.randn_like(tensor) for name, tensor in base.items()}
    registry = Registry(tmp_path / "home")
    deltareg.diff(stored(tmp_path, "base", base), stored(tmp_path, "post", post), registry, NAME)
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=8)
    merged = loaded(model, tmp_path / "adapter").merge_and_unload().state_dict()
    assert all(torch.allclose(merged[name], post[name], atol=1e-5) for name in post)
    assert deltareg.import_lora(tmp_path / "adapter", tmp_path / "base", registry, "acme/lora:1.0.0").dry_run is False


def test_names_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    name = "a <script>|`[x](y).weight"
    base = {name: torch.zeros(4, 4)}
    registry = Registry(tmp_path / "home")
    deltareg.diff(stored(tmp_path, "base", base), stored(tmp_path, "post", {name: torch.ones(4, 4)}), registry, NAME)
    deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=1)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "<script>" not in card and "](y)" not in card


@pytest.mark.parametrize("kind", ["complex", "huge"])
def test_matrices_that_float32_factors_cannot_hold_are_left_out(tmp_path: Path, kind: str) -> None:
    odd = (
        torch.ones(4, 4, dtype=torch.complex64) if kind == "complex" else torch.full((4, 4), 1e100, dtype=torch.float64)
    )
    base = {"a.weight": torch.zeros(4, 4), "b.weight": torch.zeros_like(odd)}
    post = {"a.weight": torch.ones(4, 4), "b.weight": odd}
    registry = Registry(tmp_path / "home")
    deltareg.diff(stored(tmp_path, "base", base), stored(tmp_path, "post", post), registry, NAME)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=1)
    assert [(one.name, "float32" in one.reason) for one in report.left_out] == [("b.weight", True)]
    assert all(tensor.isfinite().all() for tensor in written(tmp_path / "adapter").values())


@pytest.mark.parametrize("size", [1.2e154, 1e160])
def test_error_is_a_number_where_squares_have_no_finite_sum(tmp_path: Path, size: float) -> None:
    base = {"a.weight": torch.zeros(4, 4)} | {f"{name}.weight": torch.zeros(2, 1).double() for name in "bc"}
    great = torch.tensor([[size], [0.0]], dtype=torch.float64)
    post = {"a.weight": torch.ones(4, 4), "b.weight": great, "c.weight": great.clone()}
    registry = Registry(tmp_path / "home")
    deltareg.diff(stored(tmp_path, "base", base), stored(tmp_path, "post", post), registry, NAME)
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=1)
    assert report.error == pytest.approx(1) and [one.name for one in report.left_out] == ["b.weight", "c.weight"]
    assert all(0 < one.share <= 1 for one in report.left_out)


@pytest.mark.parametrize("side", ["base", "post"])
@pytest.mark.parametrize("odd", ["nan", "inf"])
def test_one_number_that_no_sum_gives_leaves_the_matrix_in(tmp_path: Path, side: str, odd: str) -> None:
    base, post = {"a.weight": torch.zeros(4, 4)}, {"a.weight": torch.ones(4, 4)}
    (base if side == "base" else post)["a.weight"][1, 2] = float(odd)
    registry = Registry(tmp_path / "home")
    deltareg.diff(stored(tmp_path, "base", base), stored(tmp_path, "post", post), registry, NAME)
    assert registry.artifact(NAME).inventory.tensors[0].overwritten == 1
    report = deltareg.export_lora(NAME, registry, tmp_path / "adapter", rank=4)
    (tensor,) = report.tensors
    assert report.overwritten == tensor.overwritten == 1
    assert "1 numbers of the delta's post are no sum" in (tmp_path / "adapter" / "README.md").read_text()
    assert tensor.name == "a.weight" and not tensor.exact
    assert all(one.isfinite().all() for one in written(tmp_path / "adapter").values())
