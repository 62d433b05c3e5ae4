"""Devices that an apply can use in place of the host's processor: GPUs, by way of torch.

Each thread has a stream and frame memory that a device copies from without its help, so that what one thread sends goes
over while the device computes for another. A thread keeps to one device; several devices share the threads.
"""

from __future__ import annotations

import importlib
import itertools
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deltareg.codec import FRAME_LANES, Array, Lane
from deltareg.codec.memory import frame_memory, take_frame_memory_from
from deltareg.errors import DeviceFull, InvalidArgument
from deltareg.merge.block import Addend, Block
from deltareg.merge.processor import CPU, Processor

if TYPE_CHECKING:
    from deltareg.merge.device import DeviceLoops

__all__ = ["Device", "open_processor"]

Result = TypeVar("Result")

LEAST_LANES = 1 << 14
"""Fewer lanes at a time are not tried: what they need is a few hundred kilobytes."""


def open_processor(name: str, rank: int = 0) -> Processor:
    """The processor of that name: `cpu`, `cuda`, `cuda:1`, `cuda:all`, several with commas between them.

    Of several processes on one machine each takes another GPU for `cuda`, by its `rank` there. `torch:cpu` is a
    device's way on the host, to test it. Raises InvalidArgument, naming what there is.
    """
    if name == "cpu":
        return CPU
    asked = [part.strip() for part in name.split(",")]
    for part in asked:
        kind, _, number = part.partition(":")
        if part != "torch:cpu" and (kind != "cuda" or not (number in ("", "all") or number.isdecimal())):
            raise InvalidArgument(
                f"unknown device {part!r}",
                hint="devices are cpu, cuda, cuda:N, cuda:all, or several: cuda:0,cuda:1",
            )
    torch = _torch(name)
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    found: list[str] = []
    for part in asked:
        own = f"cuda:{rank % max(len(there), 1)}"
        here = there if part == "cuda:all" else [{"cuda": own, "torch:cpu": "cpu"}.get(part, part)]
        missing = [one for one in here if one not in [*there, "cpu"]]
        if missing or not here:
            built = "" if there else f": torch {torch.__version__} finds none that it can use"
            raise InvalidArgument(
                f"there is no device {part}{built}", hint=f"devices that are there: {', '.join(['cpu', *there])}"
            )
        found += here
    return Device(list(dict.fromkeys(found)))


def _torch(name: str) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise InvalidArgument(
            f"device {name} needs torch, which cannot be imported",
            cause=str(error),
            hint="python -m pip install 'deltareg[gpu]', or take --device cpu",
        ) from error


class Device(Processor):
    """One or more torch devices, which do the arithmetic of an apply; `lanes` is how many are worked on at a time.

    Where a device's memory does not suffice, the step is done again with half as many lanes, and from then on one step
    at a time.
    """

    keeps_tokens = True
    defers = False
    repeats = True

    def __init__(self, names: Sequence[str], *, lanes: int = FRAME_LANES) -> None:
        super().__init__(part_lanes=None)  # its loops divide a block themselves
        self._devices = [_One(name, lanes) for name in names]
        self._next = itertools.count()
        self._threads = threading.local()

    @property
    def name(self) -> str:
        """The devices, as `open_processor` takes them."""
        return ",".join("torch:cpu" if one.name == "cpu" else one.name for one in self._devices)

    @property
    def lanes(self) -> int:
        """How many lanes are worked on at a time, where memory was shortest."""
        return min(one.loops.room.lanes for one in self._devices)

    @property
    def loops(self) -> DeviceLoops:
        """The loops on this thread's device."""
        return self._here.loops

    def step(self, work: Callable[[], Result]) -> Result:
        """Do `work` in frame memory, and again in smaller parts if memory runs out. Raises DeviceFull."""
        one = self._here
        while True:
            lanes = one.loops.room.lanes
            with one.turns, frame_memory():
                try:
                    with self._stream.used():
                        return work()
                except (RuntimeError, MemoryError) as error:
                    if not one.ran_out(error):
                        raise
                    told = _first_line(error)
            # Not before here has Python let go of what the step held.
            one.retreat(lanes, told)

    def linear(self, block: Block) -> None:
        """As `deltareg.merge.linear`."""
        self.loops.linear(block)
        self._stream.wait()

    def values_of(
        self, addends: Sequence[Addend], accumulator: type[np.floating[Any]]
    ) -> tuple[tuple[Any, ...], Callable[[int, int], Any]]:
        """The symbols of `Values`, and what makes its array, on this thread's device."""
        array, symbols = self.loops.values_of(addends, accumulator)
        return symbols, lambda start, stop: array[:, start:stop]

    def add_merged(self, target: Array, target_lane: Lane, merged: Any, out: Array, out_lane: Lane) -> None:
        """out = round(target + merged)."""
        self.loops.add_merged(target, target_lane, merged, out, out_lane)
        self._stream.wait()

    @property
    def _here(self) -> _One:
        found: _One | None = getattr(self._threads, "one", None)
        if found is None:
            found = self._devices[next(self._next) % len(self._devices)]
            self._threads.stream = found.stream()
            self._threads.one = found
        return found

    @property
    def _stream(self) -> _Stream:
        return self._threads.stream


