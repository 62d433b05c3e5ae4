"""The embedded registry and its catalog, a table of what the store holds."""

from __future__ import annotations

from deltareg.catalog.catalog import Catalog
from deltareg.catalog.registry import Registry, default_home
from deltareg.catalog.rows import CatalogRow
from deltareg.catalog.search import SearchReport, SearchRow

__all__ = ["Catalog", "CatalogRow", "Registry", "SearchReport", "SearchRow", "default_home"]
