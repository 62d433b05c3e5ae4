"""Work in a forked process that dies of SIGKILL in the midst of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from deltareg.progress import Progress

__all__ = ["killed_after", "killed_at"]


class _Dying(Progress):
    """Ends the process at its `left`-th report."""

    def __init__(self, left: int) -> None:
        self.left = left

    def advance(self, count: int) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(work: Callable[[Progress], object], report: int) -> bool:
    """Do `work` in another process that kills itself at that report of its progress; whether it came so far."""
    return _end(_begin(lambda: work(_Dying(report))))


def killed_after(work: Callable[[Progress], object], seconds: float) -> bool:
    """Do `work` in another process and kill it after that time; whether it was still at it."""
    child = _begin(lambda: work(Progress()))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return _end(child)


def _begin(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def _end(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False
