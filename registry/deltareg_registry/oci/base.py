"""Whether this is a registry, who asks, and what to say of paths that lead nowhere.

docker decides by the first answer of `/v2/` alone whether it signs in, and how: after 200 it never does, and where it
is asked for a password and has none it gives up. So whoever says nothing is told to get a token, which everybody is
given: for a password, which is a token of the registry, that one, else one that stands for nobody. What is public can
be read without any of this, too.
"""

from __future__ import annotations

import re

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from deltareg.errors import NotSignedIn
from deltareg_registry.access.principal import Principal
from deltareg_registry.authorise import ANONYMOUS_TOKEN
from deltareg_registry.database import now
from deltareg_registry.database.tables import namespaces
from deltareg_registry.oci.names import Asking, check_repository
from deltareg_registry.problems import OciError
from deltareg_registry.state import State, state_of

__all__ = ["base_router", "rest_router"]

base_router = APIRouter(prefix="/v2", tags=["oci"])
rest_router = APIRouter(prefix="/v2", tags=["oci"])

# Then it is asked for again: it lives as long as the user's token does, which is looked at with each request.
_SECONDS = 3600

_ENDPOINT = re.compile(r"(?P<name>.*?)/(?:blobs|manifests|tags|referrers)(?:/.*)?", re.DOTALL)


@base_router.get("/")
async def base(request: Request, asking: Asking) -> Response:
    """Whether OCI distribution is spoken here, with this token or the one that stands for nobody."""
    if "authorization" not in request.headers:
        raise _not_signed_in()
    await run_sync(_check_use, state_of(request), asking)
    return JSONResponse({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})


@base_router.get("/token")
def token(request: Request, asking: Asking) -> Response:
    """The token for a user's name and password, as docker's token service gives it: the password is one."""
    given: str = request.state.token or ANONYMOUS_TOKEN
    told = {"token": given, "access_token": given, "expires_in": _SECONDS, "issued_at": now()}
    return JSONResponse(told, headers={"Cache-Control": "no-store"})


@rest_router.api_route("/{rest:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def elsewhere(rest: str, request: Request, asking: Asking) -> Response:
    """Refuse what is no path of the specification, or not of a repository that can be here."""
    found = _ENDPOINT.fullmatch(rest)
    if found is None:
        raise OciError("NAME_UNKNOWN", 404, f"there is nothing at {request.url.path[:200]}")
    check_repository(request, found["name"])
    status = 404 if request.method in ("GET", "HEAD") else 405
    raise OciError("UNSUPPORTED", status, f"{request.method} of {request.url.path[:200]} means nothing here")


def _check_use(state: State, principal: Principal) -> None:
    if principal.signed_in:
        return
    with state.database.reading() as connection:
        public = connection.execute(select(namespaces.c.name).where(namespaces.c.public).limit(1)).first()
    if public is None:
        raise _not_signed_in()


def _not_signed_in() -> NotSignedIn:
    return NotSignedIn("this registry wants a token", hint="docker login, with any user and the token as password")
