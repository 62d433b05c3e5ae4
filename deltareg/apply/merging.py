"""One tensor's way through the stages of a method, as steps that can be done in any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deltareg.codec import FRAME_LANES, Array, Frame, Lane
from deltareg.codec.memory import empty, frame_memory
from deltareg.codec.mend import Mending
from deltareg.merge.block import Addend
from deltareg.merge.stage import Gathering, Stage
from deltareg.merge.values import Extent, Values, values_of

__all__ = ["Course", "Merging", "Part", "blocks_of"]

# Up to so many bytes of a tensor's decoded deltas are kept from one pass to the next.
_MOST_KEPT = 48 * 2**20


@dataclass(frozen=True)
class Part:
    """One delta's part in a tensor: how a frame is read, the lanes of base and of D1, its weight, its masks' seed."""

    read: Callable[[int, int], Frame]
    base_lane: Lane
    lane: Lane
    weight: float
    key: int


class _Pass:
    """Gathers what one pass finds in every block, from many threads; what follows can be waited for."""

    def __init__(self, blocks: int) -> None:
        self._missing = blocks
        self._lock = threading.Lock()
        self._gathering: Gathering | None = None
        self._settled: Future[Any] = Future()

    def add(self, make: Callable[[], Gathering], position: int, found: Any) -> None:
        """Take what was found in a block; None where it was not looked at."""
        with self._lock:
            if self._gathering is None:
                self._gathering = make()
            if found is not None:
                self._gathering.add(position, found)
            self._missing -= 1
            if self._missing == 0:
                self._settled.set_result(self._gathering.settle())
                self._gathering = None

    def fail(self, error: BaseException) -> None:
        """Let those who wait fail too."""
        with self._lock:
            if not self._settled.done():
                self._settled.set_exception(error)

    def result(self) -> Any:
        """What follows from all blocks. Waits for steps that were begun before the one that asks."""
        return self._settled.result()


class Course:
    """One stage, over the extent for which it settles."""

    def __init__(self, stage: Stage, extent: Extent) -> None:
        self.stage = stage
        self.extent = extent
        self._passes = [_Pass(extent.blocks) for _ in range(stage.passes(extent))]

    @property
    def passes(self) -> int:
        """How often it sees each block before it can act."""
        return len(self._passes)

    def settled(self, passes: int) -> list[Any]:
        """What the first `passes` of them gave."""
        return [one.result() for one in self._passes[:passes]]

    def measure(self, number: int, position: int, load: Callable[[], Values]) -> None:
        """Do pass `number` on one block, which is loaded only where it is wanted."""
        try:
            settled = self.settled(number)
            found = None
            if self.stage.wants(number, settled, position, self.extent):
                found = self.stage.measure(number, settled, load(), self.extent)
            make = partial(self.stage.gathering, number, settled, self.extent)
            self._passes[number].add(make, position, found)
        except BaseException as error:
            self._passes[number].fail(error)
            raise

    def act(self, values: Values, position: int) -> None:
        """Do the stage's work on one block."""
        self.stage.act(self.settled(self.passes), values, position, self.extent)


