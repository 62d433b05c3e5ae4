"""Push and pull: only what is missing travels, it resumes, and nothing unverified is ever named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import deltareg
from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import (
    BadManifest,
    DigestMismatch,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    NotFound,
    RemoteUnavailable,
    VersionExists,
)
from deltareg.manifest import Descriptor, Manifest, Requirement, encode, parse
from deltareg.names import Reference, parse_reference
from deltareg.progress import Progress
from deltareg.remote import DirectoryRemote, RemoteEntry
from deltareg.store import Store
from deltareg.transfer import pull, push
from tests.contracts.remote_contract import Counted, Interrupted
from tests.deltas import add_delta, blob_files, flip, noise, publish, publish_unread
from tests.disks import fill, read_only, small_disk

ROOT = Path(__file__).resolve().parents[1]
PACKS = [noise(3_000_000, 1), noise(2_000_000, 2), b"small"]
NAME = "acme/search:1.0.0"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "other")


@pytest.fixture
def remote(tmp_path: Path) -> DirectoryRemote:
    (tmp_path / "shared").mkdir()
    return DirectoryRemote(tmp_path / "shared")


def blobs_of(store: Store, digest: Digest) -> list[Descriptor]:
    return store.manifest(digest).blobs


def raw_size(store: Store, digest: Digest) -> int:
    return sum(blob.size for blob in blobs_of(store, digest))


class Altered(DirectoryRemote):
    """A remote that answers with other bytes than it should."""

    def __init__(
        self, location: Path, *, manifest: bytes | None = None, digest: Digest | None = None, extra: bytes = b""
    ) -> None:
        super().__init__(location)
        self._manifest = manifest
        self._digest = digest
        self._extra = extra

    def resolve(self, reference: Reference) -> Digest:
        return self._digest or super().resolve(reference)

    def list(self, repository: str | None = None) -> list[RemoteEntry]:
        reference = parse_reference(NAME)
        return super().list(repository) if self._digest is None else [RemoteEntry(reference, self._digest, 1, "")]

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        return super().get_manifest(repository, digest) if self._manifest is None else self._manifest

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        yield from super().get_blob(repository, descriptor, offset)
        yield self._extra


# --- the way there and back ---


def test_delta_goes_to_a_remote_and_comes_back_the_same(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    digest = publish(registry.store, NAME, PACKS)
    total = raw_size(registry.store, digest)
    report = deltareg.push(registry, NAME, remote)
    assert (report.reference, report.digest, report.remote) == (NAME, digest, remote.url)
    assert (report.blobs, report.moved, report.bytes, report.skipped_bytes) == (5, 5, total, 0)
    assert not report.dry_run
    report = deltareg.pull(other, NAME, remote)
    assert (report.blobs, report.moved, report.bytes, report.skipped_bytes) == (5, 5, total, 0)
    assert other.resolve(NAME) == digest
    assert other.store.read(digest) == registry.store.read(digest)
    assert other.fsck().ok
    assert [path.name for path in blob_files(other.store.root)] == [
        path.name for path in blob_files(registry.store.root)
    ]
    assert list(other.store.tmp_path.iterdir()) == list(Store(remote.path).tmp_path.iterdir()) == []


def test_only_what_is_missing_travels(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    publish(registry.store, "acme/search:1.1.0", [*PACKS, b"one more"])
    report = push(registry, "acme/search:1.1.0", remote)
    assert (report.blobs, report.moved, report.bytes) == (6, 1, 8)
    pull(other, NAME, remote)
    report = pull(other, "acme/search:1.1.0", remote)
    assert (report.blobs, report.moved, report.bytes) == (6, 1, 8)
    assert report.skipped_bytes == raw_size(registry.store, registry.resolve("acme/search:1.1.0")) - 8


def test_second_time_moves_nothing(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME, PACKS)
    for move, home in ((push, registry), (push, registry), (pull, other), (pull, other)):
        report = move(home, NAME, remote)
    assert (report.moved, report.bytes) == (0, 0)
    assert push(registry, NAME, remote).moved == 0


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_any_number_of_threads_does(registry: Registry, other: Registry, remote: DirectoryRemote, threads: int) -> None:
    publish(registry.store, NAME, [noise(10_000, seed) for seed in range(40)])
    assert push(registry, NAME, remote, threads=threads).moved == 42
    assert pull(other, NAME, remote, threads=threads).moved == 42
    assert other.fsck().ok


def test_no_thread_at_all_does_not(registry: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME)
    for move in (push, pull):
        with pytest.raises(InvalidArgument, match="threads is 0"):
            move(registry, NAME, remote, threads=0)


def test_blobs_travel_at_the_same_time(registry: Registry, remote: DirectoryRemote) -> None:
    meeting = threading.Barrier(3, timeout=20)

    class Met(Progress):
        def advance(self, count: int) -> None:
            if count == 100_000:
                meeting.wait()

    publish(registry.store, NAME, [noise(100_000, seed) for seed in range(3)])
    push(registry, NAME, remote, threads=3, progress=Met())
    assert remote.resolve(parse_reference(NAME)) == registry.resolve(NAME)


def test_dry_run_tells_and_does_nothing(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    digest = publish(registry.store, NAME, PACKS)
    total = raw_size(registry.store, digest)
    report = push(registry, NAME, remote, dry_run=True)
    assert (report.moved, report.bytes, report.dry_run) == (5, total, True)
    assert list(remote.path.iterdir()) == []
    push(registry, NAME, remote)
    report = pull(other, NAME, remote, dry_run=True)
    assert (report.moved, report.bytes, report.dry_run) == (5, total, True)
    assert blob_files(other.store.root) == []
    assert other.list() == []


def test_progress_hears_of_every_byte(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    class Heard(Progress):
        def __init__(self) -> None:
            self.steps: list[tuple[str, int]] = []
            self.done = 0

        def begin(self, step: str, total: int) -> None:
            self.steps.append((step, total))

        def advance(self, count: int) -> None:
            self.done += count

    total = raw_size(registry.store, publish(registry.store, NAME, PACKS))
    for move, home, step in ((push, registry, "push"), (pull, other, "pull")):
        heard = Heard()
        move(home, NAME, remote, threads=1, progress=heard)
        assert heard.steps == [(step, total)]
        assert heard.done == total


# --- names ---


def test_latest_channels_and_digests_travel_as_the_version_they_name(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    first = publish(registry.store, NAME, [b"one"])
    second = publish(registry.store, "acme/search:2.0.0", [b"two"])
    registry.store.set_channel("acme/search", "prod", first, None)
    assert push(registry, "acme/search", remote).reference == "acme/search:2.0.0"
    assert push(registry, "acme/search:prod", remote).reference == NAME
    Store(remote.path).set_channel("acme/search", "prod", first, None)
    assert pull(other, f"acme/search@{second}", remote).reference == "acme/search:2.0.0"
    assert pull(other, "acme/search:prod", remote).reference == NAME
    assert other.resolve("acme/search:prod") == first
    assert pull(other, parse_reference("acme/search"), remote).reference == "acme/search:2.0.0"
    assert [row.channels for row in other.list()] == [["prod"], []]


def test_channel_that_moved_at_the_remote_moves_here_with_the_next_pull(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    first, second = publish(registry.store, NAME, [b"one"]), publish(registry.store, "acme/search:2.0.0", [b"two"])
    for name in (NAME, "acme/search:2.0.0"):
        push(registry, name, remote)
    there = Store(remote.path)
    there.set_channel("acme/search", "prod", first, None)
    pull(other, "acme/search:prod", remote)
    there.set_channel("acme/search", "prod", second, first)
    pull(other, "acme/search:prod", remote)
    assert other.resolve("acme/search:prod") == second


def test_unknown_names_are_not_found(registry: Registry, remote: DirectoryRemote) -> None:
    for move in (push, pull):
        with pytest.raises(NotFound):
            move(registry, NAME, remote)


def test_version_with_other_bytes_is_refused_before_anything_is_sent(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME, [b"one"])
    publish(other.store, NAME, [b"other"])
    push(registry, NAME, remote)
    before = [path.name for path in blob_files(remote.path)]
    with pytest.raises(VersionExists) as caught:
        push(other, NAME, remote)
    assert caught.value.exit_code == 4
    assert [path.name for path in blob_files(remote.path)] == before
    before = [path.name for path in blob_files(other.store.root)]
    with pytest.raises(VersionExists):
        pull(other, NAME, remote)
    assert [path.name for path in blob_files(other.store.root)] == before


def test_two_pushes_of_one_version_at_once_exactly_one_wins(tmp_path: Path, remote: DirectoryRemote) -> None:
    program = """
