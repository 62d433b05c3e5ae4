"""The files that pages need: one style sheet, one script, one icon."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request, Response

from deltareg.errors import NotFound
from deltareg_registry.pages.forms import Asking

__all__ = ["static_pages", "static_url"]

static_pages = APIRouter(include_in_schema=False)

_TYPES = MappingProxyType(
    {
        "style.css": "text/css; charset=utf-8",
        "copy.js": "text/javascript; charset=utf-8",
        "icon.svg": "image/svg+xml",
    }
)
_YEAR = 31_536_000


def static_url(name: str) -> str:
    """The URL of a file, another one whenever its bytes change."""
    return f"/static/{name}?{hashlib.sha256(_read(name)).hexdigest()[:12]}"


@static_pages.get("/static/{file}")
def static_file(request: Request, asking: Asking, file: str) -> Response:
    """A file of the pages."""
    if file not in _TYPES:
        raise NotFound(f"there is nothing at /static/{file}")
    headers = {
        "Cache-Control": f"public, max-age={_YEAR}, immutable" if request.url.query else "no-cache",
        "Content-Security-Policy": "default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(_read(file), headers=headers, media_type=_TYPES[file])


@cache
def _read(name: str) -> bytes:
    return files("deltareg_registry.pages").joinpath("static", name).read_bytes()
