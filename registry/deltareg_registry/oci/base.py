"""Whether this is a registry, and what to say of paths that lead nowhere."""

from __future__ import annotations

import re

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from deltareg.errors import NotSignedIn
from deltareg_registry.access.principal import Principal
from deltareg_registry.database.tables import namespaces
from deltareg_registry.oci.names import Asking, check_repository
from deltareg_registry.problems import CHALLENGE, OciError
from deltareg_registry.state import State, state_of

__all__ = ["base_router", "rest_router"]

base_router = APIRouter(prefix="/v2", tags=["oci"])
rest_router = APIRouter(prefix="/v2", tags=["oci"])

_ENDPOINT = re.compile(r"(?P<name>.*?)/(?:blobs|manifests|tags|referrers)(?:/.*)?", re.DOTALL)


@base_router.get("/")
async def base(request: Request, asking: Asking) -> Response:
    """Whether OCI distribution is spoken here, with this token or without one."""
    await run_sync(_check_use, state_of(request), asking)
    # Asked for also where nobody has to sign in: skopeo never sends a password that the first answer did not ask for.
    headers = {"Docker-Distribution-API-Version": "registry/2.0", "WWW-Authenticate": CHALLENGE}
    return JSONResponse({}, headers=headers)


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
        raise NotSignedIn("this registry wants a token", hint="docker login, with any user and the token as password")
