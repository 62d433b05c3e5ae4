"""Blobs: read, asked for, deleted."""

from __future__ import annotations

from collections.abc import Mapping

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response

from deltareg.digest import Digest
from deltareg.errors import NotAllowed, NotFound
from deltareg_registry.access.principal import Role
from deltareg_registry.database import from_now
from deltareg_registry.oci.blob_response import BlobResponse, byte_range
from deltareg_registry.oci.names import Asked, Asking, asked_of, checked_name, digest_of, repository_of, said_as
from deltareg_registry.problems import OciError, answer
from deltareg_registry.records.audit import record
from deltareg_registry.records.blobs import blob_of, keep_a_while, unlink_blob
from deltareg_registry.records.manifests import needs_blob
from deltareg_registry.records.namespaces import lock_repository

__all__ = ["blobs_router", "matches"]

blobs_router = APIRouter(prefix="/v2", tags=["oci"], dependencies=[Depends(checked_name)])


@blobs_router.head("/{namespace}/{name}/blobs/{digest}")
@blobs_router.get("/{namespace}/{name}/blobs/{digest}")
async def get_blob(digest: str, request: Request, asking: Asking) -> Response:
    """A blob of the repository, or a range of it."""
    asked, wanted = asked_of(request), digest_of(digest)
    size = await run_sync(_size, asked, wanted, request.method == "HEAD")
    etag = f'"{wanted}"'
    headers = {
        "Docker-Content-Digest": wanted,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers={"Docker-Content-Digest": wanted, "ETag": etag})
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(size)})
    elsewhere = await run_sync(_elsewhere, asked, wanted, headers)
    if elsewhere is not None:
        return elsewhere
    ranged = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
    try:
        found = byte_range(ranged, size)
    except OciError as error:
        refused = answer(request, error)
        refused.headers["Content-Range"] = f"bytes */{size}"
        return refused
    start, end = found or (0, size)
    if found is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 200 if found is None else 206
    return BlobResponse(asked.state.storage, wanted, start, end, status_code=status, headers=headers)


@blobs_router.delete("/{namespace}/{name}/blobs/{digest}")
async def delete_blob(digest: str, request: Request, asking: Asking) -> Response:
    """Take a blob out of the repository, unless one of its manifests needs it."""
    asked, unwanted = asked_of(request), digest_of(digest)
    await run_sync(_delete, asked, unwanted)
    return Response(status_code=202)


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match or If-Match header names an ETag."""
    if header is None:
        return False
    return any(one.strip().removeprefix("W/") in (etag, "*") for one in header.split(","))


def _size(asked: Asked, digest: Digest, head: bool) -> int:
    with asked.state.database.reading() as connection:
        repository = repository_of(connection, asked)
        with said_as("BLOB_UNKNOWN", 404, NotFound):
            size, touched = blob_of(connection, repository, digest)
    # Whoever asks before a push will not send what is here: it has to stay until the manifest has come.
    may_push = asked.principal.role_in(asked.namespace, public=False) >= Role.PUBLISHER
    if head and may_push and touched < from_now(-asked.state.settings.grace / 4):
        with asked.state.database.writing() as connection, said_as("BLOB_UNKNOWN", 404, NotFound):
            keep_a_while(connection, digest)
            # Looked up again, as its row is held now: the collector may have taken it since.
            blob_of(connection, repository, digest)
    return size


def _elsewhere(asked: Asked, digest: Digest, headers: Mapping[str, str]) -> Response | None:
    """The answer that lets somebody else send the bytes: the object store, or the proxy in front."""
    settings, storage = asked.state.settings, asked.state.storage
    if settings.redirect:
        url = storage.signed(digest)
        if url is not None:
            kept = {"Docker-Content-Digest": digest, "Location": url, "Cache-Control": "no-store"}
            return Response(status_code=307, headers=kept)
    if settings.accel is not None and storage.root is not None:
        place = f"{settings.accel.rstrip('/')}/{storage.key(digest)}"
        # nginx answers ranges itself, and says so.
        kept = {name: value for name, value in headers.items() if name != "Accept-Ranges"}
        return Response(headers={**kept, "X-Accel-Redirect": place})
    return None


def _delete(asked: Asked, digest: Digest) -> None:
    with asked.state.database.writing() as connection, said_as("BLOB_UNKNOWN", 404, NotFound):
        repository = repository_of(connection, asked)
        lock_repository(connection, repository)
        blob_of(connection, repository, digest)
        needing = needs_blob(connection, repository, digest)
        if needing is not None:
            raise OciError("UNSUPPORTED", 405, NotAllowed(f"{digest} is needed by the manifest {needing}"))
        unlink_blob(connection, repository, digest)
        record(
            connection,
            asked.principal,
            "blob.delete",
            f"{asked.repository}@{digest}",
            namespace=asked.namespace,
            address=asked.address,
        )
