"""Parts of a tensor that no delta changes: copied by the kernel where it can, the same bits where it cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltareg
from deltareg import Registry
from deltareg.codec import FRAME_LANES
from tests.codec.oracle import FORMATS
from tests.codec.tensors import of, read_tensors, write_checkpoint

BF16 = FORMATS["BF16"]
LANES = 3 * FRAME_LANES + 1000
MIDDLE = slice(FRAME_LANES, 2 * FRAME_LANES)


class Copies:
    """What the kernel was asked to copy, and did."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.nbytes = 0
        self._refuses = refuses
        self._copy = os.copy_file_range

    def __call__(self, *arguments: Any) -> int:
        if self._refuses:
            raise OSError(errno.EXDEV, "another file system")
        count = self._copy(*arguments)
        self.nbytes += count
        return count


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Registry]:
    """A target, and two deltas of one tensor that leave the second of its four frames alone."""
    path = tmp_path_factory.mktemp("unchanged")
    generator = np.random.default_rng(3)
    base = BF16.narrow(generator.standard_normal(LANES))
    registry = Registry(path / "home")
    before = write_checkpoint(path / "base", {"w": of("BF16", base)})
    for name in ("a", "b"):
        moved = BF16.narrow(BF16.widen(base).astype(np.float64) + 0.01 * generator.standard_normal(LANES))
        moved[MIDDLE] = base[MIDDLE]
        deltareg.diff(before, write_checkpoint(path / name, {"w": of("BF16", moved)}), registry, f"acme/{name}:1.0.0")
    return write_checkpoint(path / "target", {"w": of("BF16", BF16.narrow(generator.standard_normal(LANES)))}), registry


WAYS: list[tuple[dict[str, float], dict[str, Any]]] = [
    ({"acme/a:1.0.0": 0.5}, {}),
    ({"acme/a:1.0.0": 0.5, "acme/b:1.0.0": 0.5}, {}),
    ({"acme/a:1.0.0": 0.5, "acme/b:1.0.0": 0.5}, {"method": "ties"}),
    ({"acme/a:1.0.0": 0.5, "acme/b:1.0.0": 0.5}, {"method": "dare_ties", "parameters": {"density": 0.5}}),
    # Twice these weights is beyond float32: infinity times zero would be no number.
    ({"acme/a:1.0.0": 3e38, "acme/b:1.0.0": 3e38}, {"method": "dare_linear", "parameters": {"density": 0.5}}),
]
NAMES = ["one", "two", "ties", "dare_ties", "beyond float32"]


def _apply(
    models: tuple[Path, Registry], out: Path, way: tuple[dict[str, float], dict[str, Any]], **more: Any
) -> dict[str, Any]:
    target, registry = models
    deltas, options = way
    deltareg.apply(target, deltas, registry, out, force=True, **options, **more)
    return read_tensors(out)


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system copies nothing inside the kernel")
@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_frame_that_no_delta_changes_is_copied_by_the_kernel(
    models: tuple[Path, Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    copies = Copies()
    monkeypatch.setattr(os, "copy_file_range", copies)
    copied = _apply(models, tmp_path / "copied", way)
    assert copies.nbytes == 2 * FRAME_LANES
    monkeypatch.setattr(os, "copy_file_range", Copies(refuses=True))
    written = _apply(models, tmp_path / "written", way)
    assert copied == written
    target = np.frombuffer(read_tensors(models[0])["w"].data, np.uint16)
    found = np.frombuffer(copied["w"].data, np.uint16)
    assert np.array_equal(found[MIDDLE], target[MIDDLE])
    assert not np.array_equal(found, target)


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_what_is_noted_for_a_resumed_run_is_written_and_not_copied(
    models: tuple[Path, Registry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    expected = _apply(models, tmp_path / "plain", way)
    copies = Copies()
    monkeypatch.setattr(os, "copy_file_range", copies, raising=False)
    assert _apply(models, tmp_path / "noted", way, resume=True) == expected
    assert copies.nbytes == 0
