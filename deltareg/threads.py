"""Work in many threads whose results come back in order."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from deltareg.errors import InvalidArgument
from deltareg.progress import Progress

__all__ = ["in_background", "in_order", "in_parallel", "thread_count"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_SWITCH_SECONDS = 2e-4


def thread_count(asked: int | None) -> int:
    """The number of threads to use: what was asked for, or one for each core that the process may run on."""
    if asked is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked < 1:
        raise InvalidArgument(f"{asked} threads cannot do anything", hint="--threads takes 1 or more")
    return asked


def in_order(tasks: Iterable[Callable[[], Result]], threads: int) -> Generator[Result]:
    """Run `tasks` in `threads` threads and yield their results in the tasks' order.

    At most twice as many tasks as threads are begun before their results are taken, so that memory stays bounded. The
    first error ends it: no further task is begun, and those that run are waited for.
    """
    waiting: deque[Future[Result]] = deque()
    with _quick_switches(), _pool(threads) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def in_background(tasks: Iterable[Callable[[], object]], threads: int) -> Generator[Callable[[], None]]:
    """Begin `tasks` in `threads` threads, and give what waits for all of them and raises their first error.

    When the block is left, tasks that were not begun are dropped, and those that run are waited for.
    """
    with _quick_switches(), _pool(threads) as pool:
        begun = [pool.submit(task) for task in tasks]

        def wait() -> None:
            for one in begun:
                one.result()

        try:
            yield wait
        finally:
            for one in begun:
                one.cancel()


class _Stopped(Exception):
    """Another piece of work failed, or the user interrupted."""


class _Stoppable(Progress):
    """Passes on what it hears, and ends the work of whoever tells it once `stop` is set."""

    def __init__(self, inner: Progress, stop: threading.Event) -> None:
        self._inner = inner
        self._stop = stop

    def advance(self, count: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._inner.advance(count)


def in_parallel(work: Callable[[Item, Progress], int], items: Sequence[Item], threads: int, progress: Progress) -> int:
    """Do `work` for each item and add up what it returns. The first error ends all of it, as does an interrupt."""
    stop = threading.Event()
    stoppable = _Stoppable(progress, stop)

    def attempt(item: Item) -> int:
        if stop.is_set():
            raise _Stopped
        try:
            return work(item, stoppable)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix="deltareg") as pool:
        futures = [pool.submit(attempt, item) for item in items]
        try:
            wait(futures)
        finally:
            stop.set()
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, _Stopped):
            raise error
    return sum(future.result() for future in futures)


def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="deltareg", initializer=_reset_arithmetic)


@contextmanager
def _quick_switches() -> Generator[None]:
    """Let a thread that comes back from a compiled loop have the interpreter's lock soon.

    By default it waits for longer than such a loop takes.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _reset_arithmetic() -> None:
    """Let this thread compute as IEEE 754 has it.

    Threads inherit the processor's mode. A library that was built with `-ffast-math`, or `torch.set_flush_denormal`,
    takes subnormals for zero: results would depend on what else the process has loaded.
    """
    # What cannot be found (it is C, and no two systems call it the same) stays as it is.
    with suppress(OSError, AttributeError, TypeError, ValueError):
        library = ctypes.CDLL(None)
        default: Any = ctypes.c_void_p(-1)  # FE_DFL_ENV, as glibc and musl define it
        if sys.platform == "darwin":
            default = ctypes.byref(ctypes.c_char.in_dll(library, "_FE_DFL_ENV"))
        library.fesetenv(default)
