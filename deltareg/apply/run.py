"""Doing what the plan says: frames of the target and of the deltas become frames of the output."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from deltareg.apply.placement import WeightedDelta
from deltareg.apply.plan import Plan, PlannedTensor
from deltareg.apply.rows import Rows, gather
from deltareg.artifact import Packs
from deltareg.checkpoint import Tensor
from deltareg.codec import FRAME_LANES, Array, Frame, RecordHead, RecordReader, lane_of, replaced
from deltareg.codec.lanes import view_of
from deltareg.codec.memory import empty, frame_memory
from deltareg.errors import BadHeader, BadRecord, UnsupportedFormat
from deltareg.manifest import INVENTORY_TYPE, SIDE_FILE_TYPE, Descriptor
from deltareg.merge import METHODS, Addend, Block
from deltareg.merge.linear import overwrite
from deltareg.progress import Progress
from deltareg.store import Store
from deltareg.threads import in_order

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Outcome", "Sink", "run"]


class Sink(Protocol):
    """Where the tensors of the output go: a checkpoint, or a comparison with one. Used from many threads."""

    def write(self, tensor: str, offset: int, data: Buffer) -> None:
        """Take bytes of a tensor, from a byte offset on."""
        ...

    def copy(self, tensor: str, source: Tensor, progress: Progress | None = None) -> None:
        """Take a whole tensor as it is."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a step did: lanes that were overwritten, and lanes whose overwrite did not apply to this target."""

    overwritten: int = 0
    skipped: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.overwritten + other.overwritten, self.skipped + other.skipped)


_NOTHING = Outcome()


@dataclass(frozen=True)
class _Reader:
    """The record of one delta for one tensor of the output."""

    weight: float
    record: RecordReader
    rows: Rows | None

    @property
    def head(self) -> RecordHead:
        return self.record.head

    def read(self, number: int, lanes: int) -> Frame:
        """The delta of frame `number`, of `lanes` lanes, of the output's tensor."""
        return self.record.read(number) if self.rows is None else gather(self.record, self.rows, number, lanes)


def run(
    plan: Plan,
    deltas: Sequence[WeightedDelta],
    store: Store,
    sink: Sink,
    *,
    method: str,
    threads: int,
    progress: Progress,
) -> Outcome:
    """Write every tensor of the plan. The result does not depend on the number of threads.

    The packs' digests are verified meanwhile, in the same threads. Raises DigestMismatch, BadRecord, DiskFull; the
    caller then drops what was written.
    """
    outcome = _NOTHING
    try:
        with progress.step("apply", plan.nbytes), ExitStack() as stack:
            packs = [stack.enter_context(delta.artifact.open_packs()) for delta in deltas]
            steps = _Steps(plan, deltas, packs, store, sink, METHODS[method], progress)
            for done in stack.enter_context(closing(in_order(steps.all(), threads))):
                outcome = outcome + done
    except (BadHeader, BadRecord, UnsupportedFormat):
        # What cannot be read may be damaged, and met before its digest was: then that is what must be told.
        for delta in deltas:
            for pack in delta.artifact.packs:
                store.verify(pack)
        raise
    return outcome


