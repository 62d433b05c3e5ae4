"""Versions of deltas."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from deltareg.errors import BadManifest
from deltareg.manifest import MANIFEST_TYPE, Document
from deltareg.names import Reference, parse_reference
from deltareg_registry.access.principal import Principal
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.records.publishing import Published, publish
from deltareg_registry.state import address_of, state_of

__all__ = ["read_body", "versions_router"]

versions_router = APIRouter(prefix="/api/v1/deltas", tags=["versions"], responses=PROBLEMS)


class PublishReport(Document):
    """What was published."""

    reference: str
    digest: str


@versions_router.put(
    "/{namespace}/{name}/versions/{version}",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {MANIFEST_TYPE: {"schema": {"$ref": "#/components/schemas/Manifest"}}},
        }
    },
    responses={200: {"model": PublishReport, "description": "The version had these bytes."}, **problems(409, 507)},
)
async def publish_version(
    namespace: str, name: str, version: str, request: Request, response: Response, asking: Asking
) -> PublishReport:
    """Publish a manifest, the body, whose blobs were sent before. The same bytes again are answered by 200."""
    state = state_of(request)
    reference = parse_reference(f"{namespace}/{name}:{version}", version_required=True)
    data = await read_body(request, state.settings.manifest_limit)
    done = await run_sync(_published, request, asking, reference, data, address_of(request))
    response.status_code = 201 if done.created else 200
    return PublishReport(reference=str(reference), digest=done.digest)


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request. Raises BadManifest above `limit` bytes, before more is read."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise BadManifest(f"the document has more than {limit} bytes")
    return bytes(data)


def _published(
    request: Request, asking: Principal, reference: Reference, data: bytes, address: str | None
) -> Published:
    state = state_of(request)
    return publish(state.database, state.storage, asking, reference, data, address=address)
