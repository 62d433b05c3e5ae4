"""A child process that takes or applies a delta, and is killed in the midst of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["kill_after", "run"]

ROOT = Path(__file__).resolve().parents[2]

# Each step tells of itself on stdout and then waits, so that the parent can kill it at that very step.
_CHILD = """
import sys, threading, time
import deltareg
from deltareg.progress import Progress

class Telling(Progress):
    def __init__(self):
        self.lock = threading.Lock()
    def begin(self, step, total):
        self.tell("begin")
    def advance(self, count):
        self.tell("advance")
    def end(self, *, done):
        self.tell("end")
    def tell(self, what):
        with self.lock:
            print(what, flush=True)
            sys.stdin.readline()

registry = deltareg.Registry(sys.argv[2])
if sys.argv[1] == "diff":
    deltareg.diff(sys.argv[3], sys.argv[4], registry, sys.argv[5], threads=2, progress=Telling())
else:
    deltareg.apply(sys.argv[3], {sys.argv[4]: 0.5}, registry, sys.argv[5], threads=2, progress=Telling())
print("done", flush=True)
"""


def run(arguments: list[str | Path], steps: int | None) -> list[str]:
    """Let a child go on for that many steps and kill it with SIGKILL; with None to its end. Returns the steps told."""
    command = [sys.executable, "-c", _CHILD, *map(str, arguments)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdin is not None and child.stdout is not None
    told: list[str] = []
    try:
        while line := child.stdout.readline():
            told.append(line.strip())
            if steps is not None and len(told) > steps:
                child.send_signal(signal.SIGKILL)
                break
            child.stdin.write("\n")
            child.stdin.flush()
    finally:
        if steps is not None:
            child.kill()
        child.stdout.close()
        child.wait()
    expected = 0 if steps is None else -signal.SIGKILL
    assert child.returncode == expected, (child.returncode, told[-3:])
    return told


def kill_after(arguments: list[str | Path], steps: int) -> None:
    """Kill the child at that step."""
    assert len(run(arguments, steps)) == steps + 1
