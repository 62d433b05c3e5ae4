"""Turns at what takes much memory and time: some at once, some who wait, and no more.

Whoever waits holds one of the threads that everybody shares. Were there no end of them, nothing else were answered.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

from deltareg.errors import Busy

__all__ = ["Turns", "turn"]

_AT_ONCE = 2
_WAITING = 8
_PATIENCE = 20.0
_RETRY = 5


class Turns:
    """So many at once, so many who wait for a while. Its methods may be called from any thread."""

    def __init__(self, at_once: int, waiting: int, patience: float) -> None:
        self._turns = threading.BoundedSemaphore(at_once)
        self._places = threading.BoundedSemaphore(at_once + waiting)
        self._patience = patience

    @contextmanager
    def take(self) -> Generator[None]:
        """Do the body once it is its turn. Raises Busy where too many wait, or where it takes too long."""
        if not self._places.acquire(blocking=False):
            raise _busy()
        try:
            if not self._turns.acquire(timeout=self._patience):
                raise _busy()
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._places.release()


_TURNS = Turns(_AT_ONCE, _WAITING, _PATIENCE)


def turn() -> AbstractContextManager[None]:
    """A turn at reading what publishers made, or describing a target: an inventory may take a gigabyte. Raises Busy."""
    return _TURNS.take()


def _busy() -> Busy:
    return Busy("too much of this kind is asked at once", hint="try again", retry_after=_RETRY)
