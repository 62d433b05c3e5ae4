"""Applying deltas: a plan of what becomes of each tensor, and the run that does it, frame by frame."""

from __future__ import annotations

from deltareg.apply.apply import AppliedDelta, ApplyReport, apply
from deltareg.apply.verify import VerifyReport, verify

__all__ = ["AppliedDelta", "ApplyReport", "VerifyReport", "apply", "verify"]