import sys
from deltareg.catalog import Registry
from deltareg.errors import VersionExists
from deltareg.remote import DirectoryRemote
from deltareg.transfer import push
from tests.deltas import publish
registry, remote = Registry(sys.argv[1]), DirectoryRemote(sys.argv[2])
digest = publish(registry.store, "acme/search:1.0.0", [sys.argv[1].encode()])
print("ready", flush=True)
sys.stdin.readline()
try:
    push(registry, "acme/search:1.0.0", remote)
    print(digest)
except VersionExists:
    print("VersionExists")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / f"home-{number}"), str(remote.path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    printed = [process.communicate("\n")[0].strip() for process in processes]
    assert sorted(printed)[:2] == ["VersionExists", "VersionExists"]
    assert sorted(printed)[2] == remote.resolve(parse_reference(NAME))
    assert Store(remote.path).fsck().ok


# --- damage ---


def test_flipped_bit_in_any_blob_of_the_remote_is_never_named(
    registry: Registry, remote: DirectoryRemote, tmp_path: Path
) -> None:
    publish(registry.store, NAME, [b"one", noise(100_000)])
    push(registry, NAME, remote)
    for number, path in enumerate(blob_files(remote.path)):
        here = Registry(tmp_path / f"home-{number}")
        bit = 8 * (path.stat().st_size // 2)
        flip(path, bit)
        with pytest.raises(DigestMismatch) as caught:
            pull(here, NAME, remote)
        assert caught.value.exit_code == 5
        assert here.list() == []
        assert here.store.fsck().ok
        assert not here.store.has(Digest(f"sha256:{path.name}"))
        assert not (here.store.tmp_path / f"{path.name}.part").exists()
        flip(path, bit)
        pull(here, NAME, remote)
        assert here.fsck().ok


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_blob_of_another_size_at_the_remote_is_never_named(
    registry: Registry, other: Registry, remote: DirectoryRemote, change
) -> None:
    publish(registry.store, NAME, [noise(100_000)])
    push(registry, NAME, remote)
    path = Store(remote.path).path(sha256(noise(100_000)))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DigestMismatch):
        pull(other, NAME, remote)
    assert other.list() == []
    assert not other.store.has(sha256(noise(100_000)))


def test_blob_that_is_gone_at_the_remote_is_told(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    Store(remote.path).path(sha256(PACKS[0])).unlink()
    with pytest.raises(NotFound):
        pull(other, NAME, remote)
    assert other.list() == []
    push(registry, NAME, remote)
    pull(other, NAME, remote)


def test_flipped_bit_in_any_local_blob_is_never_pushed(registry: Registry, tmp_path: Path) -> None:
    publish(registry.store, NAME, [b"one", noise(100_000)])
    for path in blob_files(registry.store.root):
        (tmp_path / path.name).mkdir()
        remote = DirectoryRemote(tmp_path / path.name)
        bit = 8 * path.stat().st_size - 3
        flip(path, bit)
        with pytest.raises(DigestMismatch) as caught:
            push(registry, NAME, remote)
        assert caught.value.exit_code == 5
        assert remote.list() == []
        assert remote.missing("acme/search", [Digest(f"sha256:{path.name}")]) == {f"sha256:{path.name}"}
        flip(path, bit)
        push(registry, NAME, remote)
        assert Store(remote.path).fsck().ok


def test_missing_local_blob_is_told_and_nothing_is_named(registry: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME, PACKS)
    registry.store.path(sha256(b"small")).unlink()
    with pytest.raises(NotFound):
        push(registry, NAME, remote)
    assert remote.list() == []


def test_pull_mends_what_fsck_found(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    digest = publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    pull(other, NAME, remote)
    for path in blob_files(other.store.root):
        flip(path, 5)
    os.truncate(other.store.path(sha256(PACKS[1])), 10)
    other.store.path(sha256(b"small")).unlink()
    assert len(other.fsck().faults) == 5
    assert pull(other, NAME, remote).moved == 5
    assert other.fsck().ok
    assert other.resolve(NAME) == digest


def test_one_damaged_blob_is_all_that_is_fetched_again(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    pull(other, NAME, remote)
    flip(other.store.path(sha256(PACKS[1])), 12345)
    report = pull(other, NAME, remote)
    assert (report.moved, report.bytes) == (1, len(PACKS[1]))
    assert other.fsck().ok


# --- hostile remotes ---


def test_manifest_that_does_not_have_its_digest_is_refused(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME)
    push(registry, NAME, remote)
    for manifest in (add_delta(registry.store, [b"other"]), b"", b"{}"):
        with pytest.raises(DigestMismatch, match="sent a manifest that is not"):
            pull(other, NAME, Altered(remote.path, manifest=manifest))
    assert blob_files(other.store.root) == []


def test_hostile_manifests_are_refused_before_any_blob_is_fetched(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    good = parse(Manifest, add_delta(registry.store, [b"a pack"]), what="test")
    plain = encode(good)
    layer = good.layers[-1]
    hostile = [
        (b" " * (5 << 20), "at most"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "nested deeper"),
        (plain.replace(b'"size":6', b'"size":' + str(2**60).encode()), "size"),
        (plain.replace(b'"size":6', b'"size":-6'), "size"),
        (plain.replace(b'"size":6', b'"size":6.5'), "size"),
        (plain.replace(sha256(b"a pack").encode(), b"sha256:../../../../etc/passwd"), "digest"),
        (plain.replace(b"delta.v1+json", b"delta.v2+json"), "artifactType"),
        (plain.replace(b'"schemaVersion":2', b'"schemaVersion":2,"schemaVersion":2'), "occurs twice"),
        (encode(good.model_copy(update={"layers": [layer, layer.model_copy(update={"size": 7})]})), "two sizes"),
    ]
    for manifest, fault in hostile:
        with pytest.raises(BadManifest, match=fault):
            pull(other, NAME, Altered(remote.path, manifest=manifest, digest=sha256(manifest)))
    assert blob_files(other.store.root) == []
    assert other.list() == []


def test_absurd_but_valid_size_is_refused_before_a_byte_is_fetched(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    good = parse(Manifest, add_delta(registry.store), what="test")
    absurd = Descriptor(media_type="x", digest=sha256(b"absent"), size=2**53 - 1)
    manifest = encode(good.model_copy(update={"layers": [absurd, good.layers[0]]}))
    with pytest.raises(DiskFull, match="9007199254"):
        pull(other, NAME, Altered(remote.path, manifest=manifest, digest=sha256(manifest)))
    assert blob_files(other.store.root) == []


def test_answer_with_another_digest_than_asked_is_refused(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    digest = publish(registry.store, NAME)
    push(registry, NAME, remote)
    with pytest.raises(DigestMismatch, match="is not what is expected"):
        pull(other, f"acme/search@{sha256(b'asked')}", Altered(remote.path, digest=digest))


def test_name_that_means_other_bytes_than_expected_by_now_brings_and_names_nothing(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    digest = publish(registry.store, NAME)
    push(registry, NAME, remote)
    with pytest.raises(DigestMismatch, match="is not what is expected") as caught:
        pull(other, NAME, remote, expected=sha256(b"what was looked at"))
    assert caught.value.data["found"] == digest
    assert blob_files(other.store.root) == []
    assert other.store.entries() == []
    assert pull(other, NAME, remote, expected=digest).digest == other.resolve(NAME) == digest


def test_bytes_beyond_the_blobs_end_are_refused(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME)
    push(registry, NAME, remote)
    with pytest.raises(DigestMismatch, match="or more bytes instead of"):
        pull(other, NAME, Altered(remote.path, extra=b"x" * 100))
    assert other.list() == []


# --- interruptions ---


def test_interrupted_push_names_nothing_and_goes_on(registry: Registry, remote: DirectoryRemote) -> None:
    digest = publish(registry.store, NAME, PACKS)
    with pytest.raises(Interrupted):
        push(registry, NAME, remote, threads=1, progress=Counted(4_000_000))
    assert remote.list() == []
    report = push(registry, NAME, remote)
    assert report.bytes < 3_000_000
    assert report.bytes + report.skipped_bytes == raw_size(registry.store, digest)
    assert Store(remote.path).fsck().ok


def test_interrupted_pull_names_nothing_and_goes_on(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    digest = publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    with pytest.raises(Interrupted):
        pull(other, NAME, remote, threads=1, progress=Counted(4_000_000))
    assert other.list() == []
    expected = pull(other, NAME, remote, dry_run=True).bytes
    report = pull(other, NAME, remote)
    assert report.bytes == expected < 3_000_000
    assert report.bytes + report.skipped_bytes == raw_size(registry.store, digest)
    assert other.fsck().ok


def test_part_that_was_damaged_meanwhile_is_fetched_anew(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    with pytest.raises(Interrupted):
        pull(other, NAME, remote, threads=1, progress=Counted(2_000_000))
    (part,) = other.store.tmp_path.glob("*.part")
    flip(part, 777)
    pull(other, NAME, remote)
    assert other.fsck().ok
    assert list(other.store.tmp_path.iterdir()) == []


def test_first_failure_ends_the_other_transfers_soon(registry: Registry, remote: DirectoryRemote) -> None:
    class Slow(Progress):
        total = 0

        def advance(self, count: int) -> None:
            self.total += count
            time.sleep(count / (20 << 20))

    packs = [noise(20 << 20, 1), noise(1000, 2)]
    publish(registry.store, NAME, packs)
    flip(registry.store.path(sha256(packs[1])))
    slow = Slow()
    with pytest.raises(DigestMismatch):
        push(registry, NAME, remote, threads=2, progress=slow)
    assert slow.total < 15 << 20


KILLED = """
import sys, time
from deltareg.catalog import Registry
from deltareg.progress import Progress
from deltareg.remote import DirectoryRemote
from deltareg import transfer

class Told(Progress):
    def advance(self, count):
        print(count, flush=True)
        time.sleep(0.002)

move, home, path = sys.argv[1:]
getattr(transfer, move)(Registry(home), "acme/search:1.0.0", DirectoryRemote(path), threads=2, progress=Told())
print("done", flush=True)
"""


def kill_after(lines: int, move: str, home: Path, remote: DirectoryRemote) -> None:
    """Run a push or a pull in a process and kill it once it told that often of its progress."""
    command = [sys.executable, "-c", KILLED, move, str(home), str(remote.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)


def test_interrupt_from_the_keyboard_ends_a_pull_soon(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME, [noise(60 << 20)])
    push(registry, NAME, remote)
    program = KILLED.replace("0.002", "0.2")
    command = [sys.executable, "-c", program, "pull", str(other.home), str(remote.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=10)
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert len(printed.splitlines()) < 20
    assert other.list() == []
    assert other.fsck().ok


@pytest.mark.parametrize("lines", [0, 1, 3, 5, 7, 9])
def test_killed_push_leaves_nothing_half_visible_and_goes_on(
    registry: Registry, remote: DirectoryRemote, lines: int
) -> None:
    digest = publish(registry.store, NAME, PACKS)
    kill_after(lines, "push", registry.home, remote)
    there = Store(remote.path)
    assert there.fsck().ok
    push(registry, NAME, remote)
    assert there.resolve(parse_reference(NAME)) == digest
    assert there.fsck().ok
    there.gc(-60)
    assert list(there.tmp_path.iterdir()) == []


@pytest.mark.parametrize("lines", [0, 1, 3, 5, 7, 9])
def test_killed_pull_leaves_nothing_half_visible_and_goes_on(
    registry: Registry, other: Registry, remote: DirectoryRemote, lines: int
) -> None:
    digest = publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    kill_after(lines, "pull", other.home, remote)
    assert other.fsck().ok
    pull(other, NAME, remote)
    assert other.resolve(NAME) == digest
    assert other.fsck().ok
    other.gc(-60)
    assert list(other.store.tmp_path.iterdir()) == []


# --- disks ---


def test_absent_remote_is_a_network_error(registry: Registry, tmp_path: Path) -> None:
    publish(registry.store, NAME)
    for move in (push, pull):
        with pytest.raises(RemoteUnavailable) as caught:
            move(registry, NAME, DirectoryRemote(tmp_path / "unmounted"))
        assert caught.value.exit_code == 6


def test_read_only_remote_takes_no_push_and_serves_a_pull(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME)
    publish(registry.store, "acme/search:2.0.0", [b"new"])
    push(registry, NAME, remote)
    with read_only(remote.path):
        with pytest.raises(NotAllowed) as caught:
            push(registry, "acme/search:2.0.0", remote)
        assert caught.value.exit_code == 4
        assert push(registry, "acme/search:2.0.0", remote, dry_run=True).moved == 1
        assert pull(other, NAME, remote).moved == 3


def test_full_remote_names_nothing(registry: Registry, tmp_path: Path) -> None:
    publish(registry.store, NAME, PACKS)
    publish(registry.store, "acme/small:1.0.0")
    with small_disk(tmp_path / "disk", 1024) as disk:
        remote = DirectoryRemote(disk)
        with pytest.raises(DiskFull):
            push(registry, NAME, remote)
        assert remote.list() == []
        assert Store(disk).fsck().ok
        push(registry, "acme/small:1.0.0", remote)


def test_full_home_names_nothing(registry: Registry, remote: DirectoryRemote, tmp_path: Path) -> None:
    publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    with small_disk(tmp_path / "disk", 1024) as disk:
        here = Registry(disk)
        with pytest.raises(DiskFull, match="are to be stored in"):
            pull(here, NAME, remote)
        assert blob_files(here.store.root) == []
    with small_disk(tmp_path / "disk", 8 * 1024) as disk:
        here = Registry(disk)
        ballast = fill(disk)
        with pytest.raises(DiskFull):
            pull(here, NAME, remote)
        assert here.list() == []
        ballast.unlink()
        pull(here, NAME, remote)
        assert here.fsck().ok


# --- upkeep meanwhile ---


def test_blob_that_was_collected_during_a_push_is_sent_again(registry: Registry, remote: DirectoryRemote) -> None:
    class Forgetful(DirectoryRemote):
        forgotten = 0

        def put_manifest(self, reference: Reference, manifest: bytes, *, if_absent: bool = True) -> Digest:
            if self.forgotten < 2:
                self.forgotten += 1
                Store(self.path).path(sha256(b"small")).unlink()
            return super().put_manifest(reference, manifest, if_absent=if_absent)

    digest = publish(registry.store, NAME, PACKS)
    forgetful = Forgetful(remote.path)
    assert push(registry, NAME, forgetful).moved == 7
    assert forgetful.forgotten == 2
    assert remote.resolve(parse_reference(NAME)) == digest


def test_collection_during_a_pull_takes_nothing_of_it(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    class Collecting(Progress):
        collected = 0

        def advance(self, count: int) -> None:
            self.collected += other.gc(-60).blobs

    publish(registry.store, NAME, PACKS)
    push(registry, NAME, remote)
    other.store.put(b"small")  # not named yet, and old: a pull that counts on it must keep it
    os.utime(other.store.path(sha256(b"small")), (1, 1))
    collecting = Collecting()
    assert pull(other, NAME, remote, progress=collecting).moved == 4
    assert collecting.collected == 0
    assert other.fsck().ok


# --- what is asked of the remote ---


class Asked(DirectoryRemote):
    """Remembers which repositories were listed."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.listed: list[str | None] = []

    def list(self, repository: str | None = None) -> list[RemoteEntry]:
        self.listed.append(repository)
        return super().list(repository)


def test_names_are_listed_once_by_a_pull_and_never_by_a_push(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    publish(registry.store, NAME)
    (tmp_path / "shared").mkdir()
    remote = Asked(tmp_path / "shared")
    push(registry, NAME, remote)
    assert remote.listed == []
    pull(other, NAME, remote)
    assert remote.listed == ["acme/search"], "it says whether the version is yanked"
    assert pull(other, "acme/search", remote).reference == NAME
    assert remote.listed == ["acme/search"] * 2


def test_first_push_into_an_empty_directory_says_that_it_makes_a_registry(
    registry: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME)
    (warning,) = push(registry, NAME, remote, dry_run=True).warnings
    assert warning.startswith(f"would make a new registry at {remote.url}")
    (warning,) = push(registry, NAME, remote).warnings
    assert warning.startswith(f"made a new registry at {remote.url}")
    assert push(registry, NAME, remote).warnings == []


def test_config_that_cannot_be_read_is_not_pulled(other: Registry, remote: DirectoryRemote) -> None:
    publish_unread(Store(remote.path), NAME, b"no JSON")
    with pytest.raises(BadManifest):
        pull(other, NAME, remote)
    assert other.store.entries() == []


# --- what is yanked ---


def yanked(registry: Registry, name: str = NAME) -> str | None:
    return registry.store.entry(parse_reference(name)).yanked


def test_a_pull_takes_over_that_a_version_is_yanked_and_why(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME)
    push(registry, NAME, remote)
    remote.yank(parse_reference(NAME), "its tokenizer is wrong")
    (warning,) = pull(other, NAME, remote, dry_run=True).warnings
    assert warning == f"{NAME} is yanked at {remote.url}: its tokenizer is wrong"
    assert other.store.entries() == []
    report = pull(other, NAME, remote)
    assert (report.warnings, yanked(other)) == ([warning], "its tokenizer is wrong")
    assert other.fsck().ok


def test_a_repeated_pull_follows_the_remote(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME)
    push(registry, NAME, remote)
    assert pull(other, NAME, remote).warnings == []
    for reason in ("first", "second"):
        remote.yank(parse_reference(NAME), reason)
        assert yanked(other) != reason
        pull(other, NAME, remote)
        assert yanked(other) == reason
    remote.unyank(parse_reference(NAME))
    assert pull(other, NAME, remote).warnings == []
    assert yanked(other) is None


def test_a_pull_by_digest_or_channel_takes_it_over_too(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    digest = publish(registry.store, NAME)
    push(registry, NAME, remote)
    remote.set_channel("acme/search", "prod", digest, None)
    remote.yank(parse_reference(NAME), "wrong")
    pull(other, f"acme/search@{digest}", remote)
    assert yanked(other) == "wrong"
    other.store.unyank(parse_reference(NAME))
    pull(other, "acme/search:prod", remote)
    assert (yanked(other), yanked(other, "acme/search:prod")) == ("wrong", None)


def test_latest_at_a_remote_is_no_yanked_version(registry: Registry, other: Registry, remote: DirectoryRemote) -> None:
    for version in ("1.0.0", "2.0.0"):
        publish(registry.store, f"acme/search:{version}", [version.encode()])
        push(registry, f"acme/search:{version}", remote)
    remote.yank(parse_reference("acme/search:2.0.0"), "wrong")
    assert pull(other, "acme/search", remote).reference == "acme/search:1.0.0"


def test_a_push_says_that_the_version_is_yanked_here_and_leaves_the_remote_to_itself(
    registry: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME)
    push(registry, NAME, remote)
    registry.store.yank(parse_reference(NAME), "wrong")
    (warning,) = push(registry, NAME, remote).warnings
    assert warning.startswith(f"{NAME} is yanked here: wrong")
    assert [entry.yanked for entry in remote.list()] == [None]
    remote.yank(parse_reference(NAME), "theirs")
    registry.store.unyank(parse_reference(NAME))
    assert push(registry, NAME, remote).warnings == []
    assert [entry.yanked for entry in remote.list()] == ["theirs"]


def test_a_pull_takes_over_what_is_deprecated_and_what_no_longer_is(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    publish(registry.store, NAME)
    push(registry, NAME, remote)
    remote.deprecate(parse_reference(NAME), "take acme/find")
    assert pull(other, NAME, remote).warnings == [f"{NAME} is deprecated at {remote.url}: take acme/find"]
    assert other.deprecated(NAME) == "take acme/find"
    remote.deprecate(parse_reference(NAME), "take acme/seek")
    pull(other, "acme/search", remote)
    assert other.deprecated(NAME) == "take acme/seek"
    remote.undeprecate(parse_reference(NAME))
    assert pull(other, NAME, remote).warnings == []
    assert other.deprecated(NAME) is None


def test_a_push_says_that_the_version_is_deprecated_here(registry: Registry, remote: DirectoryRemote) -> None:
    publish(registry.store, NAME)
    registry.store.deprecate(parse_reference(NAME), "old")
    warnings = push(registry, NAME, remote).warnings
    assert warnings[0].startswith(f"{NAME} is deprecated here: old; ")
    assert "deltareg deprecate --remote" in warnings[0]
    assert [entry.deprecated for entry in remote.list()] == [None]


class Boasting(DirectoryRemote):
    """A remote that gives anything for a reason."""

    reason = ""

    def list(self, repository: str | None = None) -> list[RemoteEntry]:
        return [replace(entry, yanked=self.reason) for entry in super().list(repository)]


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("", "no reason is given"),
        ("\n\0\x1b", "no reason is given"),
        ("a\x1b[31mb\nc", "a [31mb c"),
        ("x" * 10_000_000, "x" * 1000),
    ],
    ids=["nothing", "controls alone", "controls", "ten million"],
)
def test_a_reason_from_a_remote_is_one_line_of_bounded_length_here(
    registry: Registry, other: Registry, remote: DirectoryRemote, reason: str, kept: str
) -> None:
    publish(registry.store, NAME)
    push(registry, NAME, remote)
    boasting = Boasting(remote.path)
    boasting.reason = reason
    report = pull(other, NAME, boasting)
    assert yanked(other) == kept
    assert report.warnings == [f"{NAME} is yanked at {remote.url}: {kept}"]


# --- what stands on something else ---


def stacked(registry: Registry, *requires: Requirement) -> str:
    """acme/above:1.0.0 requires these."""
    registry.store.publish(
        parse_reference("acme/above:1.0.0"), add_delta(registry.store, [b"above"], requires=requires)
    )
    return "acme/above:1.0.0"


def test_pull_and_push_say_what_a_delta_stands_on_that_is_not_there(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    below = publish(registry.store, NAME)
    above = stacked(registry, Requirement(reference="acme/search", version="1.0.0", digest=below))
    told = f"{above} was taken on top of acme/search 1.0.0 ({below}), which "
    (warning, _) = sorted(push(registry, above, remote).warnings)
    assert warning == f"{told}{remote.url} lacks: push that too"
    assert pull(other, above, remote).warnings == [
        f"{told}is not here: deltareg pull acme/search:1.0.0 --remote {remote.url}"
    ]
    push(registry, NAME, remote)
    assert push(registry, above, remote).warnings == []
    pull(other, NAME, remote)
    assert pull(other, above, remote).warnings == []


def test_other_bytes_and_other_versions_are_not_what_a_delta_stands_on(
    registry: Registry, other: Registry, remote: DirectoryRemote
) -> None:
    below = publish(registry.store, NAME)
    above = stacked(
        registry,
        Requirement(reference="acme/search", version="1.0.0", digest=below),
        Requirement(reference="acme/more", version="^1.2"),
        Requirement(reference="acme/any"),
    )
    push(registry, above, remote)
    publish(other.store, NAME, [b"other bytes"])
    publish(other.store, "acme/more:1.1.0")
    publish(other.store, "acme/any:0.1.0")
    first, second = pull(other, above, remote).warnings
    assert "acme/search 1.0.0" in first
    assert second.endswith(f"acme/more ^1.2, which is not here: deltareg pull acme/more:VERSION --remote {remote.url}")
    publish(other.store, "acme/more:1.9.0")
    assert len(pull(other, above, remote).warnings) == 1
