"""Sketches: what an artifact tells of its base and of its delta without either.

`samples` and `lineage` need numpy. `projection` loads compiled loops, and is imported by its own name.
"""

from __future__ import annotations

from deltareg.sketch.lineage import (
    LEAST_VALUES,
    UNRELATED_BELOW,
    Likeness,
    Lineage,
    LineageVerdict,
    compare_samples,
    judge,
    measure_lineage,
)
from deltareg.sketch.samples import (
    SAMPLES_TYPE,
    SamplePlan,
    Samples,
    TensorSpec,
    read_samples,
    sample_plan,
    take_samples,
)

__all__ = [
    "LEAST_VALUES",
    "SAMPLES_TYPE",
    "UNRELATED_BELOW",
    "Likeness",
    "Lineage",
    "LineageVerdict",
    "SamplePlan",
    "Samples",
    "TensorSpec",
    "compare_samples",
    "judge",
    "measure_lineage",
    "read_samples",
    "sample_plan",
    "take_samples",
]
