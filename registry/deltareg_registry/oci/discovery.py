"""What there is: repositories, tags, and the manifests that refer to one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from deltareg.digest import Digest
from deltareg.errors import InvalidArgument, NotFound, NotSignedIn
from deltareg.manifest import INDEX_TYPE
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.database.tables import namespaces, repositories
from deltareg_registry.oci.names import Asked, Asking, asked_of, checked_name, digest_of, location, repository_of
from deltareg_registry.problems import OciError
from deltareg_registry.records.manifests import referrers_of
from deltareg_registry.records.namespaces import is_public, repository_id
from deltareg_registry.records.tags import tags_of
from deltareg_registry.state import State, state_of

__all__ = ["discovery_router"]

discovery_router = APIRouter(prefix="/v2", tags=["oci"], dependencies=[Depends(checked_name)])

_MOST = 10_000
# An index is a manifest: clients take some megabytes of one.
_REFERRERS_BYTES = 3 << 20
_REFERRERS = 1000


@dataclass(frozen=True)
class _Page:
    """Which part of a list is asked for."""

    limit: int
    last: str


@discovery_router.get("/{namespace}/{name}/tags/list")
async def list_tags(request: Request, asking: Asking) -> Response:
    """The tags of a repository: versions, channels, `latest`, and what other programs named."""
    asked, page = asked_of(request), _page(request)
    found = [tag for tag in await run_sync(_tags, asked) if tag > page.last]
    shown = found[: page.limit]
    more = bool(shown) and len(shown) < len(found)
    headers = _following(location(asked, "tags", "list"), page, shown[-1]) if more else {}
    return JSONResponse({"name": asked.repository, "tags": shown}, headers=headers)


@discovery_router.get("/_catalog")
async def list_repositories(request: Request, asking: Asking) -> Response:
    """The repositories that whoever asks may read."""
    page = _page(request)
    found = await run_sync(_repositories, state_of(request), asking, page)
    shown = found[: page.limit]
    more = bool(shown) and len(shown) < len(found)
    headers = _following("/v2/_catalog", page, shown[-1]) if more else {}
    return JSONResponse({"repositories": shown}, headers=headers)


@discovery_router.get("/{namespace}/{name}/referrers/{digest}")
async def list_referrers(digest: str, request: Request, asking: Asking) -> Response:
    """The manifests whose subject is a digest, whether that is here or not."""
    asked, subject = asked_of(request), digest_of(digest)
    artifact_type, last = _text(request, "artifactType") or None, _text(request, "last")
    shown, more = await run_sync(_referrers, asked, subject, artifact_type, last)
    headers: dict[str, str] = {} if artifact_type is None else {"OCI-Filters-Applied": "artifactType"}
    if more:
        query = urlencode(
            {"last": str(shown[-1]["digest"])} | ({"artifactType": artifact_type} if artifact_type else {})
        )
        headers["Link"] = f'<{location(asked, "referrers", subject)}?{query}>; rel="next"'
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": shown}
    return Response(json.dumps(index).encode(), headers={**headers, "Content-Type": INDEX_TYPE})


def _page(request: Request) -> _Page:
    text = request.query_params.get("n")
    if text is not None and not (text.isascii() and text.isdecimal()):
        raise OciError("UNSUPPORTED", 400, InvalidArgument(f"n is a number, not {text!r:.40}"))
    limit = _MOST if text is None else min(_MOST, int(text[:20]))
    return _Page(limit, _text(request, "last"))


def _text(request: Request, name: str) -> str:
    """A parameter, which is empty where it is absent. PostgreSQL takes no NUL in a text, and nothing here has one."""
    found = request.query_params.get(name, "")
    if "\0" in found:
        raise OciError("UNSUPPORTED", 400, InvalidArgument(f"{name} has a character that nothing here has: NUL"))
    return found


def _following(path: str, page: _Page, last: str) -> dict[str, str]:
    return {"Link": f'<{path}?{urlencode({"n": page.limit, "last": last})}>; rel="next"'}


def _tags(asked: Asked) -> list[str]:
    with asked.state.database.reading() as connection:
        return tags_of(connection, repository_of(connection, asked))


def _repositories(state: State, principal: Principal, page: _Page) -> list[str]:
    """One more than the page holds, where there are more."""
    with state.database.reading() as connection:
        known = connection.execute(select(namespaces.c.name, namespaces.c.public))
        readable = {row.name for row in known if principal.role_in(row.name, public=row.public) >= Role.READER}
        rows = connection.execute(select(repositories.c.namespace, repositories.c.name))
        found = sorted(f"{row.namespace}/{row.name}" for row in rows if row.namespace in readable)
    return [name for name in found if name > page.last][: page.limit + 1]


def _referrers(
    asked: Asked, subject: Digest, artifact_type: str | None, last: str
) -> tuple[Sequence[dict[str, object]], bool]:
    """A page of descriptors, and whether there are more."""
    with asked.state.database.reading() as connection:
        public = is_public(connection, asked.namespace)
        if asked.principal.role_in(asked.namespace, public=bool(public)) < Role.READER:
            if not asked.principal.signed_in:
                raise NotSignedIn("that needs a token", hint="deltareg login URL")
            return [], False
        try:
            repository = repository_id(connection, asked.namespace, asked.name)
        except NotFound:
            # 404 would say that this registry knows nothing of referrers.
            return [], False
        found = referrers_of(connection, repository, subject, artifact_type, last, _REFERRERS + 1)
    shown: list[dict[str, object]] = []
    size = 0
    for one in found[:_REFERRERS]:
        size += len(json.dumps(one))
        if shown and size > _REFERRERS_BYTES:
            break
        shown.append(dict(one))
    return shown, len(shown) < len(found)
