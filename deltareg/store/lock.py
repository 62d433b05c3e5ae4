"""A lock between processes, and between threads, that the kernel drops when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from deltareg.errors import Busy, translate_os_errors

__all__ = ["FileLock", "try_lock"]

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05


class FileLock:
    """`flock` on one file, which is never removed. Each entry opens it anew, so that threads exclude each other too."""

    def __init__(self, path: Path, *, wait: float = 30.0) -> None:
        self.path = path
        self._wait = wait

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """Hold the lock alone. Raises Busy when others keep it for longer than `wait` seconds."""
        with self._held(fcntl.LOCK_EX):
            yield

    @contextmanager
    def shared(self) -> Generator[None]:
        """Hold the lock together with other shared holders. Raises Busy as `exclusive` does."""
        with self._held(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _held(self, kind: int) -> Generator[None]:
        with translate_os_errors("open the lock", self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._acquire(handle, kind)
            yield
        finally:
            os.close(handle)

    def _acquire(self, handle: int, kind: int) -> None:
        # Polled: a blocking flock could be bounded only by a signal, which a library must not use.
        deadline = time.monotonic() + self._wait
        pause = _FIRST_PAUSE
        while not try_lock(handle, kind):
            if time.monotonic() >= deadline:
                raise Busy(
                    f"another process has held {self.path} for {self._wait:g} s",
                    hint="wait until it ends and run this again",
                    path=self.path,
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of an open file if it is free. Raises the translated OSError where locks do not work."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
            return False
        with translate_os_errors("lock a file", "lock"):
            raise
    return True
