from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from deltareg.checkpoint import DTYPES, Checkpoint, CheckpointWriter, Job, ShardPlan, Tensor, TensorInfo, encode_header
from deltareg.errors import (
    BadCheckpoint,
    BadHeader,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    OutputExists,
    UnsupportedFormat,
)
from deltareg.progress import Progress
from tests import disks
from tests.checkpoint.samples import tensors, write_model, write_sharded

PLAN = [ShardPlan("model.safetensors", (("a", "F32", (4,)), ("b", "U8", (3,))), {"format": "pt"})]
A = np.arange(4, dtype=np.float32)
B = np.array([1, 2, 3], np.uint8)


def write(out: Path, first: float = 0, **options: Any) -> None:
    """The smallest checkpoint; `first` is the first value in it."""
    with CheckpointWriter(out, PLAN, **options) as writer:
        writer.write("a", 0, A + np.float32(first))
        writer.write("b", 0, B)
        writer.commit()


def first_of(out: Path) -> float:
    return float(load_file(out / "model.safetensors")["a"][0])


def plans_of(checkpoint: Checkpoint) -> list[ShardPlan]:
    """The layout of a checkpoint, to be written once more."""
    return [
        ShardPlan(
            shard.file,
            tuple((name, checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape) for name in shard.tensors),
            shard.metadata,
        )
        for shard in checkpoint.shards
    ]


# --- what is written ----------------------------------------------------------------------------------------------


def test_written_file_is_loaded_by_safetensors(tmp_path: Path) -> None:
    write(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(found["a"], A)
    assert np.array_equal(found["b"], B)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]


@pytest.mark.parametrize("make", [write_model, write_sharded])
def test_copy_of_a_checkpoint_has_the_same_tensors(tmp_path: Path, make: Any) -> None:
    with (
        Checkpoint.open(make(tmp_path / "base")) as base,
        CheckpointWriter(tmp_path / "out", plans_of(base)) as writer,
    ):
        for name, tensor in base.tensors.items():
            writer.copy(name, tensor)
        writer.add_file("1_Pooling/config.json", b"{}")
        writer.commit()
    with Checkpoint.open(tmp_path / "out") as out:
        assert {name: tensor.read() for name, tensor in out.tensors.items()} == {
            name: array.tobytes() for name, array in tensors().items()
        }
        assert out.side_files == (Path("1_Pooling/config.json"),)
        assert out.shards[0].metadata == {"format": "pt"}
        found: dict[str, Any] = {}
        for shard in out.shards:
            found |= load_torch(tmp_path / "out" / shard.file)
    assert found["scale"].item() == 2.5


def test_index_lists_every_tensor_sorted(tmp_path: Path) -> None:
    plans = [ShardPlan("model-00001-of-00002.safetensors", (("z", "I64", (2,)), ("b", "U8", (3,))))]
    plans += [ShardPlan("model-00002-of-00002.safetensors", (("é", "F32", ()), ("a", "BF16", (0, 3))))]
    with CheckpointWriter(tmp_path / "out", plans) as writer:
        for name, size in (("z", 16), ("b", 3), ("é", 4)):
            writer.write(name, 0, bytes(size))
        writer.commit()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    assert index["metadata"] == {"total_size": 23}
    assert list(index["weight_map"].items()) == [
        ("a", "model-00002-of-00002.safetensors"),
        ("b", "model-00001-of-00002.safetensors"),
        ("z", "model-00001-of-00002.safetensors"),
        ("é", "model-00002-of-00002.safetensors"),
    ]
    Checkpoint.open(tmp_path / "out").close()


def test_every_dtype_is_written(tmp_path: Path) -> None:
    plan = ShardPlan("model.safetensors", tuple((name, name, (8,)) for name in DTYPES))
    with CheckpointWriter(tmp_path / "out", [plan]) as writer:
        for name, dtype in DTYPES.items():
            writer.write(name, 0, bytes(range(dtype.bits)))
        writer.commit()
    with Checkpoint.open(tmp_path / "out") as found:
        for name, tensor in found.tensors.items():
            assert (tensor.dtype, tensor.read()) == (name, bytes(range(DTYPES[name].bits)))


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_many_threads_write_parts_of_one_tensor(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_000_001)
    plan = ShardPlan("model.safetensors", (("w", "U8", (len(content),)),))
    with CheckpointWriter(tmp_path / "out", [plan]) as writer, ThreadPoolExecutor(4) as pool:
        starts = list(range(0, len(content), 9973))
        list(pool.map(lambda start: writer.write("w", start, content[start : start + 9973]), reversed(starts)))
        writer.commit()
    assert load_file(tmp_path / "out/model.safetensors")["w"].tobytes() == content


