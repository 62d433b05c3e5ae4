"""Doing what the plan says: frames of the target and of the deltas become frames of the output."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deltareg.apply.limits import Limits
from deltareg.apply.merging import Course, Merging, Part, blocks_of
from deltareg.apply.placement import WeightedDelta
from deltareg.apply.plan import Piece, Plan, PlannedTensor
from deltareg.apply.ranks import ALONE, Ranks
from deltareg.apply.rows import Rows, gather
from deltareg.artifact import Packs
from deltareg.checkpoint import Tensor
from deltareg.codec import (
    FRAME_LANES,
    Array,
    Frame,
    Lane,
    RecordHead,
    RecordReader,
    delta_lane_of,
    lane_of,
    replaced,
)
from deltareg.codec.lanes import view_of
from deltareg.codec.memory import Recycled, empty, read_lanes
from deltareg.errors import BadHeader, BadRecord, UnsupportedFormat
from deltareg.merge import Addend, Block, Stage, accumulator_of
from deltareg.merge.combine import Sum
from deltareg.merge.linear import overwrite
from deltareg.merge.processor import CPU, Processor
from deltareg.merge.values import Extent
from deltareg.progress import Progress
from deltareg.store import Store
from deltareg.threads import in_order

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["NOTHING", "Outcome", "Share", "Sink", "random_key", "run"]


class Sink(Protocol):
    """Where the tensors of the output go: a checkpoint, or a comparison with one. Used from many threads."""

    def write(self, tensor: str, offset: int, data: Buffer) -> None:
        """Take bytes of a tensor, from a byte offset on."""
        ...

    def copy(self, tensor: str, source: Tensor, progress: Progress | None = None) -> None:
        """Take a whole tensor as it is."""
        ...

    def copy_part(self, tensor: str, offset: int, nbytes: int, source: Tensor) -> bool:
        """Take bytes of a tensor as they are, where there is a faster way than to be given them; else give False."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a step did: lanes that were overwritten, and lanes whose overwrite did not apply to this target."""

    overwritten: int = 0
    skipped: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.overwritten + other.overwritten, self.skipped + other.skipped)


NOTHING = Outcome()
"""Nothing was overwritten, nor skipped."""


@dataclass(frozen=True)
class Share:
    """What one of several processes does: the tensors that it writes.

    `own` are those that it answers for, some of which may have been written before; None for all.
    """

    wanted: frozenset[str]
    own: frozenset[str] | None = None
    ranks: Ranks = ALONE

    def measures(self, tensor: str) -> bool:
        """Whether this process measures a tensor for what is settled for the whole model."""
        return self.own is None or tensor in self.own


@dataclass(frozen=True)
class _Reader:
    """The record of one delta for one tensor of the output, and what it is multiplied with where it is summed."""

    record: RecordReader
    rows: Rows | None
    factor: float
    keep_tokens: bool = False

    @property
    def head(self) -> RecordHead:
        return self.record.head

    def read(self, number: int, lanes: int) -> Frame:
        """The delta of frame `number`, of `lanes` lanes, of the output's tensor."""
        if self.rows is not None:
            return gather(self.record, self.rows, number, lanes)
        return self.record.read(number, keep_tokens=self.keep_tokens)

    def leaves_alone(self, number: int) -> bool:
        """Whether it is known without reading that the delta changes nothing in frame `number`."""
        return self.rows is None and self.record.leaves_alone(number)


def run(
    plan: Plan,
    deltas: Sequence[WeightedDelta],
    store: Store,
    sink: Sink,
    *,
    limits: Limits,
    progress: Progress,
    verified: Callable[[], None],
    part: Share | None = None,
    processor: Processor = CPU,
) -> Outcome:
    """Write the tensors of the plan, or a `part` of them. The result depends on no limits, parts and processors.

    Nothing is read of the deltas before `verified` has returned, which waits for whoever verifies their packs. Raises
    what it raises, BadRecord, DiskFull, RankLost; the caller then drops what was written.
    """
    outcome = NOTHING
    share = part or Share(frozenset(plan.tensors))
    total = sum(plan.tensors[name].nbytes for name in share.wanted)
    try:
        with progress.step("apply", total), ExitStack() as stack:
            verified()
            packs = [stack.enter_context(delta.artifact.open_packs()) for delta in deltas]
            steps = _Steps(plan, deltas, packs, sink, progress, limits, share, processor)
            for one in stack.enter_context(closing(in_order(steps.all(), limits.threads))):
                outcome = outcome + one
    except (BadHeader, BadRecord, UnsupportedFormat):
        # What cannot be read may be damaged, and met before its digest was: then that is what must be told.
        for delta in deltas:
            for pack in delta.artifact.packs:
                store.verify(pack)
        raise
    return outcome


