"""Records written once are read for ever, by deltareg and by a reader that was written from the document alone."""

from __future__ import annotations

import ast
import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import deltareg
from deltareg import Registry
from deltareg.codec import Frame, Kind
from deltareg.manifest import TensorEntry
from tests.codec import golden, independent
from tests.codec.golden import ARTIFACT, NAME, PRESETS, Golden
from tests.codec.tensors import DTYPES, Record, read_tensors

GOLDEN = golden.load()
RELEASE = json.loads((golden.DIRECTORY / "zstd.json").read_text())["zstd"]

# The document promises the bytes of records for one release of zstd only: another may find other matches.
same_zstd = pytest.mark.skipif(
    ".".join(map(str, zstandard.ZSTD_VERSION)) != RELEASE, reason=f"the golden files were written with zstd {RELEASE}"
)


def as_record(case: Golden, data: bytes) -> Record:
    """The record with the inventory entry that belongs to it."""
    entry = TensorEntry(
        name=case.name,
        kind="full" if case.base is None else "planes",
        base_dtype=None if case.base is None else case.base.dtype,
        post_dtype=case.post.dtype,
        delta_dtype=None if case.delta is None else case.delta.dtype,
        shape=list(case.post.shape),
        packs=[0],
        size=len(data),
    )
    return Record(entry, data)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_golden_record_is_read(case: Golden, preset: str) -> None:
    assert as_record(case, case.records[preset]).produced(case.base) == case.post.data


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_reader_written_from_the_document_reads_it_too(case: Golden, preset: str) -> None:
    if case.name.endswith("frames"):  # two million lanes, in plain Python
        assert agree(independent.Record.read(case.records[preset]), as_record(case, case.records[preset]).frames())
        return
    record = independent.Record.read(case.records[preset])
    assert record.shape == case.post.shape
    assert record.on(None if case.base is None else case.base.data) == case.post.data
    assert agree(record, as_record(case, case.records[preset]).frames())


def agree(theirs: independent.Record, ours: list[Frame]) -> bool:
    """Whether both readers found the same in every frame."""
    return len(theirs.frames) == len(ours) and all(map(_agree, theirs.frames, ours))


def _agree(theirs: independent.Frame, ours: Frame) -> bool:
    symbols: dict[int, int] = {}
    if ours.symbols is not None:
        positions = range(ours.lanes) if ours.positions is None else ours.positions.tolist()
        symbols = dict(zip(positions, ours.symbols.tolist(), strict=True))
    codes: dict[int, int] = {}
    if ours.mending is not None:
        codes = dict(zip(ours.mending.positions.tolist(), ours.mending.codes.tolist(), strict=True))
    overwrites: dict[int, tuple[int, int]] = {}
    if ours.overwrites is not None:
        pairs = zip(ours.overwrites.base.tolist(), ours.overwrites.post.tolist(), strict=True)
        overwrites = dict(zip(ours.overwrites.positions.tolist(), pairs, strict=True))
    return (theirs.lanes, theirs.symbols, theirs.codes, theirs.overwrites) == (ours.lanes, symbols, codes, overwrites)


@same_zstd
@pytest.mark.parametrize("preset", PRESETS)
def test_encoding_gives_the_golden_bytes(preset: Any) -> None:
    found = golden.encoded({case.name: (case.base, case.post) for case in GOLDEN if case.delta is None}, preset)
    found |= {name: golden.encoded_given(*case, preset) for name, case in golden.given_cases().items()}
    differing = [case.name for case in GOLDEN if found[case.name] != case.records[preset]]
    assert differing == []


def test_golden_files_are_those_that_the_script_writes() -> None:
    pairs = golden.cases()
    assert {case.name: (case.base, case.post) for case in GOLDEN if case.delta is None} == pairs
    given = {case.name: (case.base, case.delta, case.post) for case in GOLDEN if case.delta is not None}
    assert given == golden.given_cases()


def test_golden_files_cover_the_format() -> None:
    dtypes = {case.post.dtype for case in GOLDEN} | {case.base.dtype for case in GOLDEN if case.base is not None}
    assert dtypes == set(DTYPES)
    records = [data for case in GOLDEN for data in case.records.values()]
    frames = [frame for data in records for frame in independent.Record.read(data).frames]
    assert {frame.kind for frame in frames} == {int(kind) for kind in Kind}
    assert {body[0] for data in records for kind, body in bodies(data) if kind == Kind.PALETTE} == {15, 255}
    for kind in set(Kind) - {Kind.ZERO}:
        assert any(frame.codes for frame in frames if frame.kind == kind)
        assert any(frame.overwrites for frame in frames if frame.kind == kind)
    assert any(case.base is None for case in GOLDEN)
    assert {case.post.shape for case in GOLDEN} >= {(), (3, 0), (5, 20)}


