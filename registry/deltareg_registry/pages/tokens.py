"""One's own tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from deltareg_registry.access.principal import Principal
from deltareg_registry.api.documents import IdPath
from deltareg_registry.api.tokens import NewToken, create_token, revoke, tokens
from deltareg_registry.database import now
from deltareg_registry.pages.forms import Asking, Posted, model_of
from deltareg_registry.pages.rendering import render

__all__ = ["token_pages"]

token_pages = APIRouter(include_in_schema=False)


@token_pages.get("/tokens")
def tokens_page(request: Request, asking: Asking) -> Response:
    """The tokens of who asks."""
    return _page(request, asking)


@token_pages.post("/tokens")
def make_token(request: Request, asking: Asking, form: Posted) -> Response:
    """Make a token. The page that answers is the only one that shows it."""
    wanted: dict[str, Any] = {"name": form.text("name"), "days": form.whole("days")}
    namespace, action = form.text("namespace"), form.text("action")
    if namespace is not None or action is not None:
        wanted["scopes"] = [{"namespace": namespace or "*", "action": action or "own"}]
    made = create_token(request, asking, model_of(NewToken, wanted))
    return _page(request, asking, made=made.token)


@token_pages.post("/tokens/{token}")
def revoke_token(request: Request, asking: Asking, token: IdPath, form: Posted) -> Response:
    """Let a token be good for nothing from now on."""
    revoke(request, asking, token)
    return RedirectResponse("/tokens", 303)


def _page(request: Request, asking: Principal, *, made: str | None = None) -> Response:
    found = tokens(request, asking).tokens
    time = now()
    usable = [one for one in found if one.revoked is None and (one.expires is None or one.expires > time)]
    return render(
        request,
        "tokens.html",
        usable=usable,
        ended=[one for one in found if one not in usable],
        made=made,
        limited=not asking.unlimited,
        mine=asking.token,
    )
