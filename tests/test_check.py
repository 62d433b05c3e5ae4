"""Whether a delta fits: on real weights, and each finding by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltareg
from deltareg import Registry
from deltareg.check import CheckedDelta, fingerprint
from deltareg.checkpoint import Checkpoint
from deltareg.checkpoint.hub import Hub
from deltareg.digest import sha256
from deltareg.errors import BadCheckpoint, InvalidArgument, NotFound, NotHomologous
from deltareg.homology import FINDINGS
from deltareg.manifest import Requirement, encode
from deltareg.sketch import SAMPLES_TYPE
from tests import measure_check, raw
from tests.checkpoint.hub_server import serve_hub
from tests.weights import Pair

SHARK = "acme/shark:1.0.0"
MINILM = "acme/minilm:1.0.0"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, anarcii_bf16: Mapping[str, Path], minilm_bf16: Pair) -> Registry:
    """Deltas of the real pairs. Read only."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    deltareg.diff(anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"], registry, SHARK)
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, MINILM)
    return registry


def checked(registry: Registry, target: Path, reference: str) -> CheckedDelta:
    report = deltareg.check(target, [reference], registry)
    (found,) = report.deltas
    assert report.verdict == found.verdict
    return found


def told(found: CheckedDelta) -> set[tuple[str, str]]:
    return {(one.code, one.subject) for one in found.findings}


# --- real weights -------------------------------------------------------------------------------------------------


