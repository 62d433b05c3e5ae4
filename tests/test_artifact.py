"""An artifact comes from anywhere: what contradicts itself or leads astray is refused before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zstandard

from deltareg.artifact import Artifact, pack, unpack
from deltareg.checkpoint import encode_header
from deltareg.digest import Digest
from deltareg.errors import BadHeader, BadManifest, BadRecord, DeltaregError, NotFound, UnsupportedFormat
from deltareg.manifest import (
    INVENTORY_TYPE,
    PACK_TYPE,
    SIDE_FILE_TYPE,
    TITLE,
    Descriptor,
    Inventory,
    Manifest,
    TensorEntry,
    encode,
    parse,
)
from deltareg.store import Store
from tests.deltas import add_delta, descriptor, flip

RECORD = b"the bytes of a record"
PACK = encode_header([("w", "U8", (len(RECORD),))]) + RECORD


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def entry(**fields: Any) -> TensorEntry:
    """A sound entry, or one with other fields."""
    sound = {"name": "w", "kind": "planes", "base_dtype": "F32", "post_dtype": "F32", "shape": [4], "packs": [0]}
    return TensorEntry(**{**sound, "size": len(RECORD), **fields})


def layer(store: Store, data: bytes, media_type: str, title: str | None = None) -> Descriptor:
    store.put(data)
    named = {} if title is None else {"annotations": {TITLE: title}}
    return descriptor(data, media_type).model_copy(update=named)


def artifact(store: Store, layers: list[Descriptor]) -> Artifact:
    config = parse(Manifest, add_delta(store), what="test").config
    return Artifact.open(store, store.put(encode(Manifest(config=config, layers=layers))))


def with_inventory(store: Store, *entries: TensorEntry, packs: int = 1) -> Artifact:
    inventory = layer(store, pack(encode(Inventory(tensors=list(entries)))), INVENTORY_TYPE)
    return artifact(store, [inventory, *[layer(store, PACK, PACK_TYPE)] * packs])


# --- the inventory ------------------------------------------------------------------------------------------------


def test_sound_inventory_is_read(store: Store) -> None:
    entries = [
        entry(),
        entry(name="z", kind="zero", packs=[], size=0),
        entry(name="r", kind="removed", post_dtype=None, packs=[], size=0),
        entry(name="f", kind="full", base_dtype=None),
        entry(name="d", base_dtype="BF16", delta_dtype="F16"),
        entry(name="c", base_dtype="C64", post_dtype="C64", delta_dtype="BF16"),
    ]
    found = with_inventory(store, *entries)
    assert found.inventory.tensors == entries
    assert found.size == len(store.read(found.digest)) + sum(blob.size for blob in found.manifest.blobs)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "neither in base nor in post": {"base_dtype": None, "post_dtype": None},
    "removed, but in post": {"kind": "removed", "packs": []},
    "removed, but never there": {"kind": "removed", "packs": [], "base_dtype": None},
    "removed, with a record": {"kind": "removed", "post_dtype": None},
    "gone, but not removed": {"post_dtype": None},
    "unchanged, with a record": {"kind": "zero"},
    "changed, without a record": {"packs": []},
    "a delta of its own in what is post's": {"delta_dtype": "F32"},
    "the halves of pairs as a delta of its own": {"base_dtype": "C64", "post_dtype": "C64", "delta_dtype": "F32"},
    "a delta of integers": {"delta_dtype": "I16"},
    "a delta of pairs": {"delta_dtype": "C64"},
    "a delta that is added to integers": {"base_dtype": "I16", "post_dtype": "I16", "delta_dtype": "BF16"},
    "a delta that is added to nothing": {"base_dtype": None, "kind": "full", "delta_dtype": "BF16"},
    "a delta of what is replaced": {"kind": "full", "delta_dtype": "BF16"},
    "a delta without a record": {"kind": "zero", "packs": [], "delta_dtype": "BF16"},
    "in a pack that is not there": {"packs": [1]},
    "in packs of which one is not there": {"packs": [0, 7]},
}


@pytest.mark.parametrize("fields", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_inventory_that_contradicts_itself_is_refused(store: Store, fields: dict[str, Any]) -> None:
    with pytest.raises(BadManifest, match="contradicts itself at tensor 'w'"):
        _ = with_inventory(store, entry(name="sound"), entry(**fields)).inventory


def test_tensor_that_is_named_twice_is_refused(store: Store) -> None:
    with pytest.raises(BadManifest, match="names a tensor twice"):
        _ = with_inventory(store, entry(), entry(kind="zero", packs=[])).inventory


@pytest.mark.parametrize("count", [0, 2])
def test_artifact_has_one_inventory(store: Store, count: int) -> None:
    inventories = [
        layer(store, pack(encode(Inventory(tensors=[entry(name=f"w{number}")]))), INVENTORY_TYPE)
        for number in range(count)
    ]
    with pytest.raises(BadManifest, match=f"has {count} inventories"):
        _ = artifact(store, [*inventories, layer(store, PACK, PACK_TYPE)]).inventory


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"no zstd", BadManifest),
        (pack(b"no JSON"), BadManifest),
        (pack(b'{"formatVersion":2}'), UnsupportedFormat),
        (pack(b"{}"), BadManifest),
    ],
)
def test_inventory_that_is_none_is_refused(store: Store, data: bytes, error: type[DeltaregError]) -> None:
    with pytest.raises(error):
        _ = artifact(store, [layer(store, data, INVENTORY_TYPE)]).inventory


def test_unknown_dtype_is_of_a_newer_format(store: Store) -> None:
    with pytest.raises(UnsupportedFormat):
        _ = with_inventory(store, entry(post_dtype="F128")).inventory
    with pytest.raises(UnsupportedFormat):
        _ = with_inventory(store, entry(delta_dtype="F128")).inventory


# --- side files ---------------------------------------------------------------------------------------------------


def test_side_files_are_read_by_their_paths(store: Store) -> None:
    files = {"tokenizer.json": b"{}", "1_Pooling/config.json": b"{ }", "vocab.txt": b""}
    layers = [layer(store, pack(data), SIDE_FILE_TYPE, name) for name, data in files.items()]
    assert artifact(store, layers).side_files() == files


@pytest.mark.parametrize(
    "title",
    [
        None,
        "",
        ".",
        "..",
        "/etc/tokenizer.json",
        "../tokenizer.json",
        "1_Pooling/../../config.json",
        "..\\tokenizer.json",
        "tokenizer.json\0",
        "config.json",
        "README.md",
        "model.safetensors",
        "tokenizer.py",
        "tokenizer.bin",
        "notes.txt",
        "checkpoint-500/config.json",
    ],
)
def test_what_is_no_side_file_is_refused(store: Store, title: str | None) -> None:
    with pytest.raises(BadManifest, match="has a side file called"):
        artifact(store, [layer(store, pack(b"{}"), SIDE_FILE_TYPE, title)]).side_files()


# --- records in packs ---------------------------------------------------------------------------------------------


def test_record_is_found_in_its_pack(store: Store) -> None:
    opened = with_inventory(store, entry())
    with opened.open_packs() as packs:
        (part,) = packs.parts(opened.inventory.tensors[0])
        assert part.source.read(part.start, part.length) == RECORD


@pytest.mark.parametrize("fields", [{"name": "absent"}, {"size": len(RECORD) - 1}, {"packs": [0, 0]}])
def test_record_that_is_not_as_the_inventory_says_is_refused(store: Store, fields: dict[str, Any]) -> None:
    opened = with_inventory(store, entry(**fields))
    with opened.open_packs() as packs, pytest.raises(BadRecord):
        packs.parts(opened.inventory.tensors[0])


def test_pack_that_is_no_safetensors_file_is_refused(store: Store) -> None:
    with pytest.raises(BadHeader):
        artifact(store, [layer(store, b"no pack", PACK_TYPE)]).open_packs()


def test_missing_and_damaged_blobs_are_told(store: Store) -> None:
    opened = with_inventory(store, entry())
    inventory = store.path(Digest(opened.manifest.layers[0].digest))
    flip(inventory)
    with pytest.raises(DeltaregError) as raised:
        _ = opened.inventory
    assert raised.value.exit_code == 5
    store.path(Digest(opened.packs[0].digest)).unlink()
    with pytest.raises(NotFound):
        opened.open_packs()


# --- packing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"x", bytes(1_000_000)])
def test_packed_bytes_come_back_up_to_the_limit(raw: bytes) -> None:
    assert unpack(pack(raw), limit=len(raw), what="test") == raw
    if raw:
        with pytest.raises(BadManifest, match="at most"):
            unpack(pack(raw), limit=len(raw) - 1, what="test")


def test_packing_is_the_same_every_time() -> None:
    assert pack(b"abc" * 1000) == pack(b"abc" * 1000)


def lying(raw: bytes, announced: int) -> bytes:
    """A frame of `raw` whose header says another size: of a single segment of less than 256 bytes."""
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(raw))
    assert (frame[4], frame[5]) == (0x20, len(raw))
    frame[5] = announced
    return bytes(frame)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no frame at all",
        pack(b"delta")[:-1],
        pack(b"delta") + b"more",
        pack(b"delta") + pack(b"delta"),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"delta"),
        lying(b"delta" * 10, 49),
        lying(b"delta" * 10, 51),
    ],
)
def test_what_is_not_one_whole_frame_is_refused(data: bytes) -> None:
    with pytest.raises(BadManifest, match=r"^test "):
        unpack(data, limit=1000, what="test")
