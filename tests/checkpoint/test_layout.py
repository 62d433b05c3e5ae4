from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deltareg.checkpoint import LocalFolder, Weights, find_weights
from deltareg.checkpoint.layout import licence_of, side_files_of
from deltareg.errors import BadCheckpoint, CheckpointNotFound, PickleRefused
from tests.checkpoint.samples import write_sharded


def folder_of(path: Path, *names: str) -> LocalFolder:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return LocalFolder(path)


def index_of(path: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> None:
    (path / name).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "weights.safetensors"])
def test_single_file_is_found(tmp_path: Path, name: str) -> None:
    assert find_weights(folder_of(tmp_path, name, "config.json", "sub/config.json")) == Weights((name,))


def test_shards_are_those_of_the_index_and_no_other_file(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "consolidated.safetensors").touch()
    found = find_weights(LocalFolder(tmp_path))
    assert found.files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert found.index is not None
    assert found.index.weight_map["mask"] == "model-00002-of-00002.safetensors"


def test_single_file_wins_over_an_index_of_other_files_as_in_transformers(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    assert find_weights(folder_of(tmp_path, "model.safetensors")) == Weights(("model.safetensors",))


def test_index_of_another_name_is_taken_if_it_is_the_only_one(tmp_path: Path) -> None:
    index_of(tmp_path, {"a": "unet.safetensors"}, "unet.safetensors.index.json")
    found = find_weights(folder_of(tmp_path, "unet.safetensors"))
    assert found.index is not None
    index_of(tmp_path, {"a": "vae.safetensors"}, "vae.safetensors.index.json")
    with pytest.raises(BadCheckpoint, match="several indexes"):
        find_weights(LocalFolder(tmp_path))


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    index_of(tmp_path, {f"t{n}": f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)})
    folder = folder_of(tmp_path, "model-00002-of-00004.safetensors")
    with pytest.raises(BadCheckpoint, match="lacks 3 of its shards") as raised:
        find_weights(folder)
    assert raised.value.data["missing"] == [f"model-{n:05}-of-00004.safetensors" for n in (1, 3, 4)]


PATHS = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "a/b.safetensors",
    "a\\b.safetensors",
    "x\0.safetensors",
    "config.json",
]


@pytest.mark.parametrize("shard", [*PATHS, "", 1, None, ["x.safetensors"]])
def test_index_that_leads_out_of_the_directory_is_refused(tmp_path: Path, shard: Any) -> None:
    index_of(tmp_path, {"good": "model-00001-of-00001.safetensors", "bad": shard})
    with pytest.raises(BadCheckpoint, match="no safetensors file beside it") as raised:
        find_weights(folder_of(tmp_path, "model-00001-of-00001.safetensors"))
    assert raised.value.data["shards"] == [repr(shard)]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map":[]}', '{"weight_map":{"a":"x","a":"y"}}', "\xff"])
def test_index_that_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors\.index\.json"):
        find_weights(folder_of(tmp_path, "x.safetensors"))


def test_numbered_shards_without_an_index_are_taken_if_complete(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
    assert find_weights(folder).files == ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"there must be m-00002-of-00002\.safetensors"):
        find_weights(folder)


def test_several_unrelated_files_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="several safetensors files and no index"):
        find_weights(folder_of(tmp_path, "a.safetensors", "b.safetensors"))


@pytest.mark.parametrize("names", [[], ["config.json"], ["training_args.bin", "optimizer.pt", "rng_state_0.pth"]])
def test_directory_without_weights_is_not_found(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(CheckpointNotFound, match="holds no safetensors file"):
        find_weights(folder_of(tmp_path, *names))


@pytest.mark.parametrize(
    "names", [["adapter_model.safetensors"], ["adapter_model.bin"], ["adapter_model.bin", "training_args.bin"], []]
)
def test_adapter_is_no_checkpoint_and_the_error_names_what_takes_it(tmp_path: Path, names: list[str]) -> None:
    folder = folder_of(tmp_path, *names, "adapter_config.json", "tokenizer.json", "README.md")
    with pytest.raises(CheckpointNotFound, match="holds an adapter, no model") as raised:
        find_weights(folder)
    assert f"deltareg import-lora {tmp_path} --base BASE" in (raised.value.hint or "")
    if "adapter_model.safetensors" in names:
        assert find_weights(folder, as_adapter=True).files == ("adapter_model.safetensors",)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "pytorch_model.bin"])
