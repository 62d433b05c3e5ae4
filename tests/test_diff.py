"""Taking deltas: the same bytes each time, nothing half stored, bounded memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

import deltareg
from deltareg import Checkpoint, Registry
from deltareg.artifact import Artifact, Packs, pack
from deltareg.checkpoint import encode_header
from deltareg.codec import FRAME_LANES, RecordReader
from deltareg.errors import (
    BadName,
    CheckpointNotFound,
    DeltaregError,
    DiskFull,
    InvalidArgument,
    NotHomologous,
    VersionExists,
)
from deltareg.manifest import INVENTORY_TYPE, PACK_TYPE, Descriptor, encode
from deltareg.names import parse_reference
from deltareg.progress import Progress
from deltareg.store import Store
from deltareg.store.packs import PackWriter
from tests.codec.killing import kill_after, run
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.disks import small_disk
from tests.weights import Pair

ROOT = Path(__file__).resolve().parents[1]
NAME = "acme/w:1.0.0"
BF16 = FORMATS["BF16"]


def vector(*values: float) -> Raw:
    """A BF16 tensor of these numbers."""
    return of("BF16", BF16.narrow(np.array(values)))


def registry_at(path: Path) -> Registry:
    return Registry(path)


# --- the same each time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["fast", "small"])
def test_digest_does_not_depend_on_threads_or_run(tmp_path: Path, small_llama: Pair, preset: str) -> None:
    found: set[str | None] = set()
    for number, threads in enumerate((1, 2, 3, 2)):
        report = deltareg.diff(
            small_llama.base,
            small_llama.post,
            registry_at(tmp_path / str(number)),
            NAME,
            preset=preset,  # type: ignore[arg-type]
            threads=threads,
        )
        found.add(report.digest)
    assert len(found) == 1
    # In another process, from another place, under another name.
    shutil.copytree(small_llama.base, tmp_path / "elsewhere" / "base")
    shutil.copytree(small_llama.post, tmp_path / "elsewhere" / "post")
    program = (
        "import deltareg, sys; print(deltareg.diff(sys.argv[1] + '/base', sys.argv[1] + '/post', "
        "deltareg.Registry(sys.argv[2]), 'other/name:2.0.0', preset=sys.argv[3]).digest)"
    )
    command = [sys.executable, "-c", program, tmp_path / "elsewhere", tmp_path / "home", preset]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {done.stdout.strip()} == found


def test_bits_do_not_depend_on_what_the_process_does_to_subnormals(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    wide, half = draw.integers(1, 1 << 23, 5000, np.uint32), draw.integers(1, 0x7F, 5000, np.uint16)
    base = {"wide": of("F32", wide), "half": of("BF16", half)}
    post = {"wide": of("F32", wide + draw.integers(1, 1000, 5000, np.uint32)), "half": of("BF16", half + 1)}
    before, after = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "post", post)
    expected = deltareg.diff(before, after, registry_at(tmp_path / "plain"), NAME).digest
    registry = registry_at(tmp_path / "home")
    # Some libraries do the same merely by being loaded.
    if not torch.set_flush_denormal(True):
        pytest.skip("the processor cannot flush subnormals")
    try:
        assert sys.float_info.min / 2 == 0
        assert deltareg.diff(before, after, registry, NAME).digest == expected
        deltareg.apply(before, {NAME: 1}, registry, tmp_path / "out")
    finally:
        torch.set_flush_denormal(False)
    assert read_tensors(tmp_path / "out") == post


def test_taking_a_delta_again_is_no_error(tmp_path: Path, anarcii_bf16: Mapping[str, Path]) -> None:
    registry = registry_at(tmp_path / "home")
    pair = (anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"])
    first = deltareg.diff(*pair, registry, NAME)
    assert deltareg.diff(*pair, registry, NAME).digest == first.digest
    with pytest.raises(VersionExists):
        deltareg.diff(pair[1], pair[0], registry, NAME)
    assert registry.resolve(NAME) == first.digest


def test_report_says_what_the_artifact_holds(tmp_path: Path, anarcii_bf16: Mapping[str, Path]) -> None:
    registry = registry_at(tmp_path / "home")
    post = anarcii_bf16["shark_4_2"]
    report = deltareg.diff(anarcii_bf16["antibody_4_2"], post, registry, NAME, licence="bsd-3-clause")
    artifact = registry.artifact(NAME)
    tensors = read_tensors(post)
    assert report.digest == artifact.digest
    assert report.tensors == len(tensors)
    assert report.raw_size == sum(len(tensor.data) for tensor in tensors.values())
    blobs = {path.name: path.stat().st_size for path in (registry.home / "registry" / "blobs" / "sha256").iterdir()}
    assert report.artifact_size == artifact.size == sum(blobs.values())
    assert report.ratio == pytest.approx(report.raw_size / report.artifact_size)
    assert sum(report.kinds.values()) == sum(entry.size for entry in artifact.inventory.tensors)
    assert artifact.config.licence == "bsd-3-clause"
    assert artifact.config.exactness.kind == "exact"
    assert artifact.config.post.size == report.raw_size
    before = read_tensors(anarcii_bf16["antibody_4_2"])
    changed = sum(
        int(np.count_nonzero(np.frombuffer(before[name].data, np.uint16) != np.frombuffer(tensor.data, np.uint16)))
        for name, tensor in tensors.items()
    )
    assert report.changed == changed
    assert not any(
        str(tmp_path) in text for text in (encode(artifact.config).decode(), encode(artifact.manifest).decode())
    )


def test_norms_are_those_of_the_tensors(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    base = BF16.narrow(draw.normal(0, 1, 5000))
    post = BF16.narrow(BF16.widen(base) * 1.01)
    registry = registry_at(tmp_path / "home")
    name = "model.layers.0.self_attn.q_proj.weight"
    before = write_checkpoint(tmp_path / "base", {name: of("BF16", base), "odd": vector(3, 4)})
    after = write_checkpoint(tmp_path / "post", {name: of("BF16", post), "odd": vector(3, 4)})
    deltareg.diff(before, after, registry, NAME)
    config = registry.artifact(NAME).config
    delta = BF16.widen(BF16.narrow(BF16.widen(post) - BF16.widen(base)))
    assert config.norms["attention"].base == pytest.approx(np.linalg.norm(BF16.widen(base)), rel=1e-5)
    assert config.norms["attention"].delta == pytest.approx(np.linalg.norm(delta), rel=1e-5)
    assert (config.norms["other"].base, config.norms["other"].delta) == (5.0, 0.0)
    assert config.norms["attention"].parameters == 5000


def test_digest_of_a_parent_does_not_depend_on_its_files(tmp_path: Path) -> None:
    tensors = {f"w{number}": vector(*range(number, number + 9)) for number in range(6)}
    post = tensors | {"w0": vector(*range(1, 10))}
    found: list[str] = []
    for files in (1, 2, 3):
        before = write_checkpoint(tmp_path / f"base-{files}", tensors, files)
        after = write_checkpoint(tmp_path / f"post-{files}", post, files)
        registry = registry_at(tmp_path / f"home-{files}")
        deltareg.diff(before, after, registry, NAME)
        config = registry.artifact(NAME).config
        found.append(config.base.digest + config.post.digest + config.fingerprint.inventory)
        assert config.base.digest != config.post.digest
    assert len(set(found)) == 1


def test_unchanged_packs_are_stored_once(tmp_path: Path, anarcii_bf16: Mapping[str, Path]) -> None:
    registry = registry_at(tmp_path / "home")
    pair = (anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"])
    deltareg.diff(*pair, registry, "acme/w:1.0.0")
    before = set(os.listdir(registry.home / "registry" / "blobs" / "sha256"))
    deltareg.diff(*pair, registry, "acme/w:1.0.1", description="the same, told better")
    added = set(os.listdir(registry.home / "registry" / "blobs" / "sha256")) - before
    assert len(added) == 2, "a config and a manifest"


# --- odd checkpoints ----------------------------------------------------------------------------------------------


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    base = {
        "scalar": Raw("F32", (), b"\0\0\x80\x3f"),
        "empty": Raw("BF16", (0,), b""),
        "empty matrix": Raw("I64", (3, 0), b""),
        "one": Raw("BOOL", (1, 1, 1), b"\0"),
    }
    post = base | {"scalar": Raw("F32", (), b"\0\0\0\x40"), "one": Raw("BOOL", (1, 1, 1), b"\1")}
    before, after = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "post", post)
    registry = registry_at(tmp_path / "home")
    report = deltareg.diff(before, after, registry, NAME)
    assert (report.changed, report.parameters) == (2, 2)
    deltareg.apply(before, {NAME: 1}, registry, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == post


def test_checkpoint_without_tensors_is_not_homologous(tmp_path: Path) -> None:
    empty = write_checkpoint(tmp_path / "empty", {})
    other = write_checkpoint(tmp_path / "other", {"w": vector(1)})
    for pair in ((empty, empty), (empty, other), (other, empty)):
        with pytest.raises(NotHomologous, match="no tensor in common"):
            deltareg.diff(*pair, registry_at(tmp_path / "home"), NAME)


def test_equal_checkpoints_have_a_delta_without_packs(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "base", {"w": vector(1, 2)})
    registry = registry_at(tmp_path / "home")
    report = deltareg.diff(before, before, registry, NAME)
    assert report.changed == 0
    assert registry.artifact(NAME).packs == []
    deltareg.apply(before, {NAME: 3}, registry, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(before)


def test_other_architecture_is_refused_naming_every_tensor(tmp_path: Path, anarcii_bf16: Mapping[str, Path]) -> None:
    registry = registry_at(tmp_path / "home")
    base, post = anarcii_bf16["antibody_4_2"], anarcii_bf16["tcr_4_2"]
    with pytest.raises(NotHomologous) as caught:
        deltareg.diff(base, post, registry, NAME)
    ours, theirs = read_tensors(base), read_tensors(post)
    differing = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert differing
    assert all(name in caught.value.message for name in differing)
    assert {finding["subject"] for finding in caught.value.data["findings"]} == differing  # type: ignore[union-attr]
    assert caught.value.exit_code == 3
    assert registry.store.entries() == []


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "base", {"w": vector(1)})
    registry = registry_at(tmp_path / "home")
    with pytest.raises(InvalidArgument, match="preset"):
        deltareg.diff(before, before, registry, NAME, preset="tiny")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="thread"):
        deltareg.diff(before, before, registry, NAME, threads=0)
    for name in ("acme/w", "acme/w:latest", "w:1.0.0", "acme/w:1.0", "acme/w:1.0.0+build"):
        with pytest.raises(BadName):
            deltareg.diff(before, before, registry, name)
    with pytest.raises(CheckpointNotFound):
        deltareg.diff(before, tmp_path / "nowhere", registry, NAME)
    assert registry.store.entries() == []


def test_open_checkpoints_are_taken_too(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "base", {"w": vector(1, 2)})
    after = write_checkpoint(tmp_path / "post", {"w": vector(1, 3)})
    registry = registry_at(tmp_path / "home")
    with Checkpoint.open(before) as base, Checkpoint.open(after) as post:
        deltareg.diff(base, post, registry, NAME)
        deltareg.apply(base, {NAME: 1}, registry, tmp_path / "out")
        # Neither has closed what it did not open.
        assert base.tensors["w"].read(0, 4) == vector(1, 2).data
    assert read_tensors(tmp_path / "out") == read_tensors(after)


def test_dry_run_stores_nothing(tmp_path: Path, anarcii_bf16: Mapping[str, Path]) -> None:
    registry = registry_at(tmp_path / "home")
    before = sorted(path for path in (tmp_path / "home").rglob("*"))
    pair = (anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"])
    report = deltareg.diff(*pair, registry, NAME, dry_run=True)
    assert report.dry_run
    assert report.digest is None
    assert sorted(path for path in (tmp_path / "home").rglob("*")) == before
    assert registry.list() == []
    assert deltareg.diff(*pair, registry, NAME).artifact_size == report.artifact_size


# --- interruptions ------------------------------------------------------------------------------------------------


def test_interrupted_diff_leaves_no_delta(tmp_path: Path, small_llama: Pair) -> None:
    class Interrupting(Progress):
        left = 9

        def advance(self, count: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    registry = registry_at(tmp_path / "home")
    with pytest.raises(KeyboardInterrupt):
        deltareg.diff(small_llama.base, small_llama.post, registry, NAME, progress=Interrupting())
    assert registry.store.entries() == []
    assert list((registry.home / "registry" / "tmp").iterdir()) == []
    assert not list((registry.home / "registry" / "blobs" / "sha256").iterdir())


def test_killed_diff_leaves_no_delta_and_the_next_one_succeeds(
    tmp_path: Path, anarcii_bf16: Mapping[str, Path]
) -> None:
    base, post = anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"]
    arguments: list[str | Path] = ["diff", tmp_path / "home", base, post, NAME]
    told = run(["diff", tmp_path / "whole", base, post, NAME], None)
    assert told[0] == "begin" and told[-2:] == ["end", "done"] and len(told) > 20
    for steps in (0, 1, len(told) // 2, len(told) - 2):
        kill_after(arguments, steps)
        assert Store(tmp_path / "home" / "registry").entries() == []
    registry = registry_at(tmp_path / "home")
    report = deltareg.diff(base, post, registry, NAME)
    assert report.digest == registry_at(tmp_path / "whole").resolve(NAME)
    deltareg.apply(base, {NAME: 1}, registry, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(post)
    # What the killed ones left goes with gc, and with it nothing else.
    registry.store.gc(grace_seconds=0)
    assert list((registry.home / "registry" / "tmp").iterdir()) == []
    assert registry.store.fsck().faults == []
    assert deltareg.verify(NAME, registry, base=base, post=post).reproduced


def test_full_disk_stores_nothing(tmp_path: Path, small_llama: Pair) -> None:
    with small_disk(tmp_path / "disk", 1500) as disk:
        registry = Registry(disk / "home")
        with pytest.raises(DiskFull) as caught:
            deltareg.diff(small_llama.base, small_llama.post, registry, NAME)
        assert caught.value.exit_code == 1
        assert registry.store.entries() == []
        assert list((registry.home / "registry" / "tmp").iterdir()) == []


def test_damaged_checkpoint_stores_nothing(tmp_path: Path, small_llama: Pair) -> None:
    post = tmp_path / "post"
    shutil.copytree(small_llama.post, post)
    file = sorted(post.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-10])
    registry = registry_at(tmp_path / "home")
    with pytest.raises(DeltaregError) as caught:
        deltareg.diff(small_llama.base, post, registry, NAME)
    assert caught.value.exit_code == 5
    assert file.name in caught.value.message
    assert registry.store.entries() == []


# --- packs --------------------------------------------------------------------------------------------------------


def long_pair(path: Path) -> tuple[Path, Path]:
    """A tensor of five frames between two small ones."""
    draw = np.random.default_rng(2)
    base = BF16.narrow(draw.normal(0, 1, 4 * FRAME_LANES + 100))
    post = np.where(draw.random(base.size) < 0.001, base + 3, base).astype(np.uint16)
    small = {"a": (vector(1, 2), vector(1, 3)), "c": (vector(5), vector(6))}
    before = {"a": small["a"][0], "b": of("BF16", base), "c": small["c"][0]}
    after = {"a": small["a"][1], "b": of("BF16", post), "c": small["c"][1]}
    return write_checkpoint(path / "base", before), write_checkpoint(path / "post", after)


def repacked(store: Store, artifact: Artifact, limit: int) -> list[Descriptor]:
    """The layers of the same delta in packs of at most `limit` bytes."""
    entries = []
    with artifact.open_packs() as packs, PackWriter(store, limit=limit) as writer:
        for entry in artifact.inventory.tensors:
            reader = RecordReader(entry, packs.parts(entry))
            first = reader.frames[0]
            writer.begin(entry.name)
            for part in packs.parts(entry)[:1]:
                writer.add(part.source.read(part.start, first.start - part.start))
            for frame in reader.frames:
                writer.add(frame.source.read(frame.start, frame.length))
            homes, size = writer.end()
            entries.append(entry.model_copy(update={"packs": homes, "size": size}))
        found = list(writer.finish())
    inventory = pack(encode(artifact.inventory.model_copy(update={"tensors": entries})))
    found.append(Descriptor(media_type=INVENTORY_TYPE, digest=store.put(inventory), size=len(inventory)))
    return found


def test_record_goes_on_in_the_next_pack(tmp_path: Path) -> None:
    before, after = long_pair(tmp_path)
    registry = registry_at(tmp_path / "home")
    deltareg.diff(before, after, registry, NAME)
    artifact = registry.artifact(NAME)
    assert len(artifact.packs) == 1
    layers = repacked(registry.store, artifact, limit=4000)
    manifest = encode(artifact.manifest.model_copy(update={"layers": layers}))
    registry.publish("acme/w:2.0.0", manifest)
    split = registry.artifact("acme/w:2.0.0")
    homes = {entry.name: entry.packs for entry in split.inventory.tensors}
    assert len(split.packs) >= 4
    assert all(descriptor.size <= 4000 for descriptor in split.packs)
    assert len(homes["b"]) >= 4
    assert homes["b"] == sorted(homes["b"])
    for threads in (1, 3):
        out = tmp_path / f"out-{threads}"
        deltareg.apply(before, {"acme/w:2.0.0": 1}, registry, out, threads=threads)
        assert read_tensors(out) == read_tensors(after)
    assert deltareg.verify("acme/w:2.0.0", registry, base=before, post=after).reproduced


def test_pack_is_a_safetensors_file_with_a_range_for_each_tensor(tmp_path: Path) -> None:
    before, after = long_pair(tmp_path)
    registry = registry_at(tmp_path / "home")
    deltareg.diff(before, after, registry, NAME)
    artifact = registry.artifact(NAME)
    data = registry.store.path(artifact.packs[0].digest).read_bytes()  # type: ignore[arg-type]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert {name: entry["dtype"] for name, entry in header.items()} == {"a": "U8", "b": "U8", "c": "U8"}
    for entry in artifact.inventory.tensors:
        start, end = header[entry.name]["data_offsets"]
        assert data[8 + length + start : 8 + length + start + 4] == b"DRec"
        assert end - start == entry.size == header[entry.name]["shape"][0]
        assert entry.packs == [0]


def test_layers_are_named_and_in_order(tmp_path: Path, minilm_bf16: Pair) -> None:
    registry = registry_at(tmp_path / "home")
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, NAME)
    artifact = registry.artifact(NAME)
    titles = [layer.title for layer in artifact.manifest.layers]
    assert titles[:2] == ["pack-00000.safetensors", "inventory.json.zst"]
    assert "tokenizer.json" in titles and "1_Pooling/config.json" in titles
    assert artifact.manifest.layers[0].media_type == PACK_TYPE
    inventory = zstandard.ZstdDecompressor().decompress(registry.store.read(artifact.manifest.layers[1].digest))  # type: ignore[arg-type]
    assert len(json.loads(inventory)["tensors"]) == 104
    assert artifact.side_files()["tokenizer.json"] == (minilm_bf16.post / "tokenizer.json").read_bytes()


def test_record_in_the_wrong_pack_is_refused(tmp_path: Path) -> None:
    before, after = long_pair(tmp_path)
    registry = registry_at(tmp_path / "home")
    deltareg.diff(before, after, registry, NAME)
    artifact = registry.artifact(NAME)
    path = tmp_path / "pack.safetensors"
    path.write_bytes(encode_header([("other", "U8", (3,))]) + b"abc")
    entry = artifact.inventory.tensors[0]
    with Packs([path]) as packs, pytest.raises(DeltaregError, match="lacks the record"):
        packs.parts(entry)
    parts = [descriptor for descriptor in artifact.manifest.layers if descriptor.media_type == INVENTORY_TYPE]
    for changes in ({"packs": [1]}, {"packs": []}, {"size": entry.size + 1}, {"packs": [0, 0]}):
        wrong = entry.model_copy(update=changes)
        others = artifact.inventory.tensors[1:]
        inventory = pack(encode(artifact.inventory.model_copy(update={"tensors": [wrong, *others]})))
        layer = Descriptor(media_type=INVENTORY_TYPE, digest=registry.store.put(inventory), size=len(inventory))
        layers = [layer if old in parts else old for old in artifact.manifest.layers]
        manifest = encode(artifact.manifest.model_copy(update={"layers": layers}))
        name = f"acme/wrong:1.0.{len(registry.store.entries())}"
        registry.store.publish(parse_reference(name), manifest)
        with pytest.raises(DeltaregError) as caught:
            deltareg.apply(before, {name: 1}, registry, tmp_path / "out")
        assert caught.value.exit_code == 5, changes
        assert not (tmp_path / "out").exists()


# --- memory -------------------------------------------------------------------------------------------------------

_MEASURED = """
import re, sys
import deltareg
from deltareg.codec import kernels
import deltareg.diff, deltareg.apply

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) * 1024