class Counter(Progress):
    def __init__(self) -> None:
        self.bytes = 0

    def advance(self, count: int) -> None:
        self.bytes += count


class MemorySource:
    """Bytes that are no file, so that the kernel cannot copy them."""

    name = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_into(self, offset: int, buffer: Any) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = self.data[offset : offset + len(view)]

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("size", [0, 1, 4096, 4 * 2**20 - 1, 9 * 2**20 + 5])
def test_whole_tensors_are_copied_whatever_their_source(tmp_path: Path, in_kernel: bool, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    plan = [ShardPlan("model.safetensors", (("before", "U8", (3,)), ("w", "U8", (size,))))]
    with CheckpointWriter(tmp_path / "base", plan) as writer:
        writer.write("before", 0, b"abc")
        writer.write("w", 0, content)
        writer.commit()
    progress = Counter()
    with Checkpoint.open(tmp_path / "base") as base, CheckpointWriter(tmp_path / "out", plan) as writer:
        memory = Tensor(TensorInfo("w", "U8", (size,), 7, 7 + size), MemorySource(b"padding" + content), "x")
        writer.copy("w", base.tensors["w"] if in_kernel else memory, progress)
        writer.copy("before", base.tensors["before"])
        writer.commit()
    assert progress.bytes == size
    with Checkpoint.open(tmp_path / "out") as out:
        assert out.tensors["w"].read() == content


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system copies nothing inside the kernel")
def test_part_of_a_tensor_counts_as_written_once_all_of_it_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(1).bytes(10_000)
    plan = [ShardPlan("model.safetensors", (("before", "U8", (3,)), ("w", "U8", (10_000,))))]
    with CheckpointWriter(tmp_path / "base", plan) as writer:
        writer.write("before", 0, b"abc")
        writer.write("w", 0, content)
        writer.commit()
    copy, left = os.copy_file_range, [1500, 2500, 1000]

    def few(source: int, target: int, count: int, *at: int) -> int:
        return copy(source, target, min(count, left.pop(0)), *at) if left else 0

    monkeypatch.setattr(os, "copy_file_range", few)
    with Checkpoint.open(tmp_path / "base") as base, CheckpointWriter(tmp_path / "out", plan) as writer:
        source = base.tensors["w"]
        assert writer.copy_part("w", 6000, 4000, source)  # in two steps
        assert not writer.copy_part("w", 0, 6000, source)  # the first of these bytes, then no more
        with pytest.raises(ValueError, match="not within"):
            writer.copy_part("w", 6001, 4000, source)
        writer.write("before", 0, b"abc")
        with pytest.raises(RuntimeError, match="not written: w"):
            writer.sync()
        writer.write("w", 0, content[:6000])
        writer.commit()
    with Checkpoint.open(tmp_path / "out") as out:
        assert out.tensors["w"].read() == content


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system copies nothing inside the kernel")
def test_disk_that_is_full_is_told_by_a_copy_inside_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(tmp_path / "base")
    monkeypatch.setattr(os, "copy_file_range", full)
    with (
        Checkpoint.open(tmp_path / "base") as base,
        pytest.raises(DiskFull),
        CheckpointWriter(tmp_path / "out", PLAN) as writer,
    ):
        writer.copy_part("a", 0, 8, base.tensors["a"])
    assert os.listdir(tmp_path) == ["base"]


def test_copy_of_a_tensor_that_was_cut_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "base")
    with Checkpoint.open(tmp_path / "base") as base:
        os.truncate(tmp_path / "base/model.safetensors", base.tensors["a"].start + 5)
        with pytest.raises(BadHeader, match="truncated"), CheckpointWriter(tmp_path / "out", PLAN) as writer:
            writer.copy("a", base.tensors["a"])
    assert os.listdir(tmp_path) == ["base"]


def test_a_file_is_made_durable_while_the_next_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    real, count = os.fsync, 0

    def fsync(file: int) -> None:
        nonlocal count
        count += stat.S_ISREG(os.fstat(file).st_mode)
        real(file)
        synced.set()

    monkeypatch.setattr(os, "fsync", fsync)
    shards = [ShardPlan(f"model-0000{n}-of-00002.safetensors", ((f"w{n}", "U8", (4,)),), {}) for n in (1, 2)]
    with CheckpointWriter(tmp_path / "out", shards) as writer:
        writer.write("w1", 0, b"ab")
        assert not synced.is_set()
        writer.write("w1", 2, b"cd")
        assert synced.wait(30)
        writer.write("w2", 0, b"efgh")
        writer.commit()
    assert count == 3  # two shards, the index


def test_what_is_written_twice_is_made_durable_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        order.append("sync")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with CheckpointWriter(tmp_path / "out", [ShardPlan("model.safetensors", (("w", "U8", (4,)),), {})]) as writer:
        writer.write("w", 0, b"abcd")
        writer.write("w", 0, b"efgh")
        order.append("written")
        writer.commit()
    assert "sync" in order[order.index("written") :]
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tobytes() == b"efgh"


def test_output_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out/model.safetensors").stat().st_mode) == 0o640


# --- all or nothing -----------------------------------------------------------------------------------------------


def test_nothing_is_visible_before_the_commit(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", PLAN) as writer:
        writer.write("a", 0, A)
        writer.write("b", 0, B)
        assert not (tmp_path / "out").exists()
        (hidden,) = tmp_path.iterdir()
        assert hidden.name.startswith(".out.deltareg-")
        writer.commit()
        assert os.listdir(tmp_path) == ["out"]


def test_output_without_commit_disappears(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", PLAN) as writer:
        writer.write("a", 0, A)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_output_disappears_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), CheckpointWriter(tmp_path / "out", PLAN) as writer:
        writer.write("a", 0, A)
        raise error
    assert os.listdir(tmp_path) == []


def test_output_with_unwritten_tensors_is_not_committed(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="2 tensors are not written: a, b"),
        CheckpointWriter(tmp_path / "out", PLAN) as writer,
    ):
        writer.write("a", 0, A[:3])
        writer.commit()
    assert os.listdir(tmp_path) == []


def test_writes_outside_of_a_tensor_are_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", PLAN) as writer:
        for offset, size in ((0, 17), (15, 2), (-1, 1), (17, 0)):
            with pytest.raises(ValueError, match="not within 'a' of 16 bytes"):
                writer.write("a", offset, bytes(size))


@pytest.mark.parametrize(
    ("plans", "error", "message"),
    [
        ([ShardPlan("m.safetensors", (("a", "F3", (1,)),))], UnsupportedFormat, "'F3'"),
        ([ShardPlan("m.safetensors", (("a/b", "F32", (1,)),))], BadHeader, "is a path"),
        ([ShardPlan("../m.safetensors", (("a", "F32", (1,)),))], BadCheckpoint, "no place"),
        ([ShardPlan("m.safetensors", ()), ShardPlan("m.safetensors", ())], BadCheckpoint, "or taken"),
        (
            [ShardPlan("m.safetensors", (("a", "U8", (1,)),)), ShardPlan("n.safetensors", (("a", "U8", (1,)),))],
            BadCheckpoint,
            "planned in two shards",
        ),
    ],
)
def test_plans_that_make_no_checkpoint_are_refused(tmp_path: Path, plans: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        CheckpointWriter(tmp_path / "out", plans)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "", ".", "x\0", "model.safetensors", "./model.safetensors"]
)
def test_files_stay_within_the_output(tmp_path: Path, name: str) -> None:
    with CheckpointWriter(tmp_path / "out", PLAN) as writer, pytest.raises(BadCheckpoint):
        writer.add_file(name, b"x")
    assert os.listdir(tmp_path) == []


# --- the output's place -------------------------------------------------------------------------------------------


def test_parents_of_the_output_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "out")
    assert first_of(tmp_path / "a/b/out") == 0


def test_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert first_of(tmp_path / "out") == 0


def test_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert first_of(tmp_path / "disk") == 0


def test_existing_output_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path / "out", 7)
    with pytest.raises(OutputExists, match="the output exists already") as raised:
        write(tmp_path / "out")
    assert raised.value.exit_code == 2
    assert first_of(tmp_path / "out") == 7
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_file_in_the_output_s_place_is_not_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputExists):
        write(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


def test_overwriting_replaces_the_whole_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "out", 1)
    (tmp_path / "out" / "tokenizer.json").touch()
    (tmp_path / "out" / "1_Pooling").mkdir()
    (tmp_path / "out" / "1_Pooling" / "config.json").touch()
    write(tmp_path / "out", 2, overwrite=True)
    assert first_of(tmp_path / "out") == 2
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]


