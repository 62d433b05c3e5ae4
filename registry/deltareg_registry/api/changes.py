"""What is changed of a version's names: yanks, deprecations, channels."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import Field

from deltareg.digest import parse_digest
from deltareg.manifest import DigestText, Document
from deltareg.names import Reference, parse_reference
from deltareg_registry.access.principal import Principal
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT
from deltareg_registry.records.channels import remove_channel, set_channel
from deltareg_registry.records.marks import Mark, set_mark
from deltareg_registry.state import address_of, state_of

__all__ = ["changes_router"]

changes_router = APIRouter(
    prefix="/api/v1/deltas",
    tags=["names"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)


class Reason(Document):
    """Why a version is yanked or deprecated."""

    reason: str = Field(description="one line of text, of at most 1000 characters")


class Marked(Document):
    """A version, and what is said against it."""

    reference: str
    digest: str
    yanked: str | None = Field(description="why it was yanked; null where it was not")
    deprecated: str | None = Field(description="why it was deprecated; null where it was not")


class ChannelMove(Document):
    """Where a channel is to lead, and where it leads as far as whoever moves it knows."""

    digest: DigestText = Field(description="manifest of a published version")
    expected: DigestText | None = Field(description="null: the channel is to be new")


class ChannelPlace(Document):
    """Where a channel leads."""

    reference: str
    digest: str


@changes_router.put("/{namespace}/{name}/versions/{version}/yank")
def yank(request: Request, asking: Asking, namespace: str, name: str, version: str, body: Reason) -> Marked:
    """Yank a version, or give another reason: `latest` skips it, its bytes stay."""
    return _mark(request, asking, f"{namespace}/{name}:{version}", "yanked", body.reason)


@changes_router.delete("/{namespace}/{name}/versions/{version}/yank")
def unyank(request: Request, asking: Asking, namespace: str, name: str, version: str) -> Marked:
    """Take back that a version was yanked."""
    return _mark(request, asking, f"{namespace}/{name}:{version}", "yanked", None)


@changes_router.put("/{namespace}/{name}/versions/{version}/deprecation")
def deprecate(request: Request, asking: Asking, namespace: str, name: str, version: str, body: Reason) -> Marked:
    """Deprecate a version, or give another reason: it can be used as before, and who uses it is told."""
    return _mark(request, asking, f"{namespace}/{name}:{version}", "deprecated", body.reason)


@changes_router.delete("/{namespace}/{name}/versions/{version}/deprecation")
def undeprecate(request: Request, asking: Asking, namespace: str, name: str, version: str) -> Marked:
    """Take back that a version was deprecated."""
    return _mark(request, asking, f"{namespace}/{name}:{version}", "deprecated", None)


@changes_router.put("/{namespace}/{name}/channels/{channel}", responses=problems(409))
def move_channel(
    request: Request, asking: Asking, namespace: str, name: str, channel: str, body: ChannelMove
) -> ChannelPlace:
    """Let a channel lead to a published version, if it still leads where `expected` says."""
    reference = _channel(namespace, name, channel)
    digest, expected = parse_digest(body.digest), None if body.expected is None else parse_digest(body.expected)
    with state_of(request).database.writing() as connection:
        set_channel(connection, asking, reference, digest, expected, address=address_of(request))
    return ChannelPlace(reference=str(reference), digest=digest)


@changes_router.delete("/{namespace}/{name}/channels/{channel}", status_code=204)
def drop_channel(request: Request, asking: Asking, namespace: str, name: str, channel: str) -> Response:
    """Drop a channel; the version that it leads to stays."""
    with state_of(request).database.writing() as connection:
        remove_channel(connection, asking, _channel(namespace, name, channel), address=address_of(request))
    return Response(status_code=204)


def _channel(namespace: str, name: str, channel: str) -> Reference:
    return parse_reference(f"{namespace}/{name}:{channel}")


def _mark(request: Request, asking: Principal, version: str, mark: Mark, reason: str | None) -> Marked:
    reference = parse_reference(version, version_required=True)
    with state_of(request).database.writing() as connection:
        row = set_mark(connection, asking, reference, mark, reason, address=address_of(request))
    return Marked(reference=str(reference), digest=row["digest"], yanked=row["yanked"], deprecated=row["deprecated"])
