"""Fine-tunes that nobody trained: a checkpoint with noise on it, for where a second delta is wanted.

`python -m tests.perturb SOURCE GOAL --width 0.0003 --seed 7` makes one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests import raw

__all__ = ["perturb"]


def perturb(source: Path, goal: Path, *, width: float, seed: int) -> None:
    """A copy of the checkpoint `source` with normal noise, `width` wide, on every BF16 tensor."""
    shutil.copytree(source, goal)
    draw = np.random.default_rng(seed)
    for file in goal.glob("*.safetensors"):
        tensors = [
            raw.RawTensor(tensor.spec, _noisy(tensor, draw, width)) if tensor.spec.dtype == "BF16" else tensor
            for tensor in raw.read(source / file.name).values()
        ]
        file.unlink()
        raw.write(file, tensors)


def _noisy(tensor: raw.RawTensor, draw: np.random.Generator, width: float) -> NDArray[np.uint8]:
    values = (tensor.data.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    noise = draw.standard_normal(values.size, np.float32) * np.float32(width)
    return raw.to_bf16((values + noise).astype(np.float32)).view(np.uint8)


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(prog="python -m tests.perturb", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("goal", type=Path)
    parser.add_argument("--width", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    perturb(chosen.source, chosen.goal, width=chosen.width, seed=chosen.seed)


if __name__ == "__main__":
    main()
