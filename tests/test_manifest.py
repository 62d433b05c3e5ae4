"""The documents are read strictly, and what they do not know survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltareg.digest import canonical_json
from deltareg.errors import BadManifest, UnsupportedFormat
from deltareg.manifest import DeltaConfig, Descriptor, Document, Index, Inventory, Manifest, encode, parse

EXAMPLES = Path(__file__).resolve().parents[1] / "schemas" / "examples" / "valid"
KINDS: dict[str, type[Document]] = {
    "config.exact": DeltaConfig,
    "config.stacked": DeltaConfig,
    "descriptor.titled": Descriptor,
    "index.one-version": Index,
    "inventory.two-tensors": Inventory,
    "manifest.one-pack": Manifest,
}


def example(name: str) -> Any:
    return json.loads((EXAMPLES / f"{name}.json").read_text())


def strewn(value: Any) -> Any:
    """The value with a field that nobody knows in each of its objects; maps from names to values stay as they are."""
    if isinstance(value, dict):
        maps = ("annotations", "dtypes", "norms")
        return {"x-new": {"of": [1, None]}} | {
            key: inner if key in maps else strewn(inner) for key, inner in value.items()
        }
    return [strewn(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("name", "kind"), KINDS.items(), ids=KINDS.keys())
def test_unknown_fields_survive_being_read_and_written(name: str, kind: type[Document]) -> None:
    value = strewn(example(name))
    again = json.loads(encode(parse(kind, canonical_json(value), what=name)))
    assert contains(again, value)
    assert encode(parse(kind, encode(parse(kind, canonical_json(value), what=name)), what=name)) == canonical_json(
        again
    )


def contains(whole: Any, part: Any) -> bool:
    """Whether `whole` has all that `part` has. Defaults may have come, and None in a known field may have gone."""
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], inner) for key, inner in part.items() if inner is not None)
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return canonical_json(whole) == canonical_json(part)


@pytest.mark.parametrize(("name", "kind"), KINDS.items(), ids=KINDS.keys())
def test_what_is_written_is_canonical(name: str, kind: type[Document]) -> None:
    data = encode(parse(kind, json.dumps(example(name), indent=2).encode(), what=name))
    assert data == canonical_json(json.loads(data))


def changed(name: str, *path: str | int, to: Any) -> bytes:
    value = inner = example(name)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return canonical_json(value)


STRICT: dict[str, tuple[str, tuple[str | int, ...], Any]] = {
    "text for a number": ("descriptor.titled", ("size",), "12"),
    "fraction for a count": ("descriptor.titled", ("size",), 1.5),
    "truth for a count": ("descriptor.titled", ("size",), True),
    "negative count": ("descriptor.titled", ("size",), -1),
    "count beyond what doubles hold": ("descriptor.titled", ("size",), 2.0**60),
    "number for a text": ("descriptor.titled", ("mediaType",), 1),
    "empty media type": ("descriptor.titled", ("mediaType",), ""),
    "digest of another algorithm": ("descriptor.titled", ("digest",), "md5:" + "0" * 32),
    "digest that is a path": ("descriptor.titled", ("digest",), "sha256:../../etc"),
    "digest with a line end": ("descriptor.titled", ("digest",), "sha256:" + "0" * 64 + "\n"),
    "annotation that is no text": ("descriptor.titled", ("annotations",), {"a": 1}),
    "schema version 1": ("manifest.one-pack", ("schemaVersion",), 1),
    "another artifact type": ("manifest.one-pack", ("artifactType",), "application/x"),
    "layers that are an object": ("manifest.one-pack", ("layers",), {}),
    "norm below zero": ("config.exact", ("norms",), {"mlp": {"base": -1, "delta": 0, "parameters": 1}}),
    "unknown preset": ("config.exact", ("preset",), "best"),
    "required name": ("config.exact", ("requires",), ["acme/search"]),
    "required version in a name": ("config.stacked", ("requires", 0, "reference"), "acme/instruct:1.0.0"),
    "required name with a line end": ("config.stacked", ("requires", 0, "reference"), "acme/instruct\n"),
    "required name that is too long": ("config.stacked", ("requires", 0, "reference"), "a" * 65 + "/b"),
    "range that is none": ("config.stacked", ("requires", 0, "version"), "1.0.0 - 2.0.0"),
    "range that is too long": ("config.stacked", ("conflicts", 0, "version"), ">=1," * 100),
    "text for a weight": ("config.stacked", ("requires", 0, "weight"), "1"),
    "weight beyond float32": ("config.stacked", ("requires", 0, "weight"), 1e39),
    "required digest that is a path": ("config.stacked", ("requires", 0, "digest"), "sha256:../../etc"),
    "base digest of SHA-256": ("config.exact", ("base", "digest"), "sha256:" + "0" * 64),
    "unknown kind": ("inventory.two-tensors", ("tensors", 0, "kind"), "magic"),
    "negative side": ("inventory.two-tensors", ("tensors", 0, "shape"), [-1]),
    "empty name": ("inventory.two-tensors", ("tensors", 0, "name"), ""),
}


@pytest.mark.parametrize(("name", "path", "value"), STRICT.values(), ids=STRICT.keys())
def test_what_breaks_the_schema_is_refused(name: str, path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(BadManifest, match="the test is not a valid"):
        parse(KINDS[name], changed(name, *path, to=value), what="the test")


def test_every_fault_is_told_with_its_place() -> None:
    value = example("manifest.one-pack")
    value["config"]["size"] = "x"
    value["layers"][0]["digest"] = "x"
    del value["layers"][0]["size"]
    with pytest.raises(BadManifest) as raised:
        parse(Manifest, canonical_json(value), what="test")
    faults = raised.value.data["faults"]
    assert isinstance(faults, list)
    assert [fault.partition(":")[0] for fault in faults] == ["config.size", "layers.0.digest", "layers.0.size"]


def test_python_names_are_no_names_of_fields() -> None:
    value = example("descriptor.titled")
    value["media_type"] = value.pop("mediaType")
    with pytest.raises(BadManifest, match="mediaType"):
        parse(Descriptor, canonical_json(value), what="test")


@pytest.mark.parametrize("data", [b"[]", b"null", b'"x"', b"1", b"{}"])
@pytest.mark.parametrize("kind", [DeltaConfig, Inventory, Manifest, Descriptor])
def test_what_is_no_such_object_is_refused(kind: type[Document], data: bytes) -> None:
    with pytest.raises(BadManifest):
        parse(kind, data, what="test")


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, [1]])
@pytest.mark.parametrize("name", ["config.exact", "inventory.two-tensors"])
def test_another_format_version_is_not_read(name: str, version: Any) -> None:
    data = changed(name, "formatVersion", to=version)
    with pytest.raises((UnsupportedFormat, BadManifest)) as raised:
        parse(KINDS[name], data, what="test")
    if version is not None:
        assert type(raised.value) is UnsupportedFormat
        assert raised.value.data["version"] == version


def test_newer_format_is_told_before_the_fields_that_it_changed() -> None:
    with pytest.raises(UnsupportedFormat, match="format version 2"):
        parse(DeltaConfig, b'{"formatVersion":2,"entirely":"different"}', what="test")


def test_blob_that_is_named_twice_is_needed_once() -> None:
    value = example("manifest.one-pack")
    value["layers"].append({**value["layers"][0], "annotations": {"a": "b"}})
    manifest = parse(Manifest, canonical_json(value), what="test")
    digests = [blob.digest for blob in manifest.blobs]
    assert len(digests) == len(set(digests)) == len({layer.digest for layer in manifest.layers}) + 1
    assert digests[0] == manifest.config.digest


ENTRY = '"name":"w","kind":"zero","baseDtype":"F32","postDtype":"F32","shape":[1]'


@pytest.mark.parametrize("more", ["", ',"later":1', ',"later":{"a":{"b":[]}}', ',"later":"a:b"', ',"later":"\\"{:"'])
def test_inventories_of_newer_versions_keep_what_they_say(more: str) -> None:
    data = f'{{"formatVersion":1,"tensors":[{{{ENTRY}{more}}},{{{ENTRY.replace("w", "v", 1)}}}]}}'.encode()
    found = parse(Inventory, data, what="test")
    assert json.loads(encode(found))["tensors"][0].get("later") == json.loads(data)["tensors"][0].get("later")
    assert [entry.name for entry in found.tensors] == ["w", "v"]


@pytest.mark.parametrize(
    "data",
    [
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"size":1,"size":2}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"later":{{"a":1,"a":2}}}}]}}',
        f'{{"formatVersion":1,"formatVersion":1,"tensors":[{{{ENTRY}}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"baseNorm":NaN}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"later":1e999}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"later":1{"0" * 400}.0}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"later":Infinity}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"later":"\\ud800"}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"size":1.0}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"size":true}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"size":"1"}}]}}',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY}}}]}} x',
        f'{{"formatVersion":1,"tensors":[{{{ENTRY},"later":{"[" * 70}{"]" * 70}}}]}}',
    ],
)
def test_inventories_are_read_as_strictly_as_other_documents(data: str) -> None:
    with pytest.raises(BadManifest):
        parse(Inventory, data.encode(), what="test")
