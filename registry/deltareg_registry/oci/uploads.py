"""Uploads of blobs: begun, continued, asked for, ended, given up; and blobs taken from another repository."""

from __future__ import annotations

import re
from contextlib import suppress

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection
from starlette.requests import ClientDisconnect

from deltareg.digest import Digest, sha256
from deltareg.errors import BadName, Busy, DeltaregError, DigestMismatch, NotFound, QuotaExceeded, TooLarge
from deltareg.names import parse_reference
from deltareg_registry.access.principal import Role
from deltareg_registry.oci.names import (
    Asked,
    Asking,
    asked_of,
    checked_name,
    digest_of,
    location,
    said_as,
)
from deltareg_registry.oci.receiving import exclusive, receive
from deltareg_registry.problems import OciError
from deltareg_registry.records.blobs import add_blob, keep_a_while, make_way, mount_blob
from deltareg_registry.records.namespaces import is_public, make_repository, repository_id
from deltareg_registry.records.quotas import check_room, lock_quota, room_of
from deltareg_registry.records.uploads import Upload, find_upload, forget_upload, start_upload, unknown_upload
from deltareg_registry.storage import Storage
from deltareg_registry.storage.uploads import NOTHING_YET

__all__ = ["uploads_router"]

uploads_router = APIRouter(prefix="/v2", tags=["oci"], dependencies=[Depends(checked_name)])

_SETTLING = 2.0
_IDENTITY = re.compile("[0-9a-f]{32}")
_RANGE = re.compile(r"(?:bytes[ =])?(?P<first>[0-9]{1,19})-(?P<last>[0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?", re.ASCII)


@uploads_router.post("/{namespace}/{name}/blobs/uploads/")
@uploads_router.post("/{namespace}/{name}/blobs/uploads", include_in_schema=False)
async def begin_upload(request: Request, asking: Asking) -> Response:
    """Begin an upload; send a whole blob with `digest`; or take one from another repository with `mount` and `from`."""
    asked, query = asked_of(request), request.query_params
    if query.get("digest-algorithm", "sha256") != "sha256":
        raise OciError("DIGEST_INVALID", 400, "blobs are known by SHA-256 here, and by nothing else")
    if "mount" in query:
        wanted = digest_of(query["mount"])
        if await run_sync(_mounted, asked, query.get("from", ""), wanted):
            return _done(asked, wanted)
    if "digest" not in query:
        upload = await run_sync(_started, asked)
        return _status(asked, upload, 202)
    wanted = digest_of(query["digest"])
    upload = await run_sync(_started, asked)
    try:
        async with exclusive(asked.state, upload.id):
            await _ended(request, asked, upload, wanted)
    except (DeltaregError, ClientDisconnect) as error:
        # Nobody knows of this upload: it cannot be continued.
        await run_sync(_dropped, asked, upload.id)
        return _unheard(error)
    return _done(asked, wanted)


@uploads_router.get("/{namespace}/{name}/blobs/uploads/{identity}")
async def upload_status(identity: str, request: Request, asking: Asking) -> Response:
    """How much of an upload has arrived."""
    asked = asked_of(request)
    await run_sync(_found, asked, identity)
    # Who asks after a cut comes before the request that was cut has put down its last bytes.
    with suppress(Busy):
        async with exclusive(asked.state, identity, patience=_SETTLING):
            pass
    return _status(asked, await run_sync(_found, asked, identity), 204)


@uploads_router.patch("/{namespace}/{name}/blobs/uploads/{identity}")
async def continue_upload(identity: str, request: Request, asking: Asking) -> Response:
    """Append the body to an upload."""
    asked = asked_of(request)
    await run_sync(_found, asked, identity)
    try:
        async with exclusive(asked.state, identity):
            upload = await run_sync(_found, asked, identity)
            upload = await _continued(request, asked, upload)
    except ClientDisconnect as error:
        return _unheard(error)
    return _status(asked, upload, 202)


