"""`/api/v1`: what OCI distribution lacks."""

from __future__ import annotations

from fastapi import APIRouter

from deltareg_registry.api.blobs import blobs_router
from deltareg_registry.api.root import root_router
from deltareg_registry.api.versions import versions_router

__all__ = ["API_ROUTERS"]

API_ROUTERS: tuple[APIRouter, ...] = (root_router, blobs_router, versions_router)
"""Each has its whole prefix: the table of needs knows routes by their path."""
