"""How much deltas of one parameter space interfere: from their projections, or exactly from their records."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from deltareg.artifact import Artifact, Packs, Part
from deltareg.codec import FRAME_LANES, Array, Frame, Lane, RecordReader, lane_of
from deltareg.codec.memory import empty, frame_memory
from deltareg.fingerprint import layer_order
from deltareg.progress import SILENT, Progress
from deltareg.sketch import loops
from deltareg.sketch.comparison import (
    ALL,
    Comparison,
    ComparisonReport,
    DeltaNorms,
    Measured,
    Pair,
    PairReport,
    Side,
    Skipped,
    norms_of,
    sides_of,
)
from deltareg.sketch.sketches import lanes_of
from deltareg.threads import in_order, thread_count

__all__ = [
    "ALL",
    "Comparison",
    "ComparisonReport",
    "DeltaNorms",
    "PairJob",
    "PairReport",
    "Skipped",
    "compare",
    "measure",
]


def compare(
    deltas: Sequence[tuple[str, Artifact]],
    *,
    exact: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ComparisonReport:
    """Compare each two of `deltas`, given with the names that the report shall call them by.

    Estimated from the projections where both have one; computed from the records where one has none, where the tensor
    has fewer than 2^17 lanes and the records are at hand, and everywhere with `exact`: then a few frames of each delta
    are held at a time. All is about D1; the second terms that mend its rounding are below the last bit of it. Over
    several tensors t, cos = Σ‖aₜ‖‖bₜ‖cosₜ / (‖a‖‖b‖).

    Raises InvalidArgument for fewer than two deltas or a name given twice, NotHomologous for two that have no tensor to
    compare; what opening artifacts and reading records raises.
    """
    started = time.monotonic()
    sides = sides_of(deltas)
    pairs = [PairJob(one, other, exact=exact) for one, other in combinations(sides, 2)]
    for pair in pairs:
        pair.refuse_strangers()
    measure(sides, pairs, thread_count(threads), progress)
    return ComparisonReport(
        deltas=[norms_of(side) for side in sides],
        pairs=[pair.report() for pair in pairs],
        seconds=time.monotonic() - started,
    )


class PairJob(Pair):
    """Two deltas, and the sums of those of their tensors whose records have to be read: of all, or of `only` some."""

    def __init__(self, one: Side, other: Side, *, exact: bool, only: Collection[str] | None = None) -> None:
        super().__init__(one, other, exact=exact)
        if only is not None:
            self.unknown = [name for name in self.unknown if name in only]
        self.sums: dict[str, Array] = {name: np.zeros(5, np.float64) for name in self.unknown}
        """Each with the five sums of `loops.compare_lanes`."""

    def close(self, name: str) -> None:
        """Make the sums of a tensor, all of whose frames were seen, what is known of it."""
        dot, first, second, both, opposed = map(float, self.sums[name])
        norms = (math.sqrt(first), math.sqrt(second))
        product = norms[0] * norms[1]
        cosine = max(-1.0, min(1.0, dot / product)) if product else 0.0
        lanes = lanes_of(self.one.entries[name])
        self.found[name] = Measured(lanes, norms, cosine, 0.0, lanes, int(both), int(opposed), True)


# --- reading records ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """One frame of one tensor: the records of those deltas that a pair needs, and the pairs."""

    name: str
    number: int
    lanes: int
    readers: Mapping[Side, RecordReader | None]
    pairs: Sequence[PairJob]


def measure(sides: Sequence[Side], pairs: Sequence[PairJob], threads: int, progress: Progress) -> None:
    """Fill in the sums of all pairs from the records, frame by frame."""
    names = sorted({name for pair in pairs for name in pair.sums}, key=lambda name: (layer_order(name), name))
    if not names:
        return
    with ExitStack() as stack:
        needed = {side for pair in pairs if pair.sums for side in (pair.one, pair.other)}
        packs = {side: stack.enter_context(side.artifact.open_packs()) for side in sides if side in needed}
        total = sum(
            side.entries[name].size
            for name in names
            for side in {side for pair in pairs if name in pair.sums for side in (pair.one, pair.other)}
        )
        stack.enter_context(progress.step("compare", total))
        steps = _steps(names, pairs, packs)
        results = stack.enter_context(closing(in_order((partial(_run, step, progress) for step in steps), threads)))
        for step, sums in results:
            for pair, part in zip(step.pairs, sums, strict=True):
                # Frames come in order: the sum is the same for every number of threads.
                pair.sums[step.name] += part
    for pair in pairs:
        for name in pair.sums:
            pair.close(name)


def _steps(names: Sequence[str], pairs: Sequence[PairJob], packs: Mapping[Side, Packs]) -> Generator[_Step]:
    for name in names:
        asking = [pair for pair in pairs if name in pair.sums]
        readers: dict[Side, RecordReader | None] = {}
        for pair in asking:
            for side in (pair.one, pair.other):
                if side not in readers:
                    entry = side.entries[name]
                    parts: list[Part] = packs[side].parts(entry) if entry.kind != "zero" else []
                    readers[side] = RecordReader(entry, parts) if parts else None
        lanes = lanes_of(asking[0].one.entries[name])
        for number, start in enumerate(range(0, lanes, FRAME_LANES)):
            yield _Step(name, number, min(FRAME_LANES, lanes - start), readers, asking)


def _run(step: _Step, progress: Progress) -> tuple[_Step, list[Array]]:
    with frame_memory():
        found = {side: _lanes(reader, step, progress) for side, reader in step.readers.items()}
        sums: list[Array] = []
        for pair in step.pairs:
            part = np.zeros(5, np.float64)
            loops.compare_lanes(found[pair.one], found[pair.other], part)
            sums.append(part)
        return step, sums


def _lanes(reader: RecordReader | None, step: _Step, progress: Progress) -> Array:
    """D1 of one frame, typed as `kernels.py` says."""
    if reader is None:
        return _unchanged(step.lanes, lane_of("F32"))
    progress.advance(reader.frame_size)
    return _expanded(reader.read(step.number), reader.head.delta)


def _expanded(frame: Frame, lane: Lane) -> Array:
    if frame.symbols is None:
        return _unchanged(frame.lanes, lane)
    if frame.positions is None:
        return frame.symbols.view(lane.stored)
    lanes = _unchanged(frame.lanes, lane)
    lanes.view(lane.bits)[frame.positions] = frame.symbols
    return lanes


def _unchanged(count: int, lane: Lane) -> Array:
    lanes = empty(count, lane.stored)
    lanes.view(lane.bits)[:] = lane.marker
    return lanes
