"""Manifests: read, put by digest or tag, deleted."""

from __future__ import annotations

import re

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection

from deltareg.digest import Digest
from deltareg.errors import (
    BadHeader,
    BadManifest,
    BadName,
    DigestMismatch,
    NotAllowed,
    NotFound,
    TooLarge,
    UnsupportedFormat,
    VersionExists,
)
from deltareg.names import Reference, is_channel, parse_reference
from deltareg_registry.oci.blobs import matches
from deltareg_registry.oci.names import (
    Asked,
    Asking,
    asked_of,
    checked_name,
    digest_of,
    location,
    repository_of,
    said_as,
)
from deltareg_registry.problems import OciError
from deltareg_registry.records.artifacts import Artifact, parse_artifact
from deltareg_registry.records.audit import record
from deltareg_registry.records.events import emit
from deltareg_registry.records.manifests import (
    Kept,
    check_parts,
    drop_manifest,
    find_manifest,
    keep_manifest,
    missing_parts,
)
from deltareg_registry.records.namespaces import lock_repository, make_repository
from deltareg_registry.records.publishing import publish
from deltareg_registry.records.tags import (
    delete_tag,
    digest_of_tag,
    has_version_of,
    move_tag,
    remove_version,
    versions_with,
)

__all__ = ["manifests_router"]

manifests_router = APIRouter(prefix="/v2", tags=["oci"], dependencies=[Depends(checked_name)])

_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)


@manifests_router.head("/{namespace}/{name}/manifests/{reference}")
@manifests_router.get("/{namespace}/{name}/manifests/{reference}")
async def get_manifest(reference: str, request: Request, asking: Asking) -> Response:
    """A manifest, by its digest or a tag."""
    asked = asked_of(request)
    repository, kept = await run_sync(_kept, asked, reference)
    etag = f'"{kept.digest}"'
    headers = {"Docker-Content-Digest": kept.digest, "ETag": etag, "Vary": "Accept"}
    if not _accepted(request.headers.getlist("accept"), kept.media_type):
        raise OciError("MANIFEST_UNKNOWN", 404, f"{reference} is {kept.media_type}, which the Accept header leaves out")
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if request.method == "GET":
        asked.state.pulls.count(repository, kept.digest)
    # Not as media_type: starlette would add a charset to some.
    headers |= {"Content-Type": kept.media_type, "Content-Length": str(len(kept.content))}
    return Response(b"" if request.method == "HEAD" else kept.content, headers=headers)


@manifests_router.put("/{namespace}/{name}/manifests/{reference}")
async def put_manifest(reference: str, request: Request, asking: Asking) -> Response:
    """Store a manifest, all of whose blobs are in the repository, under its digest and a tag.

    A delta under a version is published: it never changes.
    """
    asked = asked_of(request)
    data = await _body(request, asked.state.settings.manifest_limit)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower() or None
    artifact = await run_sync(_put, asked, reference, data, media_type)
    headers = {
        "Location": location(asked, "manifests", artifact.digest),
        "Docker-Content-Digest": artifact.digest,
    }
    if artifact.subject is not None:
        headers["OCI-Subject"] = artifact.subject
    return Response(status_code=201, headers=headers)


@manifests_router.delete("/{namespace}/{name}/manifests/{reference}")
async def delete_manifest(reference: str, request: Request, asking: Asking) -> Response:
    """Delete a tag; or a manifest, by its digest, with all of its tags. Versions only where the policy allows it."""
    await run_sync(_delete, asked_of(request), reference)
    return Response(status_code=202)


async def _body(request: Request, limit: int) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise OciError("MANIFEST_INVALID", 413, TooLarge(f"a manifest may have {limit} bytes"))
    return bytes(data)


def _kept(asked: Asked, text: str) -> tuple[int, Kept]:
    with asked.state.database.reading() as connection:
        repository = repository_of(connection, asked)
        with said_as("MANIFEST_UNKNOWN", 404, NotFound):
            return repository, find_manifest(connection, repository, _resolved(connection, asked, repository, text))


def _resolved(connection: Connection, asked: Asked, repository: int, text: str) -> Digest:
    if ":" in text:
        return digest_of(text)
    found = digest_of_tag(connection, repository, text) if _TAG.fullmatch(text) else None
    if found is None:
        raise NotFound(f"there is no {asked.repository}:{text:.128}", hint="deltareg list --remote URL")
    return found