class _One:
    """One device: its loops, and how many steps may be done on it at a time."""

    def __init__(self, name: str, lanes: int) -> None:
        from deltareg.merge.device import DeviceLoops, Room

        self.name = name
        self.loops = DeviceLoops(_torch(name).device(name), Room(lanes))
        self.turns = _Turns()
        self._lock = threading.Lock()

    def stream(self) -> _Stream:
        """A new queue of work. Raises DeviceFull."""
        try:
            return _Stream(self.name)
        except RuntimeError as error:
            # The first one takes some hundred megabytes, which a GPU that others use may not have.
            if self.ran_out(error):
                raise self._full("even to begin", _first_line(error)) from error
            raise

    def ran_out(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out: the device's, be it that of the host where it is the device."""
        if self.name == "cpu":
            return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
        return isinstance(error, RuntimeError) and "out of memory" in str(error)

    def retreat(self, lanes: int, told: str) -> None:
        """Take half as many lanes at a time as `lanes`, which were too many. Raises DeviceFull."""
        with self._lock:
            if self.loops.room.lanes == lanes:
                if lanes // 2 < LEAST_LANES:
                    raise self._full(f"even for {lanes} lanes at a time", told)
                self.loops.room.lanes = lanes // 2
            self.turns.limit = 1
        if self.name != "cpu":
            _torch(self.name).cuda.empty_cache()

    def _full(self, what: str, told: str) -> DeviceFull:
        return DeviceFull(
            f"the memory of {self.name} does not suffice, {what}",
            cause=told,
            hint="free some of it (nvidia-smi shows who has it), or take --device cpu",
            device=self.name,
        )


class _Turns:
    """Lets as many steps be done at a time as `limit` says, all where that is None."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self._running = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.limit is None or self._running < self.limit)
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


class _Stream:
    """A thread's own queue of work for its device; the host has none."""

    def __init__(self, name: str) -> None:
        self._torch = _torch(name)
        self._stream = None if name == "cpu" else self._torch.cuda.Stream(name)
        if self._stream is not None:
            take_frame_memory_from(self._pinned)

    @contextmanager
    def used(self) -> Generator[None]:
        """Within it, torch's work goes to this queue; it is done at the end."""
        if self._stream is None:
            yield
            return
        with self._torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                # What is on its way comes from frame memory, which is given to the next step.
                self.wait()

    def wait(self) -> None:
        """Wait until the device has done what this thread asked for."""
        if self._stream is not None:
            self._stream.synchronize()

    def _pinned(self, nbytes: int) -> Array:
        return self._torch.empty(nbytes, dtype=self._torch.uint8, pin_memory=True).numpy()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
