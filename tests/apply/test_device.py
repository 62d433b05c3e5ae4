"""Applies on a device: the bytes of the whole output are those of the processor's own way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deltareg
from deltareg import Registry
from deltareg.apply.device import LEAST_LANES, Device
from deltareg.codec import FRAME_LANES
from deltareg.errors import DeviceFull, InvalidArgument
from deltareg.merge import METHODS
from deltareg.threads import in_order
from tests.apply.test_methods import Models
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.devices import DEVICES
from tests.merge.test_methods import REQUIRED
from tests.weights import Pair


@pytest.fixture(scope="module", params=["BF16", "F16", "F32"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"), request.param)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "one": {"acme/a:1.0.0": 1.0},
    "one, scaled": {"acme/a:1.0.0": -0.7},
    "two": {"acme/a:1.0.0": 0.3, "acme/b:1.0.0": 0.9},
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_sum_is_the_same_bit_for_bit(models: Models, device: str, weights: str) -> None:
    expected, here = models.apply(weights=WEIGHTS[weights])
    found, report = models.apply(weights=WEIGHTS[weights], device=device)
    assert found == expected
    assert found != read_tensors(models.target_path)
    assert (here.device, report.device.split(":")[0]) == ("cpu", device.split(":")[0])


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Puts the number of torch's own threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits_on_a_device(models: Models, device: str, threads: int) -> None:
    expected, _ = models.apply(weights=WEIGHTS["two"])
    for inside in (1, 4):
        torch.set_num_threads(inside)
        assert models.apply(weights=WEIGHTS["two"], device=device, threads=threads)[0] == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_method_gives_the_same_bits(models: Models, device: str, method: str, threads: int) -> None:
    options: dict[str, Any] = {"parameters": REQUIRED.get(method), "seed": 3, "threads": threads}
    if threads == 1 and models.dtype == "F16":
        pytest.skip("once is enough for this dtype")
    expected, _ = models.apply(method, **options)
    assert models.apply(method, device=device, **options)[0] == expected
    assert expected != read_tensors(models.target_path)


def test_the_base_becomes_post_with_what_no_sum_gives(tmp_path: Path, device: str) -> None:
    """Overwrites, other dtypes in post, integers, complex numbers, and a tensor that base lacks."""
    draw = np.random.default_rng(4)
    bits = {name: draw.integers(0, 1 << 16, 3000, np.uint16) for name in ("before", "after")}
    wide = {name: draw.integers(0, 1 << 32, 3000, np.uint32) for name in ("before", "after")}
    half = FORMATS["F16"].narrow(draw.normal(0, 1, 3000))
    base = {
        "any": of("BF16", bits["before"]),
        "complex": of("C64", wide["before"]),
        "wider": of("F16", half),
        "ids": of("I64", np.arange(5)),
    }
    post = {
        "any": of("BF16", bits["after"]),
        "complex": of("C64", wide["after"]),
        "wider": of("F32", draw.normal(0, 1, 3000).astype(np.float32).view(np.uint32)),
        "ids": of("I64", np.arange(5) * 7),
        "added": of("F64", draw.normal(0, 1, 40).view(np.uint64)),
    }
    paths = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "post", post)
    registry = Registry(tmp_path / "home")
    deltareg.diff(*paths, registry, "acme/a:1.0.0")
    report = deltareg.apply(paths[0], {"acme/a:1.0.0": 1.0}, registry, tmp_path / "out", device=device)
    assert read_tensors(tmp_path / "out") == post
    assert report.overwritten > 100


def test_rows_of_other_tokens_are_the_same_bit_for_bit(tmp_path: Path, device: str) -> None:
    """A target with more rows: frames are gathered from others."""
    draw = np.random.default_rng(5)
    form = FORMATS["BF16"]

    def written(name: str, values: Any) -> Path:
        raw = Raw("BF16", values.shape, form.narrow(values).tobytes())
        return write_checkpoint(tmp_path / name, {"model.embed_tokens.weight": raw})

    values = draw.normal(0, 1, (300, 40))
    both = written("base", values), written("post", values + draw.normal(0, 0.1, values.shape))
    target = written("target", draw.normal(0, 1, (310, 40)))
    registry = Registry(tmp_path / "home")
    deltareg.diff(*both, registry, "acme/a:1.0.0")
    for name, where in (("cpu", "cpu"), ("there", device)):
        deltareg.apply(target, {"acme/a:1.0.0": 0.5}, registry, tmp_path / name, force=True, device=where)
    assert read_tensors(tmp_path / "there") == read_tensors(tmp_path / "cpu") != read_tensors(target)


@pytest.fixture(scope="module")
def minilm_registry(tmp_path_factory: pytest.TempPathFactory, minilm_bf16: Pair) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("minilm"))
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, "acme/search:1.0.0")
    return registry


@pytest.mark.parametrize(
    ("method", "parameters"), [("linear", None), ("ties", {"density": 0.3})], ids=["linear", "ties"]
)
def test_real_weights_are_the_same_bit_for_bit(
    tmp_path: Path, minilm_bf16: Pair, minilm_registry: Registry, device: str, method: str, parameters: Any
) -> None:
    found: list[dict[Path, bytes]] = []
    for number, name in enumerate(("cpu", device)):
        out = tmp_path / str(number)
        deltareg.apply(
            minilm_bf16.base,
            {"acme/search:1.0.0": 0.6},
            minilm_registry,
            out,
            method=method,
            parameters=parameters,
            device=name,
        )
        found.append({file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert found[0] == found[1]


# --- memory that does not suffice -------------------------------------------------------------------------------------

_MORE_THAN_THERE_IS = 1 << 60


def _needing(device: Device, most: int) -> Any:
    """Work for which there is no memory with more than `most` lanes at a time."""

    def work() -> int:
        lanes = device.loops.room.lanes
        if lanes > most:
            torch.empty(_MORE_THAN_THERE_IS, dtype=torch.uint8, device=device.loops.device)
        return lanes

    return work


@pytest.mark.parametrize("name", ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
def test_a_device_without_memory_goes_on_in_smaller_parts(name: str) -> None:
    device = Device([name])
    assert device.step(_needing(device, FRAME_LANES)) == FRAME_LANES
    assert device.step(_needing(device, 1 << 17)) == 1 << 17
    assert device.step(_needing(device, FRAME_LANES)) == device.lanes == 1 << 17


def test_a_device_that_cannot_do_the_smallest_part_is_an_error() -> None:
    device = Device(["cpu"])
    with pytest.raises(DeviceFull, match=f"even for {LEAST_LANES} lanes at a time") as caught:
        device.step(_needing(device, 0))
    assert "allocate" in (caught.value.cause or "")
    assert caught.value.hint


def test_what_is_no_lack_of_memory_is_not_tried_again() -> None:
    device, tries = Device(["cpu"]), []

    def work() -> None:
        tries.append(device.lanes)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        device.step(work)
    assert tries == [FRAME_LANES]


def test_without_memory_one_step_is_done_at_a_time() -> None:
    device = Device(["cpu"])
    device.step(_needing(device, 1 << 19))
    lock, running, most = threading.Lock(), 0, 0

    def work() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        torch.ones(1 << 20).sum()
        with lock:
            running -= 1
        return device.loops.room.lanes

    assert list(in_order([lambda: device.step(work)] * 40, 4)) == [1 << 19] * 40
    assert most == 1


# The address space that is left suffices for the arrays of a block, not for what a device needs beside them to work on
# all of it at a time.
_WITH_LITTLE_MEMORY = """
import re, resource, sys
import numpy as np
import torch
from deltareg.apply.device import Device
from tests.merge.merged import merge
torch.set_num_threads(1)
method, megabytes = sys.argv[1], int(sys.argv[2])
draw = np.random.default_rng(1)
deltas = [draw.normal(0, 1, 1 << 20) for _ in range(2)]
expected = merge(method, deltas)
device = Device(["cpu"])
merge(method, [delta[:5000] for delta in deltas], processor=device)
size = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, resource.RLIM_INFINITY))
found = merge(method, deltas, processor=device)
print(device.lanes, bool((found.view("u8") == expected.view("u8")).all()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the size of a process is read from /proc")
@pytest.mark.parametrize("method", ["ties", "sce"])
def test_a_merge_with_little_memory_gives_the_same_bits(method: str) -> None:
    """Measured with glibc: from 60 MB on it ends, from 130 MB on it has no need of smaller parts."""
    # What is freed goes back at once: what is left does not depend on where the heap has holes.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _WITH_LITTLE_MEMORY, method, "85"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lanes, same = done.stdout.split()
    assert LEAST_LANES <= int(lanes) < FRAME_LANES
    assert same == "True"


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "mps", "", "cuda:0,,", "cuda:-1", "cpu,cuda"])
def test_a_device_of_an_unknown_kind_is_refused(models: Models, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"unknown device|no device cuda") as caught:
        models.apply(device=name)
    assert "cpu" in (caught.value.hint or "")


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(models: Models, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no device cuda:4096") as caught:
        deltareg.apply(models.target_path, {"acme/a:1.0.0": 1.0}, models.registry, tmp_path / "out", device="cuda:4096")
    assert (caught.value.hint or "").startswith("devices that are there: cpu")
    assert list(tmp_path.iterdir()) == []


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import deltareg
from deltareg.errors import InvalidArgument
target, home, out = sys.argv[1:]
deltareg.apply(target, {"acme/a:1.0.0": 1.0}, deltareg.Registry(home), out, force=True)
try:
    deltareg.apply(target, {"acme/a:1.0.0": 1.0}, deltareg.Registry(home), out + "-2", force=True, device="cuda")
except InvalidArgument as error:
    print(error.message, error.hint, sep="\\n")
"""


def test_without_torch_the_error_says_how_to_get_it(models: Models, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(models.target_path), str(models.path / "home")]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "device cuda needs torch, which cannot be imported",
        "python -m pip install 'deltareg[gpu]', or take --device cpu",
    ]


def test_the_command_takes_a_device(models: Models, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "deltareg", "apply", str(models.target_path), "acme/a:1.0.0=0.5", "--force"]
    environment = {**os.environ, "DELTAREG_HOME": str(models.path / "home")}
    options = ["-o", str(out), "--device", "torch:cpu", "--json"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["device"] == "torch:cpu"
    assert read_tensors(out) == models.apply(weights={"acme/a:1.0.0": 0.5})[0]
