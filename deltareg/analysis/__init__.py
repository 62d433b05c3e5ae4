"""What deltas have to do with one another: cosines, norms, opposed signs."""

from __future__ import annotations

from deltareg.analysis.compare import ComparisonReport, compare

__all__ = ["ComparisonReport", "compare"]