def test_a_delta_is_at_home_on_its_base(registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    found = checked(registry, anarcii_bf16["antibody_4_2"], SHARK)
    assert (found.verdict, found.findings) == ("identical", [])
    assert found.lineage is not None
    assert (found.lineage.verdict, found.lineage.distance) == ("same", 0)


def test_a_delta_fits_a_relative_of_its_base(registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    found = checked(registry, anarcii_bf16["shark_4_2"], SHARK)
    assert found.verdict == "homologous"
    assert found.lineage is not None
    assert found.lineage.verdict == "related"
    # The target is base + delta.
    assert found.lineage.distance_to_delta == pytest.approx(1, abs=0.1)


def test_another_dtype_is_told_only(registry: Registry, anarcii: Mapping[str, Path]) -> None:
    found = checked(registry, anarcii["antibody_4_2"], SHARK)
    assert (found.verdict, told(found)) == ("homologous", {("behaviour-field", "dtype")})


def test_a_vocabulary_one_larger_is_adaptable(registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    found = checked(registry, anarcii_bf16["tcr_4_2"], SHARK)
    assert found.verdict == "adaptable"
    warnings = [one for one in found.findings if one.severity == "warning"]
    assert {(one.code, one.subject) for one in warnings} == {
        ("vocabulary-rows", "decoder.fc_out.bias"),
        ("vocabulary-rows", "decoder.fc_out.weight"),
        ("vocabulary-rows", "decoder.tok_embedding.weight"),
    }
    assert all("row number" in one.remedy for one in warnings)
    # Of all elements: 0.9985, 0.0587, 25.7 for attention; 0.9830, 0.1846, 28.1 for mlp.
    assert found.lineage is not None
    for key, distance, to_delta in (("attention", 0.0587, 25.7), ("mlp", 0.1846, 28.1)):
        likeness = found.lineage.classes[key]
        assert likeness.cosine is not None and 0.97 < likeness.cosine < 1
        assert likeness.distance == pytest.approx(distance, rel=0.25)
        assert likeness.distance_to_delta == pytest.approx(to_delta, rel=0.25)


def test_unrelated_weights_of_another_depth_are_refused(registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    found = checked(registry, anarcii_bf16["antibody_4_1"], SHARK)
    assert found.verdict == "incompatible"
    assert ("structure-field", "layers") in told(found)
    assert ("lineage-unrelated", "weights of attention") in told(found)
    assert "tensor-missing" in {one.code for one in found.findings}
    assert [one.severity for one in found.findings] == sorted(
        (one.severity for one in found.findings), key=["error", "warning", "note"].index
    )


def test_equal_shapes_of_unrelated_weights_are_refused_by_lineage(
    tmp_path: Path, anarcii_bf16: Mapping[str, Path]
) -> None:
    """The first layers of real models: both have them, and their weights have nothing in common."""
    models = {name: raw.read(anarcii_bf16[name]) for name in ("antibody_4_2", "shark_4_2", "antibody_4_1")}
    shapes = {name: {key: one.spec.shape for key, one in model.items()} for name, model in models.items()}
    shared = [key for key, shape in shapes["antibody_4_1"].items() if shapes["antibody_4_2"].get(key) == shape]
    assert len(shared) > 30
    for name, model in models.items():
        (tmp_path / name).mkdir()
        raw.write(tmp_path / name / "model.safetensors", [model[key] for key in shared])
    registry = Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "antibody_4_2", tmp_path / "shark_4_2", registry, SHARK)
    found = checked(registry, tmp_path / "antibody_4_1", SHARK)
    assert found.verdict == "incompatible"
    assert [one.code for one in found.findings if one.severity == "error"] == ["lineage-unrelated"]
    with pytest.raises(NotHomologous, match="cosine"):
        deltareg.apply(tmp_path / "antibody_4_1", {SHARK: 1.0}, registry, tmp_path / "out")
    assert checked(registry, tmp_path / "shark_4_2", SHARK).verdict == "homologous"


def test_minilm_fits_with_and_without_its_position_ids(registry: Registry, minilm_bf16: Pair, minilm: Pair) -> None:
    assert checked(registry, minilm_bf16.base, MINILM).verdict == "identical"
    found = checked(registry, minilm_bf16.post, MINILM)
    assert found.verdict == "homologous"
    assert ("buffer-missing", "embeddings.position_ids") in told(found)
    assert checked(registry, minilm.base, MINILM).verdict == "homologous"


def test_another_vocabulary_is_refused_where_the_tensors_fit(
    registry: Registry, minilm_bf16: Pair, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    shutil.copytree(minilm_bf16.base, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["hello"], vocabulary["world"] = vocabulary["world"], vocabulary["hello"]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = checked(registry, target, MINILM)
    assert (found.verdict, told(found)) == ("incompatible", {("tokenizer-core", "tokenizer")})


def test_behaviour_is_told_only(registry: Registry, minilm_bf16: Pair, tmp_path: Path) -> None:
    target = tmp_path / "target"
    shutil.copytree(minilm_bf16.base, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5}))
    found = checked(registry, target, MINILM)
    assert found.verdict == "homologous"
    assert {one.severity for one in found.findings} == {"note"}
    assert {one.code for one in found.findings} == {"behaviour-field"}


def test_several_deltas_have_the_worst_verdict(registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    report = deltareg.check(anarcii_bf16["antibody_4_2"], [SHARK, MINILM, SHARK], registry)
    assert [found.verdict for found in report.deltas] == ["identical", "incompatible", "identical"]
    assert report.verdict == "incompatible"


def test_a_model_on_the_hub_costs_kilobytes(
    registry: Registry, anarcii: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = anarcii["antibody_4_2"]
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}
    with serve_hub("acme/antibody", files) as server:
        hub = Hub(cache=tmp_path / "cache", endpoint=server.url)
        with Checkpoint.open("hf://acme/antibody", headers_only=True, hub=hub) as target:
            report = deltareg.check(target, [SHARK], registry)
    assert report.verdict == "homologous"
    assert report.bytes_read < 32_768
    lineage = report.deltas[0].lineage
    assert lineage is not None
    assert (lineage.verdict, lineage.values > 64) == ("same", True)


# --- each finding -------------------------------------------------------------------------------------------------

MATRIX = (256, 256)
TENSORS: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (64, 256),
    "model.layers.0.self_attn.q_proj.weight": MATRIX,
    "model.layers.0.mlp.up_proj.weight": MATRIX,
    "model.norm.weight": (256,),
    "lm_head.weight": (64, 256),
}
CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "hidden_act": "silu",
    "vocab_size": 64,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
TOKENIZER: Mapping[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "left": 1, "right": 2, "spare": 3}, "unk_token": "[UNK]"},
}


@dataclass(frozen=True)
class Model:
    """A checkpoint to be written: values follow from seed and names, so equal ones are related."""

    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: dict(TENSORS))
    config: Mapping[str, Any] = field(default_factory=lambda: dict(CONFIG))
    tokenizer: Mapping[str, Any] | None = field(default_factory=lambda: dict(TOKENIZER))
    template: str | None = None
    dtype: str = "F32"
    seed: int = 1
    step: float = 0

    def more(self, **tensors: tuple[int, ...]) -> Model:
        return replace(self, tensors={**self.tensors, **{name.replace("__", "."): s for name, s in tensors.items()}})

    def without(self, *names: str) -> Model:
        return replace(self, tensors={name: s for name, s in self.tensors.items() if name not in names})

    def configured(self, **fields: Any) -> Model:
        return replace(self, config={**self.config, **fields})

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True)
        raw.write(directory / "model.safetensors", self._raw())
        (directory / "config.json").write_text(json.dumps(self.config))
        if self.tokenizer is not None:
            (directory / "tokenizer.json").write_text(json.dumps(self.tokenizer))
        if self.template is not None:
            (directory / "chat_template.jinja").write_text(self.template)
        return directory

    def _raw(self) -> Iterator[raw.RawTensor]:
        for name, shape in self.tensors.items():
            own = name.removeprefix("module.")
            random = np.random.default_rng([self.seed, *own.encode()])
            values = random.normal(0, 1, shape).astype(np.float32) + np.float32(self.step)
            data = values if self.dtype == "F32" else values.astype(np.int8)
            yield raw.RawTensor(raw.TensorSpec(name, self.dtype, shape), data.reshape(-1).view(np.uint8))


