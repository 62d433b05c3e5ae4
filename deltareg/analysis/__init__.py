"""What deltas have to do with one another, what their weights do to a metric, and how much of an effect arrives."""

from __future__ import annotations

# At once, not lazily: a module that is imported later would bind its name over the function that is called like it.
from deltareg.analysis.compare import ComparisonReport, compare
from deltareg.analysis.evaluating import EvaluationReport, evaluate
from deltareg.analysis.sweep import SweepReport, sweep
from deltareg.analysis.transfer import TransferAnalysis, TransferRow, transfer

__all__ = [
    "ComparisonReport",
    "EvaluationReport",
    "SweepReport",
    "TransferAnalysis",
    "TransferRow",
    "compare",
    "evaluate",
    "sweep",
    "transfer",
]
