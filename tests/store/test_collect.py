"""Garbage collection takes what no name leads to, and nothing that somebody needs or is about to name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltareg.digest import sha256
from deltareg.errors import BadManifest, DigestMismatch, NotFound
from deltareg.manifest import Requirement
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import add_delta, blob_files, descriptor, flip, publish, publish_unread

ROOT = Path(__file__).resolve().parents[2]
DAY = 86_400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def age(store: Store, seconds: float = DAY) -> None:
    """Let every blob and temporary file be that old."""
    then = time.time() - seconds
    for path in [*blob_files(store.root), *store.tmp_path.iterdir()]:
        os.utime(path, (then, then))


def test_everything_that_a_name_leads_to_is_kept(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0", [b"one", b"two"])
    publish(store, "acme/search:2.0.0", [b"two", b"three"])
    store.set_channel("acme/search", "prod", digest, None)
    age(store)
    report = store.gc(0)
    assert (report.blobs, report.bytes, report.kept_blobs) == (0, 0, 7)
    assert store.fsck().ok


def test_removed_version_goes_and_shared_packs_stay(store: Store) -> None:
    publish(store, "acme/search:1.0.0", [b"one", b"shared"])
    publish(store, "acme/search:2.0.0", [b"two", b"shared"])
    store.remove(parse_reference("acme/search:1.0.0"))
    age(store)
    dry = store.gc(dry_run=True)
    assert store.has(sha256(b"one"))
    report = store.gc()
    assert report.blobs == dry.blobs == 2
    assert report.bytes == dry.bytes
    assert report.kept_blobs == dry.kept_blobs == len(blob_files(store.root))
    assert report.kept_bytes == dry.kept_bytes == sum(path.stat().st_size for path in blob_files(store.root))
    assert not store.has(sha256(b"one"))
    assert store.has(sha256(b"shared"))
    assert store.fsck().ok


def test_blobs_within_the_grace_period_are_kept(store: Store) -> None:
    manifest = add_delta(store)
    age(store, 3500)
    assert store.gc(3600).blobs == 0
    store.publish(parse_reference("acme/search:1.0.0"), manifest)
    store.put(b"unneeded")
    age(store, 3700)
    assert store.gc(3600).blobs == 1


def test_blob_that_was_asked_for_has_its_grace_again(store: Store) -> None:
    store.put(b"old")
    store.put(b"older")
    age(store)
    assert store.missing([sha256(b"old"), sha256(b"absent")]) == {sha256(b"absent")}
    assert store.gc(3600).blobs == 1
    assert store.has(sha256(b"old"))


def test_nothing_that_a_running_publisher_holds_is_taken(store: Store) -> None:
    program = """
import sys
from pathlib import Path
from deltareg.manifest import Requirement
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.deltas import add_delta
store = Store(Path(sys.argv[1]))
with store.hold():
    manifest = add_delta(store, [b"old", b"new"])
    print("stored", flush=True)
    sys.stdin.readline()
    store.publish(parse_reference("acme/search:1.0.0"), manifest)
"""
    store.put(b"old")
    store.put(b"unneeded")
    age(store)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.root)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stored\n"
        # A grace of less than nothing: only the hold protects them.
        report = store.gc(-60)
        assert report.blobs == 1
        assert not store.has(sha256(b"unneeded"))
        process.communicate("\n")
        assert process.returncode == 0
    assert store.fsck().ok
    assert len(store.entries()) == 1


def test_hold_of_a_killed_process_holds_nothing(store: Store) -> None:
    program = """
import os, sys
from pathlib import Path
from deltareg.store import Store
with Store(Path(sys.argv[1])).hold():
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", program, str(store.root)], cwd=ROOT, check=False)
    assert len(list(store.tmp_path.iterdir())) == 1
    store.put(b"unneeded")
    age(store)
    report = store.gc()
    assert (report.blobs, report.temporary_files) == (1, 1)
    assert list(store.tmp_path.iterdir()) == []


def test_stale_temporary_files_go_and_those_in_use_stay(store: Store) -> None:
    store.scratch(".safetensors").write_bytes(b"left by a killed process")
    with store.writer() as writer, store.resume(descriptor(b"a part")) as part:
        writer.write(b"in use")
        part.write(b"a")
        age(store)
        assert store.gc(dry_run=True).temporary_files == 1
        assert store.gc().temporary_files == 1
        part.write(b" part")
        part.commit()
        writer.commit()
    assert store.has(sha256(b"in use"))
    assert store.has(sha256(b"a part"))


def test_young_temporary_files_stay(store: Store) -> None:
    store.scratch().write_bytes(b"another process writes this")
    assert store.gc().temporary_files == 0


def test_delta_that_another_is_stacked_on_is_kept(store: Store) -> None:
    below = publish(store, "acme/below:1.0.0", [b"below"])
    required = [Requirement(reference="acme/below", version="1.0.0", digest=below), Requirement(reference="acme/any")]
    store.publish(parse_reference("acme/above:1.0.0"), add_delta(store, [b"above"], requires=required))
    store.remove(parse_reference("acme/below:1.0.0"))
    age(store)
    assert store.gc().blobs == 0
    assert store.has(sha256(b"below"))


def test_nothing_is_taken_where_a_manifest_cannot_be_read(store: Store) -> None:
    digest = publish(store, "acme/search:1.0.0")
    store.put(b"unneeded")
    age(store)
    flip(store.path(digest), 100)
    with pytest.raises(DigestMismatch):
        store.gc()
    store.path(digest).unlink()
    with pytest.raises(NotFound):
        store.gc()
    assert store.has(sha256(b"unneeded"))
    assert store.has(sha256(b"a pack"))
    store.remove(parse_reference("acme/search:1.0.0"))
    assert store.gc().blobs == 4


def test_manifest_that_calls_another_one_a_layer_does_not_hide_its_blobs(store: Store) -> None:
    inner = add_delta(store, [b"inner"])
    outer = add_delta(store, [inner, b"outer"])
    for name, manifest in (("acme/a", inner), ("acme/b", outer), ("acme/c", inner)):
        store.publish(parse_reference(f"{name}:1.0.0"), manifest)
    age(store)
    assert store.gc().blobs == 0
    assert store.fsck().ok


def test_nothing_goes_while_a_config_cannot_be_read(store: Store) -> None:
    publish_unread(store, "acme/search:1.0.0", b"no JSON")
    store.put(b"unneeded")
    age(store)
    with pytest.raises(BadManifest):
        store.gc(0)
    assert store.has(sha256(b"unneeded")), "what the config requires is unknown"
