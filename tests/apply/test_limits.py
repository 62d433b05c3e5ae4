"""What an apply holds in memory, and what it says of itself before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import Registry
from deltareg.apply.limits import limits_for
from deltareg.checkpoint.bucket_writer import sending_bytes
from deltareg.errors import InvalidArgument
from tests.apply.test_ranks import planned
from tests.apply.test_resume import files
from tests.weights import Pair

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, minilm_bf16: Pair) -> Registry:
    """`acme/one`, and `acme/two`, which is the same delta from the fine-tune on."""
    registry = Registry(tmp_path_factory.mktemp("two"))
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, "acme/one:1.0.0")
    deltareg.diff(minilm_bf16.post, minilm_bf16.base, registry, "acme/two:1.0.0")
    return registry


BOTH = ("acme/one:1.0.0", "acme/two:1.0.0=0.5")


def applied(registry: Registry, target: Path, out: Path, *options: str, deltas: Sequence[str] = BOTH) -> dict[str, Any]:
    """The report of a process that applies these deltas, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "deltareg", "apply", str(target), *deltas]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DELTAREG_HOME": str(registry.home)}
    arguments = [*command, "--force", "--threads", "2", "-o", str(out), "--json", *options]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["linear", "ties", "sce", "della"])
def test_bound_of_memory_holds_and_changes_no_byte(
    tmp_path: Path, two: Registry, minilm_bf16: Pair, method: str
) -> None:
    how = ["--method", method, *(["--param", "density=0.5"] if method in ("ties", "della") else [])]
    free = applied(two, minilm_bf16.base, tmp_path / "free", *how)
    refused = applied(two, minilm_bf16.base, tmp_path / "none", *how, "--memory", "100MiB")
    assert refused["error"]["code"] == "DR0101"
    assert not (tmp_path / "none").exists()
    least = refused["error"]["data"]["needed"] + 4 * MIB  # two processes never hold quite the same
    bound = applied(two, minilm_bf16.base, tmp_path / "bound", *how, "--memory", f"{least}")
    assert bound["peakMemory"] <= bound["expectedMemory"] <= least < free["expectedMemory"]
    assert bound["threads"] == 1 < free["threads"]
    assert free["peakMemory"] <= free["expectedMemory"]
    assert files(tmp_path / "bound") == files(tmp_path / "free")


def test_counts_for_the_whole_model_are_within_the_bound(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    """Small tensors, so that nothing else is held that is as large: up to 64 counts for each delta, of 512 KiB."""
    how = ["--method", "ties", "--param", "density=0.5", "--param", "trim=model"]
    deltas = ["acme/llama:1.0.0"] * 6
    free = applied(llama, small_llama.base, tmp_path / "free", *how, deltas=deltas)
    refused = applied(llama, small_llama.base, tmp_path / "none", *how, "--memory", "100MiB", deltas=deltas)
    least = refused["error"]["data"]["needed"] + 4 * MIB  # two processes never hold quite the same
    bound = applied(llama, small_llama.base, tmp_path / "bound", *how, "--memory", f"{least}", deltas=deltas)
    assert bound["peakMemory"] <= bound["expectedMemory"] <= least <= free["expectedMemory"]
    assert free["peakMemory"] <= free["expectedMemory"]
    assert files(tmp_path / "bound") == files(tmp_path / "free")


def test_what_is_on_its_way_to_an_object_store_is_held() -> None:
    plan = planned([300 * MIB], [200 * MIB])
    limits, here = limits_for(plan, 4, None, 100 * MIB, Path("out"))
    sent, there = limits_for(plan, 4, None, 100 * MIB, "s3://models/out")
    assert limits == sent and sent.waiting == 64 * MIB
    assert there - here == sending_bytes([300 * MIB, 200 * MIB]) + 64 * MIB > 150 * MIB
    # Rather than threads go, pieces wait on disk.
    leaner, held = limits_for(plan, 4, there - MIB, 100 * MIB, "s3://models/out")
    assert (leaner.threads, held) == (4, there - 56 * MIB)
    assert leaner.waiting == 8 * MIB
    with pytest.raises(InvalidArgument, match="too few") as caught:
        limits_for(plan, 4, here, 100 * MIB, "s3://models/out")
    assert caught.value.data["needed"] == held


def test_small_output_does_not_wait_with_more_than_it_has() -> None:
    plan = planned([3 * MIB])
    _, here = limits_for(plan, 1, None, 0, "out")
    _, there = limits_for(plan, 1, None, 0, "gs://models/out")
    assert there - here == 6 * MIB  # the file as a whole, and all of it waiting


def test_dry_run_tells_what_will_be_read_written_and_held(tmp_path: Path, two: Registry, minilm_bf16: Pair) -> None:
    report = deltareg.apply(minilm_bf16.base, {"acme/one:1.0.0": 0.5}, two, tmp_path / "out", dry_run=True)
    done = deltareg.apply(minilm_bf16.base, {"acme/one:1.0.0": 0.5}, two, tmp_path / "out")
    assert report.output_bytes == done.output_bytes == done.bytes_written > 40 * MIB
    assert report.target_bytes == done.target_bytes >= report.output_bytes
    assert report.delta_bytes == sum(pack.size for pack in two.artifact("acme/one:1.0.0").packs)
    assert (report.bytes_written, report.peak_memory, report.bytes_per_second) == (0, None, None)
    assert report.expected_seconds is not None and report.expected_seconds > 0
    assert report.expected_memory > 100 * MIB
    assert done.expected_seconds is None
    assert done.peak_memory is not None and done.peak_memory > 100 * MIB
    assert done.bytes_per_second is not None and done.bytes_per_second > 0


def test_estimate_is_made_of_a_sample_where_the_model_is_large(
    tmp_path: Path, llama: Registry, small_llama: Pair
) -> None:
    report = deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, llama, tmp_path / "out", dry_run=True)
    assert report.expected_seconds is not None and report.expected_seconds > 0
    nothing = deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.0}, llama, tmp_path / "out", dry_run=True)
    assert nothing.expected_seconds == 0
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_refused_with_what_is_needed(tmp_path: Path, llama: Registry, small_llama: Pair) -> None:
    with pytest.raises(InvalidArgument, match="1 MiB of memory are too few") as caught:
        deltareg.apply(small_llama.base, {"acme/llama:1.0.0": 0.5}, llama, tmp_path / "out", memory=MIB)
    assert caught.value.hint is not None and "--memory" in caught.value.hint
    assert os.listdir(tmp_path) == []
