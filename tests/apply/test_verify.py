"""Verification: digests, records, and that base becomes post."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import deltareg
from deltareg import Registry
from deltareg.digest import Digest
from deltareg.errors import DigestMismatch, InvalidArgument, NotFound, NotHomologous, NotReproduced
from tests.deltas import flip
from tests.weights import Pair


def test_sound_delta_is_verified(llama: Registry) -> None:
    report = deltareg.verify("acme/llama:1.0.0", llama)
    artifact = llama.artifact("acme/llama:1.0.0")
    assert (report.digest, report.reproduced) == (artifact.digest, None)
    assert report.bytes == artifact.size
    assert report.tensors == len(artifact.inventory.tensors)


@pytest.mark.parametrize("threads", [1, 3])
def test_delta_reproduces_post(llama: Registry, small_llama: Pair, threads: int) -> None:
    report = deltareg.verify("acme/llama:1.0.0", llama, base=small_llama.base, post=small_llama.post, threads=threads)
    assert report.reproduced is True


def test_other_post_is_told_with_its_tensors(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    post = tmp_path / "post"
    shutil.copytree(small_llama.post, post)
    file = sorted(post.glob("*.safetensors"))[-1]
    flip(file, 8 * (file.stat().st_size - 1))
    with pytest.raises(NotReproduced) as caught:
        deltareg.verify("acme/llama:1.0.0", llama, base=small_llama.base, post=post)
    assert caught.value.exit_code == 5
    assert len(caught.value.data["tensors"]) == 1  # type: ignore[arg-type]
    assert str(caught.value.data["tensors"][0]) in caught.value.message  # type: ignore[index]


def test_base_and_post_in_the_wrong_order_are_not_reproduced(llama: Registry, small_llama: Pair) -> None:
    with pytest.raises(NotReproduced):
        deltareg.verify("acme/llama:1.0.0", llama, base=small_llama.post, post=small_llama.base)


def test_other_architecture_is_not_homologous(registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    with pytest.raises(NotHomologous):
        deltareg.verify("acme/shark:1.0.0", registry, base=anarcii_bf16["tcr_4_2"], post=anarcii_bf16["tcr_4_2"])


def test_base_alone_is_refused(registry: Registry, anarcii_bf16: Mapping[str, Path]) -> None:
    with pytest.raises(InvalidArgument):
        deltareg.verify("acme/shark:1.0.0", registry, base=anarcii_bf16["antibody_4_2"])


def test_flipped_bit_is_found(tmp_path: Path, registry: Registry) -> None:
    shutil.copytree(registry.home, tmp_path / "home")
    copy = Registry(tmp_path / "home")
    artifact = copy.artifact("acme/shark:1.0.0")
    for blob in artifact.manifest.blobs:
        path = copy.store.path(Digest(blob.digest))
        for bit in (5, 4 * path.stat().st_size, 8 * path.stat().st_size - 1):
            flip(path, bit)
            with pytest.raises(DigestMismatch) as caught:
                deltareg.verify("acme/shark:1.0.0", copy)
            assert blob.digest in caught.value.message
            flip(path, bit)
    deltareg.verify("acme/shark:1.0.0", copy)


def test_missing_blob_is_found(tmp_path: Path, registry: Registry) -> None:
    shutil.copytree(registry.home, tmp_path / "home")
    copy = Registry(tmp_path / "home")
    copy.store.path(Digest(copy.artifact("acme/shark:1.0.0").packs[0].digest)).unlink()
    with pytest.raises(NotFound):
        deltareg.verify("acme/shark:1.0.0", copy)
