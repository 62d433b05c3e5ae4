"""What went wrong, for readers; who is not signed in may do so there."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request, Response

from deltareg_registry.pages.forms import local_path
from deltareg_registry.pages.rendering import render
from deltareg_registry.problems import Problem

__all__ = ["error_page"]

# Hints are commands for those at a terminal; readers of these pages can do something else.
_ADVICE = {
    401: "Sign in with a token to go on.",
    403: "Ask an owner of the namespace, or an administrator of the registry.",
    404: "It may be private: if somebody gave you this address, ask them to add you.",
    429: "Wait a little, and try again.",
}


def error_page(request: Request, problem: Problem) -> Response:
    """The page of an error."""
    if problem.status == HTTPStatus.UNAUTHORIZED:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        following = local_path(here) if request.method == "GET" else "/"
        answer = render(request, "sign_in.html", status=401, following=following, fault=problem.detail)
        # Of a kind that browsers ask nobody about: the page does.
        answer.headers["WWW-Authenticate"] = 'Bearer realm="deltareg"'
        return answer
    phrase = HTTPStatus(problem.status).phrase
    return render(
        request,
        "error.html",
        status=problem.status,
        problem=problem,
        phrase=phrase,
        advice=_ADVICE.get(problem.status),
    )