place = sys.argv[1]
imported = peak()
registry = deltareg.Registry(place + "/home")
deltareg.diff(place + "/base", place + "/post", registry, "acme/w:1.0.0", threads=2)
taken = peak()
deltareg.apply(place + "/base", {"acme/w:1.0.0": 0.5}, registry, place + "/out", threads=2)
print(taken - imported, peak() - imported)
"""


def big_checkpoint(path: Path, seed: int) -> None:
    """300 MB: one tensor of 200 MB in float32, a hundred of 1 MB in bfloat16; noise that repeats."""
    path.mkdir()
    draw = np.random.default_rng(seed)
    wide = draw.normal(0, 1, 1 << 20).astype(np.float32)
    half = BF16.narrow(draw.normal(0, 1, 1 << 19))
    tensors = [("wide", "F32", (50, 1 << 20))]
    tensors += [(f"half.{number}", "BF16", (1 << 19,)) for number in range(100)]
    with (path / "model.safetensors").open("wb") as file:
        file.write(encode_header(tensors))
        for number in range(50):
            file.write(np.roll(wide, number * 97).data)
        for number in range(100):
            file.write(np.roll(half, number * 89).data)


def test_memory_stays_bounded(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    big_checkpoint(tmp_path / "base", 1)
    big_checkpoint(tmp_path / "post", 2)
    command = [sys.executable, "-c", _MEASURED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, applied = map(int, done.stdout.split())
    assert taken <= 600 * 2**20, f"diff took {taken / 2**20:.0f} MiB"
    assert applied <= 600 * 2**20, f"apply took {applied / 2**20:.0f} MiB"
