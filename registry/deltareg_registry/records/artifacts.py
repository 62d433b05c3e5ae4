"""Manifests as the specification of OCI images has them: what a registry must know of one, whoever wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest
from deltareg.manifest import (
    DELTA_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    Annotations,
    Count,
    Descriptor,
    DigestText,
    Document,
    parse,
)

__all__ = ["MEDIA_TYPES", "Artifact", "parse_artifact"]

_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
# What PostgreSQL takes for a text: no NUL.
_PRINTED = "^[ -~]+$"
_INDEXES = (INDEX_TYPE, _DOCKER_LIST)
MEDIA_TYPES = (MANIFEST_TYPE, INDEX_TYPE, _DOCKER_MANIFEST, _DOCKER_LIST)
"""What can be stored as a manifest."""


class _Named(Document):
    """A descriptor of another blob or manifest; what it says besides is its own affair."""

    media_type: str = Field(pattern=_PRINTED, max_length=255)
    digest: DigestText
    size: Count


class _AnyManifest(Document):
    """An image manifest or index of OCI or Docker."""

    schema_version: Literal[2]
    media_type: str | None = Field(default=None, max_length=255)
    artifact_type: str | None = Field(default=None, pattern=_PRINTED, max_length=255)
    config: _Named | None = None
    layers: list[_Named] | None = Field(default=None, fail_fast=True)
    manifests: list[_Named] | None = Field(default=None, fail_fast=True)
    subject: _Named | None = None
    annotations: Annotations | None = None


@dataclass(frozen=True)
class Artifact:
    """A manifest or an index, with what it needs: `blobs` and `manifests` have to be in its repository."""

    data: bytes
    digest: Digest
    media_type: str
    artifact_type: str | None
    annotations: dict[str, str]
    subject: Digest | None
    blobs: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]

    @property
    def is_delta(self) -> bool:
        """Whether this is a delta's manifest."""
        return self.media_type == MANIFEST_TYPE and self.artifact_type == DELTA_TYPE


def parse_artifact(data: bytes, media_type: str | None) -> Artifact:
    """Read a manifest that was sent as `media_type`. Raises BadManifest."""
    found = parse(_AnyManifest, data, what="the manifest")
    kind = found.media_type or media_type or _guessed(found)
    if kind not in MEDIA_TYPES:
        raise BadManifest(f"manifests of the type {kind!r:.100} are not kept here", hint=f"send {MANIFEST_TYPE}")
    if media_type is not None and media_type != kind:
        raise BadManifest(f"the manifest is {kind}, and was sent as {media_type!r:.100}")
    is_index = kind in _INDEXES
    if is_index and (found.manifests is None or found.config is not None or found.layers is not None):
        raise BadManifest("an index has manifests, and neither config nor layers")
    if not is_index and (found.config is None or found.layers is None or found.manifests is not None):
        raise BadManifest("a manifest has config and layers, and no manifests")
    return Artifact(
        data=data,
        digest=sha256(data),
        media_type=kind,
        # An index without one has none: only of manifests does the config tell.
        artifact_type=found.artifact_type or (None if found.config is None else found.config.media_type),
        annotations=found.annotations or {},
        subject=None if found.subject is None else parse_digest(found.subject.digest),
        blobs=_once([*([] if found.config is None else [found.config]), *(found.layers or [])]),
        manifests=_once(found.manifests or []),
    )


def _guessed(found: _AnyManifest) -> str:
    return INDEX_TYPE if found.manifests is not None else MANIFEST_TYPE


def _once(named: list[_Named]) -> tuple[Descriptor, ...]:
    sizes: dict[str, _Named] = {}
    for one in named:
        if sizes.setdefault(one.digest, one).size != one.size:
            raise BadManifest(f"the manifest gives {one.digest} two sizes: {sizes[one.digest].size} and {one.size}")
    return tuple(Descriptor(media_type=one.media_type, digest=one.digest, size=one.size) for one in sizes.values())
