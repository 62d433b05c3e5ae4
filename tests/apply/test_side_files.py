"""The output is a checkpoint that others load: config, tokenizer, model card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

import deltareg
from deltareg import Registry
from deltareg.artifact import pack
from deltareg.errors import BadManifest
from deltareg.manifest import SIDE_FILE_TYPE, TITLE, Descriptor, encode
from deltareg.names import parse_reference
from tests.codec.tensors import of, read_tensors, write_checkpoint
from tests.weights import Pair

NAME = "acme/search:1.0.0"


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, minilm_bf16: Pair) -> Registry:
    """A registry with the delta of MiniLM's fine-tune."""
    registry = Registry(tmp_path_factory.mktemp("search"))
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, NAME, licence="apache-2.0")
    return registry


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, search: Registry, minilm_bf16: Pair) -> Path:
    """The delta at weight 1 on its own base."""
    path = tmp_path_factory.mktemp("applied") / "out"
    deltareg.apply(minilm_bf16.base, {NAME: 1}, search, path)
    return path


def test_output_is_the_fine_tune(out: Path, minilm_bf16: Pair) -> None:
    assert read_tensors(out) == read_tensors(minilm_bf16.post)


def test_transformers_loads_the_output(out: Path, minilm_bf16: Pair) -> None:
    loaded: Any = BertModel.from_pretrained(out, output_loading_info=True)
    ours, told = loaded
    theirs = BertModel.from_pretrained(minilm_bf16.post)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert ours.dtype == theirs.dtype == torch.bfloat16
    tokens = AutoTokenizer.from_pretrained(out)("a delta can be added to another base", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**tokens).last_hidden_state, theirs(**tokens).last_hidden_state)


def side_files(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint that travel with its weights."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "modules.json", "1_Pooling/config.json")
    return {name: (path / name).read_bytes() for name in names if (path / name).exists()}


def test_side_files_are_those_of_post(out: Path, minilm_bf16: Pair) -> None:
    assert len(side_files(minilm_bf16.post)) == 5
    assert side_files(out) == side_files(minilm_bf16.post)
    assert side_files(out) != side_files(minilm_bf16.base)


def test_side_files_are_those_of_the_target_where_that_is_asked(
    tmp_path: Path, search: Registry, minilm_bf16: Pair
) -> None:
    report = deltareg.apply(minilm_bf16.base, {NAME: 0.5}, search, tmp_path / "out", side_files="target")
    assert side_files(tmp_path / "out") == side_files(minilm_bf16.base)
    assert set(side_files(minilm_bf16.base)) <= set(report.side_files)


def test_config_is_that_of_the_target(out: Path, minilm_bf16: Pair) -> None:
    assert (out / "config.json").read_bytes() == (minilm_bf16.base / "config.json").read_bytes()


def front_matter(path: Path) -> dict[str, Any]:
    """The model card's front matter: JSON values on YAML lines."""
    lines = (path / "README.md").read_text().split("---\n")[1].splitlines()
    found: dict[str, Any] = {}
    key = ""
    for line in lines:
        if line.startswith("- "):
            found[key].append(json.loads(line[2:]))
        else:
            key, _, value = line.partition(":")
            found[key] = json.loads(value) if value.strip() else []
    return found


def test_model_card_tells_where_the_model_comes_from(tmp_path: Path, search: Registry, minilm_bf16: Pair) -> None:
    target = tmp_path / "target"
    tensors = read_tensors(minilm_bf16.base)
    write_checkpoint(target, tensors)
    (target / "README.md").write_text("---\nlicense: apache-2.0\n---\n# MiniLM\n")
    report = deltareg.apply(target, [(NAME, 0.5), (NAME, -0.25)], search, tmp_path / "out")
    front = front_matter(tmp_path / "out")
    assert front["base_model"] == ["target"]
    assert front["license"] == "apache-2.0"
    assert "deltareg" in front["tags"]
    text = (tmp_path / "out" / "README.md").read_text()
    digest = search.resolve(NAME)
    rows = re.findall(r"^\| `acme/search:1.0.0` \| (\S+) \| `(\S+)` \| apache-2.0 \|$", text, re.MULTILINE)
    assert rows == [("0.5", digest), ("-0.25", digest)]
    assert "linear" in text
    assert str(tmp_path) not in text
    assert all(note in text for note in report.warnings)


def test_model_card_is_the_same_each_time(tmp_path: Path, search: Registry, out: Path, minilm_bf16: Pair) -> None:
    deltareg.apply(minilm_bf16.base, {NAME: 1}, search, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_bytes() == (out / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("of_target", "of_delta", "expected"),
    [
        ("mit", "mit", "mit"),
        ("mit", "apache-2.0", "other"),
        ("llama3.1", "llama3.1", "llama3.1"),
        (None, "mit", None),
        ("mit", None, None),
    ],
)
def test_card_claims_no_licence_that_is_not_shared(
    tmp_path: Path, of_target: str | None, of_delta: str | None, expected: str | None
) -> None:
    base = write_checkpoint(tmp_path / "base", {"w": of("BF16", np.array([0x3F80], np.uint16))})
    post = write_checkpoint(tmp_path / "post", {"w": of("BF16", np.array([0x3F90], np.uint16))})
    if of_target is not None:
        (base / "README.md").write_text(f"---\nlicense: {of_target}\n---\n")
    registry = Registry(tmp_path / "home")
    deltareg.diff(base, post, registry, "acme/w:1.0.0", licence=of_delta)
    deltareg.apply(base, {"acme/w:1.0.0": 1}, registry, tmp_path / "out")
    assert front_matter(tmp_path / "out").get("license") == expected


def test_name_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    hostile = tmp_path / 'a"\n---\nlicense: mit\n# b | `c`'
    base = write_checkpoint(hostile, {"w": of("BF16", np.array([0x3F80], np.uint16))})
    post = write_checkpoint(tmp_path / "post", {"w": of("BF16", np.array([0x3F90], np.uint16))})
    registry = Registry(tmp_path / "home")
    deltareg.diff(base, post, registry, "acme/w:1.0.0")
    deltareg.apply(base, {"acme/w:1.0.0": 1}, registry, tmp_path / "out")
    front = front_matter(tmp_path / "out")
    assert front["base_model"] == [hostile.name]
    assert "license" not in front


def test_side_file_that_is_none_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"w": of("BF16", np.array([0x3F80], np.uint16))})
    post = write_checkpoint(tmp_path / "post", {"w": of("BF16", np.array([0x3F90], np.uint16))})
    registry = Registry(tmp_path / "home")
    deltareg.diff(base, post, registry, "acme/w:1.0.0")
    manifest = registry.artifact("acme/w:1.0.0").manifest
    outside = ["../vocab.txt", "/etc/vocab.txt", "a/../../vocab.txt", "", ".", "..\\vocab.txt", "vocab.txt\0"]
    # Within the output, but not its own: what would replace the target's config, the card or the weights, and code.
    foreign = ["config.json", "README.md", "model.safetensors", "modeling_w.py", "tokenizer.py", "adapter_model.bin"]
    data = pack(b"out of place")
    digest = registry.store.put(data)
    for number, title in enumerate([*outside, *foreign], 1):
        layer = Descriptor(media_type=SIDE_FILE_TYPE, digest=digest, size=len(data), annotations={TITLE: title})
        hostile = manifest.model_copy(update={"layers": [*manifest.layers, layer]})
        name = f"acme/w:1.0.{number}"
        registry.store.publish(parse_reference(name), encode(hostile))
        with pytest.raises(BadManifest, match="side file"):
            deltareg.apply(base, {name: 1}, registry, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "home", "post"]
