from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltareg.checkpoint import locate
from deltareg.errors import CheckpointNotFound, InvalidArgument, PickleRefused
from tests.checkpoint.samples import write_model
from tests.checkpoint.test_layout import run_command


def test_directory_is_known_by_its_name_not_its_path(tmp_path: Path) -> None:
    located = locate(write_model(tmp_path / "base"))
    assert (located.id, located.revision, located.path, located.root) == (
        "base",
        None,
        tmp_path / "base",
        tmp_path / "base",
    )


def test_working_directory_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_model(tmp_path / "base"))
    assert locate(".").id == "base"


def test_single_file_has_its_directory_as_root(tmp_path: Path) -> None:
    file = write_model(tmp_path) / "model.safetensors"
    located = locate(file)
    assert (located.id, located.path, located.root) == ("model.safetensors", file, tmp_path)
    assert located.weights.files == ("model.safetensors",)


def test_absent_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="there is no checkpoint at"):
        locate(tmp_path / "absent")


def test_name_of_a_hub_model_without_its_prefix_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFound) as raised:
        locate("acme/tiny")
    assert raised.value.hint == "for a model on the hub write hf://acme/tiny"


def test_index_file_is_no_checkpoint_but_its_directory_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointNotFound) as raised:
        locate(tmp_path / "model.safetensors.index.json")
    assert raised.value.hint == f"give the directory: {tmp_path}"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pth", "x.ckpt", "without suffix"])
def test_pickled_file_is_refused_and_its_command_converts_it(tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": {"a": torch.ones(3)}, "epoch": 4}, tmp_path / name)
    with pytest.raises(PickleRefused) as raised:
        locate(tmp_path / name)
    if name == "x.ckpt":
        run_command(raised.value)
        assert locate(tmp_path / "x.safetensors").id == "x.safetensors"


def test_blob_of_a_hub_cache_is_read_by_its_content(tmp_path: Path) -> None:
    (write_model(tmp_path) / "model.safetensors").rename(tmp_path / "0f3c")
    assert locate(tmp_path / "0f3c").weights.files == ("0f3c",)


def test_checkpoint_in_the_home_of_nobody_is_a_wrong_argument() -> None:
    with pytest.raises(InvalidArgument, match="~nosuch-user"):
        locate("~nosuch-user/model")
