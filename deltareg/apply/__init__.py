"""Applying deltas: a plan of what becomes of each tensor, and the run that does it, frame by frame."""

from __future__ import annotations

from deltareg.apply.apply import apply
from deltareg.apply.live import Live, LiveReport, live
from deltareg.apply.report import AppliedDelta, ApplyReport
from deltareg.apply.verify import VerifyReport, verify

__all__ = ["AppliedDelta", "ApplyReport", "Live", "LiveReport", "VerifyReport", "apply", "live", "verify"]