def bodies(record: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each frame."""
    cursor = independent.Cursor(record)
    fixed = cursor.take(9)
    cursor.take(fixed[5] == 2)
    for _ in range(fixed[-1]):
        cursor.number()
    while cursor.at < len(record):
        kind, _, length = struct.unpack("<BBI", cursor.take(6))
        yield kind, cursor.take(length)


def test_example_of_the_document_is_what_it_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()
    example = page.split("## An example")[1].split("## Golden files")[0]
    lines = [line[4:23] for line in example.splitlines() if line.startswith("    ")]
    data = bytes.fromhex("".join(lines))
    base = np.full(8, 0x3F80, np.uint16)
    post = base.copy()
    post[[1, 7]] = [0x3F81, 0xFFC1]
    assert independent.Record.read(data).on(base.tobytes()) == post.tobytes()
    entry = TensorEntry(name="w", kind="sparse", base_dtype="BF16", post_dtype="BF16", shape=[8], packs=[0])
    assert np.concatenate([frame.symbols for frame in Record(entry, data).frames()]).tolist() == [0x3C00]  # type: ignore[arg-type]


# --- the artifact -------------------------------------------------------------------------------------------------


def test_golden_artifact_is_applied(tmp_path: Path) -> None:
    shutil.copytree(ARTIFACT / "layout", tmp_path / "home" / "registry")
    registry = Registry(tmp_path / "home")
    deltareg.apply(ARTIFACT / "base", {NAME: 1}, registry, tmp_path / "out")
    assert read_tensors(tmp_path / "out") == read_tensors(ARTIFACT / "post")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (ARTIFACT / "post" / "tokenizer.json").read_bytes()
    assert deltareg.verify(NAME, registry, base=ARTIFACT / "base", post=ARTIFACT / "post").reproduced


def plain(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A checkpoint of one file, as the independent reader has it."""
    return independent.read_safetensors((path / "model.safetensors").read_bytes())


def test_reader_written_from_the_document_applies_the_artifact() -> None:
    base, post = plain(ARTIFACT / "base"), plain(ARTIFACT / "post")
    delta = independent.Delta(ARTIFACT / "layout", NAME)
    assert {name: (dtype, data) for name, dtype, data in delta.on(base)} == {
        name: (dtype, data) for name, (dtype, _, data) in post.items()
    }
    assert delta.side_files == {"tokenizer.json": b'{"version": "1.0"}\n'}


def test_digests_are_those_of_the_document() -> None:
    config = independent.Delta(ARTIFACT / "layout", NAME).config
    base, post = plain(ARTIFACT / "base"), plain(ARTIFACT / "post")
    assert config["base"]["digest"] == independent.tensors_digest(base)
    assert config["post"]["digest"] == independent.tensors_digest(post)
    assert config["fingerprint"]["inventory"] == independent.inventory_digest(base)


@same_zstd
def test_taking_the_golden_delta_again_gives_its_packs(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    deltareg.diff(ARTIFACT / "base", ARTIFACT / "post", registry, NAME, licence="apache-2.0", description="golden")
    artifact = registry.artifact(NAME)
    theirs = independent.Delta(ARTIFACT / "layout", NAME)
    layers = [layer.digest for layer in artifact.manifest.layers]
    assert layers == [layer["digest"] for layer in theirs.manifest["layers"]]


# --- the real thing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
def test_reader_written_from_the_document_reads_a_real_delta(
    tmp_path: Path, anarcii: Mapping[str, Path], anarcii_bf16: Mapping[str, Path], bf16: bool
) -> None:
    models = anarcii_bf16 if bf16 else anarcii
    deltareg.diff(models["antibody_4_2"], models["shark_4_2"], Registry(tmp_path), "acme/shark:1.0.0")
    delta = independent.Delta(tmp_path / "registry", "acme/shark:1.0.0")
    base, post = plain(models["antibody_4_2"]), plain(models["shark_4_2"])
    for name in ("decoder.pos_embedding.weight", "encoder.layers.0.self_attention.multihead_attn.out_proj.weight"):
        record = independent.Record.read(delta.record(name))
        assert record.shape == base[name][1]
        assert sum(len(frame.codes) for frame in record.frames) > 0, "a second term is wanted here"
        assert record.on(base[name][2]) == post[name][2]
    assert delta.config["base"]["digest"] == independent.tensors_digest(base)
    assert delta.config["post"]["digest"] == independent.tensors_digest(post)


def test_independent_reader_is_independent() -> None:
    source = Path(independent.__file__).read_text()
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert not [name for name in imported if name.partition(".")[0] in ("deltareg", "tests", "numpy", "numba")]
