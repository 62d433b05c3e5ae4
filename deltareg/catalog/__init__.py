"""The embedded registry and its catalog, a table of what the store holds."""

from __future__ import annotations

from deltareg.catalog.catalog import Catalog
from deltareg.catalog.registry import Registry, default_home
from deltareg.catalog.rows import CatalogRow

__all__ = ["Catalog", "CatalogRow", "Registry", "default_home"]
