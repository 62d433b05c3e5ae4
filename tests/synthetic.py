"""Generated checkpoints: a Llama-shaped base and a light fine-tune of it, as large as is asked for."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests import raw

__all__ = ["synthetic"]

_BLOCK = 1 << 20
"""Elements that one generator draws: the unit of determinism, and of memory."""


@dataclass(frozen=True)
class _Shape:
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    layers: int


# TinyLlama's proportions and two reductions; the number of layers fits the size that is asked for.
_SHAPES = (
    (0.6, _Shape(2048, 5632, 32000, 32, 4, 0)),
    (0.06, _Shape(1024, 2816, 8000, 16, 4, 0)),
    (0.0, _Shape(128, 352, 512, 4, 2, 0)),
)


def synthetic(path: Path, gigabytes: float, seed: int, shards: int) -> tuple[Path, Path]:
    """`path/base` and `path/post`: two bf16 checkpoints of about `gigabytes` 10^9 bytes each, in `shards` files.

    Weights are normal, 0.02 wide (norms: around 1). The fine-tune adds a normal of a width between 1e-4 and 3e-4,
    drawn for each tensor, and rounds once. The same arguments give the same bytes; a few blocks are held in memory.
    """
    recipe = json.dumps({"gigabytes": gigabytes, "seed": seed, "shards": shards, "layout": 1})
    stamp = path / ".recipe"
    if not (stamp.exists() and stamp.read_text() == recipe):
        shutil.rmtree(path, ignore_errors=True)
        shape = _shape_for(gigabytes)
        for side in ("base", "post"):
            (path / side).mkdir(parents=True)
            (path / side / "config.json").write_text(json.dumps(_config(shape), indent=2) + "\n")
        _write_shards(path, _split(_tensors(shape), shards), seed)
        stamp.write_text(recipe)
    return path / "base", path / "post"


def _shape_for(gigabytes: float) -> _Shape:
    shape = next(shape for least, shape in _SHAPES if gigabytes >= least)
    fixed = sum(spec.nbytes for spec in _tensors(shape))
    layer = sum(spec.nbytes for spec in _layer(shape, 0))
    layers = max(1, round((gigabytes * 1e9 - fixed) / layer))
    return _Shape(shape.hidden, shape.intermediate, shape.vocabulary, shape.heads, shape.kv_heads, layers)


def _tensors(shape: _Shape) -> list[raw.TensorSpec]:
    embedding = (shape.vocabulary, shape.hidden)
    found = [raw.TensorSpec("model.embed_tokens.weight", "BF16", embedding)]
    for number in range(shape.layers):
        found += _layer(shape, number)
    found.append(raw.TensorSpec("model.norm.weight", "BF16", (shape.hidden,)))
    found.append(raw.TensorSpec("lm_head.weight", "BF16", embedding))
    return found


def _layer(shape: _Shape, number: int) -> list[raw.TensorSpec]:
    hidden, inner = shape.hidden, shape.intermediate
    kv = hidden // shape.heads * shape.kv_heads
    sizes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return [raw.TensorSpec(f"model.layers.{number}.{name}.weight", "BF16", size) for name, size in sizes.items()]


def _config(shape: _Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def _split(specs: list[raw.TensorSpec], shards: int) -> list[list[raw.TensorSpec]]:
    """`specs` in their order, in `shards` runs of about the same bytes."""
    if shards > len(specs):
        raise ValueError(f"{len(specs)} tensors do not fill {shards} shards")
    total = sum(spec.nbytes for spec in specs)
    runs: list[list[raw.TensorSpec]] = [[]]
    done = 0
    for left, spec in zip(range(len(specs), 0, -1), specs, strict=True):
        enough = done >= total * len(runs) / shards or left == shards - len(runs)
        if runs[-1] and enough and len(runs) < shards:
            runs.append([])
        runs[-1].append(spec)
        done += spec.nbytes
    return runs


def _write_shards(path: Path, runs: list[list[raw.TensorSpec]], seed: int) -> None:
    names = [f"model-{n:05}-of-{len(runs):05}.safetensors" for n in range(1, len(runs) + 1)]
    if len(runs) == 1:
        names = ["model.safetensors"]
    places = {spec.name: name for name, run in zip(names, runs, strict=True) for spec in run}
    total = sum(spec.nbytes for run in runs for spec in run)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    if len(runs) > 1:
        for side in ("base", "post"):
            (path / side / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    order = {name: number for number, name in enumerate(places)}
    with ThreadPoolExecutor(2) as workers:
        for name, run in zip(names, runs, strict=True):
            with (path / "base" / name).open("wb") as base, (path / "post" / name).open("wb") as post:
                base.write(raw.header(run))
                post.write(raw.header(run))
                for spec in run:
                    for blocks in _blocks(spec, seed, order[spec.name], workers):
                        base.write(blocks[0].data)
                        post.write(blocks[1].data)


_Blocks = tuple[NDArray[np.uint16], NDArray[np.uint16]]


def _blocks(spec: raw.TensorSpec, seed: int, number: int, workers: ThreadPoolExecutor) -> Iterator[_Blocks]:
    """The tensor's elements in base and in post, block by block; two blocks are made at a time."""
    elements = math.prod(spec.shape)
    centre, width = (1.0, 0.05) if len(spec.shape) == 1 else (0.0, 0.02)
    step = np.random.Generator(np.random.Philox([seed, number])).uniform(1e-4, 3e-4)

    def make(start: int) -> _Blocks:
        count = min(_BLOCK, elements - start)
        # + 1: a trailing zero does not count in a seed, and would repeat the draw of `step`.
        draw = np.random.Generator(np.random.Philox([seed, number, start // _BLOCK + 1]))
        values = draw.standard_normal(count, dtype=np.float32)
        values *= width
        values += centre
        base = raw.to_bf16(values)
        changed = draw.standard_normal(count, dtype=np.float32)
        changed *= step
        changed += (base.astype(np.uint32) << 16).view(np.float32)
        return base, raw.to_bf16(changed)

    for start in range(0, elements, 2 * _BLOCK):
        yield from workers.map(make, range(start, min(elements, start + 2 * _BLOCK), _BLOCK))
