"""One tensor's way through the stages of a method, as steps that can be done in any thread."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deltareg.apply.ranks import ALONE, Ranks
from deltareg.codec import FRAME_LANES, Array, Frame, Lane
from deltareg.codec.memory import Recycled, empty, part_memory
from deltareg.codec.mend import Mending
from deltareg.codec.palette import Tokens
from deltareg.merge.block import Addend
from deltareg.merge.deferred import ALIGNMENT, Deferred
from deltareg.merge.processor import CPU, Processor
from deltareg.merge.stage import Gathering, Stage
from deltareg.merge.values import Extent, Values

__all__ = ["Course", "Merging", "Part", "blocks_of"]


@dataclass(frozen=True)
class Part:
    """One delta's part in a tensor: how a frame is read, the lanes of base and of D1, its weight, its masks' seed.

    `number` is the delta's among all that are merged. `leaves_alone` tells of a frame, by its number, whether it is
    known that nothing changes in it.
    """

    number: int
    read: Callable[[int, int], Frame]
    base_lane: Lane
    lane: Lane
    weight: float
    key: int
    leaves_alone: Callable[[int], bool] = lambda number: False


class _Pass:
    """Gathers what one pass finds in every block, from many threads; what follows can be waited for.

    Where `apart`, other processes have blocks of it too, and what they found is taken in before anything follows.
    """

    def __init__(self, blocks: int, *, apart: bool = False) -> None:
        self._missing = blocks
        self._apart = apart
        self._lock = threading.Lock()
        self._gathering: Gathering | None = None
        self._whole: Future[None] = Future()
        self._settled: Future[Any] = Future()
        if blocks == 0:
            self._whole.set_result(None)

    def add(self, make: Callable[[], Gathering], position: int, found: Any) -> None:
        """Take what was found in a block; None where it was not looked at."""
        with self._lock:
            if self._gathering is None:
                self._gathering = make()
            if found is not None:
                self._gathering.add(position, found)
            self._missing -= 1
            if self._missing == 0 and self._apart:
                self._whole.set_result(None)
            elif self._missing == 0:
                self._settled.set_result(self._gathering.settle())
                self._gathering = None

    def exchange(self, make: Callable[[], Gathering], ranks: Ranks) -> None:
        """Take in what the other processes found, once all blocks of this one are done."""
        self._whole.result()
        own = self._gathering or make()
        total = make()
        for found in ranks.each(own):
            total.merge(found)
        self._settled.set_result(total.settle())
        self._gathering = None

    def fail(self, error: BaseException) -> None:
        """Let those who wait fail too."""
        with self._lock:
            for future in (self._whole, self._settled):
                if not future.done():
                    future.set_exception(error)

    def result(self) -> Any:
        """What follows from all blocks. Waits for steps that were begun before the one that asks."""
        return self._settled.result()


class Course:
    """One stage, over the extent for which it settles.

    `own` are the blocks of it that this process measures, where `ranks` have the others.
    """

    def __init__(self, stage: Stage, extent: Extent, own: int | None = None, ranks: Ranks = ALONE) -> None:
        self.stage = stage
        self.extent = extent
        self._ranks = ranks
        apart = ranks.count > 1
        blocks = extent.blocks if own is None else own
        self._passes = [_Pass(blocks, apart=apart) for _ in range(stage.passes(extent))]

    @property
    def passes(self) -> int:
        """How often it sees each block before it can act."""
        return len(self._passes)

    def settled(self, passes: int) -> list[Any]:
        """What the first `passes` of them gave."""
        return [one.result() for one in self._passes[:passes]]

    def measure(
        self,
        number: int,
        position: int,
        load: Callable[[], Values],
        processor: Processor | None = None,
        before: Sequence[Course] = (),
    ) -> None:
        """Do pass `number` on one block, which is loaded only where it is wanted.

        That is a step of `processor`, where one is given, and one that waits for nothing: what the stages `before` find
        is waited for first.
        """
        try:
            _wait(before)
            settled = self.settled(number)
            found = None
            if self.stage.wants(number, settled, position, self.extent):

                def look() -> Any:
                    return self.stage.measure(number, settled, load(), self.extent)

                found = look() if processor is None else processor.step(look)
            make = partial(self.stage.gathering, number, settled, self.extent)
            self._passes[number].add(make, position, found)
        except BaseException as error:
            self._passes[number].fail(error)
            raise

    def exchange(self, number: int) -> None:
        """End pass `number` with what the other processes found. Not for more than one thread."""
        if self._ranks.count > 1:
            make = partial(self.stage.gathering, number, self.settled(number), self.extent)
            self._passes[number].exchange(make, self._ranks)

    def divisible(self, position: int) -> bool:
        """Whether the stage can act on parts of the block."""
        return self.stage.divisible(self.settled(self.passes), position, self.extent)

    def act(self, values: Values, position: int) -> None:
        """Do the stage's work on one block."""
        self.stage.act(self.settled(self.passes), values, position, self.extent)


