"""What a push has to send."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from deltareg.digest import parse_digest
from deltareg.manifest import DigestText, Document
from deltareg_registry.api.asking import Asking
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT
from deltareg_registry.records.blobs import sizes_of, touch
from deltareg_registry.records.namespaces import repository_id
from deltareg_registry.state import state_of

__all__ = ["blobs_router"]

blobs_router = APIRouter(prefix="/api/v1/deltas", tags=["versions"], route_class=bounded(DOCUMENT_LIMIT))

_MOST = 1000


class Wanted(Document):
    """Blobs that somebody is about to publish."""

    digests: list[DigestText] = Field(max_length=_MOST)


class Missing(Document):
    """Those that have to be sent first."""

    missing: list[str]


@blobs_router.post("/{namespace}/{name}/missing")
def missing_blobs(namespace: str, name: str, wanted: Wanted, request: Request, asking: Asking) -> Missing:
    """Which blobs the repository lacks. The others are kept from collection for the grace period from now on."""
    digests = {parse_digest(digest) for digest in wanted.digests}
    with state_of(request).database.writing() as connection:
        repository = repository_id(connection, namespace, name)
        touch(connection, sizes_of(connection, repository, digests))
        # Looked up again, as the rows are held now: the collector may have come first.
        present = sizes_of(connection, repository, digests)
    return Missing(missing=sorted(digests - present.keys()))
