"""fsck finds each flipped bit, and every missing, cut or foreign file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deltareg.digest import Digest, sha256
from deltareg.errors import DeltaregError
from deltareg.manifest import Index
from deltareg.names import parse_reference
from deltareg.progress import Progress
from deltareg.store import FsckReport, Store
from deltareg.store.index import checksum_fault, write_index
from tests.deltas import add_delta, blob_files, flip, noise, publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    digest = publish(store, "acme/search:1.0.0", [b"one", b"shared"])
    publish(store, "acme/search:2.0.0", [b"two", b"shared"])
    store.set_channel("acme/search", "prod", digest, None)
    store.put(b"unreferenced")
    return store


def kinds(report: FsckReport) -> list[str]:
    return [fault.kind for fault in report.faults]


def test_sound_store_has_no_fault(store: Store) -> None:
    report = store.fsck()
    assert report.ok
    assert report.blobs == len(blob_files(store.root)) == 8
    assert report.bytes == sum(path.stat().st_size for path in blob_files(store.root))
    assert report.names == 3
    assert report.unreferenced == 1


def test_flipped_bit_in_any_blob_is_found_with_the_names_that_need_it(store: Store) -> None:
    expected = {
        sha256(b"one"): ["acme/search:1.0.0", "acme/search:prod"],
        sha256(b"two"): ["acme/search:2.0.0"],
        sha256(b"shared"): ["acme/search:1.0.0", "acme/search:2.0.0", "acme/search:prod"],
        sha256(b"unreferenced"): [],
    }
    for path in blob_files(store.root):
        bit = 8 * path.stat().st_size - 1
        flip(path, bit)
        report = store.fsck()
        assert kinds(report) == ["corrupt"]
        assert report.faults[0].subject == f"sha256:{path.name}"
        subject = Digest(report.faults[0].subject)
        assert report.faults[0].references == expected.get(subject, report.faults[0].references)
        flip(path, bit)
    assert store.fsck().ok


def test_every_single_bit_of_a_blob_counts(store: Store) -> None:
    path = store.path(sha256(b"one"))
    for bit in range(8 * 3):
        flip(path, bit)
        assert kinds(store.fsck()) == ["corrupt"]
        flip(path, bit)


def test_every_single_bit_of_the_index_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, "acme/search:1.0.0")
    store.remove(parse_reference("acme/search:1.0.0"))
    publish(store, "acme/search:1.0.1")
    for bit in range(8 * store.index_path.stat().st_size):
        flip(store.index_path, bit)
        assert checksum_fault(store.index_path) is not None, bit
        if bit % 50 == 0:
            assert "bad-index" in kinds(Store(store.root).fsck()), bit
        flip(store.index_path, bit)
    assert store.fsck().ok


def test_every_single_bit_of_the_layout_file_counts(store: Store) -> None:
    path = store.root / "oci-layout"
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        assert kinds(store.fsck()) == ["bad-layout"]
        with pytest.raises(DeltaregError):
            Store(store.root)
        flip(path, bit)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_truncated_blob_is_found(store: Store, size: int) -> None:
    os.truncate(store.path(sha256(b"two")), size)
    assert kinds(store.fsck()) == ["corrupt"]


def test_grown_blob_is_found(store: Store) -> None:
    with store.path(sha256(b"two")).open("ab") as file:
        file.write(b"\0")
    assert kinds(store.fsck()) == ["corrupt"]


def test_missing_blobs_are_found_once_for_each_name(store: Store) -> None:
    store.path(sha256(b"shared")).unlink()
    report = store.fsck()
    assert kinds(report) == ["missing"] * 3
    assert [fault.references for fault in report.faults] == [
        ["acme/search:1.0.0"],
        ["acme/search:2.0.0"],
        ["acme/search:prod"],
    ]


def test_name_without_manifest_is_found(store: Store) -> None:
    store.path(store.resolve(parse_reference("acme/search:2.0.0"))).unlink()
    report = store.fsck()
    assert [(fault.kind, fault.references) for fault in report.faults] == [("missing", ["acme/search:2.0.0"])]


def test_files_that_are_no_blobs_are_found(store: Store) -> None:
    (store.blobs_path / "notes.txt").write_text("x")
    (store.blobs_path / ("A" * 64)).write_text("x")
    (store.blobs_path / sha256(b"x").removeprefix("sha256:")).mkdir()
    (store.blobs_path / sha256(b"y").removeprefix("sha256:")).symlink_to(store.index_path)
    (store.root / "blobs" / "md5").mkdir()
    assert kinds(store.fsck()) == ["misnamed"] * 5


def test_name_that_leads_to_something_else_is_found(store: Store) -> None:
    digest = store.put(b'{"schemaVersion": 2}')
    snapshot = store.snapshot()
    (first, *others) = snapshot.index.manifests
    wrong = first.model_copy(update={"digest": digest, "size": 20})
    write_index(store.index_path, Index(manifests=[wrong, *others]), temporary=store.scratch())
    assert kinds(store.fsck()) == ["bad-manifest"]


def test_wrong_size_in_the_index_is_found(store: Store) -> None:
    (first, *others) = store.snapshot().index.manifests
    wrong = first.model_copy(update={"size": first.size + 1})
    write_index(store.index_path, Index(manifests=[wrong, *others]), temporary=store.scratch())
    assert kinds(store.fsck()) == ["wrong-size"]


def test_name_that_occurs_twice_is_found(store: Store) -> None:
    manifests = store.snapshot().index.manifests
    write_index(store.index_path, Index(manifests=[*manifests, manifests[0]]), temporary=store.scratch())
    assert kinds(store.fsck()) == ["bad-index"]


def test_missing_index_is_found(store: Store) -> None:
    store.index_path.unlink()
    assert kinds(store.fsck()) == ["bad-index"]


def test_index_of_another_program_is_no_fault(store: Store) -> None:
    index = json.loads(store.index_path.read_text())
    del index["annotations"]
    for entry in index["manifests"]:
        del entry["annotations"]["org.opencontainers.image.created"]
    store.index_path.write_text(json.dumps(index, indent=2))
    assert store.fsck().ok


def test_damaged_blobs_are_dropped_on_request_only(store: Store) -> None:
    flip(store.path(sha256(b"one")))
    assert store.fsck().dropped == []
    assert store.has(sha256(b"one"))
    assert store.fsck(drop_damaged=True).dropped == [sha256(b"one")]
    assert not store.has(sha256(b"one"))
    add_delta(store, [b"one"])
    assert store.fsck().ok


def test_progress_hears_of_every_byte(store: Store) -> None:
    class Heard(Progress):
        total = 0
        done = 0

        def begin(self, step: str, total: int) -> None:
            self.total = total

        def advance(self, count: int) -> None:
            self.done += count

    store.put(noise(3 << 20))
    heard = Heard()
    report = store.fsck(heard)
    assert heard.done == heard.total == report.bytes


class Watched(Progress):
    """Remembers which steps ended, and fails in the middle of one."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def begin(self, step: str, total: int) -> None:
        self.heard.append(step)

    def advance(self, count: int) -> None:
        raise KeyboardInterrupt

    def end(self, *, done: bool) -> None:
        self.heard.append("end")


def test_check_that_is_interrupted_ends_its_step(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, "acme/search:1.0.0")
    watched = Watched()
    with pytest.raises(KeyboardInterrupt):
        store.fsck(watched)
    assert watched.heard == ["fsck", "end"]
