"""`/v2/`: OCI distribution 1.1, for deltas and whatever else is kept beside them."""

from __future__ import annotations

from fastapi import APIRouter

from deltareg_registry.oci.base import base_router, rest_router
from deltareg_registry.oci.blobs import blobs_router
from deltareg_registry.oci.discovery import discovery_router
from deltareg_registry.oci.manifests import manifests_router
from deltareg_registry.oci.uploads import uploads_router

__all__ = ["OCI_ROUTERS"]

OCI_ROUTERS: tuple[APIRouter, ...] = (
    base_router,
    uploads_router,
    blobs_router,
    manifests_router,
    discovery_router,
    rest_router,
)
"""The last one takes what no other does."""