@uploads_router.put("/{namespace}/{name}/blobs/uploads/{identity}")
async def end_upload(identity: str, request: Request, asking: Asking) -> Response:
    """Append the body, if there is one, and let the upload become the blob that `digest` names."""
    asked = asked_of(request)
    wanted = digest_of(request.query_params.get("digest", ""))
    await run_sync(_found, asked, identity)
    try:
        async with exclusive(asked.state, identity):
            upload = await run_sync(_found, asked, identity)
            await _ended(request, asked, upload, wanted)
    except ClientDisconnect as error:
        return _unheard(error)
    return _done(asked, wanted)


@uploads_router.delete("/{namespace}/{name}/blobs/uploads/{identity}")
async def cancel_upload(identity: str, request: Request, asking: Asking) -> Response:
    """Give an upload up."""
    asked = asked_of(request)
    await run_sync(_found, asked, identity)
    async with exclusive(asked.state, identity):
        await run_sync(_dropped, asked, identity)
    return Response(status_code=204)


async def _continued(request: Request, asked: Asked, upload: Upload, digest: Digest | None = None) -> Upload:
    length = _announced(request, upload)
    room = await run_sync(_room, asked, upload, length, digest)

    def check(connection: Connection, size: int) -> None:
        # Others send at the same time, and each of them was told of the same room.
        lock_quota(connection, asked.namespace)
        check_room(connection, asked.namespace, digest, size, upload=upload.id)

    try:
        return await receive(request, upload, room if length is None else min(room, length), check)
    except QuotaExceeded:
        # Bytes that no row counts must not stay.
        await run_sync(_dropped, asked, upload.id)
        raise


async def _ended(request: Request, asked: Asked, upload: Upload, digest: Digest) -> None:
    if request.headers.get("content-length") != "0":
        upload = await _continued(request, asked, upload, digest)
    await run_sync(_finished, asked, upload, digest)


def _announced(request: Request, upload: Upload) -> int | None:
    """How many bytes a request says that it brings. Raises OciError where they do not follow those that are here."""
    declared = request.headers.get("content-length")
    length = int(declared) if declared is not None and declared.isdecimal() else None
    text = request.headers.get("content-range")
    if text is None:
        return length
    found = _RANGE.fullmatch(text.strip())
    if found is None:
        raise OciError("BLOB_UPLOAD_INVALID", 400, f"Content-Range is not written as first-last: {text!r:.60}")
    first, last = int(found["first"]), int(found["last"])
    if first != upload.progress.size:
        raise OciError(
            "BLOB_UPLOAD_INVALID",
            416,
            f"the next byte is number {upload.progress.size}, not {first}",
            hint="ask how far the upload is, and go on there",
        )
    if last < first or (length is not None and length != last - first + 1):
        raise OciError("SIZE_INVALID", 400, f"Content-Range {text!r:.60} and Content-Length {length} do not agree")
    return last - first + 1


def _room(asked: Asked, upload: Upload, length: int | None, digest: Digest | None) -> int:
    """How many bytes may be appended. Raises TooLarge, QuotaExceeded where it is known that they are too many."""
    limit, size = asked.state.settings.blob_limit, upload.progress.size
    if size + (length or 0) > limit:
        raise TooLarge(f"a blob may have {limit} bytes")
    with asked.state.database.reading() as connection:
        check_room(connection, asked.namespace, digest, size + (length or 0), upload=upload.id)
        free = room_of(connection, asked.namespace, digest, upload=upload.id)
    return limit - size if free is None else max(0, min(limit, free) - size)


def _started(asked: Asked) -> Upload:
    with asked.state.database.writing() as connection:
        repository = make_repository(connection, asked.namespace, asked.name)
        return start_upload(connection, repository, asked.principal.user)


