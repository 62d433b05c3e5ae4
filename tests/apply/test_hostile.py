"""Artifacts that somebody made to do harm: their digests are right, what they say is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import deltareg
from deltareg.artifact import pack
from deltareg.errors import BadManifest, InvalidArgument
from deltareg.manifest import INVENTORY_TYPE, Descriptor
from deltareg.names import parse_reference


@pytest.fixture
def registry(tmp_path: Path) -> deltareg.Registry:
    draw = np.random.default_rng(3)
    base = {"layer.weight": draw.normal(size=(8, 8)).astype(np.float32)}
    post = {"layer.weight": base["layer.weight"] + np.float32(0.01)}
    for name, tensors in (("base", base), ("post", post)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    registry = deltareg.Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, "acme/good:1.0.0")
    return registry


def republish(registry: deltareg.Registry, config: dict[str, object] | None = None, inventory: bytes = b"") -> None:
    """Publish acme/good:1.0.0 as acme/bad:1.0.0 with fields of its config, or its inventory, exchanged."""
    store = registry.store
    manifest = json.loads(store.read(registry.resolve("acme/good:1.0.0")))
    if config is not None:
        document = json.loads(store.read(manifest["config"]["digest"])) | config
        raw = json.dumps(document).encode()
        manifest["config"] |= {"digest": store.put(raw), "size": len(raw)}
    if inventory:
        layer = next(layer for layer in manifest["layers"] if layer["mediaType"] == INVENTORY_TYPE)
        packed = pack(inventory)
        layer |= {"digest": store.put(packed), "size": len(packed)}
    store.publish(parse_reference("acme/bad:1.0.0"), json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requires", ["sha256:" + "0" * 64]),
        ("requires", [{}]),
        ("requires", [{"reference": "acme/other:1.0.0"}]),
        ("requires", [{"reference": "acme/other\n"}]),
        ("requires", [{"reference": "../../etc"}]),
        ("requires", [{"reference": "a" * 65 + "/b"}]),
        ("requires", [{"reference": "acme/other", "version": "latest"}]),
        ("requires", [{"reference": "acme/other", "version": ">=" + "9" * 200}]),
        ("requires", [{"reference": "acme/other", "version": ">=1," * 1_000_000}]),
        ("requires", [{"reference": "acme/other", "digest": "sha256:1"}]),
        ("requires", [{"reference": "acme/other", "weight": 1e39}]),
        ("requires", [{"reference": "acme/other", "weight": "1"}]),
        ("requires", [{"reference": "acme/other"}] * 101),
        ("conflicts", [{"reference": "acme/other", "version": "1.0.0 || 2.0.0"}]),
        ("conflicts", [{"reference": "acme/other", "version": ""}]),
        ("conflicts", [{"reference": "acme/other", "reason": "x" * 1001}]),
        ("conflicts", [{"reference": "acme/other"}] * 1001),
        ("conflicts", {"acme/other": "*"}),
    ],
)
def test_odd_requirements_and_conflicts_are_refused(registry: deltareg.Registry, field: str, value: object) -> None:
    with pytest.raises(BadManifest, match=field):
        republish(registry, {field: value})
    assert [row.reference for row in registry.list()] == ["acme/good:1.0.0"]


def test_reason_of_a_conflict_does_not_become_markdown_in_the_card(registry: deltareg.Registry, tmp_path: Path) -> None:
    conflict = {"reference": "acme/good", "reason": "x\n\n# owned\n[a](http://example.com) <b>"}
    republish(registry, {"conflicts": [conflict]})
    both = {"acme/good:1.0.0": 1.0, "acme/bad:1.0.0": 1.0}
    with pytest.raises(InvalidArgument, match="excludes acme/good"):
        deltareg.apply(tmp_path / "base", both, registry, tmp_path / "out")
    deltareg.apply(tmp_path / "base", both, registry, tmp_path / "out", force=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "excludes acme/good:1.0.0" in card
    assert "# owned" not in card.splitlines()
    assert "[a]" not in card.split("---", 2)[2]
    assert "<b>" not in card.split("---", 2)[2]


def test_delta_that_requires_and_excludes_itself_is_refused_and_no_more(
    registry: deltareg.Registry, tmp_path: Path
) -> None:
    republish(registry, {"requires": [{"reference": "acme/bad"}], "conflicts": [{"reference": "acme/bad"}]})
    deltareg.apply(tmp_path / "base", {"acme/bad:1.0.0": 1.0}, registry, tmp_path / "home-base")
    with pytest.raises(InvalidArgument, match="on top of acme/bad"):
        deltareg.apply(tmp_path / "post", {"acme/bad:1.0.0": 1.0}, registry, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_licence_does_not_become_markdown_in_the_card(registry: deltareg.Registry, tmp_path: Path) -> None:
    republish(registry, {"licence": "x |\n\n# owned\n[a](http://example.com) <b>"})
    deltareg.apply(tmp_path / "base", {"acme/bad:1.0.0": 1.0}, registry, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# owned" not in card.splitlines()
    assert "[a]" not in card.split("---")[2]
    assert "<b>" not in card.split("---")[2]


def test_text_that_is_half_a_character_is_refused_before_it_has_a_name(registry: deltareg.Registry) -> None:
    with pytest.raises(BadManifest, match="surrogates"):
        republish(registry, {"description": "\ud800"})
    assert [row.reference for row in registry.list()] == ["acme/good:1.0.0"]


@pytest.mark.parametrize("entries", ["[],", "{},"])
def test_inventory_of_very_many_bad_entries_is_refused_at_the_first(registry: deltareg.Registry, entries: str) -> None:
    tensors = (entries * 1_000_000).rstrip(",")
    republish(registry, inventory=f'{{"formatVersion":1,"tensors":[{tensors}]}}'.encode())
    with pytest.raises(BadManifest, match=r"tensors\.0"):
        deltareg.verify("acme/bad:1.0.0", registry)


def test_inventory_of_more_objects_than_memory_holds_is_refused(registry: deltareg.Registry) -> None:
    tensors = "[]," * 4_000_001
    republish(registry, inventory=f'{{"formatVersion":1,"tensors":[{tensors}[]]}}'.encode())
    with pytest.raises(BadManifest, match="objects and arrays"):
        deltareg.verify("acme/bad:1.0.0", registry)


def test_manifest_that_mentions_what_is_not_here_does_not_stop_gc(registry: deltareg.Registry) -> None:
    store = registry.store
    manifest = json.loads(store.read(registry.resolve("acme/good:1.0.0")))
    for number, digest in enumerate(("sha256:" + "1" * 64, "zzz", "../../etc/passwd")):
        mention = {"mediaType": manifest["mediaType"], "digest": digest, "size": 3}
        store.publish(parse_reference(f"acme/bad:1.0.{number}"), json.dumps({**manifest, "subject": mention}).encode())
    registry.gc(0)
    assert len(registry.list()) == 4
    for row in registry.list():
        for blob in store.manifest(store.resolve(parse_reference(row.reference))).blobs:
            store.verify(Descriptor.model_validate(blob.model_dump()))


def test_nan_and_inf_of_post_stay_on_its_own_base(tmp_path: Path) -> None:
    tensors = {
        "base": np.array([1, 2, 3, np.inf], np.float32),
        "post": np.array([1, np.nan, np.inf, 4], np.float32),
        "other": np.array([5, 6, 7, 8], np.float32),
    }
    for name, values in tensors.items():
        (tmp_path / name).mkdir()
        save_file({"w": values}, tmp_path / name / "model.safetensors")
    registry = deltareg.Registry(tmp_path / "home")
    deltareg.diff(tmp_path / "base", tmp_path / "post", registry, "acme/odd:1.0.0")
    assert deltareg.verify("acme/odd:1.0.0", registry, base=tmp_path / "base", post=tmp_path / "post").reproduced
    report = deltareg.apply(tmp_path / "other", {"acme/odd:1.0.0": 1.0}, registry, tmp_path / "out")
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()[-16:]
    assert np.frombuffer(raw, np.float32).tolist() == [5, 6, 7, 8]
    assert report.skipped_overwrites == 3
