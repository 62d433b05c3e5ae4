"""Several processes, started by torchrun, that write one output."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import deltareg
from deltareg import Registry
from deltareg.apply.limits import Limits
from deltareg.apply.plan import Action, Merge, Plan, PlannedTensor
from deltareg.apply.prepare import checked_weight, open_delta, prepare
from deltareg.apply.ranks import ALONE, largest_share, ranks_of, share
from deltareg.apply.report import report_of
from deltareg.apply.write import Means, Written
from deltareg.checkpoint import Checkpoint, ShardPlan
from deltareg.digest import Digest
from deltareg.errors import DigestMismatch
from deltareg.manifest import INVENTORY_TYPE, SIDE_FILE_TYPE
from deltareg.merge.processor import CPU
from deltareg.progress import SILENT
from tests.apply.test_resume import files, staged
from tests.deltas import flip
from tests.weights import Pair

ROOT = Path(__file__).resolve().parents[2]


def torchrun(home: Path, processes: int, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start `deltareg apply` in so many processes."""
    return started(home, processes, "-m", "deltareg", "apply", *arguments, "--threads", "1")


def started(home: Path, processes: int, *program: str | Path) -> subprocess.Popen[str]:
    """Start a program of Python's in so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, *map(str, program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DELTAREG_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def ended(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    """The status, stdout and stderr of a job."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


# --- who does what ------------------------------------------------------------------------------------------------


def planned(*shards: Sequence[int], action: Action = "copy") -> Plan:
    """A plan of files with tensors of these sizes."""
    tensors: dict[str, PlannedTensor] = {}
    plans: list[ShardPlan] = []
    for number, sizes in enumerate(shards):
        names = [f"{number}.{place}" for place in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            tensors[name] = PlannedTensor(name, action, "U8", (size,), size, None, ())
        plans.append(ShardPlan(f"{number}.safetensors", tuple((name, "U8", tensors[name].shape) for name in names)))
    return Plan(tensors, tuple(plans), (), (), {}, 0)


def test_each_tensor_is_written_by_one_rank() -> None:
    plan = planned([5, 3, 1], [7], [2, 2])
    for count in range(1, 8):
        shares = share(plan, count)
        assert len(shares) == count
        assert sorted(name for one in shares for name in one) == sorted(plan.tensors)


def test_rank_writes_whole_files_where_there_are_enough() -> None:
    assert share(planned([5, 3, 1], [7], [2, 2]), 2) == [{"0.0", "0.1", "0.2"}, {"1.0", "2.0", "2.1"}]


def test_tensors_of_one_file_are_shared_by_bytes() -> None:
    assert share(planned([8, 5, 4, 1]), 2) == [{"0.0", "0.3"}, {"0.1", "0.2"}]


def test_more_ranks_than_tensors_leave_some_without_work() -> None:
    assert share(planned([3]), 3) == [{"0.0"}, frozenset(), frozenset()]


def test_busiest_rank_is_the_one_with_most_to_compute() -> None:
    plan = planned([8, 2], [6], [4], action="add")
    assert [largest_share(plan, count) for count in (1, 2, 3, 4, 8)] == [1, 0.5, 0.5, 0.4, 0.4]
    assert largest_share(planned([8, 2]), 2) == 0  # what is only copied takes no time to compute


class _Three:
    """The first of three ranks, which talks to none of them."""

    number, local, count = 0, 0, 3

    def each(self, value: Any) -> Iterator[Any]:
        raise AssertionError("a dry run needs no others")

    def fail(self, error: BaseException) -> None: ...

    def leave(self) -> None: ...

    def close(self) -> None: ...


def test_dry_run_of_several_ranks_tells_the_time_of_the_one_with_most_to_do(llama: Registry, small_llama: Pair) -> None:
    sizes: list[int] = []
    for shard in small_llama.base.glob("*.safetensors"):
        with safe_open(shard, "np") as file:
            sizes.append(sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()))  # noqa: SIM118
    assert len(sizes) == 3 and max(sizes) > 1.01 * sum(sizes) / 3
    with Checkpoint.open(small_llama.base) as base:
        delta = open_delta(llama, "acme/llama:1.0.0", checked_weight(0.5))
        job = prepare(base, [delta], Merge.of("linear", None, 0), "post", 1, with_added=None, force=False)
        for ranks, expected in ((ALONE, 60.0), (_Three(), 60.0 * max(sizes) / sum(sizes))):
            report = report_of(job, "out", Means(Limits(1), ranks, CPU, SILENT), 0, Written(), 60.0, 1.0, 0.0)
            assert report.expected_seconds == pytest.approx(expected, rel=1e-4)  # a norm is unchanged


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, small_llama: Pair) -> Registry:
    """`acme/llama`, and `acme/back`, which is taken the other way round."""
    registry = Registry(tmp_path_factory.mktemp("two"))
    deltareg.diff(small_llama.base, small_llama.post, registry, "acme/llama:1.0.0")
    deltareg.diff(small_llama.post, small_llama.base, registry, "acme/back:1.0.0")
    return registry


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_writes_the_same_bytes(
    tmp_path: Path, two: Registry, small_llama: Pair, processes: int
) -> None:
    # The threshold of ties is the whole model's: what each rank counts has to come together.
    deltas = {"acme/llama:1.0.0": 0.5, "acme/back:1.0.0": 0.25}
    own = [(name, weight, {"density": 0.6} if "back" in name else {}) for name, weight in deltas.items()]
    deltareg.apply(small_llama.base, own, two, tmp_path / "alone", method="ties", parameters={"density": 0.3})
    arguments = [small_llama.base, *(f"{name}={weight}" for name, weight in deltas.items())]
    options = ["--method", "ties", "--param", "density=0.3", "--param", "density@acme/back:1.0.0=0.6"]
    options += ["-o", tmp_path / "out", "--json"]
    status, out, err = ended(torchrun(two.home, processes, *arguments, *options))
    assert status == 0, err
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    report = json.loads(out)  # one of them tells, and one only
    assert report["ranks"] == processes
    assert staged(tmp_path / "out") == []


