"""Blobs: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3

from deltareg.digest import Digest, sha256
from deltareg.errors import BadManifest, BadName, DigestMismatch, DiskFull, NotAllowed, NotFound
from deltareg.manifest import BLAKE3, Descriptor
from deltareg.progress import Progress
from deltareg.store import Store
from tests.deltas import blob_files, descriptor, flip, noise
from tests.disks import fill, read_only, small_disk

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def temporary_files(store: Store) -> list[str]:
    return sorted(path.name for path in store.tmp_path.iterdir())


def test_stored_bytes_are_found_by_their_digest(store: Store) -> None:
    digest = store.put(b"bytes")
    assert digest == sha256(b"bytes")
    assert store.has(digest)
    assert store.size(digest) == 5
    assert store.path(digest).read_bytes() == store.read(digest) == b"bytes"


def test_storing_again_keeps_the_file_and_counts_as_new(store: Store) -> None:
    path = store.path(store.put(b"bytes"))
    os.utime(path, (1, 1))
    before = path.stat()
    store.put(b"bytes")
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime > 1


def test_storing_again_mends_a_damaged_copy(store: Store) -> None:
    digest = store.put(b"bytes")
    flip(store.path(digest))
    store.put(b"bytes")
    assert store.read(digest) == b"bytes"


def test_absent_blob_is_not_found(store: Store) -> None:
    digest = sha256(b"absent")
    assert not store.has(digest)
    for ask in (store.path, store.size, store.read, lambda asked: list(store.chunks(asked))):
        with pytest.raises(NotFound, match="is not in"):
            ask(digest)


@pytest.mark.parametrize("bit", range(8 * 5))
def test_read_refuses_a_blob_with_any_bit_flipped(store: Store, bit: int) -> None:
    digest = store.put(b"bytes")
    flip(store.path(digest), bit)
    with pytest.raises(DigestMismatch) as caught:
        store.read(digest)
    assert caught.value.exit_code == 5


def test_read_refuses_a_blob_beyond_its_limit_before_reading_it(store: Store) -> None:
    digest = sha256(b"")
    with store.place(digest).open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(BadManifest, match="at most 100 are read"):
        store.read(digest, limit=100)


def test_verify_tells_truncated_and_damaged_blobs(store: Store) -> None:
    data = noise(3 << 20)
    digest = store.put(data)
    store.verify(descriptor(data))
    flip(store.path(digest), 8 * (2 << 20))
    with pytest.raises(DigestMismatch, match="not those of"):
        store.verify(descriptor(data))
    os.truncate(store.path(digest), 100)
    with pytest.raises(DigestMismatch, match=f"100 bytes instead of {len(data)}"):
        store.verify(descriptor(data))


@pytest.mark.parametrize("text", ["sha256:../../../etc/passwd", "sha256:" + "A" * 64, "sha512:" + "0" * 64, "x", ""])
def test_only_digests_become_paths(store: Store, text: str) -> None:
    with pytest.raises(BadName, match="not a digest"):
        store.path(Digest(text))
    with pytest.raises(BadName, match="not a digest"):
        store.missing([Digest(text)])


def test_link_or_pipe_in_a_blobs_place_is_no_blob(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    store.place(sha256(b"secret")).symlink_to(secret)
    os.mkfifo(store.place(sha256(b"pipe")))
    for digest in (sha256(b"secret"), sha256(b"pipe")):
        assert not store.has(digest)
        with pytest.raises(NotFound):
            store.read(digest)


def test_written_blob_appears_with_commit_and_not_before(store: Store) -> None:
    with store.writer() as writer:
        writer.write(b"some ")
        writer.write(bytearray(b"bytes"))
        assert blob_files(store.root) == []
        assert writer.commit() == (sha256(b"some bytes"), 10)
    assert store.read(sha256(b"some bytes")) == b"some bytes"
    assert temporary_files(store) == []


def test_abandoned_writer_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.write(b"bytes")
        raise RuntimeError
    assert blob_files(store.root) == []
    assert temporary_files(store) == []


def test_finished_file_is_adopted(store: Store) -> None:
    path = store.scratch(".safetensors")
    path.write_bytes(b"a pack")
    store.adopt(path, sha256(b"a pack"))
    assert store.read(sha256(b"a pack")) == b"a pack"
    assert temporary_files(store) == []


def test_interrupted_blob_goes_on_where_it_stopped(store: Store) -> None:
    data = noise(100_000)
    with pytest.raises(RuntimeError), store.resume(descriptor(data)) as writer:
        writer.write(data[:70_000])
        raise RuntimeError
    assert not store.has(sha256(data))
    assert store.kept(descriptor(data)) == 70_000
    asked: list[int] = []

    def pieces(offset: int) -> list[bytes]:
        asked.append(offset)
        return [data[offset:]]

    with store.resume(descriptor(data)) as writer:
        assert writer.fill(pieces, Progress(), origin="test") == 30_000
        writer.commit()
    assert asked == [70_000]
    assert store.read(sha256(data)) == data


@pytest.mark.parametrize("kept", [b"wrong", b"wrong" * 20_000, b"wrong" * 30_000])
def test_kept_bytes_that_are_wrong_are_written_anew(store: Store, kept: bytes) -> None:
    data = noise(100_000)
    with store.resume(descriptor(data)) as writer:
        writer.write(kept)
    with store.resume(descriptor(data)) as writer:
        writer.fill(lambda offset: [data[offset:]], Progress(), origin="test")
        writer.commit()
    assert store.read(sha256(data)) == data


@pytest.mark.parametrize("sent", [b"", b"shorter", b"other bytes of that size"[:20], b"longer than what was announced"])
def test_other_bytes_than_announced_leave_nothing(store: Store, sent: bytes) -> None:
    expected = descriptor(b"twenty bytes of text")
    with pytest.raises(DigestMismatch, match="somewhere"), store.resume(expected) as writer:
        writer.fill(lambda offset: [sent[offset:]], Progress(), origin="somewhere")
    assert blob_files(store.root) == []
    assert temporary_files(store) == []


def test_endless_stream_is_cut_at_the_announced_size(store: Store) -> None:
    asked = 0

    def endless(offset: int):
        nonlocal asked
        while True:
            asked += 1
            yield b"\0" * 1000

    with (
        pytest.raises(DigestMismatch, match="or more bytes instead of 5000"),
        store.resume(descriptor(noise(5000))) as writer,
    ):
        writer.fill(endless, Progress(), origin="somewhere")
    assert asked == 6


def test_two_writers_of_one_blob_both_succeed(store: Store) -> None:
    data = noise(10_000)
    with store.resume(descriptor(data)) as first, store.resume(descriptor(data)) as second:
        first.write(data[:6000])
        second.write(data)
        second.commit()
        first.write(data[6000:])
        first.commit()
    assert store.read(sha256(data)) == data
    assert temporary_files(store) == []


def test_killed_writer_leaves_nothing_visible_and_the_next_goes_on(store: Store) -> None:
    data = noise(3 << 20)
    program = """