class _Steps:
    """The steps of a run; each can be done in any thread, in any order."""

    def __init__(
        self,
        plan: Plan,
        deltas: Sequence[WeightedDelta],
        packs: Sequence[Packs],
        store: Store,
        sink: Sink,
        method: Callable[[Block], None],
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._deltas = deltas
        self._packs = packs
        self._store = store
        self._sink = sink
        self._method = method
        self._progress = progress

    def all(self) -> Generator[Callable[[], Outcome]]:
        """First the verification of packs and sketches, then the frames of each tensor."""
        for delta in self._deltas:
            # What nobody reads here is verified too: nothing is applied of a delta that has been damaged.
            for layer in delta.artifact.manifest.layers:
                if layer.media_type not in (INVENTORY_TYPE, SIDE_FILE_TYPE):
                    yield partial(self._verify, layer)
        for tensor in self._plan.tensors.values():
            if tensor.action == "copy" and tensor.source is not None:
                yield partial(self._copy, tensor, tensor.source)
                continue
            readers = [
                _Reader(
                    self._deltas[piece.delta].weight,
                    RecordReader(piece.entry, self._packs[piece.delta].parts(piece.entry)),
                    piece.rows,
                )
                for piece in tensor.pieces
            ]
            step = {"convert": self._convert, "add": self._add, "replace": self._replace}[tensor.action]
            lanes = tensor.nbytes // lane_of(tensor.dtype).width
            for reader in readers:
                due = lanes if reader.rows is None else lanes // reader.rows.target * reader.rows.delta
                if reader.head.lanes != due:
                    raise BadRecord(f"the record of {tensor.name!r} has {reader.head.lanes} lanes instead of {due}")
            for number in range(-(-lanes // FRAME_LANES)):
                count = min(FRAME_LANES, lanes - number * FRAME_LANES)
                yield partial(_in_frame_memory, step, tensor, readers, number, count)

    def _verify(self, layer: Descriptor) -> Outcome:
        self._store.verify(layer, quick=True)
        return _NOTHING

    def _copy(self, tensor: PlannedTensor, source: Tensor) -> Outcome:
        self._sink.copy(tensor.name, source, self._progress)
        return _NOTHING

    def _convert(self, tensor: PlannedTensor, readers: list[_Reader], number: int, lanes: int) -> Outcome:
        """The target in another dtype: no delta changes it."""
        block = self._block(tensor, (), number, lanes)
        self._method(block)
        return self._write(tensor, number, block.out)

    def _add(self, tensor: PlannedTensor, readers: list[_Reader], number: int, lanes: int) -> Outcome:
        addends: list[Addend] = []
        for reader in readers:
            assert reader.head.base is not None
            frame = reader.read(number, lanes)
            addends.append(Addend(frame, reader.head.base, reader.head.post, reader.weight))
        block = self._block(tensor, tuple(addends), number, lanes)
        self._method(block)
        outcome = _NOTHING
        for addend in addends:
            outcome = outcome + Outcome(*overwrite(block, addend))
        self._write(tensor, number, block.out)
        return outcome

    def _replace(self, tensor: PlannedTensor, readers: list[_Reader], number: int, lanes: int) -> Outcome:
        (reader,) = readers
        target = None
        if tensor.source is not None and tensor.source.dtype == tensor.dtype:
            target = _read(tensor.source, number, lanes)
        return self._write(tensor, number, replaced(target, reader.read(number, lanes), lane_of(tensor.dtype)))

    def _block(self, tensor: PlannedTensor, addends: tuple[Addend, ...], number: int, lanes: int) -> Block:
        assert tensor.source is not None
        target_lane, out_lane = lane_of(tensor.source.dtype), lane_of(tensor.dtype)
        target = _read(tensor.source, number, lanes).view(target_lane.stored)
        return Block(target, target_lane, addends, empty(lanes, out_lane.stored), out_lane)

    def _write(self, tensor: PlannedTensor, number: int, out: Array) -> Outcome:
        self._sink.write(tensor.name, number * FRAME_LANES * out.itemsize, view_of(out))
        self._progress.advance(out.nbytes)
        return _NOTHING


def _in_frame_memory(
    step: Callable[[PlannedTensor, list[_Reader], int, int], Outcome],
    tensor: PlannedTensor,
    readers: list[_Reader],
    number: int,
    lanes: int,
) -> Outcome:
    with frame_memory():
        return step(tensor, readers, number, lanes)


def _read(tensor: Tensor, number: int, lanes: int) -> Array:
    lane = lane_of(tensor.dtype)
    bits = empty(lanes, lane.bits)
    tensor.read_into(number * FRAME_LANES * lane.width, view_of(bits))
    return bits
