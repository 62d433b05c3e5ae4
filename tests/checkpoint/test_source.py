from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deltareg.checkpoint import FileSource, LocalFolder
from deltareg.errors import BadCheckpoint, BadHeader, CheckpointNotFound


def test_bytes_are_read_at_offsets(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    source = FileSource(tmp_path / "x")
    buffer = np.zeros((2, 3), np.uint16)
    source.read_into(10, buffer)
    assert buffer.tobytes() == bytes(range(10, 22))
    assert source.read(98, 2) == b"\x62\x63"
    assert (source.name, source.size) == ("x", 100)
    source.close()
    source.close()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_scalars_and_empty_arrays_are_filled(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "x").write_bytes(b"\1" * 8)
    source = FileSource(tmp_path / "x")
    array = np.zeros(shape, np.int64)
    source.read_into(0, array)
    assert array.tobytes() == b"\1" * array.nbytes
    source.close()


def test_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(10_000))
    source = FileSource(path)
    os.truncate(path, 5000)
    with pytest.raises(BadHeader, match=r"model\.safetensors is truncated") as raised:
        source.read_into(4000, bytearray(2000))
    assert raised.value.data["byte"] == 5000
    source.close()


def test_read_beyond_the_end_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    source = FileSource(tmp_path / "x")
    with pytest.raises(BadHeader):
        source.read(0, 2**62)
    source.close()


def test_many_threads_read_one_source(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1_000_000)
    (tmp_path / "x").write_bytes(content)
    source = FileSource(tmp_path / "x")
    wrong: list[int] = []

    def read(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, 990_000, 200):
            if source.read(int(start), 10_000) != content[start : start + 10_000]:
                wrong.append(int(start))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    source.close()


def test_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    start = time.monotonic()
    with pytest.raises(CheckpointNotFound, match="not a regular file"):
        FileSource(tmp_path / "pipe.safetensors")
    assert time.monotonic() - start < 5


def test_absent_file_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="absent does not exist"):
        FileSource(tmp_path / "absent")


def test_folder_lists_files_at_the_top_and_configs_of_modules(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.txt",
        "1_Pooling/config.json",
        "1_Pooling/other.json",
        ".git/config.json",
        "x/y/config.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert LocalFolder(tmp_path).names() == ["1_Pooling/config.json", "a.txt", "b.txt"]


def test_small_file_is_not_read_if_it_is_large(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(bytes(11))
    folder = LocalFolder(tmp_path)
    assert folder.read("config.json", 11) == bytes(11)
    with pytest.raises(BadCheckpoint, match="11 bytes, at most 10"):
        folder.read("config.json", 10)
