"""How long work tells whoever watches that it goes on."""

from __future__ import annotations

__all__ = ["SILENT", "Progress"]


class Progress:
    """Hears of steps and of bytes done; this one keeps silent. Methods may be called from any thread."""

    def begin(self, step: str, total: int) -> None:
        """A step starts that will handle `total` bytes."""

    def advance(self, count: int) -> None:
        """`count` more bytes of the step are done."""

    def end(self) -> None:
        """The step is done."""


SILENT = Progress()
"""For those who do not watch."""
