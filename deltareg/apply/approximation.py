"""How far an approximation is from the difference that it stands for, measured anew."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial

import numpy as np

from deltareg.apply.placement import WeightedDelta
from deltareg.checkpoint import Checkpoint, Tensor
from deltareg.codec import FRAME_LANES, RecordReader, is_additive, kernels, lane_of
from deltareg.codec.memory import empty, frame_memory, read_typed
from deltareg.describe import digest_of, relative_error
from deltareg.errors import NotReproduced
from deltareg.manifest import TensorEntry
from deltareg.merge import Addend
from deltareg.threads import in_order

__all__ = ["verify_errors"]

_SHOWN = 12
_Found = tuple[str, tuple[float, float]]


def verify_errors(delta: WeightedDelta, base: Checkpoint, post: Checkpoint, threads: int) -> float | None:
    """The relative error of a lossy delta, None of one whose tensors are all exact.

    Raises NotReproduced where a tensor's error is another than the delta records.
    """
    entries = {entry.name: entry for entry in delta.artifact.inventory.tensors}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with delta.artifact.open_packs() as packs:

        def steps() -> Generator[Callable[[], _Found]]:
            for name, entry in entries.items():
                if entry.error is not None:
                    reader = RecordReader(entry, packs.parts(entry)) if entry.packs else None
                    before, after = base.tensors[name], post.tensors[name]
                    for number in range(-(-after.nbytes // (FRAME_LANES * lane_of(after.dtype).width))):
                        yield partial(_measure, entry, reader, before, after, number)

        with closing(in_order(steps(), threads)) as results:
            for name, squares in results:
                found[name].append(squares)
    errors = {name: relative_error(squares) for name, squares in found.items()}
    wrong = {name: error for name, error in errors.items() if _differ(error, entries[name].error)}
    if wrong:
        told = [f"{name} {error:g} instead of {entries[name].error:g}" for name, error in wrong.items()]
        shown = "; ".join(told[:_SHOWN]) + (f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
        raise NotReproduced(
            f"the error of {delta.reference} from {base.id} to {post.id} is not the one that it records: {shown}",
            cause=f"the errors of {len(wrong)} tensors differ",
            hint="are these the checkpoints that the delta was taken from?",
            tensors=sorted(wrong),
        )
    if not found:
        return None
    additive = [entry for entry in entries.values() if entry.error is None and is_additive(entry)]
    exact = [(entry.delta_norm * entry.delta_norm, 0.0) for entry in additive]
    error = relative_error([*exact, *(squares for parts in found.values() for squares in parts)])
    _refuse_other(delta, error, base, post, threads)
    return error


def _refuse_other(delta: WeightedDelta, error: float, base: Checkpoint, post: Checkpoint, threads: int) -> None:
    """Raise NotReproduced where base or post, or the error in all, is not what the delta's description says.

    What a tensor of post has lost in an approximation, no error of that tensor tells to the last bit.
    """
    config = delta.artifact.config
    faults = [
        f"{checkpoint.id} is not the {role} that it was taken from"
        for role, checkpoint, parent in (("base", base, config.base), ("post", post, config.post))
        if digest_of(checkpoint, threads) != parent.digest
    ]
    if _differ(error, config.exactness.relative_error):
        faults.append(f"its error is {error:g}, and it says {config.exactness.relative_error or 0:g}")
    if faults:
        raise NotReproduced(
            f"{delta.reference} is not what it says: {'; '.join(faults)}",
            hint="are these the checkpoints that the delta was taken from?",
            faults=faults,
        )


def _differ(measured: float, recorded: float | None) -> bool:
    # Both have six digits.
    return recorded is None or not math.isclose(measured, recorded, rel_tol=2e-5, abs_tol=1e-12)


def _measure(entry: TensorEntry, reader: RecordReader | None, before: Tensor, after: Tensor, number: int) -> _Found:
    """Σ Δ² and Σ (Δ − Δ̂)² of a frame."""
    with frame_memory():
        first = number * FRAME_LANES
        count = min(FRAME_LANES, before.nbytes // lane_of(before.dtype).width - first)
        base, post = read_typed(before, first, count), read_typed(after, first, count)
        difference = empty(post.size, np.float64)
        kernels.subtract(base, post, difference)
        squares = kernels.sum_of_squares(difference)
        if reader is None or reader.head.base is None:
            return entry.name, (squares, squares)
        addend = Addend(reader.read(number), reader.head.base, reader.head.delta, 1.0)
        return entry.name, (squares, kernels.squared_distance(difference, addend.delta))
