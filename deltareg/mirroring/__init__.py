"""Mirroring: one remote made to hold what another one has."""

from __future__ import annotations

from deltareg.mirroring.plan import Scope
from deltareg.mirroring.run import MirrorReport, MirrorRow, mirror

__all__ = ["MirrorReport", "MirrorRow", "Scope", "mirror"]