def _put(asked: Asked, text: str, data: bytes, media_type: str | None) -> Artifact:
    with said_as("MANIFEST_INVALID", 400, BadManifest):
        artifact = parse_artifact(data, media_type)
    tag = None if ":" in text else _tag(asked, text)
    if tag is None and digest_of(text) != artifact.digest:
        raise OciError("DIGEST_INVALID", 400, f"the manifest has the digest {artifact.digest}, not {text:.80}")
    if artifact.is_delta and tag is not None and tag.version is not None:
        _publish(asked, tag, artifact)
    else:
        _keep(asked, tag, artifact)
    return artifact


def _tag(asked: Asked, text: str) -> Reference:
    if _TAG.fullmatch(text) is None:
        raise OciError("MANIFEST_INVALID", 400, BadName(f"{text!r:.200} is no tag"))
    return Reference(asked.namespace, asked.name, text)


def _publish(asked: Asked, reference: Reference, artifact: Artifact) -> None:
    state = asked.state
    parse_reference(str(reference), version_required=True)
    with (
        said_as("DENIED", 409, VersionExists),
        said_as("MANIFEST_BLOB_UNKNOWN", 404, NotFound),
        said_as("MANIFEST_INVALID", 400, BadManifest),
        said_as("MANIFEST_INVALID", 400, BadHeader),
        said_as("MANIFEST_INVALID", 400, UnsupportedFormat),
        said_as("MANIFEST_INVALID", 400, DigestMismatch),
    ):
        publish(state.database, state.storage, asked.principal, reference, artifact.data, address=asked.address)


def _keep(asked: Asked, tag: Reference | None, artifact: Artifact) -> None:
    with asked.state.database.writing() as connection:
        repository = make_repository(connection, asked.namespace, asked.name)
        lock_repository(connection, repository)
        _check(connection, repository, artifact)
        if tag is not None and artifact.is_delta:
            _check_channel(connection, repository, tag, artifact)
        added = keep_manifest(connection, repository, artifact)
        if added and artifact.subject is not None:
            subject = f"{asked.repository}@{artifact.subject}"
            detail = {"digest": artifact.digest, "artifactType": artifact.artifact_type}
            emit(connection, asked.namespace, "referrer.add", subject, detail)
        if tag is not None:
            move_tag(connection, asked.principal, tag, repository, artifact.digest, asked.address)


def _check(connection: Connection, repository: int, artifact: Artifact) -> None:
    missing = missing_parts(connection, repository, artifact)
    if missing:
        told = NotFound(
            f"{len(missing)} of the blobs and manifests that the manifest needs are missing: {', '.join(missing[:3])}",
            hint="push them first",
            missing=missing[:1000],
        )
        raise OciError("MANIFEST_BLOB_UNKNOWN", 404, told)
    with said_as("MANIFEST_INVALID", 400, BadManifest):
        check_parts(connection, repository, artifact)


def _check_channel(connection: Connection, repository: int, tag: Reference, artifact: Artifact) -> None:
    """Raise OciError unless a delta may be found by this name: a channel, of what is a version."""
    assert tag.tag is not None
    if not is_channel(tag.tag):
        told = BadName(
            f"{tag.tag!r} is neither a version nor a channel",
            hint="versions are SemVer (1.2.3); channels are lower-case words (latest, prod)",
        )
        raise OciError("MANIFEST_INVALID", 400, told)
    if not has_version_of(connection, repository, artifact.digest):
        told = BadManifest(
            f"{tag} cannot name a delta that no version has", hint=f"push it as {tag.repository}:1.2.3 first"
        )
        raise OciError("MANIFEST_INVALID", 400, told)


def _delete(asked: Asked, text: str) -> None:
    with (
        asked.state.database.writing() as connection,
        said_as("UNSUPPORTED", 405, NotAllowed),
        said_as("MANIFEST_UNKNOWN", 404, NotFound),
    ):
        repository = repository_of(connection, asked)
        lock_repository(connection, repository)
        digest = _resolved(connection, asked, repository, text)
        plain = Reference(asked.namespace, asked.name)
        if ":" not in text:
            delete_tag(connection, asked.principal, plain.with_tag(text), repository, asked.address)
            return
        for version in versions_with(connection, repository, digest):
            remove_version(connection, asked.principal, plain.with_tag(version), repository, asked.address)
        drop_manifest(connection, repository, digest)
        record(
            connection,
            asked.principal,
            "manifest.delete",
            f"{asked.repository}@{digest}",
            namespace=asked.namespace,
            address=asked.address,
        )


def _accepted(headers: list[str], media_type: str) -> bool:
    """Whether a client takes a media type; one that does not say takes all."""
    wanted = [one.partition(";")[0].strip().lower() for header in headers for one in header.split(",")]
    lenient = ("*/*", "application/*", "application/json", media_type)
    return not any(wanted) or any(one in lenient for one in wanted)