class Merging:
    """One tensor of the output, merged from several deltas in the stages of a method.

    Its blocks are its frames, or runs of whole rows of about that size where a stage asks for these: a function of the
    shape alone, so that results do not depend on who does what. Decoded frames are kept from pass to pass as far as
    `memory` has room for them. `defers` tells that the stages can put off what they do (`can_defer`). `offset` is
    the position of its first block in an extent that is all of the model, where `shared` has the stage that settles for
    that.
    """

    def __init__(
        self,
        lanes: int,
        row: int,
        parts: Sequence[Part],
        stages: Sequence[Stage],
        accumulator: type[np.floating[Any]],
        *,
        defers: bool = False,
        shared: Course | None = None,
        offset: int = 0,
        processor: Processor = CPU,
        memory: Recycled | None = None,
    ) -> None:
        self._memory = memory or Recycled()
        self._lanes = lanes
        self._row = row
        self._parts = parts
        self._accumulator = accumulator
        self._shared = shared
        self._offset = offset
        self._processor = processor
        self.block_lanes = _block_lanes(row, stages)
        self.blocks = blocks_of(lanes, row, stages)
        aligned = self.blocks == 1 or self.block_lanes % ALIGNMENT == 0
        # A delta that lacks the tensor has here the lanes that it has elsewhere.
        alike = len({part.lane for part in parts}) == 1
        self._defers = defers and processor.defers and aligned and alike
        extent = Extent(lanes, self.blocks, tuple(part.number for part in parts), tuple(part.lane for part in parts))
        own = stages if shared is None else stages[1:]
        self._kept: dict[tuple[int, int], Frame] | None = None
        self._uses: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._courses = [*([] if shared is None else [shared]), *(Course(stage, extent) for stage in own)]
        again = any(course.passes for course in self._courses if course is not shared)
        # Blocks that are no frames share frames: those at their borders are read for both.
        if again or self.block_lanes != FRAME_LANES:
            self._kept = {}
            self._uses = Counter(number for block in range(self.blocks) for number in self._frames(block))

    def measuring(self) -> Generator[list[Callable[[], None]]]:
        """For each pass over the tensor that comes before merging, its steps; those of `shared` are not among them."""
        for place, course in enumerate(self._courses):
            if course is not self._shared:
                for number in range(course.passes):
                    yield [partial(self._measure, place, number, block) for block in range(self.blocks)]

    def measure_shared(self, number: int, block: int) -> None:
        """A step of pass `number` of the stage that settles for the whole model."""
        self._measure(0, number, block)

    def wait(self) -> None:
        """Wait for all that is measured, before the step that merges, so that no step waits for another."""
        _wait(self._courses)

    def merge(self, block: int) -> Generator[tuple[slice, Any]]:
        """What is added to the target, in the accumulator's type, where `measuring` has been done.

        Comes in one or several parts, with the block's lanes that each is for; all of it is in frame memory, and a part
        is gone when the next one is asked for.
        """
        values = self._read(block)
        courses = [(course, self._position(course, block)) for course in self._courses]
        step = self._processor.part_lanes or values.lanes
        if values.deferred is not None or not all(course.divisible(position) for course, position in courses):
            step = values.lanes
        for start in range(0, values.lanes, step):
            here = slice(start, min(start + step, values.lanes))
            with part_memory():
                part = values if step >= values.lanes else values.part(here.start, here.stop)
                for course, position in courses:
                    course.act(part, position)
                assert part.merged is not None
                yield here, part.merged

    def leaves_alone(self, block: int) -> bool:
        """Whether it is known without reading that no delta changes anything in the block."""
        return all(part.leaves_alone(number) for part in self._parts for number in self._frames(block))

    def release(self, block: int) -> None:
        """The block was merged: what was kept for it, and for no other, may be given to another tensor."""
        if self._kept is None:
            return
        with self._lock:
            done = [number for number in self._frames(block) if self._uses[number] == 1]
            self._uses.subtract(self._frames(block))
            frames = [self._kept.pop((place, number), None) for number in done for place in range(len(self._parts))]
        for frame in frames:
            if frame is not None:
                _give_back(frame, self._memory)

    def merge_alone(self) -> Generator[tuple[slice, Any]]:
        """As `merge`, for a tensor of one block: measuring and merging from values that are read once."""
        values = self._read(0)
        for course in self._courses:
            if course is not self._shared:
                for number in range(course.passes):
                    course.measure(number, 0, lambda: values)
            course.act(values, self._position(course, 0))
        assert values.merged is not None
        yield slice(0, values.lanes), values.merged

    def _measure(self, place: int, number: int, block: int) -> None:
        course = self._courses[place]
        load = partial(self._load, block, place)
        course.measure(number, self._position(course, block), load, self._processor, self._courses[:place])

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
        deferred = None
        if self.block_lanes == FRAME_LANES:
            addends = [self._addend(place, block, lanes) for place in range(len(self._parts))]
            symbols, make = self._processor.values_of(addends, self._accumulator)
            mendings = [addend.frame.mending for addend in addends]
        elif self._defers:
            symbols, mendings = self._gather_symbols(first, lanes)
            make = _deferred
        else:
            symbols, make = self._gather(first, lanes)
            mendings = []
        if self._defers:
            deferred = Deferred(symbols, mendings, first, self._row)
        return Values(
            symbols,
            tuple(part.lane for part in self._parts),
            first,
            self._row,
            np.array([part.weight for part in self._parts], np.float64),
            tuple(part.key for part in self._parts),
            self._accumulator,
            make,
            self._processor.loops,
            deferred,
        )

    def _gather(self, first: int, lanes: int) -> tuple[tuple[Any, ...], Callable[[int, int], Any]]:
        """The lanes of a block that is no frame, from the frames that hold them."""
        empty = self._processor.loops.empty
        array = empty(len(self._parts) * lanes, self._accumulator).reshape(-1, lanes)
        symbols = tuple(empty(lanes, part.lane.bits) for part in self._parts)
        for number, count, here, there in self._frames_of(first, lanes):
            for place in range(len(self._parts)):
                bits, make = self._processor.values_of([self._addend(place, number, count)], self._accumulator)
                array[place, there] = make(0, count)[0, here]
                symbols[place][there] = bits[0][here]
        return symbols, lambda start, stop: array[:, start:stop]

    def _gather_symbols(self, first: int, lanes: int) -> tuple[tuple[Any, ...], list[Mending | None]]:
        """As `_gather`, without numbers: the symbols, and the second terms."""
        symbols = tuple(empty(lanes, part.lane.bits) for part in self._parts)
        mendings: list[Mending | None] = []
        for place, bits in enumerate(symbols):
            found: list[Mending] = []
            for number, count, here, there in self._frames_of(first, lanes):
                addend = self._addend(place, number, count)
                bits[there] = addend.symbols[here]
                if addend.frame.mending is not None:
                    mending = addend.frame.mending.within(here.start, here.stop)
                    found.append(Mending(mending.positions + there.start, mending.codes))
            mendings.append(Mending.joined(found) if found else None)
        return symbols, mendings

    def _frames(self, block: int) -> range:
        """The numbers of the frames that hold the lanes of a block."""
        first = block * self.block_lanes
        stop = min(first + self.block_lanes, self._lanes)
        return range(first // FRAME_LANES, -(-stop // FRAME_LANES))

    def _frames_of(self, first: int, lanes: int) -> Generator[tuple[int, int, slice, slice]]:
        """Of the frames that hold these lanes: their numbers and lanes, which of these they are, and where they go."""
        for number in self._frames(first // self.block_lanes):
            start = number * FRAME_LANES
            count = min(FRAME_LANES, self._lanes - start)
            here = slice(max(first - start, 0), min(first + lanes - start, count))
            yield number, count, here, slice(start + here.start - first, start + here.stop - first)

    def _addend(self, place: int, number: int, lanes: int) -> Addend:
        part = self._parts[place]
        return Addend(self._frame(place, number, lanes), part.base_lane, part.lane, part.weight)

    def _frame(self, place: int, number: int, lanes: int) -> Frame:
        if self._kept is None:
            return self._parts[place].read(number, lanes)
        frame = self._kept.get((place, number))
        if frame is not None:
            return frame
        found = self._parts[place].read(number, lanes)
        copied = _copied(found, self._memory)
        if copied is None:
            return found
        with self._lock:
            frame = self._kept.setdefault((place, number), copied)
        if frame is not copied:  # another thread was here first
            _give_back(copied, self._memory)
        return frame


def _deferred(start: int, stop: int) -> Any:
    raise AssertionError("the numbers of lanes that defer come from what they defer")


def _wait(courses: Sequence[Course]) -> None:
    for course in courses:
        course.settled(course.passes)


def _copied(frame: Frame, memory: Recycled) -> Frame | None:
    """The same frame in memory of its own; None where there is no room for it."""
    arrays = _arrays(frame)
    found: list[Array] = []
    for array in arrays:
        copy = memory.copy(array)
        if copy is None:
            for one in found:
                memory.give_back(one)
            return None
        found.append(copy)
    copies = iter(found)
    tokens = frame.tokens
    if tokens is not None:
        tokens = Tokens(next(copies), tokens.table, tokens.escape, next(copies))
    symbols = None if frame.symbols is None else next(copies)
    positions = None if frame.positions is None else next(copies)
    mending = None if frame.mending is None else Mending(next(copies), next(copies))
    return Frame(frame.lanes, symbols, positions, mending, None, tokens)


def _give_back(frame: Frame, memory: Recycled) -> None:
    for array in _arrays(frame):
        memory.give_back(array)


def _arrays(frame: Frame) -> list[Array]:
    """What a frame holds but the overwrites, which no merge looks at."""
    held = [] if frame.tokens is None else [frame.tokens.tokens, frame.tokens.room]
    held += [array for array in (frame.symbols, frame.positions) if array is not None]
    return held if frame.mending is None else [*held, frame.mending.positions, frame.mending.codes]


def blocks_of(lanes: int, row: int, stages: Sequence[Stage]) -> int:
    """How many blocks a tensor of `lanes` lanes in rows of `row` has."""
    return -(-lanes // _block_lanes(row, stages))


def _block_lanes(row: int, stages: Sequence[Stage]) -> int:
    """Lanes of a block of a tensor with rows of `row` lanes."""
    if not any(stage.whole_rows for stage in stages):
        return FRAME_LANES
    # Whole rows, and whole runs of random bits where these have a border in common.
    row = max(row, 1)
    unit = math.lcm(row, ALIGNMENT)
    return max(1, FRAME_LANES // row) * row if unit > FRAME_LANES else FRAME_LANES // unit * unit