def _found(asked: Asked, identity: str) -> Upload:
    with said_as("BLOB_UPLOAD_UNKNOWN", 404, NotFound):
        if _IDENTITY.fullmatch(identity) is None:
            raise unknown_upload(identity)
        with asked.state.database.reading() as connection:
            repository = repository_id(connection, asked.namespace, asked.name)
            return find_upload(connection, repository, identity, asked.principal.user)


def _finished(asked: Asked, upload: Upload, digest: Digest) -> None:
    database, uploads = asked.state.database, asked.state.storage.uploads
    size = upload.progress.size
    with database.writing() as connection:
        check_room(connection, asked.namespace, digest, size, upload=upload.id)
        # A collector that looks at this blob now must see that it is wanted before its bytes are put down anew.
        if not keep_a_while(connection, digest):
            make_way(connection, digest)
    if upload.progress == NOTHING_YET and digest != sha256(b""):
        _dropped(asked, upload.id)
        raise OciError("DIGEST_INVALID", 400, "nothing was sent")
    try:
        uploads.finish(upload.id, upload.progress, digest)
    except DigestMismatch as error:
        _dropped(asked, upload.id)
        raise OciError("DIGEST_INVALID", 400, error) from error
    try:
        with database.writing() as connection:
            lock_quota(connection, asked.namespace)
            check_room(connection, asked.namespace, digest, size, upload=upload.id)
            add_blob(connection, upload.repository, digest, size)
            forget_upload(connection, upload.id)
            _check_kept(asked.state.storage, digest, size)
    except (QuotaExceeded, OciError):
        # Others used the room up, or the bytes are gone. Those that are there are no upload any more, and the
        # collector's if nobody has them.
        _dropped(asked, upload.id)
        raise
    uploads.remove(upload.id)


def _check_kept(storage: Storage, digest: Digest, size: int) -> None:
    """Raise OciError where a collector has removed the bytes of a blob, between their end and the blob's row.

    To be asked in the transaction that writes the row: a collector holds the row of what it removes until the bytes are
    gone, so it has come to its end, or meets the row that is written here.
    """
    try:
        kept = storage.size(digest) == size
    except NotFound:
        kept = False
    if not kept:
        told = NotFound(f"{digest} was collected before it was known", hint="send it again")
        raise OciError("BLOB_UPLOAD_UNKNOWN", 404, told)


def _dropped(asked: Asked, identity: str) -> None:
    with asked.state.database.writing() as connection:
        forget_upload(connection, identity)
    asked.state.storage.uploads.remove(identity)


def _mounted(asked: Asked, source: str, digest: Digest) -> bool:
    """Whether the blob could be taken from another repository, which who asks may read."""
    try:
        found = parse_reference(source)
    except BadName:
        return False
    with asked.state.database.writing() as connection:
        public = is_public(connection, found.namespace)
        if public is None or asked.principal.role_in(found.namespace, public=public) < Role.READER:
            return False
        try:
            repository = repository_id(connection, found.namespace, found.name)
        except NotFound:
            return False
        return _mount(connection, asked, repository, digest)


def _mount(connection: Connection, asked: Asked, source: int, digest: Digest) -> bool:
    target = make_repository(connection, asked.namespace, asked.name)
    return mount_blob(connection, source, target, asked.namespace, digest)


def _status(asked: Asked, upload: Upload, status: int) -> Response:
    # Nothing at all is written as 0-0 too: the specification has no other way.
    headers = {
        "Location": location(asked, "blobs", "uploads", upload.id),
        "Range": f"0-{max(0, upload.progress.size - 1)}",
        "Docker-Upload-UUID": upload.id,
        "Content-Length": "0",
    }
    if status == 204:
        del headers["Content-Length"]
    return Response(status_code=status, headers=headers)


def _done(asked: Asked, digest: Digest) -> Response:
    place = location(asked, "blobs", digest)
    return Response(status_code=201, headers={"Location": place, "Docker-Content-Digest": digest})


def _unheard(error: Exception) -> Response:
    """What is answered to a client that is gone: nobody reads it. Raises every other error."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    raise error
