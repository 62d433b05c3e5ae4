"""`apply --device cuda` beside the processor: whole processes by turns, where there is such a device."""

from __future__ import annotations

import filecmp
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.measured import Case, Row
from tests.bench.process import run
from tests.devices import no_gpu

__all__ = ["beside_the_processor", "measure_device"]

_REPEATS = 3
_METHODS = (("linear",), ("ties", "--param", "density=0.5"))


def measure_device(make: Callable[[], Case], scratch: Path) -> Iterator[Row]:
    """`beside_the_processor` on the first GPU; without one, why its rows are left out."""
    if no_gpu:
        print(f"apply --device cuda is left out: {no_gpu}", file=sys.stderr)
        return
    yield from beside_the_processor(make(), scratch, "cuda")


def beside_the_processor(case: Case, scratch: Path, device: str) -> Iterator[Row]:
    """Each method on both: whole processes, and without start-up and waiting for the disk. The files must be equal."""
    environment = {**os.environ, "DELTAREG_HOME": str(scratch / "home"), "NO_COLOR": "1"}
    deltareg = [sys.executable, "-m", "deltareg"]
    run([*deltareg, "diff", str(case.base), str(case.post), "--tag", "bench/delta:1.0.0"], environment)
    for method in _METHODS:
        seconds: dict[str, list[tuple[float, float]]] = {"cpu": [], device: []}
        written = 0
        for _ in range(_REPEATS + 1):
            for name, found in seconds.items():
                out = scratch / name.replace(":", "-")
                command = [*deltareg, "apply", str(case.base), "bench/delta:1.0.0=0.5", "-o", str(out), "--json"]
                ran = run([*command, "--overwrite", "--device", name, "--method", *method], environment)
                report = json.loads(ran.output)
                written = report["bytesWritten"]
                work = report["seconds"] - report["loadSeconds"] - report["syncSeconds"]
                found.append((ran.seconds, work))
            _must_be_same(*(scratch / name.replace(":", "-") for name in seconds))
        for name, found in seconds.items():
            # The first turn warms the page cache, and has loops compiled on a machine's first use.
            whole, work = (statistics.median(column) for column in zip(*found[1:], strict=True))
            subject = f"{method[0]} --device {name}"
            yield Row(case.name, f"{subject}, whole process", seconds=whole)
            yield Row(case.name, f"{subject}, without start-up and sync", unpack=written / work / 1e9, seconds=work)


def _must_be_same(one: Path, other: Path) -> None:
    names = sorted(str(file.relative_to(one)) for file in one.rglob("*") if file.is_file())
    same, *_ = filecmp.cmpfiles(one, other, names, shallow=False)
    if sorted(same) != names:
        raise AssertionError(f"{one} and {other} differ: {sorted({*names} - {*same})}")
