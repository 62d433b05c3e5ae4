"""The records are tested over both databases."""

from __future__ import annotations

from tests.registry.databases import local, postgresql, state

__all__ = ["local", "postgresql", "state"]