def test_overwriting_spares_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputExists) as raised:
        write(tmp_path / "home", overwrite=True)
    assert "other things than a checkpoint" in (raised.value.cause or "")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    "stranger",
    [
        "thesis.tex",
        "runs/events.1",
        "1_Pooling/notes.txt",
        "1_Pooling/deeper/config.json",
        "checkpoint-500/config.json",
        "checkpoint-500/model.safetensors",
        ".git/HEAD",
        "empty/",
    ],
)
def test_overwriting_spares_what_lies_beside_a_checkpoint(tmp_path: Path, stranger: str) -> None:
    write(tmp_path / "out", 1)
    path = tmp_path / "out" / stranger
    (path if stranger.endswith("/") else path.parent).mkdir(exist_ok=True, parents=True)
    if not stranger.endswith("/"):
        path.write_text("mine")
    with pytest.raises(OutputExists) as raised:
        write(tmp_path / "out", 2, overwrite=True)
    first, slash, _ = stranger.partition("/")
    assert (raised.value.cause or "").endswith(f": {first}{slash}")
    assert path.exists()
    assert first_of(tmp_path / "out") == 1


def test_refused_overwriting_names_the_first_few_things_that_are_in_the_way(tmp_path: Path) -> None:
    write(tmp_path / "out")
    for number in range(9):
        (tmp_path / "out" / f"{number}.txt").touch()
    with pytest.raises(OutputExists) as raised:
        write(tmp_path / "out", overwrite=True)
    assert (raised.value.cause or "").endswith(": 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, …")


def test_failed_overwriting_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "out", 1)
    with pytest.raises(ValueError), CheckpointWriter(tmp_path / "out", PLAN, overwrite=True) as writer:
        writer.write("a", 0, A)
        raise ValueError
    assert first_of(tmp_path / "out") == 1
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="two directories are swapped in one step on Linux only")
def test_overwritten_output_is_there_at_every_moment(tmp_path: Path) -> None:
    write(tmp_path / "out")
    absent: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not (tmp_path / "out" / "model.safetensors").exists():
                absent.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(30):
        write(tmp_path / "out", number, overwrite=True)
    done.set()
    watcher.join()
    assert absent == []
    assert first_of(tmp_path / "out") == 29


def test_second_of_two_writers_to_one_output_is_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", PLAN) as slow:
        slow.write("a", 0, A)
        slow.write("b", 0, B)
        write(tmp_path / "out", 5)
        with pytest.raises(OutputExists) as raised:
            slow.commit()
        assert "another process" in (raised.value.cause or "")
    assert first_of(tmp_path / "out") == 5
    assert os.listdir(tmp_path) == ["out"]


# --- killed writers -----------------------------------------------------------------------------------------------

WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from deltareg.checkpoint import CheckpointWriter, ShardPlan
plan = ShardPlan("model.safetensors", (("w", "U8", (1000000,)),))
writer = CheckpointWriter(Path(sys.argv[1]), [plan], overwrite=True)
writer.write("w", 0, bytes(500000))
print("half", flush=True)
time.sleep(60)
"""


def start_writer(out: Path) -> subprocess.Popen[str]:
    """Another process that has written half of a checkpoint, and waits."""
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_killed_writer_leaves_no_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    with start_writer(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert len(os.listdir(tmp_path)) == 1
    write(tmp_path / "other")
    assert len(os.listdir(tmp_path)) == 2, "only a writer to the same output removes what was left"
    write(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_killed_overwriting_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "out", 3)
    with start_writer(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
    assert first_of(tmp_path / "out") == 3


def test_refused_writer_cleans_up_as_well(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with start_writer(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
    with pytest.raises(OutputExists):
        write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_living_writer_is_left_alone(tmp_path: Path) -> None:
    with start_writer(tmp_path / "out") as process:
        write(tmp_path / "out", 4)
        assert len(os.listdir(tmp_path)) == 2
        process.kill()
    assert first_of(tmp_path / "out") == 4


def test_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    program = WRITE_AND_WAIT.replace("writer = C", "with C").replace("=True)\n", "=True) as writer:\n    ", 1)
    program = program.replace("\nprint", "\n    print").replace("\ntime", "\n    time")
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGINT)
    assert os.listdir(tmp_path) == []


def test_checkpoint_that_was_moved_aside_by_a_killed_writer_comes_back(tmp_path: Path) -> None:
    """Where two directories cannot be swapped, a kill between two renames leaves the old one under a hidden name."""
    write(tmp_path / ".out.deltareg-0123abcd.old", 6)
    with pytest.raises(OutputExists):
        write(tmp_path / "out")
    assert first_of(tmp_path / "out") == 6
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_counts_that_was_written_before_the_inputs_were_vouched_for(tmp_path: Path) -> None:
    job, out = Job("digest", resume=True), tmp_path / "out"
    plan = [ShardPlan("model.safetensors", tuple((name, "U8", (2,)) for name in ("before", "across", "after")))]
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(out, plan, job=job) as writer:
        writer.write("before", 0, b"ab")
        writer.write("across", 0, b"c")
        writer.vouch()
        writer.write("across", 1, b"d")
        writer.write("after", 0, b"ef")
        raise KeyboardInterrupt
    with CheckpointWriter(out, plan, job=job) as writer:
        assert writer.recover(["before", "across", "after"]) == {"after"}
        assert writer.recover(["after"]) == set(), "what was taken over once is not counted twice"
        writer.vouch()
        writer.write("before", 0, b"ab")
        writer.write("across", 0, b"cd")
        writer.commit()
    found = load_file(out / "model.safetensors")
    assert {name: data.tobytes() for name, data in found.items()} == {"before": b"ab", "across": b"cd", "after": b"ef"}


def test_directories_of_other_outputs_are_not_taken_for_stale_ones(tmp_path: Path) -> None:
    for name in (".out.deltareg-notes", ".out.deltareg-0123abcd.old.old", ".out2.deltareg-0123abcd"):
        (tmp_path / name).mkdir()
    write(tmp_path / "out")
    assert len(os.listdir(tmp_path)) == 4


# --- full and read-only disks -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with disks.small_disk(tmp_path / "disk", 1024) as path:
        yield path


def megabytes(count: float) -> list[ShardPlan]:
    return [ShardPlan("model.safetensors", (("w", "U8", (int(count * 2**20),)),))]


def test_output_larger_than_the_disk_is_refused_with_both_sizes(small_disk: Path) -> None:
    with pytest.raises(DiskFull) as raised:
        CheckpointWriter(small_disk / "out", megabytes(2))
    needed = 2 * 2**20 + len(encode_header(megabytes(2)[0].tensors))
    assert (raised.value.data["needed"], raised.value.data["free"]) == (needed, 2**20)
    assert f"takes {needed} bytes, {2**20} are free" in raised.value.message
    assert os.listdir(small_disk) == []


def test_disk_that_fills_up_meanwhile_leaves_nothing(small_disk: Path) -> None:
    with (
        pytest.raises(DiskFull, match="could not write the checkpoint"),
        CheckpointWriter(small_disk / "out", megabytes(0.5)) as writer,
    ):
        writer.write("w", 0, bytes(2**19))
        writer.add_file("tokenizer.json", bytes(2**19))
    assert os.listdir(small_disk) == []
    write(small_disk / "out")


def test_reserved_room_is_not_taken_by_others(small_disk: Path) -> None:
    with CheckpointWriter(small_disk / "out", megabytes(0.75)) as writer:
        with pytest.raises(OSError, match="No space"):
            (small_disk / "other").write_bytes(bytes(2**19))
        (small_disk / "other").unlink()
        writer.write("w", 0, bytes(3 * 2**18))
        writer.commit()


def test_mount_point_is_refused_with_the_way_out(small_disk: Path) -> None:
    with pytest.raises(InvalidArgument, match="is a mount point") as raised:
        write(small_disk)
    assert str(small_disk / "model") in (raised.value.hint or "")


def test_read_only_disk_is_told(tmp_path: Path) -> None:
    with disks.read_only(tmp_path), pytest.raises(NotAllowed, match="Read-only") as raised:
        write(tmp_path / "out")
    assert raised.value.exit_code == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_read_only_directory_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(NotAllowed, match="Permission denied"):
        write(tmp_path / "out")
    tmp_path.chmod(0o755)


@pytest.fixture
def file_limit() -> Iterator[int]:
    """Files may have 100,000 bytes: a write across the limit is cut short, one beyond it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield 100_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_that_is_cut_short_is_continued_until_its_error(tmp_path: Path, file_limit: int) -> None:
    with pytest.raises(DiskFull, match="File too large"), CheckpointWriter(tmp_path / "out", PLAN) as writer:
        writer.add_file("tokenizer.json", bytes(file_limit + 1))
    assert os.listdir(tmp_path) == []


def test_shard_above_the_limit_of_files_is_refused_before_it_is_written(tmp_path: Path, file_limit: int) -> None:
    with pytest.raises(DiskFull, match="File too large"):
        CheckpointWriter(tmp_path / "out", megabytes(file_limit / 2**20))
    assert os.listdir(tmp_path) == []