@pytest.mark.slow
def test_what_one_process_finds_wrong_ends_all_of_them(tmp_path: Path, two: Registry, small_llama: Pair) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    status, out, err = ended(torchrun(two.home, 2, small_llama.base, "acme/llama:1.0.0", "-o", tmp_path / "out"))
    assert status != 0
    assert out == ""
    assert "error[DR0104]: the output exists already" in err  # the first one looks
    assert "error[DR0008]: rank 0 of 2 failed: the output exists already" in err
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_damaged_pack_ends_all_processes_and_leaves_no_output(
    tmp_path: Path, two: Registry, small_llama: Pair, rank: int
) -> None:
    deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, two, tmp_path / "alone")
    shutil.copytree(two.home, tmp_path / "home")
    # Each rank verifies every second of them.
    layers = [
        layer
        for layer in two.artifact("acme/llama:1.0.0").manifest.layers
        if layer.media_type not in (INVENTORY_TYPE, SIDE_FILE_TYPE)
    ]
    blob = Registry(tmp_path / "home").store.path(Digest(layers[rank].digest))
    sound = blob.read_bytes()
    flip(blob, 8 * (len(sound) // 2))
    arguments = [small_llama.base, "acme/llama:1.0.0=0.5", "-o", tmp_path / "out", "--resume"]
    status, out, err = ended(torchrun(tmp_path / "home", 2, *arguments))
    assert status != 0
    assert out == ""
    assert f"error[{DigestMismatch.code}]" in err
    assert layers[rank].digest in err
    assert not (tmp_path / "out").exists()
    blob.write_bytes(sound)
    status, out, err = ended(torchrun(tmp_path / "home", 2, *arguments, "--json"))
    assert status == 0, err
    assert json.loads(out)["resumedTensors"] == 0, "nothing that was made of damaged bytes is taken over"
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert staged(tmp_path / "out") == []


# The first rank has work for minutes; what the second one writes fails once it has begun.
_FAILING_AT_WORK = """
import os, resource, sys, threading
import deltareg
from deltareg.apply.ranks import TorchRanks
from deltareg.progress import Progress

class Failing(Progress):
    def advance(self, count):
        if ranks.number == 0:
            threading.Event().wait(300)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

target, out = sys.argv[1:]
registry = deltareg.Registry(os.environ["DELTAREG_HOME"])
with TorchRanks() as ranks:
    deltareg.apply(target, {"acme/llama:1.0.0": 0.5}, registry, out, threads=1, ranks=ranks, progress=Failing())
"""


@pytest.mark.slow
def test_process_that_fails_at_work_does_not_wait_for_those_that_are_at_theirs(
    tmp_path: Path, two: Registry, small_llama: Pair
) -> None:
    (tmp_path / "failing.py").write_text(_FAILING_AT_WORK)
    out = tmp_path / "out"
    status, _, err = ended(started(two.home, 2, tmp_path / "failing.py", small_llama.base, out), 90)
    assert status != 0
    assert "could not write the checkpoint" in err and "File too large" in err
    assert not out.exists()
    # What the first has left behind, who could not end in its own way, is cleared away by the next.
    deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, two, out)
    assert staged(out) == []


@pytest.mark.slow
def test_lost_rank_fails_the_job_and_resume_goes_on(tmp_path: Path, two: Registry, small_llama: Pair) -> None:
    deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, two, tmp_path / "alone")
    out = tmp_path / "out"
    arguments = [small_llama.base, "acme/llama:1.0.0=0.5", "-o", out, "--resume"]
    lost = 0
    for _ in range(10):
        job = torchrun(two.home, 3, *arguments)
        killer = threading.Thread(target=_kill_one_that_writes, args=(job.pid, out))
        killer.start()
        status, _, err = ended(job)
        killer.join()
        if status == 0:
            break
        lost += 1
        assert not out.exists()
        assert "SIGKILL" in err or "DR0008" in err
        if lost == 2:
            break
    assert lost, "every job came to its end before a rank was killed"
    if not out.exists():
        status, _, err = ended(torchrun(two.home, 3, *arguments))
        assert status == 0, err
    assert files(out) == files(tmp_path / "alone")
    assert staged(out) == []


