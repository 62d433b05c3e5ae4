"""What deltas have to do with one another, and what they do: cosines and norms, and how much of an effect arrives."""

from __future__ import annotations

from deltareg.analysis.compare import ComparisonReport, compare
from deltareg.analysis.transfer import TransferAnalysis, TransferRow, transfer

__all__ = ["ComparisonReport", "TransferAnalysis", "TransferRow", "compare", "transfer"]