_Step = Callable[[], Outcome]


class _Steps:
    """The steps of a run. A step waits for none but those before it, so that any number of threads can do them."""

    def __init__(
        self,
        plan: Plan,
        deltas: Sequence[WeightedDelta],
        packs: Sequence[Packs],
        sink: Sink,
        progress: Progress,
        limits: Limits,
        share: Share,
        processor: Processor,
    ) -> None:
        self._limits = limits
        self._share = share
        self._plan = plan
        self._deltas = deltas
        self._packs = packs
        self._sink = sink
        self._progress = progress
        self._processor = processor
        self._memory = Recycled(limits.kept)
        self._shared: dict[str, tuple[Course, int]] = {}

    def all(self) -> Generator[_Step]:
        """First what is measured of the whole model, then each tensor that is wanted."""
        yield from self._measure_models()
        waiting: deque[Generator[list[_Step]]] = deque()
        for tensor in self._plan.tensors.values():
            if tensor.name not in self._share.wanted:
                continue
            waiting.append(self._rounds(tensor))
            while len(waiting) > self._limits.ahead:
                yield from _next_round(waiting)
        while waiting:
            yield from _next_round(waiting)

    def _rounds(self, tensor: PlannedTensor) -> Generator[list[_Step]]:
        """The steps of one tensor, in rounds: those of a round wait for those of the rounds before."""
        if tensor.action == "copy" and tensor.source is not None:
            yield [partial(self._copy, tensor, tensor.source)]
        elif tensor.action == "add" and not tensor.is_sum:
            merging = self._merging(tensor, self._memory)
            if merging.blocks == 1 and not self._processor.repeats:
                yield [partial(self._merge, tensor, merging, 0, alone=True)]
                return
            for steps in merging.measuring():
                yield [partial(_quietly, step) for step in steps]
            yield [partial(self._merge, tensor, merging, block) for block in range(merging.blocks)]
        else:
            step = {"convert": self._convert, "add": self._add, "replace": self._replace}[tensor.action]
            factors = _factors(tensor) if tensor.is_sum else [1.0] * len(tensor.pieces)
            readers = [self._reader(tensor, *both) for both in zip(tensor.pieces, factors, strict=True)]
            lanes = tensor.lanes
            yield [
                partial(
                    self._processor.step,
                    partial(step, tensor, readers, number, min(FRAME_LANES, lanes - number * FRAME_LANES)),
                )
                for number in range(-(-lanes // FRAME_LANES))
            ]

    def _reader(self, tensor: PlannedTensor, piece: Piece, factor: float = 1.0) -> _Reader:
        record = RecordReader(piece.entry, self._packs[piece.delta].parts(piece.entry))
        adds = tensor.action == "add"
        reader = _Reader(record, piece.rows, factor, keep_tokens=adds and self._processor.keeps_tokens)
        lanes = tensor.lanes
        due = lanes if reader.rows is None else lanes // reader.rows.target * reader.rows.delta
        if reader.head.lanes != due:
            raise BadRecord(f"the record of {tensor.name!r} has {reader.head.lanes} lanes instead of {due}")
        return reader

    # --- merging in stages --------------------------------------------------------------------------------------------

    def _measure_models(self) -> Generator[_Step]:
        """Measure what a method settles for the whole model: for all tensors whose first stage is the same."""
        groups: dict[Stage, list[PlannedTensor]] = {}
        for tensor in self._plan.tensors.values():
            if tensor.stages and tensor.stages[0].scope == "model":
                groups.setdefault(tensor.stages[0], []).append(tensor)
        for stage, tensors in groups.items():
            # By name: how the target is cut into files must not decide between equal magnitudes.
            tensors.sort(key=lambda tensor: tensor.name)
            kinds: list[Lane | None] = []
            for number in range(len(self._deltas)):
                found = {
                    delta_lane_of(piece.entry) for tensor in tensors for piece in tensor.pieces if piece.delta == number
                }
                kinds.append(found.pop() if len(found) == 1 else None)
            blocks = [blocks_of(tensor.lanes, tensor.row, tensor.stages) for tensor in tensors]
            lanes = sum(tensor.lanes for tensor in tensors)
            own = [self._share.measures(tensor.name) for tensor in tensors]
            measured = sum(count for count, ours in zip(blocks, own, strict=True) if ours)
            extent = Extent(lanes, sum(blocks), tuple(range(len(kinds))), tuple(kinds))
            course = Course(stage, extent, measured, self._share.ranks)
            offset = 0
            for tensor, count in zip(tensors, blocks, strict=True):
                self._shared[tensor.name] = course, offset
                offset += count
            for number in range(course.passes):
                for tensor in (tensor for tensor, ours in zip(tensors, own, strict=True) if ours):
                    # It reads each frame once, and is gone before anybody could give back what it kept.
                    merging = self._merging(tensor, Recycled())
                    for block in range(merging.blocks):
                        yield partial(_quietly, partial(merging.measure_shared, number, block))
                course.exchange(number)

    def _merging(self, tensor: PlannedTensor, memory: Recycled) -> Merging:
        shared, offset = self._shared.get(tensor.name, (None, 0))
        pieces = {piece.delta: self._part(tensor, piece, idle=False) for piece in tensor.pieces}
        pieces |= {piece.delta: self._part(tensor, piece, idle=True) for piece in tensor.idle}
        if shared is not None:
            # Every delta has its place in what is settled for the whole model, whether it has this tensor or not, and
            # there the lanes that it has elsewhere: magnitudes of other widths cannot be counted together.
            other = next(iter(pieces.values()))
            for number, kind in enumerate(shared.extent.kinds):
                here = pieces.get(number, Part(number, _unchanged, other.base_lane, other.lane, 0.0, 0, _always))
                if here.read is _unchanged and kind is not None:
                    here = replace(here, lane=kind)
                pieces[number] = here
        return Merging(
            tensor.lanes,
            tensor.row,
            [pieces[number] for number in sorted(pieces)],
            tensor.stages,
            _accumulator(tensor),
            defers=tensor.defers,
            shared=shared,
            offset=offset,
            processor=self._processor,
            memory=memory,
        )

    def _part(self, tensor: PlannedTensor, piece: Piece, *, idle: bool) -> Part:
        assert piece.entry.base_dtype is not None
        reader = None if idle else self._reader(tensor, piece)
        read = _unchanged if reader is None else reader.read
        alone = _always if reader is None else reader.leaves_alone
        key = random_key(self._plan.seed, self._deltas[piece.delta].artifact.digest, piece.entry.name)
        lanes = lane_of(piece.entry.base_dtype), delta_lane_of(piece.entry)
        return Part(piece.delta, read, *lanes, piece.weight, key, alone)

    def _merge(self, tensor: PlannedTensor, merging: Merging, block: int, *, alone: bool = False) -> Outcome:
        if not alone:
            merging.wait()
        self._processor.step(partial(self._merge_block, tensor, merging, block, alone=alone))
        merging.release(block)
        # What no sum can give is taken over where a delta is added as it is, and nowhere else.
        return Outcome(0, sum(piece.entry.overwritten for piece in tensor.pieces) if block == 0 else 0)

    def _merge_block(self, tensor: PlannedTensor, merging: Merging, block: int, *, alone: bool) -> Outcome:
        assert tensor.source is not None
        target_lane, out_lane = lane_of(tensor.source.dtype), lane_of(tensor.dtype)
        first = block * merging.block_lanes
        lanes = min(merging.block_lanes, tensor.lanes - first)
        if merging.leaves_alone(block) and self._keeps(tensor, first, lanes):
            return NOTHING
        target = read_lanes(tensor.source, first, lanes).view(target_lane.stored)
        out = empty(lanes, out_lane.stored)
        for here, merged in merging.merge_alone() if alone else merging.merge(block):
            self._processor.add_merged(target[here], target_lane, merged, out[here], out_lane)
        return self._write(tensor, first, out)

    # --- frame by frame -----------------------------------------------------------------------------------------------

    def _copy(self, tensor: PlannedTensor, source: Tensor) -> Outcome:
        self._sink.copy(tensor.name, source, self._progress)
        return NOTHING

    def _convert(self, tensor: PlannedTensor, readers: list[_Reader], number: int, lanes: int) -> Outcome:
        """The target in another dtype: no delta changes it."""
        block = self._block(tensor, (), number, lanes)
        self._processor.linear(block)
        return self._write(tensor, number * FRAME_LANES, block.out)

    def _add(self, tensor: PlannedTensor, readers: list[_Reader], number: int, lanes: int) -> Outcome:
        """A weighted sum, straight from the records to the output."""
        alone = all(reader.leaves_alone(number) for reader in readers)
        if alone and self._keeps(tensor, number * FRAME_LANES, lanes):
            return NOTHING
        addends: list[Addend] = []
        for reader in readers:
            assert reader.head.base is not None
            frame = reader.read(number, lanes)
            addends.append(Addend(frame, reader.head.base, reader.head.delta, reader.factor))
        block = self._block(tensor, tuple(addends), number, lanes)
        self._processor.linear(block)
        outcome = NOTHING
        for addend in addends:
            outcome = outcome + Outcome(*overwrite(block, addend))
        self._write(tensor, number * FRAME_LANES, block.out)
        return outcome

    def _replace(self, tensor: PlannedTensor, readers: list[_Reader], number: int, lanes: int) -> Outcome:
        (reader,) = readers
        target = None
        if tensor.source is not None and tensor.source.dtype == tensor.dtype:
            target = read_lanes(tensor.source, number * FRAME_LANES, lanes)
        out = replaced(target, reader.read(number, lanes), lane_of(tensor.dtype))
        return self._write(tensor, number * FRAME_LANES, out)

    def _keeps(self, tensor: PlannedTensor, first: int, lanes: int) -> bool:
        """Take lanes of the target over, which no delta changes; False where the output has another dtype.

        Nothing is computed of them, wherever the output goes: a factor beyond float32 makes no number of a zero.
        """
        source = tensor.source
        assert source is not None
        width = lane_of(tensor.dtype).width
        if source.dtype != tensor.dtype:
            return False
        if self._sink.copy_part(tensor.name, first * width, lanes * width, source):
            self._progress.advance(lanes * width)
        else:
            self._write(tensor, first, read_lanes(source, first, lanes))
        return True

    def _block(self, tensor: PlannedTensor, addends: tuple[Addend, ...], number: int, lanes: int) -> Block:
        assert tensor.source is not None
        target_lane, out_lane = lane_of(tensor.source.dtype), lane_of(tensor.dtype)
        target = read_lanes(tensor.source, number * FRAME_LANES, lanes).view(target_lane.stored)
        return Block(target, target_lane, addends, empty(lanes, out_lane.stored), out_lane)

    def _write(self, tensor: PlannedTensor, first: int, out: Array) -> Outcome:
        self._sink.write(tensor.name, first * out.itemsize, view_of(out))
        self._progress.advance(out.nbytes)
        return NOTHING


def _next_round(waiting: deque[Generator[list[_Step]]]) -> list[_Step]:
    """The next round of the tensor that has waited longest, which then waits again if it has more."""
    rounds = waiting.popleft()
    steps = next(rounds, None)
    if steps is None:
        return []
    waiting.append(rounds)
    return steps


def _quietly(step: Callable[[], None]) -> Outcome:
    step()
    return NOTHING


def _always(number: int) -> bool:
    return True


def _unchanged(number: int, lanes: int) -> Frame:
    return Frame(lanes, None)


def _factors(tensor: PlannedTensor) -> list[float]:
    """What the deltas that change a tensor are multiplied with where its method is a sum."""
    (stage,) = tensor.stages
    assert isinstance(stage, Sum)
    weights = np.array([piece.weight for piece in (*tensor.pieces, *tensor.idle)])
    return stage.factors(weights, np.ones(weights.size)).tolist()[: len(tensor.pieces)]


def random_key(seed: int, digest: str, name: str) -> int:
    """Where the generator of a delta's random masks for a tensor starts."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{digest}\n{name}".encode()).digest()[:8], "little")


def _accumulator(tensor: PlannedTensor) -> type[np.floating[Any]]:
    assert tensor.source is not None
    kinds = [delta_lane_of(piece.entry) for piece in tensor.pieces]
    return accumulator_of([lane_of(tensor.source.dtype), lane_of(tensor.dtype), *kinds])