def _kill_one_that_writes(launcher: int, out: Path) -> None:
    """Kill the last process of a job as soon as the first has begun its output."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        children = Path(f"/proc/{launcher}/task/{launcher}/children")
        try:
            ranks = [int(one) for one in children.read_text().split()]
        except OSError:
            return  # it has ended
        if staged(out) and ranks:
            try:
                os.kill(ranks[-1], signal.SIGKILL)
            except ProcessLookupError:
                return
            return
        time.sleep(0.002)


@pytest.mark.slow
def test_dry_run_of_several_processes_is_told_once_and_writes_nothing(
    tmp_path: Path, two: Registry, small_llama: Pair
) -> None:
    arguments = [small_llama.base, "acme/llama:1.0.0=0.5", "-o", tmp_path / "out", "--dry-run", "--json"]
    status, out, err = ended(torchrun(two.home, 2, *arguments))
    assert status == 0, err
    report = json.loads(out)
    assert (report["ranks"], report["dryRun"]) == (2, True)
    assert report["expectedSeconds"] > 0
    assert os.listdir(tmp_path) == []


def test_alone_without_torchrun() -> None:
    assert ranks_of({}) is ALONE
    assert ranks_of({"WORLD_SIZE": "4"}) is ALONE  # a cluster's own variable, not torchrun's
    assert list(ALONE.each("value")) == ["value"]
