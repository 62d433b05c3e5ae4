"""The benchmark: measures cases, prints a table, writes `bench.json`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests import raw, weights
from tests.bench import peers
from tests.bench.device import measure_device
from tests.bench.engine import measure_engine
from tests.bench.large_blob import measure_large_blob
from tests.bench.load import Load, measure_load
from tests.bench.lossy import measure_lossy
from tests.bench.measured import Case, Goal, Row
from tests.bench.methods import measure_methods
from tests.bench.product import measure_checks, measure_product, measure_start_up
from tests.bench.resolving import measure_resolving
from tests.bench.serving import measure_serving

__all__ = ["CASES", "main", "measure"]


def _minilm(bf16: bool) -> Case:
    pair = weights.minilm_bf16() if bf16 else weights.minilm()
    return Case("MiniLM bf16" if bf16 else "MiniLM fp32", pair.base, pair.post)


def _shark() -> Case:
    models = weights.anarcii(bf16=True)
    return Case("anarcii shark bf16", models["antibody_4_2"], models["shark_4_2"])


def _generated() -> Case:
    return Case("generated 1.3 GB bf16", *weights.synthetic(weights.CACHE / "synthetic", 1.3, seed=1, shards=3))


def _large() -> Case:
    return Case("generated 5 GB bf16", *weights.synthetic(weights.CACHE / "synthetic-large", 5.0, seed=2, shards=3))


CASES: dict[str, Callable[[], Case]] = {
    "minilm-bf16": lambda: _minilm(True),
    "minilm": lambda: _minilm(False),
    "shark": _shark,
    "generated": _generated,
}


def _measure_lossy(scratch: Path) -> Iterator[Row | Goal]:
    for name in ("minilm", "minilm-bf16"):
        yield from measure_lossy(CASES[name](), scratch / name)


_PARTS: dict[str, Callable[[Path], Iterator[Row | Goal]]] = {
    "lossy": _measure_lossy,
    "methods": lambda scratch: measure_methods(_generated(), scratch),
    "engine": lambda scratch: measure_engine(_generated(), _large(), scratch),
    "resolving": measure_resolving,
    "serving": measure_serving,
    "load": measure_load,
    "large-blob": measure_large_blob,
    "device": lambda scratch: measure_device(_generated, scratch),
}


def measure(case: Case, scratch: Path) -> Iterator[Row | Goal]:
    """The peers, then the product, on one case."""
    pairs = peers.pairs_of(raw.read(case.base), raw.read(case.post))
    floor = peers.entropy(pairs)
    bitx = peers.bitx(pairs)
    yield from _measure_peers(case, pairs, floor, bitx)
    del pairs
    yield from measure_product(case, scratch, bitx, floor)


def _measure_peers(
    case: Case, pairs: list[peers.TensorPair], floor: peers.Entropy, bitx: peers.Packed
) -> Iterator[Row]:
    """Size and speed of the peers, the entropy of the pair, and what the disk does."""
    parameters = sum(pair.post.size // pair.width for pair in pairs)
    total = sum(pair.post.nbytes for pair in pairs)
    if floor.elements:
        yield Row(case.name, "H of D1", size=floor.symbol_bits / 8, bits=floor.bits_per_element)
        yield Row(case.name, "H + price of exactness", size=floor.size, bits=floor.size * 8 / floor.elements)
    data = peers.delta_bytes(pairs)
    for packed in (bitx, peers.zstd(data), peers.zipnn(data, dtype=case.dtype)):
        if packed is None:
            print("zipnn is not installed: its row is left out", file=sys.stderr)
            continue
        yield Row(
            case.name,
            packed.peer + (" (needs base)" if packed.needs_base else ""),
            size=packed.total,
            bits=packed.total * 8 / parameters,
            pack=total / packed.pack_seconds / 1e9,
            unpack=total / packed.unpack_seconds / 1e9,
        )
    _, seconds = peers.read_files(case.base, case.post)
    yield Row(case.name, "reading base and post", seconds=seconds)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def row_table(rows: list[Row]) -> Table:
    """The rows as a person reads them, case by case."""
    shown = Table(title="deltareg and its peers")
    shown.add_column("who", no_wrap=True)
    for name in ("bytes", "bits/param", "pack GB/s", "unpack GB/s", "seconds", "peak MB", "error", "p50/p95/p99 ms"):
        shown.add_column(name, justify="right", no_wrap=True)
    before = ""
    for row in rows:
        if row.case != before:
            shown.add_section()
            shown.add_row(f"[bold]{row.case}[/]")
            before = row.case
        memory = None if row.memory is None else row.memory / 1e6
        figures = [(row.size, "{:,.0f}"), (row.bits, "{:.3f}"), (row.pack, "{:.2f}"), (row.unpack, "{:.2f}")]
        figures += [(row.seconds, "{:.3f}"), (memory, "{:,.0f}"), (row.error, "{:.5f}")]
        latency = "/".join(f"{1000 * value:.0f}" for value in (row.p50, row.p95, row.p99) if value is not None)
        shown.add_row(f"  {row.subject}", *(_figure(value, form) for value, form in figures), latency)
    return shown


def goal_table(goals: list[Goal]) -> Table:
    """The goals, each with what was measured."""
    shown = Table("case", "goal", "measured", "", title="goals")
    for goal in goals:
        shown.add_row(goal.case, goal.goal, goal.measured, "[green]met[/]" if goal.met else "[red]missed[/]")
    return shown


def machine() -> dict[str, object]:
    """Where the figures were taken, as far as it matters."""
    found: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }
    for name in ("deltareg", "numpy", "zstandard", "numba", "zipnn", "mergekit"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write. The exit status is 1 when a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--case", action="append", choices=[*CASES, *_PARTS], help="measure this one only; may be repeated"
    )
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="the JSON file (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=Load.minutes, help="how long `load` goes on (%(default)g)")
    parser.add_argument("--deltas", type=int, default=Load.deltas, help="deltas that `load` searches (%(default)d)")
    parser.add_argument("--postgresql", action="store_true", help="`load` over PostgreSQL, with two servers")
    chosen = parser.parse_args(arguments)
    load = Load(chosen.deltas, chosen.minutes, chosen.postgresql)
    parts = {**_PARTS, "load": lambda scratch: measure_load(scratch, load)}
    found: list[Row | Goal] = []
    wanted: list[str] = chosen.case or [*CASES, *_PARTS]
    for name in (name for name in wanted if name in CASES):
        print(f"measuring {name}", file=sys.stderr, flush=True)
        case = CASES[name]()
        with tempfile.TemporaryDirectory(dir=weights.CACHE, prefix="bench-") as scratch:
            found += measure(case, Path(scratch))
    for name in (name for name in wanted if name in _PARTS):
        print(f"measuring {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=weights.CACHE, prefix="bench-") as scratch:
            found += parts[name](Path(scratch))
    with tempfile.TemporaryDirectory(dir=weights.CACHE, prefix="bench-") as scratch:
        found += measure_start_up(Path(scratch))
        print("measuring check", file=sys.stderr, flush=True)
        found += measure_checks(Path(scratch))
    rows = [one for one in found if isinstance(one, Row)]
    goals = [one for one in found if isinstance(one, Goal)]
    console = Console()
    console.width = max(console.width, 120)
    console.print(row_table(rows))
    if goals:
        console.print(goal_table(goals))
    result = {"machine": machine(), "rows": [asdict(row) for row in rows], "goals": [asdict(goal) for goal in goals]}
    chosen.output.write_text(json.dumps(result, indent=2) + "\n")
    missed = sum(not goal.met for goal in goals)
    print(f"{chosen.output}: {len(rows)} rows, {len(goals)} goals, {missed} missed")
    return 1 if missed else 0
