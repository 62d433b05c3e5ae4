"""Damage, full disks and kills: nothing half done stays, and nothing damaged is applied."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

import deltareg
from deltareg import Registry
from deltareg.digest import Digest
from deltareg.errors import DeltaregError, DigestMismatch, DiskFull, NotAllowed, NotFound
from deltareg.progress import Progress
from deltareg.store import Store
from tests.codec.killing import kill_after, run
from tests.codec.tensors import read_tensors
from tests.deltas import flip
from tests.disks import read_only, small_disk
from tests.weights import Pair


def leftovers(path: Path) -> list[str]:
    """What a directory holds, hidden things included."""
    return sorted(os.listdir(path))


# --- damaged bytes ------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, registry: Registry) -> Registry:
    """A copy of the registry, to be damaged."""
    shutil.copytree(registry.home, tmp_path / "home")
    return Registry(tmp_path / "home")


def refused(copy: Registry, target: Path, out: Path) -> DeltaregError:
    """The error with which applying ends; there is no output then."""
    with pytest.raises(DeltaregError) as caught:
        deltareg.apply(target, {"acme/shark:1.0.0": 1}, copy, out)
    assert caught.value.exit_code == 5, repr(caught.value)
    assert not out.exists()
    assert not [name for name in leftovers(out.parent) if name.startswith(".out")]
    return caught.value


def test_flipped_bit_in_any_blob_is_never_applied(
    tmp_path: Path, copy: Registry, anarcii_bf16: Mapping[str, Path]
) -> None:
    target = anarcii_bf16["antibody_4_2"]
    artifact = copy.artifact("acme/shark:1.0.0")
    blobs = [artifact.digest, *(Digest(blob.digest) for blob in artifact.manifest.blobs)]
    assert len(blobs) >= 4
    for digest in blobs:
        path = copy.store.path(digest)
        size = 8 * path.stat().st_size
        for bit in (0, 13, size // 3, size // 2, size - 1):
            flip(path, bit)
            assert isinstance(refused(copy, target, tmp_path / "out"), DigestMismatch), (digest, bit)
            flip(path, bit)
    deltareg.apply(target, {"acme/shark:1.0.0": 1}, copy, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(anarcii_bf16["shark_4_2"])


def test_every_byte_of_the_first_record_is_guarded(
    tmp_path: Path, copy: Registry, anarcii_bf16: Mapping[str, Path]
) -> None:
    # Version, dtypes and lengths of a record are read before the pack's digest is known: damage there is damage, not a
    # format of the future nor a record that its publisher must mend.
    path = copy.store.path(Digest(copy.artifact("acme/shark:1.0.0").packs[0].digest))
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    places = [0, 7, 8, 20, length - 40, *range(8 + length, 8 + length + 24)]
    for byte in places:
        for bit in (0, 6):
            flip(path, 8 * byte + bit)
            error = refused(copy, anarcii_bf16["antibody_4_2"], tmp_path / "out")
            assert isinstance(error, DigestMismatch), (byte, bit, repr(error))
            flip(path, 8 * byte + bit)


@pytest.mark.parametrize("damage", ["missing", "empty", "shorter", "longer"])
def test_blob_of_another_length_is_never_applied(
    tmp_path: Path, copy: Registry, anarcii_bf16: Mapping[str, Path], damage: str
) -> None:
    path = copy.store.path(Digest(copy.artifact("acme/shark:1.0.0").packs[0].digest))
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "shorter": data[:-1], "longer": data + b"\0"}[damage])
    with pytest.raises((DigestMismatch, NotFound)):
        deltareg.apply(anarcii_bf16["antibody_4_2"], {"acme/shark:1.0.0": 1}, copy, tmp_path / "out")
    assert leftovers(tmp_path) == ["home"]


def test_damaged_target_is_refused_without_output(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    target = tmp_path / "target"
    shutil.copytree(small_llama.base, target)
    file = sorted(target.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DeltaregError) as caught:
        deltareg.apply(target, {"acme/llama:1.0.0": 1}, llama, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert leftovers(tmp_path) == ["target"]


# --- disks --------------------------------------------------------------------------------------------------------


def test_full_disk_leaves_no_output(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    with small_disk(tmp_path / "disk", 2000) as disk:
        with pytest.raises(DiskFull) as caught:
            deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 1}, llama, disk / "out")
        assert "free" in caught.value.message
        assert caught.value.exit_code == 1
        assert leftovers(disk) == []


def test_disk_that_fills_up_meanwhile_leaves_no_output(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    size = sum(file.stat().st_size for file in small_llama.base.glob("*.safetensors"))
    # Room for the weights, which are reserved, but not for what comes last.
    with small_disk(tmp_path / "disk", size // 1024 + 8) as disk:
        (disk / "ballast").write_bytes(bytes(4096))
        with pytest.raises(DiskFull):
            deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 1}, llama, disk / "out")
        assert leftovers(disk) == ["ballast"]


def test_read_only_directory_is_not_allowed(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    (tmp_path / "place").mkdir()
    with read_only(tmp_path / "place") as place:
        with pytest.raises(NotAllowed) as caught:
            deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 1}, llama, place / "out")
        assert caught.value.exit_code == 4
        assert leftovers(place) == []


def test_registry_may_be_read_only(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    shutil.copytree(llama.home, tmp_path / "home")
    with read_only(tmp_path / "home") as home:
        deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 1}, Registry(home, create=False), tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(small_llama.post)


# --- interruptions ------------------------------------------------------------------------------------------------


def test_interrupted_apply_leaves_nothing(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    class Interrupting(Progress):
        def __init__(self, left: int) -> None:
            self.left = left

        def advance(self, count: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    for steps in (0, 5):
        with pytest.raises(KeyboardInterrupt):
            deltareg.apply(
                small_llama.base, {"acme/llama:1.0.0": 1}, llama, tmp_path / "out", progress=Interrupting(steps)
            )
        assert leftovers(tmp_path) == []


def test_killed_apply_leaves_no_output_and_the_next_one_succeeds(
    tmp_path: Path, llama: Registry, small_llama: Pair
) -> None:
    arguments: list[str | Path] = ["apply", llama.home, small_llama.base, "acme/llama:1.0.0", tmp_path / "out"]
    told = run([*arguments[:4], tmp_path / "whole"], None)
    assert told[0] == "begin" and told[-2:] == ["end", "done"] and len(told) > 20
    for steps in (0, 1, len(told) // 2, len(told) - 2):
        kill_after(arguments, steps)
        assert not (tmp_path / "out").exists()
    # What the killed ones left is cleared away by the next one, which nothing of it disturbs.
    assert len([name for name in leftovers(tmp_path) if name.startswith(".out.deltareg-")]) == 1
    deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, llama, tmp_path / "out")
    assert leftovers(tmp_path) == ["out", "whole"]
    assert read_tensors(tmp_path / "out") == read_tensors(tmp_path / "whole")
    assert Store(llama.home / "registry").fsck().faults == []
