"""Deltas that went through other OCI programs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deltareg

SKOPEO = shutil.which("skopeo")


@pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed (Debian: apt-get install skopeo)")
def test_delta_that_skopeo_copied_applies(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    base = {"layer.weight": generator.normal(size=(64, 32)).astype(np.float32)}
    post = {"layer.weight": base["layer.weight"] + generator.normal(0, 1e-3, (64, 32)).astype(np.float32)}
    for name, tensors in (("base", base), ("post", post)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    first = deltareg.Registry(tmp_path / "first")
    deltareg.diff(tmp_path / "base", tmp_path / "post", first, "acme/search:1.0.0")

    second = deltareg.Registry(tmp_path / "second", create=True)
    reference = "acme/search:1.0.0"
    source, goal = f"oci:{first.store.root}:{reference}", f"oci:{second.home / 'registry'}:{reference}"
    subprocess.run([str(SKOPEO), "copy", "--insecure-policy", source, goal], check=True, capture_output=True)

    deltareg.apply(tmp_path / "base", {reference: 1.0}, second, tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made["layer.weight"].tobytes() == post["layer.weight"].tobytes()
    assert [row.reference for row in second.list()] == [reference]