BASE = Model()
POST = Model(step=0.01)
HEAD = {"score__weight": (2, 256)}
ADDED = {"id": 4, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
RENAMED = {**TOKENIZER, "added_tokens": [ADDED | {"special": True}]}
OTHER_WORDS = {**TOKENIZER["model"], "vocab": {"[UNK]": 0, "right": 1, "left": 2, "spare": 3}}
NORM = "model.norm.weight"
BUFFER = {"model__layers__0__self_attn__rotary_emb__inv_freq": (32,)}
TIED = BASE.without("lm_head.weight").configured(tie_word_embeddings=True)
PREFIXED = replace(BASE, tensors={f"module.{name}": shape for name, shape in TENSORS.items()})

CASES: Mapping[str, tuple[Model, Model, Model]] = {
    "tensor-missing": (BASE, POST, BASE.without(NORM)),
    "tensor-shape": (BASE, POST, BASE.more(model__norm__weight=(255,))),
    "tensor-unexpected": (BASE, POST, BASE.more(model__layers__0__mlp__gate_proj__weight=MATRIX)),
    "tensor-dtype": (BASE, POST, replace(BASE, dtype="I8")),
    "tensor-removed": (BASE, POST.without(NORM), BASE.without(NORM)),
    "tensor-only-in-post": (BASE, POST.more(model__layers__0__mlp__extra__weight=(3, 3)), BASE),
    "vocabulary-rows": (BASE, POST, BASE.more(model__embed_tokens__weight=(72, 256), lm_head__weight=(72, 256))),
    "tied-head": (BASE, POST, TIED),
    "prefix": (BASE, POST, PREFIXED),
    "buffer-missing": (BASE.more(**BUFFER), POST, BASE),
    "buffer-differs": (BASE, POST, BASE.more(**BUFFER)),
    "head-only-in-post": (BASE, POST.more(**HEAD), BASE),
    "head-only-in-target": (BASE, POST, BASE.more(**HEAD)),
    "head-missing": (BASE.more(**HEAD), POST.more(**HEAD), BASE),
    "model-type": (BASE, POST, BASE.configured(model_type="mistral")),
    "structure-field": (BASE, POST, BASE.configured(hidden_act="gelu")),
    "behaviour-field": (BASE, POST, BASE.configured(rope_theta=500000.0)),
    "tokenizer-core": (BASE, POST, replace(BASE, tokenizer={**TOKENIZER, "model": OTHER_WORDS})),
    "tokenizer-added": (BASE, POST, replace(BASE, tokenizer=RENAMED)),
    "tokenizer-missing": (BASE, POST, replace(BASE, tokenizer=None)),
    "chat-template": (BASE, POST, replace(BASE, template="{{ messages }}")),
    "lineage-unrelated": (BASE, POST, replace(BASE, seed=2)),
    "lineage-unknown": (
        BASE.without(*[name for name in TENSORS if name != NORM]),
        POST.without(*[name for name in TENSORS if name != NORM]),
        BASE.without(*[name for name in TENSORS if name != NORM]),
    ),
}
# Taken on top of another: below. An approximation: in tests/test_lossy.py. No tensors: in tests/test_homology.py.
ELSEWHERE = {"delta-lossy", "delta-stacked", "tied-unknown"}


def test_every_code_is_found_by_a_test() -> None:
    assert set(CASES) | ELSEWHERE == set(FINDINGS)


@pytest.mark.parametrize("code", CASES)
def test_each_finding(code: str, tmp_path: Path) -> None:
    base, post, target = (model.write(tmp_path / name) for name, model in zip("bpt", CASES[code], strict=True))
    registry = Registry(tmp_path / "home")
    deltareg.diff(base, post, registry, "acme/one:1.0.0")
    found = checked(registry, target, "acme/one:1.0.0")
    assert code in {one.code for one in found.findings}
    severities = {one.severity for one in found.findings}
    worst = next((one for one in ("error", "warning", "note") if one in severities), None)
    assert worst == FINDINGS[code].severity or code == "model-type"
    assert found.verdict == {"error": "incompatible", "warning": "adaptable"}.get(
        worst or "", "identical" if code.endswith("-only-in-post") else "homologous"
    )
    assert all(one.remedy for one in found.findings)
    # What is said to fit, apply takes; what apply refuses is not said to fit.
    try:
        deltareg.apply(target, {"acme/one:1.0.0": 1.0}, registry, tmp_path / "out", dry_run=True)
        assert found.verdict != "incompatible"
    except NotHomologous:
        assert found.verdict == "incompatible"


def test_model_types_of_related_weights_are_adaptable(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    deltareg.diff(BASE.write(tmp_path / "b"), POST.write(tmp_path / "p"), registry, "acme/one:1.0.0")
    other = BASE.configured(model_type="mistral")
    assert checked(registry, other.write(tmp_path / "related"), "acme/one:1.0.0").verdict == "adaptable"
    stranger = checked(registry, replace(other, seed=2).write(tmp_path / "stranger"), "acme/one:1.0.0")
    assert {one.code: one.severity for one in stranger.findings}["model-type"] == "error"


def test_a_wrapped_target_is_measured_under_its_own_names(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    deltareg.diff(BASE.write(tmp_path / "b"), POST.write(tmp_path / "p"), registry, "acme/one:1.0.0")
    found = checked(registry, PREFIXED.write(tmp_path / "t"), "acme/one:1.0.0")
    assert [(one.code, one.subject) for one in found.findings] == [("prefix", "5 tensors")]
    assert found.lineage is not None
    assert found.lineage.verdict == "same"


def republished(registry: Registry, name: str, config: Mapping[str, Any], *, samples: bool = True) -> str:
    """The delta `name` under another version: with other fields in its config, or without its samples."""
    artifact = registry.artifact(name)
    data = encode(artifact.config.model_copy(update=dict(config)))
    registry.store.put(data)
    own = artifact.manifest.config.model_copy(update={"digest": sha256(data), "size": len(data)})
    layers = [layer for layer in artifact.manifest.layers if samples or layer.media_type != SAMPLES_TYPE]
    registry.publish("acme/again:1.0.0", encode(artifact.manifest.model_copy(update={"config": own, "layers": layers})))
    return "acme/again:1.0.0"


@pytest.fixture
def one(tmp_path: Path) -> tuple[Registry, Path]:
    """A registry with acme/one:1.0.0, and its base."""
    registry, base = Registry(tmp_path / "home"), BASE.write(tmp_path / "b")
    deltareg.diff(base, POST.write(tmp_path / "p"), registry, "acme/one:1.0.0")
    return registry, base


def test_a_stacked_delta_wants_what_it_stands_on_or_its_own_base(one: tuple[Registry, Path], tmp_path: Path) -> None:
    registry, base = one
    below = Requirement(reference="acme/below", version="1.0.0", digest=sha256(b"below"))
    many = [below, *(Requirement(reference=f"acme/n{number}", version="^1.2") for number in range(9))]
    name = republished(registry, "acme/one:1.0.0", {"requires": many})
    assert (checked(registry, base, name).verdict, checked(registry, base, name).findings) == ("identical", [])
    found = checked(registry, POST.write(tmp_path / "t"), name)
    (stacked,) = [each for each in found.findings if each.code == "delta-stacked"]
    assert (found.verdict, stacked.severity, stacked.subject) == ("adaptable", "warning", "requires")
    assert stacked.delta.startswith("acme/below 1.0.0, acme/n0 ^1.2, ")
    assert stacked.delta.endswith(" and 5 more")
    assert "deltareg apply" in stacked.remedy


def test_without_samples_no_target_is_known_to_hold_what_a_delta_stands_on(one: tuple[Registry, Path]) -> None:
    registry, base = one
    below = Requirement(reference="acme/below", version="1.0.0")
    name = republished(registry, "acme/one:1.0.0", {"requires": [below]}, samples=False)
    assert told(checked(registry, base, name)) == {("lineage-unknown", "weights"), ("delta-stacked", "requires")}


def test_without_samples_the_lineage_is_unknown(one: tuple[Registry, Path]) -> None:
    registry, base = one
    found = checked(registry, base, republished(registry, "acme/one:1.0.0", {}, samples=False))
    assert (found.verdict, told(found), found.lineage) == ("homologous", {("lineage-unknown", "weights")}, None)


# --- bad input, and much of it ------------------------------------------------------------------------------------


def test_nothing_to_check_and_nothing_to_check_against(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no delta"):
        deltareg.check(tmp_path, [], registry)
    with pytest.raises(NotFound):
        deltareg.check(tmp_path, ["acme/nothing:1.0.0"], registry)
    with pytest.raises(deltareg.DeltaregError):
        deltareg.check(tmp_path / "nowhere", [SHARK], registry)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"model": {"type": "WordLevel", "vocab": {"a": "b"}}}'])
def test_a_broken_tokenizer_is_named(one: tuple[Registry, Path], text: str) -> None:
    registry, base = one
    (base / "tokenizer.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json"):
        deltareg.check(base, ["acme/one:1.0.0"], registry)


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, True, 2**80, 1.5])
def test_odd_values_in_a_config_are_no_crash(one: tuple[Registry, Path], value: object) -> None:
    registry, base = one
    config = dict.fromkeys([*CONFIG, "rope_scaling", "text_config"], value)
    (base / "config.json").write_text(json.dumps(config))
    assert checked(registry, base, "acme/one:1.0.0").verdict in ("identical", "homologous", "incompatible", "adaptable")


@pytest.mark.slow
@pytest.mark.parametrize("make", [measure_check.llama_70b, measure_check.mixture_671b], ids=["70b", "671b"])
def test_large_models_cost_megabytes(make: Callable[[], measure_check.Large], tmp_path: Path) -> None:
    """Sparse files of the real sizes; how long it takes, `python -m tests.measure_check` prints."""
    model = make()
    target = measure_check.build(model, tmp_path)
    report, _ = measure_check.check(tmp_path, target)
    assert report["verdict"] == "homologous"
    assert report["deltas"][0]["lineage"]["verdict"] == "related"
    assert 0.98 < report["deltas"][0]["lineage"]["cosine"] < 1
    assert 0 < report["bytesRead"] <= model.megabytes * 1e6


def test_check_imports_no_torch(one: tuple[Registry, Path], tmp_path: Path) -> None:
    registry, base = one
    program = (
        "import sys; from deltareg.cli import main; status = main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or status)"
    )
    command = [sys.executable, "-c", program, "check", "acme/one:1.0.0", "--base", str(base)]
    done = subprocess.run(
        command, env=os.environ | {"DELTAREG_HOME": str(registry.store.root.parent)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_the_fingerprint_is_that_of_the_deltas_base(registry: Registry, minilm_bf16: Pair) -> None:
    report = fingerprint(minilm_bf16.base)
    assert report.fingerprint == registry.artifact(MINILM).config.fingerprint
    assert (report.tensors, report.parameters) == (104, 22_713_728)
