"""Pages for browsers, made on the server: they can be read without scripts."""

from __future__ import annotations

from fastapi import APIRouter

from deltareg_registry.pages.audit import audit_pages
from deltareg_registry.pages.compare import compare_pages
from deltareg_registry.pages.deltas import delta_pages
from deltareg_registry.pages.errors import error_page
from deltareg_registry.pages.fits import fits_pages
from deltareg_registry.pages.namespaces import namespace_pages
from deltareg_registry.pages.search import search_pages
from deltareg_registry.pages.session import session_pages
from deltareg_registry.pages.static import static_pages
from deltareg_registry.pages.tokens import token_pages

__all__ = ["PAGE_ROUTERS", "error_page"]

PAGE_ROUTERS: tuple[APIRouter, ...] = (
    search_pages,
    static_pages,
    session_pages,
    delta_pages,
    fits_pages,
    compare_pages,
    namespace_pages,
    token_pages,
    audit_pages,
)
"""Each route has its line among `access.policy.PAGES`."""
