"""Who may do what."""

from __future__ import annotations
