"""Deltas on checkpoints in an object store, to outputs in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deltareg
from deltareg import Registry
from deltareg.check import fingerprint
from deltareg.errors import NotAllowed, OutputExists
from tests.servers.object_store import Bucket, Proxy
from tests.weights import Pair

LLAMA = "acme/llama:1.0.0"
MINILM = "acme/search:1.0.0"
MIB = 2**20


@pytest.fixture(scope="module")
def minilm_registry(tmp_path_factory: pytest.TempPathFactory, minilm_bf16: Pair) -> Registry:
    """A registry with the delta of the real pair. Read only."""
    registry = Registry(tmp_path_factory.mktemp("registry"))
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, MINILM, licence="apache-2.0")
    return registry


def files_of(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_bucket_to_bucket_gives_the_bytes_of_a_local_apply(
    tmp_path: Path, bucket: Bucket, minilm_registry: Registry, minilm_bf16: Pair, method: str
) -> None:
    # Under the name of the directory, which the model card tells.
    target = bucket.upload(minilm_bf16.base, f"models/{minilm_bf16.base.name}")
    there = deltareg.apply(target, {MINILM: 0.7}, minilm_registry, f"{bucket.url}/out", method=method, threads=4)
    here = deltareg.apply(minilm_bf16.base, {MINILM: 0.7}, minilm_registry, tmp_path / "out", method=method)
    assert bucket.files("out") == files_of(tmp_path / "out")
    assert len(bucket.files("out")) > 5
    assert bucket.uploads() == []
    assert there.out == f"{bucket.url}/out"
    volatile = {"out", "seconds", "load_seconds", "sync_seconds", "bytes_per_second"}
    volatile |= {"threads", "expected_memory", "peak_memory"}  # of the machine, not of the result
    assert there.model_dump(exclude=volatile) == here.model_dump(exclude=volatile)


def test_sharded_target_is_written_as_shards(
    tmp_path: Path, bucket: Bucket, llama: Registry, small_llama: Pair
) -> None:
    target = bucket.upload(small_llama.base, f"models/{small_llama.base.name}")
    deltareg.apply(small_llama.base, {LLAMA: 1}, llama, tmp_path / "out")
    deltareg.apply(target, {LLAMA: 1}, llama, f"{bucket.url}/out")
    # Its own output is overwritten, from a target on disk.
    deltareg.apply(small_llama.base, {LLAMA: 1}, llama, f"{bucket.url}/out", overwrite=True)
    assert bucket.files("out") == files_of(tmp_path / "out")
    deltareg.apply(f"{bucket.url}/out", {LLAMA: 0}, llama, tmp_path / "again")
    weights = {name: data for name, data in files_of(tmp_path / "out").items() if name.endswith(".safetensors")}
    assert {name: data for name, data in files_of(tmp_path / "again").items() if name in weights} == weights


def test_diff_and_check_read_from_a_bucket(
    tmp_path: Path, bucket: Bucket, minilm_registry: Registry, minilm_bf16: Pair
) -> None:
    base = bucket.upload(minilm_bf16.base, f"a/{minilm_bf16.base.name}")
    post = bucket.upload(minilm_bf16.post, f"b/{minilm_bf16.post.name}")
    assert fingerprint(base) == fingerprint(minilm_bf16.base)
    report = deltareg.check(base, [MINILM], minilm_registry)
    assert report.verdict == "identical"
    assert report.bytes_read < 5 * 2**20
    taken = deltareg.diff(base, post, Registry(tmp_path / "home"), MINILM, licence="apache-2.0")
    assert taken.digest == minilm_registry.artifact(MINILM).digest
    deltareg.verify(MINILM, minilm_registry, base=base, post=post)


def test_bound_of_memory_counts_what_is_on_its_way(
    tmp_path: Path, bucket: Bucket, minilm_registry: Registry, minilm_bf16: Pair
) -> None:
    command = [sys.executable, "-m", "deltareg", "apply", str(minilm_bf16.base), MINILM, "--threads", "2", "--json"]
    environment = {**os.environ, "DELTAREG_HOME": str(minilm_registry.home)}

    def applied(*options: str) -> dict[str, Any]:
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
        return json.loads(done.stdout)

    here = applied("-o", str(tmp_path / "out"))
    free = applied("-o", f"{bucket.url}/free")
    assert free["expectedMemory"] > here["expectedMemory"] + 80 * MIB, "the file, of 45 MB, is sent while it is made"
    assert free["peakMemory"] <= free["expectedMemory"]
    refused = applied("-o", f"{bucket.url}/none", "--memory", "100MiB")
    least = refused["error"]["data"]["needed"] + 4 * MIB  # two processes never hold quite the same
    bound = applied("-o", f"{bucket.url}/bound", "--memory", f"{least}")
    assert bound["peakMemory"] <= bound["expectedMemory"] <= least < free["expectedMemory"]
    assert bucket.files("bound") == bucket.files("free") == files_of(tmp_path / "out")
    assert bucket.files("none") == {}


def test_output_that_exists_is_refused_before_anything_is_read(
    bucket: Bucket, minilm_registry: Registry, minilm_bf16: Pair
) -> None:
    target = bucket.upload(minilm_bf16.base, "target")
    before = bucket.files("target")
    for out in (target, f"{target}/", bucket.url):
        with pytest.raises(OutputExists, match="is the target itself"):
            deltareg.apply(target, {MINILM: 1}, minilm_registry, out, overwrite=True)
    bucket.put("out/notes.txt", b"mine")
    for dry_run in (True, False):
        for overwrite in (True, False):
            with pytest.raises(OutputExists, match="exists already"):
                deltareg.apply(
                    target, {MINILM: 1}, minilm_registry, f"{bucket.url}/out", overwrite=overwrite, dry_run=dry_run
                )
    assert bucket.files("target") == before
    assert bucket.files("out") == {"notes.txt": b"mine"}


def test_failure_half_way_leaves_nothing(
    bucket: Bucket, minilm_registry: Registry, minilm_bf16: Pair, proxy: Proxy
) -> None:
    target = bucket.upload(minilm_bf16.base, "target")
    uploads: list[list[str]] = []

    def refuse(request: str) -> int | None:
        if request.startswith("PUT") and "partNumber=3" in request:
            uploads.append(bucket.uploads())
            return 403
        return None

    proxy.refuse = refuse
    with pytest.raises(NotAllowed):
        deltareg.apply(target, {MINILM: 1}, minilm_registry, f"{bucket.url}/out")
    assert len(uploads[0]) == 1
    assert bucket.files("out") == {}
    assert bucket.uploads() == []


def test_target_that_fails_half_way_leaves_nothing(
    bucket: Bucket, minilm_registry: Registry, minilm_bf16: Pair, proxy: Proxy
) -> None:
    target = bucket.upload(minilm_bf16.base, "target")
    proxy.refuse = lambda request: 403 if "bytes=2" in request and "/target/model.safetensors" in request else None
    with pytest.raises(NotAllowed, match="model.safetensors of"):  # noqa: RUF043
        deltareg.apply(target, {MINILM: 1}, minilm_registry, f"{bucket.url}/out")
    assert bucket.files("out") == {}
    assert bucket.uploads() == []


def test_program_applies_and_checks_in_a_bucket(
    tmp_path: Path, bucket: Bucket, minilm_registry: Registry, minilm_bf16: Pair
) -> None:
    target = bucket.upload(minilm_bf16.base, "target")
    environment = {**os.environ, "DELTAREG_HOME": str(minilm_registry.home)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "deltareg", *words)
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)

    checked = run("check", MINILM, "--base", target, "--json")
    assert (checked.returncode, json.loads(checked.stdout)["verdict"]) == (0, "identical")
    applied = run("apply", target, MINILM, "-o", f"{bucket.url}/out", "--json")
    assert (applied.returncode, json.loads(applied.stdout)["out"]) == (0, f"{bucket.url}/out")
    again = run("apply", target, MINILM, "-o", f"{bucket.url}/out")
    assert again.returncode == 2
    assert "DR0104" in again.stderr
    environment["AWS_SECRET_ACCESS_KEY"] = "hush-hush"
    environment["DELTAREG_TRACEBACK"] = "1"
    refused = run("fingerprint", target)
    assert refused.returncode == 4
    assert "DR0300" in refused.stderr
    assert "hush-hush" not in refused.stderr
    assert "AKIATESTS" not in refused.stderr
    assert list(tmp_path.iterdir()) == []
