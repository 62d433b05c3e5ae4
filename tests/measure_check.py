"""How long `deltareg check` takes on large models: `python -m tests.measure_check`.

The checkpoints are sparse files: their headers are whole, and of their weights only the sampled values are there.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deltareg.artifact import pack
from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint
from deltareg.fingerprint import fingerprint_of
from deltareg.manifest import (
    CONFIG_TYPE,
    INVENTORY_TYPE,
    DeltaConfig,
    Descriptor,
    Exactness,
    Inventory,
    Manifest,
    Parent,
    TensorEntry,
    encode,
)
from deltareg.sketch import SAMPLES_TYPE
from deltareg.sketch.samples import TensorSpec, sample_plan, take_samples
from tests import raw
from tests.fingerprint.configs import decoder_shapes

Shapes = Mapping[str, tuple[int, ...]]
SHARD = 5 * 10**9
REFERENCE = "acme/large:1.0.0"


@dataclass(frozen=True)
class Large:
    """A large model: its config and its tensors, and how long and how much its check may read."""

    config: Mapping[str, Any]
    shapes: Shapes
    seconds: float
    megabytes: float


def llama_70b() -> Large:
    """Llama 3 70B: 723 tensors."""
    config = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    }
    return Large(config, decoder_shapes(config), 1, 5)


def mixture_671b() -> Large:
    """A mixture of experts of DeepSeek-V3's sizes, its experts halved: twice as many, 90,000 tensors in all."""
    config = {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 1024,
        "n_routed_experts": 512,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "vocab_size": 129280,
        "tie_word_embeddings": False,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (129280, 7168)}
    projections = {"gate_proj": (1024, 7168), "up_proj": (1024, 7168), "down_proj": (7168, 1024)}
    for layer in range(61):
        here = f"model.layers.{layer}."
        shapes |= {f"{here}{name}.weight": (7168,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {
            f"{here}self_attn.q_a_proj.weight": (1536, 7168),
            f"{here}self_attn.q_a_layernorm.weight": (1536,),
            f"{here}self_attn.q_b_proj.weight": (24576, 1536),
            f"{here}self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
            f"{here}self_attn.kv_a_layernorm.weight": (512,),
            f"{here}self_attn.kv_b_proj.weight": (32768, 512),
            f"{here}self_attn.o_proj.weight": (7168, 16384),
        }
        if layer < 3:
            shapes |= {f"{here}mlp.{name}.weight": (18432, 7168) for name in ("gate_proj", "up_proj")}
            shapes[f"{here}mlp.down_proj.weight"] = (7168, 18432)
            continue
        shapes |= {f"{here}mlp.gate.weight": (512, 7168), f"{here}mlp.gate.e_score_correction_bias": (512,)}
        shapes |= {f"{here}mlp.shared_experts.{name}.weight": shape for name, shape in projections.items()}
        for expert, (name, shape) in product(range(512), projections.items()):
            shapes[f"{here}mlp.experts.{expert}.{name}.weight"] = shape
    shapes |= {"model.norm.weight": (7168,), "lm_head.weight": (129280, 7168)}
    return Large(config, shapes, 3, 30)


MODELS: Mapping[str, Callable[[], Large]] = {"Llama 3 70B": llama_70b, "mixture of 671 B": mixture_671b}


def write_sparse(model: Large, directory: Path) -> None:
    """A checkpoint in shards of 5 GB whose weights are holes."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(model.config))
    shards: list[list[raw.TensorSpec]] = [[]]
    size = 0
    for name, shape in model.shapes.items():
        spec = raw.TensorSpec(name, "BF16", shape)
        if size + spec.nbytes > SHARD and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        head = raw.header(specs)
        (directory / file).write_bytes(head)
        os.truncate(directory / file, len(head) + sum(spec.nbytes for spec in specs))
        weight_map |= {spec.name: file for spec in specs}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def fill(directory: Path, *, noise: float) -> None:
    """Put numbers where the model is sampled: the same ones each time, and `noise` times other ones."""
    with Checkpoint.open(directory) as opened:
        plan = sample_plan([TensorSpec(one.name, one.dtype, one.shape) for one in opened.tensors.values()])
        places = [(opened.tensors[spec.name].shard, opened.tensors[spec.name].start) for spec in plan.tensors]
    first, other = (np.random.default_rng(seed).standard_normal(plan.values) for seed in (1, 2))
    bits = raw.to_bf16((first + noise * other).astype(np.float32)).tobytes()
    files = {shard: os.open(directory / shard, os.O_WRONLY) for shard in dict.fromkeys(shard for shard, _ in places)}
    at = 0
    for owner, start, length in zip(plan.owners.tolist(), plan.starts.tolist(), plan.lengths.tolist(), strict=True):
        shard, offset = places[owner]
        os.pwrite(files[shard], bits[at : at + 2 * length], offset + 2 * start)
        at += 2 * length
    for file in files.values():
        os.close(file)


def build(model: Large, path: Path) -> Path:
    """A registry in `path`/home with a delta of the model; returns a relative of its base."""
    directory = path / "model"
    write_sparse(model, directory)
    fill(directory, noise=0)
    registry = Registry(path / "home")
    with Checkpoint.open(directory) as base:
        fingerprint, samples = fingerprint_of(base), take_samples(base)
    entries = [
        TensorEntry(
            name=name, kind="zero", base_dtype="BF16", post_dtype="BF16", shape=list(shape), base_norm=1, delta_norm=0.1
        )
        for name, shape in model.shapes.items()
    ]
    count = sum(int(np.prod(shape)) for shape in model.shapes.values())
    parent = Parent(id="large", digest="blake3:" + "0" * 64, dtypes={"BF16": count}, parameters=count, size=2 * count)
    config = DeltaConfig(
        fingerprint=fingerprint,
        base=parent,
        post=parent,
        exactness=Exactness(),
        preset="fast",
        norms={},
        producer="deltareg tests",
    )

    def stored(kind: str, blob: bytes) -> Descriptor:
        return Descriptor(media_type=kind, digest=registry.store.put(blob), size=len(blob))

    layers = [
        stored(INVENTORY_TYPE, pack(encode(Inventory(tensors=entries)))),
        stored(SAMPLES_TYPE, samples),
    ]
    registry.publish(REFERENCE, encode(Manifest(config=stored(CONFIG_TYPE, encode(config)), layers=layers)))
    fill(directory, noise=0.1)
    return directory


def check(path: Path, target: Path) -> tuple[dict[str, Any], float]:
    """The report of `deltareg check` in a process of its own, and the seconds of the whole process."""
    environment = os.environ | {"DELTAREG_HOME": str(path / "home")}
    command = [sys.executable, "-m", "deltareg", "check", REFERENCE, "--base", str(target), "--json"]
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout), time.monotonic() - begun


def main() -> None:
    """Print a table: for each model the fastest of five checks."""
    table = Table("model", "tensors", "verdict", "seconds", "limit", "MB read", "limit", "MB resident")
    for name, make in MODELS.items():
        model = make()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            target = build(model, path)
            found = [check(path, target) for _ in range(5)]
            report, seconds = found[0][0], min(seconds for _, seconds in found)
            resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            table.add_row(
                name,
                f"{len(model.shapes):,}",
                report["verdict"],
                f"{seconds:.2f}",
                f"{model.seconds:g}",
                f"{report['bytesRead'] / 1e6:.1f}",
                f"{model.megabytes:g}",
                f"{resident:.0f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
