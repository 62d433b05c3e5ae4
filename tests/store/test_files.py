"""Files are replaced as a whole, and each replacement can be told from the last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deltareg.errors import DeltaregError
from deltareg.store.files import open_locked, write_atomically
from deltareg.store.index import signature_of


def test_replacement_is_younger_than_what_it_replaced_whatever_the_clock_says(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    write_atomically(path, b"old", temporary=tmp_path / "temporary")
    ahead = path.stat().st_mtime_ns + 3_600_000_000_000
    os.utime(path, ns=(ahead, ahead))
    before = signature_of(path)
    write_atomically(path, b"new", temporary=tmp_path / "temporary")
    assert path.stat().st_mtime_ns > ahead
    assert signature_of(path) != before


def test_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    (path / "inside").write_text("old")
    with pytest.raises(DeltaregError, match="could not write"):
        write_atomically(path, b"new", temporary=tmp_path / "temporary")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_locked_file_is_left_to_its_holder(tmp_path: Path) -> None:
    first, path = open_locked(lambda: tmp_path / "part")
    second, other = open_locked(lambda: tmp_path / "part", otherwise=lambda: tmp_path / "own")
    assert (path.name, other.name) == ("part", "own")
    os.close(first)
    third, again = open_locked(lambda: tmp_path / "part", otherwise=lambda: tmp_path / "own")
    assert again == path
    os.close(second)
    os.close(third)


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        open_locked(lambda: tmp_path / "part")
    assert not (tmp_path / "elsewhere").exists()
