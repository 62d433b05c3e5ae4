"""Work in threads: results in order, few in flight, and the first error ends it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from deltareg.errors import InvalidArgument
from deltareg.threads import in_background, in_order, thread_count


class Work:
    """Tasks that count themselves: how many were drawn, how many began, and which ended."""

    def __init__(self, count: int, *, failing: int | None = None, seconds: float = 0) -> None:
        self.count = count
        self.failing = failing
        self.seconds = seconds
        self.drawn = 0
        self.begun: list[int] = []
        self.ended: list[int] = []

    def tasks(self) -> Iterator[Callable[[], int]]:
        for number in range(self.count):
            self.drawn += 1
            yield partial(self.task, number)

    def task(self, number: int) -> int:
        self.begun.append(number)
        time.sleep(self.seconds)
        if number == self.failing:
            raise ValueError(number)
        self.ended.append(number)
        return number


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_results_come_in_the_order_of_the_tasks(threads: int, count: int) -> None:
    delays = [((number * 7) % 5) / 2000 for number in range(count)]

    def task(number: int) -> int:
        time.sleep(delays[number])
        return number

    assert list(in_order([partial(task, number) for number in range(count)], threads)) == list(range(count))


@pytest.mark.parametrize("threads", [1, 3])
def test_only_twice_as_many_tasks_as_threads_are_in_flight(threads: int) -> None:
    work = Work(100)
    for taken, _ in enumerate(in_order(work.tasks(), threads)):
        assert work.drawn <= taken + 2 * threads
    assert work.drawn == 100


def test_tasks_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=10)
    assert sorted(in_order([barrier.wait] * 3, 3)) == [0, 1, 2]


def test_first_error_ends_the_work() -> None:
    work = Work(1000, failing=5, seconds=0.001)
    found: list[int] = []
    with pytest.raises(ValueError, match="5"):
        for result in in_order(work.tasks(), 2):
            found.append(result)
    assert found == [0, 1, 2, 3, 4]
    assert work.drawn <= 5 + 4
    begun = len(work.begun)
    time.sleep(0.02)
    assert len(work.begun) == begun, "nothing runs on behind the caller's back"
    assert sorted([*work.ended, 5]) == sorted(work.begun), "what had begun was waited for"


def test_error_of_the_tasks_themselves_ends_the_work() -> None:
    def tasks() -> Iterator[Callable[[], int]]:
        yield lambda: 1
        raise KeyError("no more")

    with pytest.raises(KeyError):
        list(in_order(tasks(), 2))


def test_caller_that_stops_early_leaves_no_work_behind() -> None:
    work = Work(1000, seconds=0.001)
    results = in_order(work.tasks(), 2)
    assert next(results) == 0
    results.close()
    begun = len(work.begun)
    time.sleep(0.02)
    assert len(work.begun) == begun
    assert work.drawn <= 5
    assert not any(thread.name.startswith("deltareg") for thread in threading.enumerate())


def test_number_of_threads_is_what_was_asked_for_or_that_of_the_cores() -> None:
    assert thread_count(3) == 3
    assert 1 <= thread_count(None) <= (os.cpu_count() or 1)
    for asked in (0, -1):
        with pytest.raises(InvalidArgument, match="threads"):
            thread_count(asked)


def test_background_work_goes_on_while_the_caller_does_something_else() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def task() -> None:
        begun.set()
        assert go_on.wait(10)

    with in_background([task], 1) as wait:
        assert begun.wait(10)
        go_on.set()
        wait()


def test_background_work_tells_of_the_first_task_that_failed() -> None:
    def fail(name: str) -> None:
        raise ValueError(name)

    done: list[int] = []
    tasks = [lambda: done.append(1), lambda: fail("second"), lambda: fail("third")]
    with in_background(tasks, 2) as wait, pytest.raises(ValueError, match="second"):
        wait()
    assert done == [1]


def test_background_work_that_was_not_begun_is_dropped_when_its_caller_leaves() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        begun.set()
        assert go_on.wait(10)
        done.append(1)

    def leave() -> None:
        with in_background([first, lambda: done.append(2)], 1):
            assert begun.wait(10)
            threading.Timer(0.2, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert done == [1]  # what had begun was waited for


def test_background_work_leaves_the_switch_interval_as_it_was() -> None:
    before = sys.getswitchinterval()
    with in_background([], 2) as wait:
        wait()
        assert sys.getswitchinterval() <= before
    assert sys.getswitchinterval() == before
