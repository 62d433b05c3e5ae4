"""`/api/v1`: what OCI distribution lacks."""

from __future__ import annotations

from fastapi import APIRouter

from deltareg_registry.api.blobs import blobs_router
from deltareg_registry.api.changes import changes_router
from deltareg_registry.api.check import check_router
from deltareg_registry.api.compare import compare_router
from deltareg_registry.api.deltas import deltas_router
from deltareg_registry.api.index import index_router
from deltareg_registry.api.root import root_router
from deltareg_registry.api.search import search_router
from deltareg_registry.api.versions import versions_router

__all__ = ["API_ROUTERS"]

API_ROUTERS: tuple[APIRouter, ...] = (
    root_router,
    deltas_router,
    blobs_router,
    changes_router,
    versions_router,
    search_router,
    index_router,
    check_router,
    compare_router,
)
"""Each has its whole prefix: the table of needs knows routes by their path."""
