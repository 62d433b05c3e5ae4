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
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from deltareg.checkpoint import Checkpoint
from deltareg.errors import BadCheckpoint, BadHeader
from tests import raw
from tests.checkpoint.samples import tensors, write_model, write_sharded


def contents(path: Path | str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with Checkpoint.open(path) as found:
        return {name: (tensor.dtype, tensor.shape, tensor.read()) for name, tensor in found.tensors.items()}


@pytest.mark.parametrize("write", [write_model, write_sharded])
def test_checkpoint_gives_what_safetensors_wrote(tmp_path: Path, write: Any) -> None:
    arrays = tensors()
    kinds = {"float32": "F32", "float16": "F16", "int64": "I64", "float64": "F64", "bool": "BOOL"}
    assert contents(write(tmp_path)) == {
        name: (kinds[array.dtype.name], array.shape, array.tobytes()) for name, array in arrays.items()
    }


TORCH_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
}


def test_every_dtype_of_torch_is_read_bit_for_bit(tmp_path: Path) -> None:
    pattern = torch.randint(0, 256, (6 * 8,), dtype=torch.uint8)
    state = {name: pattern.clone().view(dtype) for dtype, name in TORCH_DTYPES.items()}
    state["BOOL"] = pattern > 127
    save_torch(state, tmp_path / "model.safetensors")
    found = contents(tmp_path)
    assert {name: dtype for name, (dtype, _, _) in found.items()} == {name: name for name in state}
    for name, tensor in state.items():
        assert found[name][2] == bytes(tensor.view(torch.uint8).tolist()), name


def test_real_checkpoints_are_read_bit_for_bit(anarcii: Mapping[str, Path]) -> None:
    for path in anarcii.values():
        expected = {
            name: (tensor.spec.dtype, tensor.spec.shape, tensor.data.tobytes())
            for name, tensor in raw.read(path).items()
        }
        assert contents(path) == expected


def test_tensors_come_in_the_order_of_shards_then_of_bytes(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    with Checkpoint.open(tmp_path) as found:
        places = [(tensor.shard, tensor.start) for tensor in found.tensors.values()]
        assert places == sorted(places)
        assert [shard.file for shard in found.shards] == sorted(shard.file for shard in found.shards)
        assert [name for shard in found.shards for name in shard.tensors] == list(found.tensors)
        assert [shard.size for shard in found.shards] == [
            (tmp_path / shard.file).stat().st_size for shard in found.shards
        ]
        assert found.shards[0].metadata == {"format": "pt"}


def test_block_of_a_tensor_is_read_without_the_rest(tmp_path: Path) -> None:
    write_model(tmp_path)
    ids = tensors()["layers.0.ids"]
    with Checkpoint.open(tmp_path) as found:
        tensor = found.tensors["layers.0.ids"]
        buffer = np.zeros(3, np.int64)
        tensor.read_into(16, buffer)
        assert buffer.tolist() == ids[2:5].tolist()
        assert tensor.read(64) == ids[8:].tobytes()
        assert tensor.read(8, 8) == ids[1:2].tobytes()
        assert tensor.read(72) == b""
        for offset, length in ((-1, 4), (0, 73), (72, 1), (4, -1)):
            with pytest.raises(ValueError, match=r"not within 'layers\.0\.ids' of 72 bytes"):
                tensor.read(offset, length)
        with pytest.raises(ValueError, match="not within"):
            tensor.read_into(60, bytearray(13))


def test_scalars_and_empty_tensors_have_their_sizes(tmp_path: Path) -> None:
    with Checkpoint.open(write_model(tmp_path)) as found:
        scalar, empty = found.tensors["scale"], found.tensors["empty"]
        assert (scalar.shape, scalar.elements, scalar.nbytes) == ((), 1, 8)
        assert (empty.shape, empty.elements, empty.nbytes, empty.read()) == ((0, 4), 0, 0, b"")


def test_shards_that_shrink_after_opening_give_an_error(tmp_path: Path) -> None:
    write_model(tmp_path)
    with Checkpoint.open(tmp_path) as found:
        os.truncate(tmp_path / "model.safetensors", 700)
        with pytest.raises(BadHeader, match="truncated"):
            for tensor in found.tensors.values():
                tensor.read()


def test_cut_file_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    file = write_model(tmp_path) / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(BadHeader, match="truncated, or not what its header says"):
        Checkpoint.open(tmp_path)


# --- index and shards ---------------------------------------------------------------------------------------------


def test_every_disagreement_of_index_and_shards_is_told_at_once(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({name: np.zeros(2) for name in ("a", "b", "twice", "extra")}, tmp_path / one)
    save_file({name: np.zeros(2) for name in ("c", "twice")}, tmp_path / two)
    weight_map = {"a": one, "b": two, "c": two, "twice": one, "lost": two}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadCheckpoint) as raised:
        Checkpoint.open(tmp_path)
    index = "model.safetensors.index.json"
    assert raised.value.data["faults"] == [
        f"tensor 'twice' is in two shards, {one} and {two}",
        f"{index} has tensor 'b' in {two}, but it is in {one}",
        f"{index} has tensor 'lost' in {two}, which lacks it",
        f"{index} lacks tensor 'extra' of {one}",
    ]
    assert raised.value.exit_code == 5


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"lacks 1 of its shards: .* names model-00001-of-00002\.safetensors"):
        Checkpoint.open(tmp_path)


