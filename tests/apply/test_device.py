"""Applies on a device: the bytes of the whole output are those of the processor's own way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltareg
from deltareg import Registry
from deltareg.errors import InvalidArgument
from tests.apply.test_methods import Models
from tests.codec.oracle import FORMATS
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.devices import DEVICES
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


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits_on_a_device(models: Models, device: str, threads: int) -> None:
    expected, _ = models.apply(weights=WEIGHTS["two"])
    assert models.apply(weights=WEIGHTS["two"], device=device, threads=threads)[0] == expected


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
