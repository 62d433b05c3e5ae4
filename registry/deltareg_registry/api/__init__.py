"""`/api/v1`: what OCI distribution lacks."""

from __future__ import annotations

from fastapi import APIRouter

from deltareg_registry.api.audit import audit_router
from deltareg_registry.api.blobs import blobs_router
from deltareg_registry.api.changes import changes_router
from deltareg_registry.api.check import check_router
from deltareg_registry.api.compare import compare_router
from deltareg_registry.api.deltas import deltas_router
from deltareg_registry.api.index import index_router
from deltareg_registry.api.members import members_router
from deltareg_registry.api.namespaces import namespaces_router
from deltareg_registry.api.root import root_router
from deltareg_registry.api.search import search_router
from deltareg_registry.api.statistics import statistics_router
from deltareg_registry.api.tokens import tokens_router
from deltareg_registry.api.users import users_router
from deltareg_registry.api.versions import versions_router
from deltareg_registry.api.webhooks import webhooks_router

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
    namespaces_router,
    members_router,
    users_router,
    tokens_router,
    webhooks_router,
    audit_router,
    statistics_router,
)
"""Each has its whole prefix: the table of needs knows routes by their path."""
