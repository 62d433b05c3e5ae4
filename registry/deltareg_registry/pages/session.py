"""Signing in with a token, and out again. The browser keeps the token in a cookie that no script can read."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from deltareg.errors import NotSignedIn
from deltareg_registry.authorise import COOKIE, principal_from
from deltareg_registry.pages.forms import Asking, Posted, local_path
from deltareg_registry.pages.rendering import render, server_url
from deltareg_registry.state import state_of

__all__ = ["session_pages"]

session_pages = APIRouter(include_in_schema=False)

_LONGEST = 200


@session_pages.get("/sign-in")
def sign_in_form(request: Request, asking: Asking, following: str = "/") -> Response:
    """The form that takes a token."""
    return render(request, "sign_in.html", following=local_path(following), fault=None)


@session_pages.post("/sign-in")
def sign_in(request: Request, asking: Asking, form: Posted) -> Response:
    """Take a token, and go on to where it was asked for."""
    following, token = local_path(form.text("following")), form.text("token")
    try:
        if token is None or len(token) > _LONGEST or not (token.isascii() and token.isprintable()):
            raise NotSignedIn("that is no token")
        principal_from(state_of(request).database, token)
    except NotSignedIn as error:
        return render(request, "sign_in.html", status=401, following=following, fault=error.message)
    answer = RedirectResponse(following, 303)
    secure = server_url(request).startswith("https://")
    # Without an end: the browser forgets it when it is closed, and the token has an end of its own.
    answer.set_cookie(COOKIE, token, path="/", httponly=True, samesite="strict", secure=secure)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@session_pages.post("/sign-out")
def sign_out(request: Request, asking: Asking, form: Posted) -> Response:
    """Let the browser forget the token, which stays good for who has it."""
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer
