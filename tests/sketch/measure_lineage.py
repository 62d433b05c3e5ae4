"""What lineage says of pairs whose ancestry is known: the table that its thresholds rest on.

    python -m tests.sketch.measure_lineage

The weights are those of `tests.weights`, and what is made of them: copies with random values of each tensor's mean and
width, and copies whose attention heads are in another order.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deltareg.checkpoint import Checkpoint
from deltareg.sketch import Lineage, Samples, TensorSpec, judge, measure_lineage, read_samples, take_samples
from tests import raw, weights

__all__ = ["Case", "cases", "norms_of", "permuted_heads", "randomised", "samples_of", "table", "values_of"]

_ANARCII_HEADS = 4
_MINILM_HEADS = 12
_COLUMNS = ("base", "target", "values", "attention", "mlp", "embedding", "total", "raw cosine", "distance", "equal")


@dataclass(frozen=True)
class Case:
    """A pair, and what lineage has to say of it."""

    base: str
    target: str
    verdict: str
    lineage: Lineage


def samples_of(path: Path) -> Samples:
    """The samples of a checkpoint, as an artifact would hold them."""
    with Checkpoint.open(path) as base:
        specs = [TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in base.tensors.values()]
        return read_samples(take_samples(base), specs)


def cases(scratch: Path) -> Iterator[Case]:
    """Every pair, measured; `scratch` takes the checkpoints that are made for it."""
    protein, protein_bf16 = weights.anarcii(), weights.anarcii(bf16=True)
    minilm, minilm_bf16 = weights.minilm(), weights.minilm_bf16()
    small = weights.synthetic(scratch / "small", 0.01, seed=1, shards=1)
    other = weights.synthetic(scratch / "other", 0.01, seed=2, shards=1)
    antibody = "anarcii antibody_4_2"
    base, base_bf16 = protein["antibody_4_2"], protein_bf16["antibody_4_2"]
    pairs: list[tuple[str, str, str, Path, Path]] = [
        (antibody, "itself", "same", base, base),
        (antibody, "itself in bf16", "same", base, base_bf16),
        (f"{antibody} bf16", "itself in fp32", "same", base_bf16, base),
        (antibody, "shark_4_2", "related", base, protein["shark_4_2"]),
        (antibody, "tcr_4_2", "related", base, protein["tcr_4_2"]),
        (antibody, "antibody_4_1", "unrelated", base, protein["antibody_4_1"]),
        (antibody, "random values", "unrelated", base, randomised(base, scratch / "protein-random")),
        (
            antibody,
            "heads in another order",
            "unrelated",
            base,
            permuted_heads(base, scratch / "protein-heads", _ANARCII_HEADS),
        ),
        ("anarcii shark_4_2", "tcr_4_2", "related", protein["shark_4_2"], protein["tcr_4_2"]),
        (f"{antibody} bf16", "shark_4_2 bf16", "related", base_bf16, protein_bf16["shark_4_2"]),
        ("MiniLM", "itself", "same", minilm.base, minilm.base),
        ("MiniLM", "itself in bf16", "same", minilm.base, minilm_bf16.base),
        ("MiniLM", "fine-tune", "related", minilm.base, minilm.post),
        ("MiniLM bf16", "fine-tune bf16", "related", minilm_bf16.base, minilm_bf16.post),
        ("MiniLM", "random values", "unrelated", minilm.base, randomised(minilm.base, scratch / "minilm-random")),
        (
            "MiniLM",
            "heads in another order",
            "unrelated",
            minilm.base,
            permuted_heads(minilm.base, scratch / "minilm-heads", _MINILM_HEADS),
        ),
        ("generated", "itself", "same", small[0], small[0]),
        ("generated", "light fine-tune", "related", small[0], small[1]),
        ("generated", "another seed", "unrelated", small[0], other[0]),
    ]
    for name, target, verdict, first, second in pairs:
        samples, norms = samples_of(first), norms_of(first)
        with Checkpoint.open(second) as opened:
            yield Case(name, target, verdict, measure_lineage(samples, opened, delta_norms={}, base_norms=norms))


def norms_of(path: Path) -> dict[str, float]:
    """The norms of the floats of a checkpoint, as an inventory would have them."""
    found: dict[str, float] = {}
    for name, tensor in raw.read(path).items():
        if tensor.spec.dtype in ("F32", "BF16"):
            found[name] = float(np.linalg.norm(values_of(tensor)))
    return found


def values_of(tensor: raw.RawTensor) -> NDArray[np.float64]:
    """The values of an F32 or BF16 tensor, flat."""
    if tensor.spec.dtype == "F32":
        return np.frombuffer(tensor.data, np.float32).astype(np.float64)
    return (np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def randomised(source: Path, goal: Path, seed: int = 3) -> Path:
    """A copy of a checkpoint of one file in which each F32 tensor has normal values of its mean and width."""
    random = np.random.default_rng(seed)

    def draw(_: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return random.normal(values.mean(), values.std(), values.shape).astype(np.float32)

    return _changed(source, goal, draw)


def permuted_heads(source: Path, goal: Path, heads: int) -> Path:
    """A copy of a checkpoint of one file that computes the same, its attention heads in another order.

    Knows the names of BERT (`query`, `key`, `value`, `attention.output.dense`) and of torch's multi-head attention.
    """

    def permute(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if ".in_proj_" in name:
            return np.concatenate([_rolled(part, heads, axis=0) for part in np.split(values, 3)])
        if any(f"self.{part}." in name for part in ("query", "key", "value")):
            return _rolled(values, heads, axis=0)
        if name.endswith(("attention.output.dense.weight", "multihead_attn.out_proj.weight")):
            return _rolled(values, heads, axis=1)
        return values

    return _changed(source, goal, permute)


def _rolled(values: NDArray[np.float32], heads: int, axis: int) -> NDArray[np.float32]:
    return np.roll(values, values.shape[axis] // heads, axis)


def _changed(source: Path, goal: Path, change: Callable[[str, NDArray[np.float32]], NDArray[np.float32]]) -> Path:
    goal.mkdir(parents=True)
    tensors: list[raw.RawTensor] = []
    for tensor in raw.read(source).values():
        data = tensor.data
        if tensor.spec.dtype == "F32":
            values = np.frombuffer(data, np.float32).reshape(tensor.spec.shape)
            data = np.ascontiguousarray(change(tensor.spec.name, values)).reshape(-1).view(np.uint8)
        tensors.append(raw.RawTensor(tensor.spec, data))
    raw.write(goal / "model.safetensors", tensors)
    return goal


def table(measured: Iterator[Case]) -> Iterator[str]:
    """The lines of the table, as Markdown: matrix cosines by class, then the figures of all tensors."""
    yield f"| {' | '.join(_COLUMNS)} | verdict |"
    yield f"|{'---|' * (len(_COLUMNS) + 1)}"
    for case in measured:
        total = case.lineage.total
        classes: Mapping[str, float | None] = {
            name: likeness.matrix_cosine for name, likeness in case.lineage.classes.items()
        }
        figures = [*(classes.get(name) for name in ("attention", "mlp", "embedding")), total.matrix_cosine]
        figures += [total.cosine, total.distance, total.equal]
        shown = " | ".join("" if figure is None else f"{figure:.4f}" for figure in figures)
        found = judge(case.lineage)
        note = "" if found == case.verdict else f", not {case.verdict}"
        yield f"| {case.base} | {case.target} | {total.matrix_values} | {shown} | {found}{note} |"


def main() -> int:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        for line in table(cases(Path(scratch))):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