class Merging:
    """One tensor of the output, merged from several deltas in the stages of a method.

    Its blocks are its frames, or runs of whole rows of about that size where a stage asks for these: a function of the
    shape alone, so that results do not depend on who does what. `offset` is the position of its first block in an
    extent that is all of the model, where `shared` has the stage that settles for that.
    """

    def __init__(
        self,
        lanes: int,
        row: int,
        parts: Sequence[Part],
        stages: Sequence[Stage],
        accumulator: type[np.floating[Any]],
        *,
        shared: Course | None = None,
        offset: int = 0,
    ) -> None:
        self._lanes = lanes
        self._row = row
        self._parts = parts
        self._accumulator = accumulator
        self._shared = shared
        self._offset = offset
        self.block_lanes = _block_lanes(row, stages)
        self.blocks = blocks_of(lanes, row, stages)
        extent = Extent(lanes, self.blocks, tuple(part.lane for part in parts))
        own = stages if shared is None else stages[1:]
        self._kept: dict[tuple[int, int], Frame] | None = None
        self._courses = [*([] if shared is None else [shared]), *(Course(stage, extent) for stage in own)]
        decoded = lanes * sum(part.lane.width for part in parts)
        if decoded <= _MOST_KEPT and any(course.passes for course in self._courses if course is not shared):
            self._kept = {}

    def measuring(self) -> Generator[list[Callable[[], None]]]:
        """For each pass over the tensor that comes before merging, its steps; those of `shared` are not among them."""
        for place, course in enumerate(self._courses):
            if course is not self._shared:
                for number in range(course.passes):
                    yield [partial(self._measure, place, number, block) for block in range(self.blocks)]

    def measure_shared(self, number: int, block: int) -> None:
        """A step of pass `number` of the stage that settles for the whole model."""
        self._measure(0, number, block)

    def merge(self, block: int) -> Array:
        """What is added to the target, in the accumulator's type, where `measuring` has been done. In frame memory."""
        values = self._load(block, len(self._courses))
        assert values.merged is not None
        return values.merged

    def merge_alone(self) -> Array:
        """All of it in one step, for a tensor of one block: measuring and merging from values that are read once."""
        values = self._read(0)
        for course in self._courses:
            if course is not self._shared:
                for number in range(course.passes):
                    course.measure(number, 0, lambda: values)
            course.act(values, self._position(course, 0))
        assert values.merged is not None
        return values.merged

    def _measure(self, place: int, number: int, block: int) -> None:
        course = self._courses[place]
        with frame_memory():
            course.measure(number, self._position(course, block), partial(self._load, block, place))

    def _load(self, block: int, stages: int) -> Values:
        """A block's values after the first `stages` stages."""
        values = self._read(block)
        for course in self._courses[:stages]:
            course.act(values, self._position(course, block))
        return values

    def _position(self, course: Course, block: int) -> int:
        return self._offset + block if course is self._shared else block

    def _read(self, block: int) -> Values:
        first = block * self.block_lanes
        lanes = min(self.block_lanes, self._lanes - first)
        if self.block_lanes == FRAME_LANES:
            array, symbols = values_of(
                [self._addend(place, block, lanes) for place in range(len(self._parts))], self._accumulator
            )
        else:
            array, symbols = self._gather(first, lanes)
        return Values(
            array,
            symbols,
            tuple(part.lane for part in self._parts),
            first,
            self._row,
            np.array([part.weight for part in self._parts], np.float64),
            tuple(part.key for part in self._parts),
        )

    def _gather(self, first: int, lanes: int) -> tuple[Array, tuple[Array, ...]]:
        """The lanes of a block that is no frame, from the frames that hold them."""
        array = empty(len(self._parts) * lanes, self._accumulator).reshape(-1, lanes)
        symbols = tuple(empty(lanes, part.lane.bits) for part in self._parts)
        for number in range(first // FRAME_LANES, -(-(first + lanes) // FRAME_LANES)):
            start = number * FRAME_LANES
            count = min(FRAME_LANES, self._lanes - start)
            here = slice(max(first - start, 0), min(first + lanes - start, count))
            there = slice(start + here.start - first, start + here.stop - first)
            for place in range(len(self._parts)):
                found, bits = values_of([self._addend(place, number, count)], self._accumulator)
                array[place, there] = found[0, here]
                symbols[place][there] = bits[0][here]
        return array, symbols

    def _addend(self, place: int, number: int, lanes: int) -> Addend:
        part = self._parts[place]
        return Addend(self._frame(place, number, lanes), part.base_lane, part.lane, part.weight)

    def _frame(self, place: int, number: int, lanes: int) -> Frame:
        if self._kept is None:
            return self._parts[place].read(number, lanes)
        frame = self._kept.get((place, number))
        if frame is None:
            # Two threads may both come here: they find the same.
            frame = self._kept[place, number] = _out_of_frame_memory(self._parts[place].read(number, lanes))
        return frame


def _out_of_frame_memory(frame: Frame) -> Frame:
    """The same frame in memory of its own."""
    symbols = None if frame.symbols is None else frame.symbols.copy()
    positions = None if frame.positions is None else frame.positions.copy()
    mending = frame.mending
    if mending is not None:
        mending = Mending(mending.positions.copy(), mending.codes.copy())
    return Frame(frame.lanes, symbols, positions, mending)


def blocks_of(lanes: int, row: int, stages: Sequence[Stage]) -> int:
    """How many blocks a tensor of `lanes` lanes in rows of `row` has."""
    return -(-lanes // _block_lanes(row, stages))


def _block_lanes(row: int, stages: Sequence[Stage]) -> int:
    """Lanes of a block of a tensor with rows of `row` lanes."""
    if not any(stage.whole_rows for stage in stages):
        return FRAME_LANES
    return max(1, FRAME_LANES // max(row, 1)) * max(row, 1)
