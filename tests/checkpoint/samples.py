"""Small checkpoints to read: well-formed ones, broken ones, and those of a hub's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

__all__ = ["COMMIT", "cache_model", "tensors", "write_broken", "write_model", "write_sharded"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tensors(seed: int = 0) -> dict[str, NDArray[Any]]:
    """A few arrays, among them a scalar and an empty one."""
    random = np.random.default_rng(seed)
    return {
        "embed.weight": random.standard_normal((7, 5), np.float32),
        "layers.0.weight": random.standard_normal((5, 5)).astype(np.float16),
        "layers.0.ids": np.arange(9, dtype=np.int64),
        "scale": np.array(2.5, np.float64),
        "empty": np.zeros((0, 4), np.float32),
        "mask": np.array([True, False, True]),
    }


def write_model(path: Path, seed: int = 0) -> Path:
    """A directory with one safetensors file and a config."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors(seed), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text('{"model_type": "llama", "hidden_size": 5}')
    return path


def write_sharded(path: Path, seed: int = 0) -> Path:
    """The same tensors in two shards with an index."""
    path.mkdir(parents=True, exist_ok=True)
    arrays = tensors(seed)
    shards = {
        "model-00001-of-00002.safetensors": ["embed.weight", "scale", "empty"],
        "model-00002-of-00002.safetensors": ["layers.0.weight", "layers.0.ids", "mask"],
    }
    for file, names in shards.items():
        save_file({name: arrays[name] for name in names}, path / file, {"format": "pt"})
    weight_map = {name: file for file, names in shards.items() for name in names}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def write_broken(
    path: Path, header: str | bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None
) -> Path:
    """A safetensors file with any header, of which `length` is told, and any data."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def cache_model(
    cache: Path, repository: str, files: Mapping[str, bytes], *, commit: str = COMMIT, ref: str = "main"
) -> Path:
    """Put a model into a hub cache, as huggingface_hub documents its layout; returns the snapshot."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * (2 + name.count("/"))) / "blobs" / blob.name)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    return snapshot
