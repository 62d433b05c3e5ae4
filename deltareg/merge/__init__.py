"""Merge methods: one pure function for each, over one block of the target and of the deltas.

To add one, write a file with its function and name it in METHODS.
"""

from __future__ import annotations

from collections.abc import Callable

from deltareg.merge.block import Addend, Block
from deltareg.merge.linear import linear

__all__ = ["METHODS", "Addend", "Block", "linear"]

METHODS: dict[str, Callable[[Block], None]] = {"linear": linear}
"""The methods by their names."""
