"""What deltareg does on a case, as whole processes: size, speed, memory, and whether the goals are met."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests import measure_check
from tests.bench.measured import Case, Goal, Row
from tests.bench.peers import Entropy, Packed
from tests.bench.process import Ran, product, run

__all__ = ["measure_checks", "measure_product", "measure_start_up"]

_REPEATS = 3
# What the goals are stated for, and what the peers get.
_TWO_CORES = ("--threads", "2")
_IMPORTS = "import deltareg.diff, deltareg.apply, deltareg.cli.app"
_SMALL_MEMORY = 600e6
_HELP_SECONDS = 0.2


def _command(*arguments: str | Path) -> list[str]:
    return [product(), *map(str, arguments)]


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "DELTAREG_HOME": str(home), "NO_COLOR": "1"}


def _report(ran: Ran) -> dict[str, Any]:
    return json.loads(ran.output)


def _median(runs: Sequence[tuple[Ran, dict[str, Any]]], seconds: Any) -> float:
    return statistics.median(seconds(report) for _, report in runs)


def measure_product(case: Case, scratch: Path, bitx: Packed, floor: Entropy) -> Iterator[Row | Goal]:
    """Take the delta with both presets and apply it, each several times; compare with the peers' figures."""
    environment = _environment(scratch / "home")
    baseline = run([product("python"), "-P", "-c", _IMPORTS], environment).peak
    # Compiled loops are kept from run to run; the first run of a machine is not what is measured.
    run(_command("diff", case.base, case.post, "--tag", "bench/warm:1.0.0", "--json"), environment)
    for number, preset in enumerate(("fast", "small")):
        runs = _diffs(case, preset, number, environment, repeats=_REPEATS if preset == "fast" else 1)
        yield from _diff_rows(case, preset, runs, baseline, bitx, floor)
    yield from _apply_rows(case, scratch, environment, baseline)


def _diffs(
    case: Case, preset: str, number: int, environment: dict[str, str], *, repeats: int
) -> list[tuple[Ran, dict[str, Any]]]:
    arguments = ["diff", case.base, case.post, "--preset", preset, *_TWO_CORES, "--json", "--tag"]
    runs: list[tuple[Ran, dict[str, Any]]] = []
    for _ in range(repeats):
        ran = run(_command(*arguments, f"bench/delta:{number + 1}.0.0"), environment)
        runs.append((ran, _report(ran)))
    return runs


def _diff_rows(
    case: Case,
    preset: str,
    runs: list[tuple[Ran, dict[str, Any]]],
    baseline: int,
    bitx: Packed,
    floor: Entropy,
) -> Iterator[Row | Goal]:
    report = runs[0][1]
    seconds = _median(runs, lambda report: report["seconds"])
    size, raw, parameters = report["artifactSize"], report["rawSize"], report["parameters"]
    peak = max(ran.peak for ran, _ in runs)
    yield Row(
        case.name,
        f"deltareg diff --preset {preset}",
        size=size,
        bits=8 * size / parameters,
        pack=raw / seconds / 1e9,
        seconds=statistics.median(ran.seconds for ran, _ in runs),
        memory=peak,
    )
    if case.dtype == "BF16":
        yield Goal(case.name, f"{preset}: smaller than BitX's payload", f"{size / bitx.size:.3f} ×", size < bitx.size)
        share = 1.06 if preset == "fast" else 1.03
        limit = (share * floor.symbol_bits + floor.price_bits) / 8
        yield Goal(
            case.name,
            f"{preset}: everything within {share - 1:.0%} of H, plus the price",
            f"{(8 * size - floor.price_bits) / floor.symbol_bits - 1:+.1%}",
            size <= limit,
        )
    if preset == "fast" and raw > 1e9:
        # Both checkpoints are read, compared and digested: that is the work that the goal is stated for.
        rate = 2 * raw / seconds / 1e9
        yield Goal(
            case.name, "diff reads ≥ 0.5 GB/s of checkpoint", f"{rate:.2f} GB/s, {rate / 2:.2f} of post", rate >= 0.5
        )
    yield _memory_goal(case, f"diff --preset {preset}", peak, baseline)


def _apply_rows(case: Case, scratch: Path, environment: dict[str, str], baseline: int) -> Iterator[Row | Goal]:
    runs: list[Ran] = []
    for number in range(_REPEATS + 1):
        out = scratch / f"out-{number}"
        ran = run(_command("apply", case.base, "bench/delta:1.0.0", "-o", out, *_TWO_CORES, "--json"), environment)
        shutil.rmtree(out)
        if number:  # the first warms the page cache and the disk
            runs.append(ran)
    written = _report(runs[0])["bytesWritten"]
    beside = [sys.executable, "-m", "tests.bench.beside_cp", str(case.base), str(scratch), "bench/delta:1.0.0"]
    turns: list[tuple[float, float]] = json.loads(run(beside, environment).output)
    work, copy = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
    peak = max(ran.peak for ran in runs)
    name = "deltareg apply, without start-up and sync"
    yield Row(case.name, name, unpack=written / work / 1e9, seconds=work, memory=peak)
    whole = statistics.median(ran.seconds for ran in runs)
    yield Row(case.name, "deltareg apply, whole process with sync", unpack=written / whole / 1e9, seconds=whole)
    yield Row(case.name, "cp -r of the target, by turns with it", unpack=written / copy / 1e9, seconds=copy)
    if written > 1e9:
        ratio = statistics.median(applied / copied for applied, copied in turns)
        yield Goal(case.name, "apply ≤ 2.5 × cp of the target", f"{ratio:.2f} ×", ratio <= 2.5)
    yield _memory_goal(case, "apply", peak, baseline)


def _memory_goal(case: Case, what: str, peak: int, baseline: int) -> Goal:
    more = peak - baseline
    return Goal(case.name, f"{what} ≤ 600 MB beyond the imports", f"{more / 1e6:.0f} MB", more <= _SMALL_MEMORY)


def measure_start_up(scratch: Path) -> Iterator[Row | Goal]:
    """The commands that must answer at once."""
    environment = _environment(scratch / "home")
    seconds: list[float] = []
    for _ in range(7):
        seconds.append(run(_command("--help"), environment).seconds)
    best = statistics.median(seconds[1:])
    yield Row("start-up", "deltareg --help", seconds=best)
    yield Goal("start-up", f"--help ≤ {_HELP_SECONDS} s", f"{best:.3f} s", best <= _HELP_SECONDS)


def measure_checks(scratch: Path) -> Iterator[Row | Goal]:
    """`check` on the largest models: whole processes, the best of five; sparse files."""
    for name, make in measure_check.MODELS.items():
        model, place = make(), scratch / name.replace(" ", "-")
        place.mkdir()
        target = measure_check.build(model, place)
        runs = [measure_check.check(place, target) for _ in range(5)]
        seconds, read = min(spent for _, spent in runs), runs[0][0]["bytesRead"]
        yield Row(name, "deltareg check", seconds=seconds)
        case = f"{name}, {len(model.shapes):,} tensors"
        yield Goal(case, f"check ≤ {model.seconds:g} s", f"{seconds:.2f} s", seconds <= model.seconds)
        yield Goal(case, f"check reads ≤ {model.megabytes:g} MB", f"{read / 1e6:.1f} MB", read <= model.megabytes * 1e6)
        shutil.rmtree(place)