def test_many_disagreements_are_counted(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"] |= {f"lost.{number}": "model-00001-of-00002.safetensors" for number in range(50)}
    index.write_text(json.dumps(document))
    with pytest.raises(BadCheckpoint, match="and 40 more faults"):
        Checkpoint.open(tmp_path)


def test_no_file_stays_open_when_a_checkpoint_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x")
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(BadHeader):
        Checkpoint.open(tmp_path)
    assert len(os.listdir("/dev/fd")) == before


# --- what lies beside ---------------------------------------------------------------------------------------------


def test_config_licence_and_side_files_are_read(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for name in ("tokenizer.json", "chat_template.jinja", "1_Pooling/config.json", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with Checkpoint.open(tmp_path) as found:
        assert found.config == {"model_type": "llama", "hidden_size": 5}
        assert found.licence == "apache-2.0"
        assert found.side_files == (Path("1_Pooling/config.json"), Path("chat_template.jinja"), Path("tokenizer.json"))
        assert [found.read_file(path).decode() for path in found.side_files] == [
            path.as_posix() for path in found.side_files
        ]


def test_weights_alone_make_a_checkpoint(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as found:
        assert (found.config, found.licence, found.side_files) == (None, None, ())


def test_infinity_in_a_config_is_kept_as_text(tmp_path: Path) -> None:
    (write_model(tmp_path) / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    with Checkpoint.open(tmp_path) as found:
        assert found.config == {"time_step_limit": [0.0, "Infinity"]}


@pytest.mark.parametrize("config", ["", "[]", "{", '{"a":1,"a":2}', "{'a':1}", '"x"', "[" * 10_000])
def test_config_that_is_no_object_is_refused(tmp_path: Path, config: str) -> None:
    (write_model(tmp_path) / "config.json").write_text(config)
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        Checkpoint.open(tmp_path)


def test_config_of_eleven_megabytes_is_refused(tmp_path: Path) -> None:
    (write_model(tmp_path) / "config.json").write_bytes(b" " * 11_000_000)
    with pytest.raises(BadCheckpoint, match="at most 10485760 are read"):
        Checkpoint.open(tmp_path)


def test_model_card_out_of_order_does_not_hide_the_weights(tmp_path: Path) -> None:
    (write_model(tmp_path) / "README.md").write_bytes(b"---\nlicense: mit\n---\n" + bytes(11_000_000))
    with Checkpoint.open(tmp_path) as found:
        assert found.licence is None


def test_opening_loads_no_array_library(tmp_path: Path) -> None:
    write_model(tmp_path)
    program = (
        "import sys\n"
        "from deltareg.checkpoint import Checkpoint\n"
        "found = Checkpoint.open(sys.argv[1])\n"
        "print(len(found.tensors), *{'torch', 'numpy', 'numba', 'huggingface_hub', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6"]
