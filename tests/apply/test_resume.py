"""Going on where a run was killed: what is taken over was read again, and the output is that of one run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import Registry
from deltareg.apply import ApplyReport
from deltareg.digest import Digest
from deltareg.errors import DeltaregError, DigestMismatch, DiskFull, NotAllowed, OutputExists
from deltareg.progress import Progress
from tests.apply.killed import killed_after, killed_at
from tests.deltas import flip
from tests.disks import fill, small_disk
from tests.weights import Pair

HALF = {"acme/llama:1.0.0": 0.5}


def files(path: Path) -> dict[str, bytes]:
    """All files of a directory."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def staged(out: Path) -> list[Path]:
    """What runs to `out` have left beside it."""
    return sorted(out.parent.glob(f".{out.name}.deltareg-*"))


class Build:
    """One apply, to be killed and gone on with."""

    def __init__(self, pair: Pair, registry: Registry, place: Path) -> None:
        self.base = pair.base
        self.registry = registry
        self.out = place / "out"
        deltareg.apply(pair.base, HALF, registry, place / "whole")
        self.whole = files(place / "whole")
        shutil.rmtree(place / "whole")

    def run(self, progress: Progress | None = None, **options: Any) -> ApplyReport:
        """Apply, going on with what is there."""
        settings = {"resume": True, "threads": 2, "progress": progress or Progress(), **options}
        return deltareg.apply(self.base, HALF, self.registry, self.out, **settings)

    def kill(self, report: int, **options: Any) -> Path:
        """Kill a run at a report of its progress; the directory that it left."""
        assert killed_at(lambda progress: self.run(progress, **options), report)
        (left,) = staged(self.out)
        return left


