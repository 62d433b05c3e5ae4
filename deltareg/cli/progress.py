"""Progress on stderr, for whoever sits before a terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from deltareg.cli.output import plain_console
from deltareg.progress import SILENT, Progress

__all__ = ["watched"]


class _Shown(Progress):
    """A bar for each step, with rate and time left."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("", visible=False)

    def begin(self, name: str, total: int) -> None:
        # Finished steps stay on the screen as they are.
        self._task = self._bars.add_task(name, total=total or None)

    def advance(self, count: int) -> None:
        self._bars.advance(self._task, count)

    def end(self, *, done: bool) -> None:
        if not done:
            self._bars.stop_task(self._task)
            return
        task = self._bars.tasks[self._bars.task_ids.index(self._task)]
        self._bars.update(self._task, total=task.completed or 1, completed=task.completed or 1)


@contextmanager
def watched(*, shown: bool = True) -> Generator[Progress]:
    """A `Progress` to hand to whatever takes long. It shows nothing where stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield SILENT
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=plain_console(stderr=True)) as bars:
        yield _Shown(bars)
