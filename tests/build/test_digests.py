"""The digests that a lock holds of an output."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from blake3 import blake3

from deltareg.build.digests import file_digests, output_digest
from deltareg.errors import DeltaregError, OutputDiffers
from deltareg.progress import Progress


class Heard(Progress):
    def __init__(self) -> None:
        self.total = self.done = 0

    def begin(self, name: str, total: int) -> None:
        self.total = total

    def advance(self, count: int) -> None:
        self.done += count


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_digests_are_those_of_whole_files_for_every_number_of_threads(tmp_path: Path, threads: int) -> None:
    contents = {"empty": b"", "a/b/c.json": b"{}", "large": os.urandom(17 * 2**20 + 3), "Ä.txt": b"a" * (4 * 2**20)}
    for name, data in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    heard = Heard()

    found = file_digests(tmp_path, contents, threads, heard)

    assert found == {name: "blake3:" + blake3(data).hexdigest() for name, data in contents.items()}
    assert list(found) == sorted(contents)
    assert heard.total == heard.done == sum(map(len, contents.values()))


def test_nothing_to_hash_gives_nothing(tmp_path: Path) -> None:
    assert file_digests(tmp_path, [], 2) == {}


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")

    assert file_digests(tmp_path / "link", ["a"], 1) == {"a": "blake3:" + blake3(b"1").hexdigest()}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "link", "below/../../outside", "a\0b"])
def test_what_leads_out_is_not_read(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"secret")
    (root / "link").symlink_to("../outside")

    with pytest.raises(OutputDiffers, match="leads out"):
        file_digests(root, [name], 1)


def test_what_is_no_regular_file_is_neither_read_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))

        for name in ("pipe", "directory", "socket"):
            with pytest.raises(DeltaregError, match=name):
                file_digests(tmp_path, [name], 1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeltaregError, match=r"model\.safetensors"):
        file_digests(tmp_path, ["model.safetensors"], 1)


def test_digest_of_an_output_is_that_of_its_rows() -> None:
    digest = "blake3:" + "0" * 64
    rows = [["a", 1, digest], ["b/c", 2, digest]]
    expected = "blake3:" + blake3(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    assert output_digest({"b/c": (2, digest), "a": (1, digest)}) == expected
    assert output_digest({"b/c": (3, digest), "a": (1, digest)}) != expected
