"""Merge methods: several deltas become what is added to the target.

`methods.py` has the table: each method is a function from its parameters to stages, which see the deltas block by
block. `sparsify.py`, `combine.py` and `geometry.py` have the stages, `schedule.py` settings that differ by tensor.
`linear.py` adds a plain weighted sum to a block of the target without a detour.
"""

from __future__ import annotations

from deltareg.merge.block import Addend, Block, accumulator_of
from deltareg.merge.linear import linear
from deltareg.merge.methods import METHODS, Method, method_of
from deltareg.merge.parameter import Parameter, Value, value_text
from deltareg.merge.schedule import Gradient, Schedule, Subject, refuse_unmatched, subjects_of
from deltareg.merge.stage import Stage

__all__ = [
    "METHODS",
    "Addend",
    "Block",
    "Gradient",
    "Method",
    "Parameter",
    "Schedule",
    "Stage",
    "Subject",
    "Value",
    "accumulator_of",
    "linear",
    "method_of",
    "refuse_unmatched",
    "subjects_of",
    "value_text",
]
