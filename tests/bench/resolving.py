"""How long a recipe takes to resolve over a large registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests import measure_resolve
from tests.bench.measured import Goal, Row

__all__ = ["measure_resolving"]

_CASE = "10,000 deltas with 20 versions each"
_SECONDS = 1.0


def measure_resolving(scratch: Path) -> Iterator[Row | Goal]:
    """Twelve of them, from the local registry and from a directory remote, whose list of names is one file."""
    found = measure_resolve.measure(measure_resolve.large_registry(scratch / "home"))
    yield Row(_CASE, "resolve 12, local registry", seconds=found["local"])
    yield Row(_CASE, "resolve 12, directory remote", seconds=found["directory"])
    for who, seconds in found.items():
        yield Goal(_CASE, f"resolve ≤ {_SECONDS:g} s, {who}", f"{seconds:.3f} s", seconds <= _SECONDS)
