"""What keeps a registry going: health, collection, checks, copies."""

from __future__ import annotations
