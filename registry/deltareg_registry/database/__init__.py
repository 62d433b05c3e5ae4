"""What the registry knows, in SQLite or PostgreSQL."""

from __future__ import annotations

from deltareg_registry.database.engine import SCHEMA, Database, at, from_now, now, parse_time

__all__ = ["SCHEMA", "Database", "at", "from_now", "now", "parse_time"]
