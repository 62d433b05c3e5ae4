"""How `apply` uses a machine: one thread and two, two deltas beside `cp`, a large checkpoint, a model in memory."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.measured import Case, Goal, Row
from tests.bench.methods import has_mergekit, mergekit, write_other
from tests.bench.process import Ran, product, run

__all__ = ["measure_engine"]

_REPEATS = 5
_ONE = ("bench/one:1.0.0",)
_TWO = ("bench/one:1.0.0=0.5", "bench/two:1.0.0=0.5")
_TIES = ("--method", "ties", "--param", "density=0.5", "--param", "trim=tensor")
_SMALL_MEMORY = 600e6
_IMPORTS = "import deltareg.apply, deltareg.cli.app"


def measure_engine(case: Case, large: Case, scratch: Path) -> Iterator[Row | Goal]:
    """The goals of `apply` that need more than one delta, one thread, or one size."""
    environment = {**os.environ, "DELTAREG_HOME": str(scratch / "home"), "NO_COLOR": "1"}
    other = scratch / "other"
    write_other(case, other)
    for name, post in (("one", case.post), ("two", other)):
        run(_command("diff", case.base, post, "--tag", f"bench/{name}:1.0.0"), environment)
    yield from _threads(case, scratch, environment)
    yield from _beside_cp(case, "ties of two", _TIES, _TWO, 6.0, scratch, environment)
    yield from _live(case, environment)
    run(_command("diff", large.base, large.post, "--tag", "bench/large:1.0.0"), environment)
    yield from _large(large, scratch, environment)


def _command(*arguments: str | Path) -> list[str]:
    return [product(), *map(str, arguments)]


def _work(report: Mapping[str, Any]) -> float:
    return report["seconds"] - report["loadSeconds"] - report["syncSeconds"]


def _apply(
    case: Case, deltas: Sequence[str], options: Sequence[str], scratch: Path, environment: Mapping[str, str]
) -> tuple[Ran, dict[str, Any]]:
    out = scratch / "out"
    ran = run(_command("apply", case.base, *deltas, *options, "-o", out, "--json"), environment)
    shutil.rmtree(out)
    return ran, json.loads(ran.output)


def _threads(case: Case, scratch: Path, environment: Mapping[str, str]) -> Iterator[Row | Goal]:
    """One thread and two by turns, without start-up and waiting for the disk."""
    for name, deltas, options in (("linear", _ONE, ()), ("ties of two", _TWO, _TIES)):
        turns: list[tuple[float, float]] = []
        for number in range(_REPEATS + 1):
            one, two = (
                _work(_apply(case, deltas, (*options, "--threads", count), scratch, environment)[1])
                for count in ("1", "2")
            )
            if number:  # the first warms the page cache
                turns.append((one, two))
        for count, seconds in zip((1, 2), zip(*turns, strict=True), strict=True):
            told = f"apply, {name}, {count} thread{'s' if count > 1 else ''}"
            yield Row(case.name, told, seconds=statistics.median(seconds))
        ratio = statistics.median(one / two for one, two in turns)
        yield Goal(case.name, f"{name}: 2 threads ≥ 1.7 × as fast as 1", f"{ratio:.2f} ×", ratio >= 1.7)


def _beside_cp(
    case: Case,
    what: str,
    options: Sequence[str],
    deltas: Sequence[str],
    limit: float,
    scratch: Path,
    environment: Mapping[str, str],
) -> Iterator[Row | Goal]:
    command = [sys.executable, "-m", "tests.bench.beside_cp", str(case.base), str(scratch), *deltas, *options]
    turns: list[tuple[float, float]] = json.loads(run(command, environment).output)
    work, copy = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
    yield Row(case.name, f"deltareg {what}, without start-up and sync", seconds=work)
    yield Row(case.name, "cp -r of the target, by turns with it", seconds=copy)
    ratio = statistics.median(applied / copied for applied, copied in turns)
    yield Goal(case.name, f"{what} ≤ {limit:g} × cp of the target", f"{ratio:.2f} ×", ratio <= limit)


def _live(case: Case, environment: Mapping[str, str]) -> Iterator[Row | Goal]:
    command = [sys.executable, "-m", "tests.bench.live", str(case.base), "bench/one:1.0.0"]
    seconds: list[float] = json.loads(run(command, environment).output)
    best = statistics.median(seconds)
    yield Row(case.name, "deltareg.live, a delta put on", seconds=best)
    yield Goal(case.name, "live apply of 0.65 B parameters ≤ 1 s", f"{best:.2f} s", best <= 1.0)


def _large(case: Case, scratch: Path, environment: Mapping[str, str]) -> Iterator[Row | Goal]:
    """Time against mergekit's and `cp`, and memory, which is not to grow."""
    baseline = run([product("python"), "-P", "-c", _IMPORTS], environment).peak
    deltas = ("bench/large:1.0.0=0.5",)
    ran, report = _apply(case, deltas, ("--threads", "2"), scratch, environment)
    whole = statistics.median(
        _apply(case, deltas, ("--threads", "2"), scratch, environment)[0].seconds for _ in range(_REPEATS - 2)
    )
    yield Row(case.name, "deltareg linear, whole process with sync", seconds=whole, memory=ran.peak)
    more = ran.peak - baseline
    yield Goal(case.name, "apply ≤ 600 MB beyond the imports", f"{more / 1e6:.0f} MB", more <= _SMALL_MEMORY)
    yield from _beside_cp(case, "linear", (), ("bench/large:1.0.0=0.5",), 2.5, scratch, environment)
    if has_mergekit():
        theirs = mergekit(case, [case.post], "task_arithmetic", scratch)
        yield Row(case.name, "mergekit task_arithmetic", seconds=theirs.seconds, memory=theirs.peak)
        share = theirs.seconds / whole
        yield Goal(case.name, "linear ≤ 1/5 of mergekit's time", f"1/{share:.1f}", share >= 5)
    assert report["bytesWritten"] > 4e9
