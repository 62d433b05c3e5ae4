"""The shared registry of deltareg: deltas of teams behind one URL."""

from __future__ import annotations

__version__ = "0.1.0"