def test_model_beside_an_adapter_is_a_checkpoint(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, name, "adapter_config.json")
    if name.endswith(".bin"):
        with pytest.raises(PickleRefused):
            find_weights(folder)
    else:
        assert find_weights(folder).files == (name,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt", "MODEL.BIN"])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(PickleRefused) as raised:
        find_weights(folder_of(tmp_path, name, "config.json", "training_args.bin"))
    assert "weights_only=True" in (raised.value.hint or "")
    assert f"{tmp_path}/{name}" in (raised.value.hint or "")
    assert "training_args" not in (raised.value.hint or "")


def run_command(error: PickleRefused) -> None:
    """What a user does who trusts the file: paste the command of the message into a shell."""
    command = error.data["command"]
    assert isinstance(command, str)
    assert (error.hint or "").endswith(command)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], check=True, env={**os.environ, "PATH": path})


def test_pickle_is_converted_by_the_command_that_its_refusal_gives(tmp_path: Path) -> None:
    directory = tmp_path / "it's a model"
    directory.mkdir()
    shared = torch.arange(6.0).reshape(2, 3)
    first = {"a.weight": shared, "tied.weight": shared, "view": shared.T, "step": 3}
    torch.save(first, directory / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(2, dtype=torch.bfloat16)}, directory / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(PickleRefused) as raised:
        find_weights(LocalFolder(directory))
    run_command(raised.value)
    assert find_weights(LocalFolder(directory)) == Weights(("model.safetensors",))
    found = load_file(directory / "model.safetensors")
    assert found.keys() == {"a.weight", "tied.weight", "view", "b"}
    assert torch.equal(found["view"], shared.T)
    assert torch.equal(found["tied.weight"], shared)
    assert found["b"].dtype is torch.bfloat16


def test_side_files_are_what_travels_beside_the_weights() -> None:
    wanted = [
        "1_Pooling/config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "config_sentence_transformers.json",
        "generation_config.json",
        "merges.txt",
        "modules.json",
        "preprocessor_config.json",
        "processor_config.json",
        "sentence_bert_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    ]
    others = [
        "README.md",
        "checkpoint-500/config.json",
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "tokenizer.pkl",
        "tokenizer.py",
        "tokenizer.bin",
        "vocab.pt",
        "training_args.bin",
        "LICENSE",
    ]
    assert list(side_files_of([*others, *reversed(wanted)])) == wanted


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\r\ntags:\r\n- x\r\nlicense: MIT\r\n---\r\n", "MIT"),
        ('---\nlicense: "cc-by-4.0"  # really\n---\n', "cc-by-4.0"),
        ("\ufeff---\nlanguage: en\nlicense: 'llama3.1'\n---\n", "llama3.1"),
        ("---\nlicense: GPL-2.0+ WITH Classpath-exception-2.0\n---", "GPL-2.0+ WITH Classpath-exception-2.0"),
        ("---\nlicense: (MIT OR Apache-2.0) AND GPL-2.0+\n---\n", "(MIT OR Apache-2.0) AND GPL-2.0+"),
        ("---\nlicense: unknown\n---\n", None),
        ("---\nlicense: Apache 2.0\n---\n", None),
        ("---\nlicense: mit\x1b[31m\n---\n", None),
        ("---\nlicense: see | the | table\n---\n", None),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        (f"---\nlicense: {'m' * 2000}\n---\n", None),
        ("---\nlicense:\n- mit\n---\n", None),
        ("---\nbase:\n  license: mit\n---\n", None),
        ("# Model\nlicense: mit\n", None),
        ("---\ntags: x\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit", None),
        ("", None),
    ],
)
def test_licence_is_that_of_the_front_matter(readme: str, licence: str | None) -> None:
    assert licence_of(readme) == licence


@pytest.mark.parametrize("line", ["license:" + " " * 2_000_000 + "!", "license: a" + " " * 2_000_000 + "!"])
def test_hostile_model_card_takes_no_time(line: str) -> None:
    begun = time.monotonic()
    assert licence_of(f"---\n{line}\n---\n") is None
    assert time.monotonic() - begun < 1