import sys, time
from pathlib import Path
from deltareg.store import Store
from tests.deltas import descriptor, noise
data = noise(3 << 20)
with Store(Path(sys.argv[1])).resume(descriptor(data)) as writer:
    writer.write(data[: 2 << 20])
    print("written", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert blob_files(store.root) == []
    with store.resume(descriptor(data)) as writer:
        assert writer.offset == 2 << 20
        assert writer.fill(lambda offset: [data[offset:]], Progress(), origin="test") == 1 << 20
        writer.commit()
    assert store.read(sha256(data)) == data


def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        store = Store(disk / "store")
        data = noise(1 << 20)
        with pytest.raises(DiskFull, match="No space left"):
            store.put(data)
        with pytest.raises(DiskFull, match="No space left"), store.resume(descriptor(data)) as writer:
            writer.write(data)
        assert blob_files(store.root) == []
        assert temporary_files(store) == []
        assert store.read(store.put(b"small enough")) == b"small enough"


def test_disk_that_fills_before_the_first_byte_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        store = Store(disk / "store")
        fill(disk)
        with pytest.raises(DiskFull):
            store.put(b"bytes")
        assert blob_files(store.root) == []


def test_read_only_store_is_read_and_not_written(store: Store) -> None:
    digest = store.put(b"bytes")
    with read_only(store.root):
        again = Store(store.root)
        assert again.read(digest) == b"bytes"
        with pytest.raises(NotAllowed) as caught:
            again.put(b"other")
        assert caught.value.exit_code == 4


# --- a second digest ----------------------------------------------------------------------------------------------


def _described(store: Store, data: bytes, blake: str) -> Descriptor:
    digest = store.put(data)
    return Descriptor(media_type="x/y", digest=digest, size=len(data), annotations={BLAKE3: blake})


def test_quick_digest_is_compared_alone(store: Store) -> None:
    data = bytes(range(256)) * 9000
    descriptor = _described(store, data, blake3(data).hexdigest())
    store.verify(descriptor, quick=True)
    store.verify(descriptor)
    place = store.place(descriptor.digest)
    for at in (0, len(data) // 2, len(data) - 1):
        place.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        for quick in (True, False):
            with pytest.raises(DigestMismatch):
                store.verify(descriptor, quick=quick)
    place.write_bytes(data[:-1])
    with pytest.raises(DigestMismatch):
        store.verify(descriptor, quick=True)


def test_sound_blob_with_the_quick_digest_of_another_is_no_damage(store: Store) -> None:
    descriptor = _described(store, b"these", blake3(b"those").hexdigest())
    store.verify(descriptor)
    with pytest.raises(BadManifest, match="another BLAKE3 digest"):
        store.verify(descriptor, quick=True)


@pytest.mark.parametrize("fault", ["", "x" * 64, "A" * 64, "a" * 63, "blake3:" + "a" * 64, "a" * 64 + "\n", "a" * 9999])
def test_quick_digest_that_is_none_is_refused(store: Store, fault: str) -> None:
    descriptor = _described(store, b"these", fault)
    with pytest.raises(BadManifest, match="no digest"):
        store.verify(descriptor, quick=True)


def test_without_a_quick_digest_the_name_is_compared(store: Store) -> None:
    descriptor = Descriptor(media_type="x/y", digest=store.put(b"these"), size=5)
    store.verify(descriptor, quick=True)
    store.place(descriptor.digest).write_bytes(b"those")
    with pytest.raises(DigestMismatch):
        store.verify(descriptor, quick=True)
