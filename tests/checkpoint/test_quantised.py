"""Quantised checkpoints: scaled 8-bit floats are read as bfloat16, others are refused with what to use instead."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltareg
from deltareg import Registry
from deltareg.checkpoint import Checkpoint
from deltareg.errors import BadCheckpoint, BadHeader, QuantisedRefused
from tests import raw

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
Q, DOWN, NORM = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight"


def dequantised(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """The published formula, by torch."""
    wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return (codes.to(torch.float32) * wide[: codes.shape[0], : codes.shape[1]]).to(torch.bfloat16)


def quantised(weight: torch.Tensor, block: tuple[int, int] = (128, 128)) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix."""
    rows, columns = (-(-side // step) for side, step in zip(weight.shape, block, strict=True))
    scales = torch.empty(rows, columns)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            here = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[i, j] = weight[here].abs().max() / 448
            codes[here] = (weight[here] / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales


def write(path: Path, shards: list[dict[str, torch.Tensor]], quantisation: Mapping[str, Any] | None = FP8) -> Path:
    path.mkdir(parents=True)
    config: dict[str, Any] = {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}
    if quantisation is not None:
        config["quantization_config"] = quantisation
    (path / "config.json").write_text(json.dumps(config))
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, tensors in zip(names, shards, strict=True):
        save_file(tensors, path / name)
    index = {"weight_map": {key: name for name, tensors in zip(names, shards, strict=True) for key in tensors}}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, **index}))
    return path


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A block-fp8 checkpoint in two shards, a scale apart from its codes, and what torch reads of it."""
    torch.manual_seed(1)
    q, q_scale = quantised(torch.randn(300, 200))
    down, down_scale = quantised(torch.randn(128, 1000) * 3)
    norm = torch.rand(200).to(torch.bfloat16)
    shards = [{Q: q, NORM: norm, f"{DOWN}_scale_inv": down_scale}, {DOWN: down, f"{Q}_scale_inv": q_scale}]
    expected = {Q: dequantised(q, q_scale), DOWN: dequantised(down, down_scale), NORM: norm}
    return write(tmp_path / "fp8", shards), expected


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_blocks_are_read_as_bfloat16(model: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, expected = model
    with Checkpoint.open(path) as opened:
        assert {name: (one.dtype, one.shape) for name, one in opened.tensors.items()} == {
            name: ("BF16", tuple(one.shape)) for name, one in expected.items()
        }
        assert all(opened.tensors[name].read() == bits(one) for name, one in expected.items())
        assert opened.dequantised == 2
        assert opened.config == {"model_type": "deepseek_v3", "torch_dtype": "bfloat16"}
        assert opened.tensors[Q].file_range() is None
        whole = bits(expected[Q])
        for offset, length in ((0, 1), (1, 2), (399, 3), (51_201, 30_000), (len(whole) - 1, 1), (7, 0)):
            assert opened.tensors[Q].read(offset, length) == whole[offset : offset + length]


def test_every_code_is_torch_s(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)
    for number, scale in enumerate((1.0, 0.37, 1e-30, 3e38)):
        scales = torch.tensor([[scale]])
        path = write(tmp_path / str(number), [{Q: codes, f"{Q}_scale_inv": scales}])
        with Checkpoint.open(path) as opened:
            ours = np.frombuffer(opened.tensors[Q].read(), np.uint16)
        theirs = dequantised(codes, scales).view(torch.uint16).numpy().reshape(-1)
        nan = np.isnan(dequantised(codes, scales).float().numpy().reshape(-1))
        assert np.array_equal(ours[~nan], theirs[~nan])
        assert ((ours[nan] & 0x7FFF) > 0x7F80).all()


def test_a_delta_of_blocks_fits_the_bfloat16_model(model: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, expected = model
    torch.manual_seed(2)
    after = {name: (one.float() + 0.01 * torch.randn(one.shape)).to(torch.bfloat16) for name, one in expected.items()}
    post = write(tmp_path / "post", [after], None)
    plain = write(tmp_path / "plain", [expected], None)
    registry = Registry(tmp_path / "home")
    deltareg.diff(path, post, registry, "acme/one:1.0.0")
    for number, target in enumerate((plain, path)):
        report = deltareg.apply(target, {"acme/one:1.0.0": 1}, registry, tmp_path / f"out-{number}")
        out = tmp_path / f"out-{number}"
        found = {name: one for file in out.glob("*.safetensors") for name, one in load_file(file).items()}
        assert {name: bits(one) for name, one in found.items()} == {name: bits(one) for name, one in after.items()}
        assert "quantization_config" not in json.loads((out / "config.json").read_text())
        assert any("8-bit" in line for line in report.warnings) == (target == path)
    assert deltareg.check(path, ["acme/one:1.0.0"], registry).verdict == "identical"
    # Left as it is, a tensor is copied: dequantised too.
    half = deltareg.apply(path, {"acme/one:1.0.0": 0}, registry, tmp_path / "none")
    assert half.copied_tensors == 3
    with Checkpoint.open(tmp_path / "none") as opened:
        assert all(opened.tensors[name].read() == bits(one) for name, one in expected.items())


def test_one_scale_for_a_tensor_is_read(tmp_path: Path) -> None:
    codes = torch.randn(40, 30).to(torch.float8_e4m3fn)
    for number, scale in enumerate((torch.tensor(0.5), torch.tensor([0.25]))):
        tensors = {Q: codes, f"{Q}_scale_inv": scale, f"{Q.removesuffix('.weight')}.input_scale": torch.tensor(1.0)}
        path = write(tmp_path / str(number), [tensors], {"quant_method": "fp8"})
        with Checkpoint.open(path) as opened:
            assert list(opened.tensors) == [Q]
            assert opened.tensors[Q].read() == bits((codes.float() * scale.item()).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({f"{Q}_scale_inv": torch.ones(2, 2)}, "instead of F32 [3, 2]"),
        ({f"{Q}_scale_inv": torch.ones(3, 2, dtype=torch.float64)}, "scales F64"),
        ({f"{Q}_scale_inv": torch.zeros(3, 2)}, "no positive number"),
        ({f"{Q}_scale_inv": torch.full((3, 2), torch.nan)}, "no positive number"),
        ({Q: torch.ones(300, 200, dtype=torch.float8_e5m2)}, "F8_E5M2"),
        ({Q: torch.ones(3, 2, 200).to(torch.float8_e4m3fn)}, "matrices"),
    ],
)
def test_scales_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, torch.Tensor], told: str) -> None:
    codes, scales = quantised(torch.randn(300, 200))
    path = write(tmp_path / "odd", [{Q: codes, f"{Q}_scale_inv": scales} | change])
    with pytest.raises(BadCheckpoint) as caught, Checkpoint.open(path) as opened:
        opened.tensors[Q].read()
    assert told in caught.value.message
    assert Q in caught.value.message


@pytest.mark.parametrize("block", [[0, 128], [128], "128", [128, -1], [128, True], [1 << 40, 1], {}])
def test_odd_block_sizes_are_refused(tmp_path: Path, block: object) -> None:
    codes, scales = quantised(torch.randn(300, 200))
    path = write(tmp_path / "odd", [{Q: codes, f"{Q}_scale_inv": scales}], FP8 | {"weight_block_size": block})
    with pytest.raises(BadCheckpoint, match="weight_block_size"):
        Checkpoint.open(path)


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "odd", [{Q: torch.randn(8, 8).to(torch.float8_e4m3fn)}])
    with pytest.raises(BadCheckpoint, match=r"q_proj\.weight"):
        Checkpoint.open(path)


def test_a_truncated_file_is_an_error(model: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = model
    with Checkpoint.open(path) as opened:
        shard = path / opened.tensors[DOWN].shard
        os.truncate(shard, shard.stat().st_size // 2)
        with pytest.raises(BadHeader, match="truncated"):
            opened.tensors[DOWN].read()


# --- what is refused ----------------------------------------------------------------------------------------------

PREFIX = "model.layers.0.self_attn.q_proj"
LAYOUTS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "gptq": ({"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}, "GPTQ"),
    "awq": ({"qweight": "I32", "qzeros": "I32", "scales": "F16"}, "AWQ"),
    "bitsandbytes": (
        {
            "weight": "U8",
            "weight.absmax": "U8",
            "weight.quant_map": "F32",
            "weight.quant_state.bitsandbytes__nf4": "U8",
        },
        "bitsandbytes",
    ),
    "bitsandbytes 8 bits": ({"weight": "I8", "SCB": "F32"}, "bitsandbytes"),
    "compressed-tensors": (
        {"weight_packed": "I32", "weight_scale": "BF16", "weight_shape": "I64"},
        "compressed-tensors",
    ),
    "mxfp4": ({"weight_blocks": "U8", "weight_scales": "U8"}, "MXFP4"),
    "hqq": ({"W_q": "U8", "scale": "F16", "zero": "F16"}, "HQQ"),
    "brand-new": ({"weight": "U8", "weight_scale": "F32"}, "brand-new"),
}


def write_codes(path: Path, layout: Mapping[str, str], method: str | None) -> Path:
    path.mkdir()
    specs = [raw.TensorSpec(f"{PREFIX}.{name}", dtype, (4, 4)) for name, dtype in layout.items()]
    specs.append(raw.TensorSpec(NORM, "F16", (4,)))
    raw.write(path / "model.safetensors", [raw.RawTensor(spec, np.zeros(spec.nbytes, np.uint8)) for spec in specs])
    config = {} if method is None else {"quantization_config": {"quant_method": method, "bits": 4}}
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_are_refused_with_what_to_use(name: str, tmp_path: Path) -> None:
    layout, called = LAYOUTS[name]
    methods = [name.partition(" ")[0], None] if name != "brand-new" else [name]
    for number, method in enumerate(methods):
        path = write_codes(tmp_path / str(number), layout, method)
        with pytest.raises(QuantisedRefused, match=called) as caught:
            Checkpoint.open(path)
        assert "made from" in str(caught.value.hint)
        assert caught.value.exit_code == 3


def test_gguf_is_refused_by_name_and_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder/model.Q4_K_M.gguf", "model.GGUF", "weights"):
        (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    for name in ("folder", "folder/model.Q4_K_M.gguf", "model.GGUF", "weights"):
        with pytest.raises(QuantisedRefused, match="GGUF"):
            Checkpoint.open(tmp_path / name)


def test_what_only_looks_quantised_is_read(tmp_path: Path) -> None:
    """A leftover in config.json, a tensor called scales, plain integers and plain 8-bit floats."""
    floats = {"weight": "F16", "scales": "F16", "bias": "F16"}
    with Checkpoint.open(write_codes(tmp_path / "leftover", floats, "bitsandbytes")) as opened:
        assert len(opened.tensors) == 4
    for number, layout in enumerate(({"weight": "F8_E4M3"}, {"weight": "I8"}, {"scale": "F16", "codes": "U8"})):
        with Checkpoint.open(write_codes(tmp_path / str(number), layout, None)) as opened:
            assert opened.dequantised == 0


@pytest.mark.parametrize("settings", [None, [], "fp8", {"quant_method": 7}, {"quant_method": None}, {}])
def test_odd_settings_are_no_crash(tmp_path: Path, settings: Any) -> None:
    path = write(tmp_path / "odd", [{NORM: torch.ones(4)}], settings)
    with Checkpoint.open(path) as opened:
        assert list(opened.tensors) == [NORM]
