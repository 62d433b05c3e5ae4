"""Runs a server for a test, and ends it when the test is over or its process is gone, however that went.

    keeper.py DIRECTORY SIGNAL COMMAND…

A byte on stdin ends the command: it gets SIGNAL, and what is left of it and of its descendants after five seconds is
killed. The end of stdin means that whoever started the keeper is gone: DIRECTORY is then removed too.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_PATIENCE = 5.0
_PR_SET_CHILD_SUBREAPER = 36


def main(directory: str, ending: str, *command: str) -> int:
    """Keep the command; returns 0, or the command's own status if it ended by itself."""
    if sys.platform == "linux":  # descendants whose parents die become ours, so that none is lost
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    told = False
    while server.poll() is None and not told:
        told = bool(select.select([0], [], [], 0.1)[0])
    status = server.returncode or 0
    _end(server, signal.Signals[ending])
    if told and not os.read(0, 1):
        shutil.rmtree(directory, ignore_errors=True)
    return status


def _end(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if server.poll() is None:
        server.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_PATIENCE)
    end = time.monotonic() + _PATIENCE
    while (left := _descendants()) and time.monotonic() < end:
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _descendants() -> set[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
