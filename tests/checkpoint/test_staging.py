"""How a finished output takes the place of an old one; the rest of staging is tested in test_writer.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from deltareg.checkpoint.staging import publish, replace_by_renames


def directory(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_text(content)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="two directories are swapped in one step on Linux only")
def test_old_output_is_swapped_with_the_new_one_in_one_step(tmp_path: Path) -> None:
    new, out = directory(tmp_path / ".out.deltareg-0123abcd", "new"), directory(tmp_path / "out", "old")
    old = publish(new, out, overwrite=True)
    assert old == new, "each has the other's name now: none of them had a third one meanwhile"
    assert (out / "model.safetensors").read_text() == "new"
    assert (new / "model.safetensors").read_text() == "old"


def test_output_is_replaced_where_directories_cannot_be_swapped(tmp_path: Path) -> None:
    new, out = directory(tmp_path / ".out.deltareg-0123abcd", "new"), directory(tmp_path / "out", "old")
    old = replace_by_renames(new, out)
    assert (out / "model.safetensors").read_text() == "new"
    assert (old / "model.safetensors").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [".out.deltareg-0123abcd.old", "out"]


def test_old_output_comes_back_if_the_new_one_cannot_be_moved(tmp_path: Path) -> None:
    out = directory(tmp_path / "out", "old")
    with pytest.raises(FileNotFoundError):
        replace_by_renames(tmp_path / ".out.deltareg-0123abcd", out)
    assert (out / "model.safetensors").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]
