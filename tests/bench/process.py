"""Whole processes, measured: wall time and peak resident memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ran", "product", "run"]

# A child starts with its parent's peak as its own (Linux keeps it across exec), so a small process stands between the
# benchmark, which holds whole checkpoints, and what is measured.
_LAUNCHER = """
import json, os, sys, time
started = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - started
scale = 1 if sys.platform == "darwin" else 1024
result = {"seconds": seconds, "peak": usage.ru_maxrss * scale, "exit": os.waitstatus_to_exitcode(status)}
with open(int(sys.argv[1]), "w") as file:
    json.dump(result, file)
"""


@dataclass(frozen=True)
class Ran:
    """One process: wall seconds from spawn to end, peak resident bytes, and what it wrote to stdout."""

    seconds: float
    peak: int
    output: str


def product(program: str = "deltareg") -> str:
    """A program of the environment that deltareg is measured in.

    That is the one in `BENCH_BIN`, which `make bench` fills with what deltareg needs and nothing else, as its users do;
    else this interpreter's. What lies beside it there (scipy, which numba then loads; coverage) takes 0.3 s to start.
    """
    place = os.environ.get("BENCH_BIN")
    return str(Path(place, program).absolute() if place else Path(sys.executable).with_name(program))


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Ran:
    """Run `command` to its end. Raises RuntimeError with its output when it fails."""
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCHER, str(writing), *command],
            pass_fds=[writing],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    finally:
        os.close(writing)
    with os.fdopen(reading) as file:
        measured = json.loads(file.read() or "{}")
    if done.returncode or measured.get("exit") != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return Ran(measured["seconds"], measured["peak"], done.stdout)
