"""What other OCI programs make of a store."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import noise, publish

SKOPEO = shutil.which("skopeo")

pytestmark = pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed (Debian: apt-get install skopeo)")


def skopeo(source: str, target: str) -> None:
    done = subprocess.run(
        [str(SKOPEO), "copy", "--insecure-policy", source, target], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_skopeo_copies_an_artifact_into_another_layout(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digest = publish(store, "acme/search:1.0.0", [noise(100_000), b"another pack"])
    publish(store, "acme/search:2.0.0", [b"not copied"])
    skopeo(f"oci:{store.root}:acme/search:1.0.0", f"oci:{tmp_path / 'copy'}:acme/search:1.0.0")
    copy = Store(tmp_path / "copy", create=False)
    assert [str(entry.reference) for entry in copy.entries()] == ["acme/search:1.0.0"]
    assert copy.resolve(parse_reference("acme/search")) == digest
    assert copy.read(digest) == store.read(digest)
    for blob in copy.manifest(digest).blobs:
        copy.verify(blob)
    assert copy.fsck().ok


def test_copy_that_skopeo_made_is_a_store_like_any_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, "acme/search:1.0.0")
    skopeo(f"oci:{store.root}:acme/search:1.0.0", f"oci:{tmp_path / 'copy'}:acme/search:1.0.0")
    copy = Store(tmp_path / "copy")
    publish(copy, "acme/search:1.1.0", [b"more"])
    copy.remove(parse_reference("acme/search:1.0.0"))
    assert [str(entry.reference) for entry in copy.entries()] == ["acme/search:1.1.0"]
    assert copy.fsck().ok


def test_skopeo_adds_an_artifact_to_a_store(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "store"), Store(tmp_path / "other")
    publish(store, "acme/search:1.0.0")
    digest = publish(other, "acme/search:2.0.0", [b"from elsewhere"])
    skopeo(f"oci:{other.root}:acme/search:2.0.0", f"oci:{store.root}:acme/search:2.0.0")
    assert store.resolve(parse_reference("acme/search")) == digest
    store.set_channel("acme/search", "prod", digest, None)
    assert len(store.entries()) == 3
    assert store.fsck().ok
