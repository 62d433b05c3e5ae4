"""Search over all versions that one may read."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from deltareg.errors import InvalidArgument
from deltareg_registry.pages.forms import Asking
from deltareg_registry.pages.rendering import render
from deltareg_registry.records.searching import Order, Search, search
from deltareg_registry.state import state_of

__all__ = ["search_pages"]

search_pages = APIRouter(include_in_schema=False)

_PAGE = 20
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_ORDERS: dict[Order, str] = {
    "best": "best fit, then newest",
    "newest": "newest",
    "oldest": "oldest",
    "name": "name",
    "size": "largest",
}
_FACETS = {"namespace": "Namespace", "licence": "Licence", "model_type": "Model type", "base": "Base"}

_Text = Annotated[str, Query(max_length=2000)]


@search_pages.get("/")
def search_page(
    request: Request,
    asking: Asking,
    text: _Text = "",
    fingerprint: _Text = "",
    licence: _Text = "",
    namespace: _Text = "",
    model_type: _Text = "",
    base: _Text = "",
    order: Order = "best",
    cursor: _Text = "",
    yanked: Annotated[str, Query(pattern="^1?$")] = "",
) -> Response:
    """A page of what was found, with what narrows it down."""
    asked: dict[str, Any] = {
        "text": _clean(text),
        "fingerprint": _digest(fingerprint),
        "licence": _clean(licence),
        "namespace": _clean(namespace),
        "model_type": _clean(model_type),
        "base": _clean(base),
    }
    wanted = Search(
        **{name: value or None for name, value in asked.items()},
        order=order,
        cursor=cursor or None,
        limit=_PAGE,
        yanked=bool(yanked),
        facets=True,
    )
    with state_of(request).database.reading() as connection:
        found = search(connection, asking, wanted)
    # What a link to a narrower, or a wider, search takes along.
    kept = {**asked, "order": "" if order == "best" else order, "yanked": yanked}
    return render(
        request,
        "search.html",
        asked=asked,
        kept=kept,
        order=order,
        orders=_ORDERS,
        yanked=bool(yanked),
        found=found,
        facets={kind: (label, (found.facets or {})[kind]) for kind, label in _FACETS.items()},
        first=not cursor,
    )


def _clean(text: str) -> str:
    # PostgreSQL takes no NUL in a text, and no value has one.
    return text.replace("\0", " ").strip()


def _digest(text: str) -> str:
    found = text.strip().lower()
    if found and _DIGEST.fullmatch(found) is None:
        raise InvalidArgument(
            f"{found!r:.100} is no fingerprint", cause="a fingerprint is sha256: and 64 hexadecimal digits"
        )
    return found
