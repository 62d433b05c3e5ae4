"""The load that a registry is measured under is one that it answers."""

from __future__ import annotations

from pathlib import Path

from tests.bench.load import Load, measure_load, percentile
from tests.bench.load_client import MIX
from tests.bench.measured import Goal, Row


def test_every_kind_of_request_is_answered_and_none_fails(tmp_path: Path) -> None:
    found = list(measure_load(tmp_path, Load(deltas=50, minutes=0.15, closed_seconds=2, threads=8)))
    rows = {one.subject.rpartition(" (")[0]: one for one in found if isinstance(one, Row) and one.p99 is not None}
    goals = {one.goal: one for one in found if isinstance(one, Goal)}
    assert rows.keys() == MIX.keys()
    assert all((row.p50 or 0) <= (row.p95 or 0) <= (row.p99 or 0) for row in rows.values())
    assert goals["no request fails"].met, goals["no request fails"].measured
    assert len(goals) == 3


def test_percentile_is_what_so_many_are_not_above() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([3.0], 0.99) == 3.0