class Interrupting(Progress):
    """Interrupts the run at its 30th report."""

    left = 30

    def advance(self, count: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture
def build(tmp_path: Path, llama: Registry, small_llama: Pair) -> Build:
    """The generated pair, half of its delta."""
    return Build(small_llama, llama, tmp_path)


def finished(left: Path) -> list[str]:
    """The tensors that a journal calls finished."""
    lines = [json.loads(line) for path in left.glob(".journal-*") for line in path.read_bytes().split(b"\n") if line]
    return [line["tensor"] for line in lines if "tensor" in line]


# --- kills --------------------------------------------------------------------------------------------------------


def test_fifty_kills_at_random_times_leave_the_same_bytes_or_none(build: Build) -> None:
    chance = random.Random(7)
    started = time.monotonic()
    build.run()
    whole = time.monotonic() - started
    shutil.rmtree(build.out)
    kills = ends = 0
    while kills < 50:
        assert ends < 1000, "every run came to its end before it was killed"
        if killed_after(build.run, chance.uniform(0, 1.2 * whole)):
            kills += 1
        else:
            ends += 1
        if build.out.exists():  # it was killed after its last rename, or not at all
            assert files(build.out) == build.whole
            shutil.rmtree(build.out)
    build.run()
    assert files(build.out) == build.whole
    assert os.listdir(build.out.parent) == ["out"]


def test_what_a_killed_run_has_finished_is_not_done_again(build: Build) -> None:
    left = build.kill(report=30)
    before = finished(left)
    assert len(before) > 5
    report = build.run()
    # What has overwrites is always done again: the report counts those that fit the target.
    again = {one.name for one in build.registry.artifact("acme/llama:1.0.0").inventory.tensors if one.overwritten}
    assert again
    assert report.resumed_tensors == len({*before} - again)
    assert files(build.out) == build.whole
    assert staged(build.out) == []


def test_run_is_killed_again_and_again_until_it_ends(build: Build) -> None:
    # What no delta changes is copied anew by every run, and takes some of its reports.
    taken: list[int] = []
    reports = 8
    while killed_at(build.run, reports):
        taken.append(len(set(finished(staged(build.out)[0]))))
        reports += 8
    assert taken == sorted(taken) and len(set(taken)) > 3
    assert files(build.out) == build.whole


def test_failure_keeps_what_was_finished_for_the_next_run(build: Build) -> None:
    with pytest.raises(KeyboardInterrupt):
        build.run(Interrupting())
    assert len(staged(build.out)) == 1 and not build.out.exists()
    assert build.run().resumed_tensors > 5
    assert files(build.out) == build.whole


def test_other_number_of_threads_goes_on_as_well(build: Build) -> None:
    build.kill(report=30, threads=1)
    assert build.run(threads=3).resumed_tensors > 5
    assert files(build.out) == build.whole


def test_run_that_cannot_make_its_files_keeps_what_the_killed_one_had_finished(build: Build) -> None:
    left = build.kill(report=30)
    count = len(set(finished(left)))
    shard = sorted(left.glob("*.safetensors"))[-1]
    shard.rename(build.out.parent / "aside")
    shard.mkdir()
    for _ in range(2):
        with pytest.raises(DeltaregError):
            build.run()
        assert staged(build.out) == [left] and not build.out.exists()
    shard.rmdir()
    (build.out.parent / "aside").rename(shard)
    assert 5 < build.run().resumed_tensors <= count
    assert files(build.out) == build.whole


def test_run_for_which_the_disk_is_too_full_keeps_what_the_killed_one_had_finished(build: Build) -> None:
    where = build.out.parent
    with small_disk(where / "disk", 2 * sum(map(len, build.whole.values())) // 1024) as disk:
        build.out = disk / "out"
        left = build.kill(report=30)
        sorted(left.glob("*.safetensors"))[-1].unlink()
        ballast = fill(disk)
        with pytest.raises(DiskFull):
            build.run()
        assert staged(build.out) == [left]
        ballast.unlink()
        assert build.run().resumed_tensors > 5
        assert files(build.out) == build.whole


# --- nothing is assumed -------------------------------------------------------------------------------------------


def test_damaged_bytes_of_a_finished_tensor_are_written_again(build: Build) -> None:
    left = build.kill(report=30)
    count = len(set(finished(left)))
    for shard in left.glob("*.safetensors"):
        size = shard.stat().st_size
        for byte in range(size // 100, size, size // 7):
            flip(shard, 8 * byte)
    assert build.run().resumed_tensors < count
    assert files(build.out) == build.whole


@pytest.mark.parametrize("damage", ["cut", "text", "other digests", "bytes", "deep", "not covering"])
def test_damaged_journal_is_not_believed(build: Build, damage: str) -> None:
    left = build.kill(report=30)
    (path,) = left.glob(".journal-*")
    data = path.read_bytes()
    lines = data.split(b"\n")
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "text": b"\n".join([*lines[:3], b'{"tensor": 3, "blocks": {}}', b"[]", b"null", *lines[3:]]),
            "other digests": data.replace(b"a", b"b"),
            "bytes": os.urandom(len(data)),
            "deep": lines[1] + b"\n" + b"[" * 100_000,
            "not covering": lines[1] + b'\n{"tensor": "model.norm.weight", "blocks": [[0, 1, "00"], [5, -3, "0"]]}\n',
        }[damage]
    )
    build.run()
    assert files(build.out) == build.whole


def test_file_that_was_removed_or_cut_is_written_again(build: Build) -> None:
    left = build.kill(report=30)
    first, *_, last = sorted(left.glob("*.safetensors"))
    first.unlink()
    os.truncate(last, 100)
    build.run()
    assert files(build.out) == build.whole


def test_another_job_is_begun_anew(build: Build) -> None:
    build.kill(report=30)
    report = deltareg.apply(build.base, {"acme/llama:1.0.0": 0.75}, build.registry, build.out, resume=True)
    assert report.resumed_tensors == 0
    assert staged(build.out) == []


def test_another_density_of_one_delta_is_another_job(build: Build) -> None:
    def run(density: float, progress: Progress | None = None) -> ApplyReport:
        return deltareg.apply(
            build.base,
            [("acme/llama:1.0.0", 0.5, {"density": density})],
            build.registry,
            build.out,
            method="ties",
            parameters={"trim": "tensor"},
            resume=True,
            progress=progress or Progress(),
        )

    for density, goes_on in ((0.4, False), (0.3, True)):
        with pytest.raises(KeyboardInterrupt):
            run(0.3, Interrupting())
        assert (run(density).resumed_tensors > 0) == goes_on
        shutil.rmtree(build.out)


def test_target_that_was_written_to_is_another_job(tmp_path: Path, build: Build) -> None:
    target = tmp_path / "target"
    shutil.copytree(build.base, target)
    build.base = target
    build.kill(report=30)
    os.utime(sorted(target.glob("*.safetensors"))[0], ns=(1, 1))
    assert build.run().resumed_tensors == 0


def test_target_that_was_swapped_for_another_of_the_same_times_is_another_job(tmp_path: Path, build: Build) -> None:
    target = tmp_path / "target"
    shutil.copytree(build.base, target)
    build.base = target
    files_ = sorted(target.glob("*.safetensors"))
    for file in files_:
        os.utime(file, ns=(0, 0))
    build.kill(report=30)
    data = bytearray(files_[0].read_bytes())
    data[-1] ^= 1
    files_[0].write_bytes(data)
    os.utime(files_[0], ns=(0, 0))
    assert build.run().resumed_tensors == 0


def test_what_was_laid_beside_the_shards_does_not_become_a_part_of_the_output(build: Build) -> None:
    left = build.kill(report=30)
    (left / "pytorch_model.bin").write_bytes(b"code")
    (left / "nested").mkdir()
    (left / "nested" / "modeling.py").touch()
    assert build.run().resumed_tensors > 5
    assert files(build.out) == build.whole


def test_shard_that_is_a_link_to_elsewhere_is_not_written_through(tmp_path: Path, build: Build) -> None:
    left = build.kill(report=30)
    shard = sorted(left.glob("*.safetensors"))[0]
    elsewhere = tmp_path / "mine"
    elsewhere.write_bytes(b"mine")
    shard.unlink()
    shard.symlink_to(elsewhere)
    with pytest.raises(DeltaregError):
        build.run()
    assert elsewhere.read_bytes() == b"mine"
    assert not build.out.exists()
    shard.unlink()
    os.link(elsewhere, shard)
    with pytest.raises(NotAllowed):
        build.run()
    assert elsewhere.read_bytes() == b"mine"


@pytest.mark.parametrize("journal", ["pipe", "directory", "link"])
def test_journal_that_is_no_file_is_passed_over(build: Build, journal: str) -> None:
    left = build.kill(report=30)
    (path,) = left.glob(".journal-*")
    path.rename(left.parent / "journal")
    if journal == "pipe":
        os.mkfifo(path)
    elif journal == "directory":
        path.mkdir()
    else:
        path.symlink_to(left.parent / "journal")
    assert build.run().resumed_tensors == 0
    assert files(build.out) == build.whole


def test_directory_that_everybody_may_write_to_is_not_gone_on_with(build: Build) -> None:
    build.kill(report=30).chmod(0o777)
    assert build.run().resumed_tensors == 0
    assert files(build.out) == build.whole


def test_refused_run_leaves_what_can_be_gone_on_with(build: Build) -> None:
    deltareg.apply(build.base, {"acme/llama:1.0.0": 0.25}, build.registry, build.out)
    build.kill(report=30, overwrite=True)
    with pytest.raises(OutputExists):
        build.run(resume=False)
    assert build.run(overwrite=True).resumed_tensors > 5
    assert files(build.out) == build.whole


def test_report_counts_the_bytes_that_were_written(build: Build) -> None:
    build.kill(report=30)
    report = build.run()
    assert 0 < report.bytes_written < report.output_bytes


def test_without_resume_a_run_begins_anew(build: Build) -> None:
    build.kill(report=30)
    assert build.run(resume=False).resumed_tensors == 0
    assert files(build.out) == build.whole
    assert staged(build.out) == []


def test_living_run_is_not_gone_on_with(build: Build) -> None:
    class Second(Progress):
        report: ApplyReport | None = None

        def advance(self, count: int) -> None:
            if self.report is None and self.left == 0:
                self.report = build.run()
            self.left -= 1

        left = 20

    other = Second()
    with pytest.raises(OutputExists):  # the second was faster
        build.run(other, threads=1)
    assert other.report is not None and other.report.resumed_tensors == 0
    assert files(build.out) == build.whole


def test_nothing_made_of_a_damaged_pack_is_taken_over(tmp_path: Path, build: Build) -> None:
    shutil.copytree(build.registry.home, tmp_path / "home")
    build.registry = Registry(tmp_path / "home")
    pack = build.registry.store.path(Digest(build.registry.artifact("acme/llama:1.0.0").packs[0].digest))
    sound = pack.read_bytes()
    flip(pack, 8 * (len(sound) // 2))
    with pytest.raises(DigestMismatch):
        build.run()
    assert staged(build.out) == []
    pack.write_bytes(sound)
    assert build.run().resumed_tensors == 0
    assert files(build.out) == build.whole


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers as it does for a directory on NFS: an exclusive lock takes a file that is open for writing."""
    real = fcntl.flock

    def flock(file: int, kind: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)


def about_locks(report: ApplyReport) -> list[str]:
    """The warnings that speak of locks."""
    return [warning for warning in report.warnings if "locks" in warning]


@pytest.mark.usefixtures("without_locks")
def test_where_directories_have_no_locks_a_run_says_that_it_began_anew(build: Build) -> None:
    report = build.run()
    (told,) = about_locks(report)
    assert f"{build.out.parent} has no locks on directories" in told and "remove" not in told
    assert files(build.out) == build.whole
    shutil.rmtree(build.out)
    left = build.kill(report=30)
    report = build.run()
    assert report.resumed_tensors == 0
    (told,) = about_locks(report)
    assert told.endswith(
        f"began anew, and none will go on with it; remove what others have left, once none of "
        f"them is at work: {left.name}"
    )
    assert files(build.out) == build.whole
    assert staged(build.out) == [left], "another run may be at work in it"


@pytest.mark.usefixtures("without_locks")
def test_where_directories_have_no_locks_a_failed_run_leaves_nothing_for_a_next_one(build: Build) -> None:
    with pytest.raises(KeyboardInterrupt):
        build.run(Interrupting())
    assert staged(build.out) == []
    assert about_locks(build.run(resume=False)) == []


def test_where_directories_have_locks_nothing_is_said_of_them(build: Build) -> None:
    build.kill(report=30)
    assert about_locks(build.run()) == []


def test_small_output_has_no_journal_unless_it_is_asked_for(build: Build) -> None:
    assert list(build.kill(report=30, resume=False).glob(".journal-*")) == []
