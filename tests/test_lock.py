"""Locks hold what was found, and vouch for themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltareg.errors import BadLock, DeltaregError, DiskFull, LockStale, UnsupportedFormat
from deltareg.lock import Lock, LockedBase, LockedDelta, lock_bytes, parse_lock, read_lock, write_lock
from deltareg.manifest import Exactness
from tests.disks import fill, small_disk

DIGEST = "sha256:" + "1f" * 32


def lock_of(number: int = 1) -> Lock:
    deltas = [
        LockedDelta(
            reference=f"acme/delta-{place}:1.2.0",
            digest=DIGEST,
            remote="team",
            wanted="^1.2",
            weight=[0.5, 1.0],
            where={"mlp": 0.25, "attention": 1.0},
            exactness=Exactness(),
            size=1024,
        )
        for place in range(number)
    ]
    return Lock(
        producer="deltareg 0",
        recipe=DIGEST,
        base=LockedBase(location="./bäse", fingerprint=DIGEST),
        method="ties",
        parameters={"density": {"*": 0.5, "mlp": 0.25}, "normalize": True},
        seed=7,
        side_files="post",
        deltas=deltas,
    )


def test_a_lock_reads_back_and_writes_the_same_bytes(tmp_path: Path) -> None:
    lock = lock_of(2)
    write_lock(lock, tmp_path / "deltareg.lock")
    data = (tmp_path / "deltareg.lock").read_bytes()
    again = read_lock(tmp_path / "deltareg.lock")
    assert again == lock
    assert again.parameters["normalize"] is True
    assert lock_bytes(again) == data == lock_bytes(lock_of(2))
    # Selectors keep their order: the last that matches counts.
    assert list(again.deltas[0].where) == ["mlp", "attention"]
    assert "bäse" in data.decode() and data.endswith(b"}\n")
    assert list(json.loads(data))[-1] == "checksum"
    assert os.listdir(tmp_path) == ["deltareg.lock"]


def test_unknown_fields_are_kept() -> None:
    lock = Lock.model_validate({**lock_of().model_dump(mode="json", exclude_none=True), "later": {"a": 1}})
    assert json.loads(lock_bytes(parse_lock(lock_bytes(lock))))["later"] == {"a": 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"acme/delta-0", b"acme/delta-9"),
        (b'"seed": 7', b'"seed": 8'),
        (b"1f1f", b"1f2f"),
        (b'"checksum"', b'"checksun"'),
    ],
)
def test_an_edit_by_hand_is_refused(before: bytes, after: bytes) -> None:
    data = lock_bytes(lock_of())
    assert before in data
    with pytest.raises(BadLock) as caught:
        parse_lock(data.replace(before, after, 1))
    assert "deltareg lock" in str(caught.value.hint)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff", b"null", b"[" * 1000, b'{"a": NaN}'])
def test_what_is_no_lock_is_refused(data: bytes) -> None:
    with pytest.raises(BadLock):
        parse_lock(data)


def test_every_cut_of_a_lock_is_refused() -> None:
    data = lock_bytes(lock_of())
    for end in range(0, len(data) - 2, 7):
        with pytest.raises(BadLock):
            parse_lock(data[:end])


def test_the_marks_of_a_merge_are_told() -> None:
    line = b'  "seed": 7,\n'
    data = lock_bytes(lock_of()).replace(line, b"<<<<<<< mine\n" + line + b"=======\n" + line + b">>>>>>> theirs\n")
    with pytest.raises(BadLock, match="two versions that are to be merged"):
        parse_lock(data)


def test_a_newer_format_is_named() -> None:
    with pytest.raises(UnsupportedFormat, match="version 2"):
        parse_lock(lock_bytes(lock_of()).replace(b'"formatVersion": 1', b'"formatVersion": 2'))


def test_what_lies_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(LockStale, match="there is no lock"):
        read_lock(tmp_path / "deltareg.lock")
    with pytest.raises(DeltaregError, match="could not read the lock"):
        read_lock(tmp_path)


def test_a_full_disk_leaves_the_old_lock(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        write_lock(lock_of(), disk / "deltareg.lock")
        ballast = fill(disk)
        with pytest.raises(DiskFull):
            write_lock(lock_of(400), disk / "deltareg.lock")
        assert read_lock(disk / "deltareg.lock") == lock_of()
        assert {path.name for path in disk.iterdir()} == {"deltareg.lock", ballast.name}


def test_a_writer_that_is_killed_leaves_a_whole_lock(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.lock"
    write_lock(lock_of(1), path)
    program = (
        "import sys; from pathlib import Path; from deltareg.lock import write_lock\n"
        "from tests.test_lock import lock_of\n"
        "one, two = lock_of(1), lock_of(300)\n"
        "print('ready', flush=True)\n"
        "while True: write_lock(two, Path(sys.argv[1])); write_lock(one, Path(sys.argv[1]))\n"
    )
    for moment in (0.011, 0.023, 0.037):
        with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            time.sleep(moment)
            writer.send_signal(signal.SIGKILL)
        assert len(read_lock(path).deltas) in (1, 300)


def test_a_lock_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    real = tmp_path / "real.lock"
    write_lock(lock_of(), real)
    real.chmod(0o640)
    (tmp_path / "deltareg.lock").symlink_to(real)
    write_lock(lock_of(2), tmp_path / "deltareg.lock")
    assert (tmp_path / "deltareg.lock").is_symlink()
    assert len(read_lock(real).deltas) == 2
    assert real.stat().st_mode & 0o777 == 0o640
