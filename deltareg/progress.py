"""How long work tells whoever watches that it goes on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["SILENT", "Progress"]


class Progress:
    """Hears of steps and of bytes done; this one keeps silent. Methods may be called from any thread."""

    @contextmanager
    def step(self, name: str, total: int) -> Generator[None]:
        """The work on `total` bytes within it; it ends there, done or failed."""
        self.begin(name, total)
        done = False
        try:
            yield
            done = True
        finally:
            self.end(done=done)

    def begin(self, name: str, total: int) -> None:
        """A step starts that will handle `total` bytes."""

    def advance(self, count: int) -> None:
        """`count` more bytes of the step are done."""

    def end(self, *, done: bool) -> None:
        """The step is over: `done`, or failed."""


SILENT = Progress()
"""For those who do not watch."""
